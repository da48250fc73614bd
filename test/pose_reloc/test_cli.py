"""The command line: fast help, clear sentences, exit codes."""

import subprocess
import sys

import pytest

from pose_reloc.cli import COMMANDS, main


def run_and_list_heavy_modules(code):
    """The printed text of a fresh interpreter, and what it has imported that takes long."""
    heavy = {'torch', 'cv2', 'matplotlib', 'rclpy', 'openvino', 'onnxruntime', 'scipy'}
    code += f'\nimport sys; sys.exit(str({heavy} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    return done.stdout, done.stderr.strip()


def test_import_is_light():
    assert run_and_list_heavy_modules('import pose_reloc') == ('', 'set()')
    # The list is right: what is asked for is imported.
    assert run_and_list_heavy_modules('import pose_reloc; pose_reloc.Relocalizer')[1] != 'set()'


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help_waits_for_no_heavy_import(command):
    arguments = [command, '--help'] if command else ['--help']
    printed, heavy = run_and_list_heavy_modules(
        f'from pose_reloc.cli import main\ntry: main({arguments})\nexcept SystemExit: pass'
    )
    assert heavy == 'set()'
    assert command in printed if command else all(name in printed for name in COMMANDS)


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_teaches_by_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, '--help'])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert 'examples:' in out and f'pose_reloc {name}' in out


def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    scene = ['evaluate', '--scene', str(tmp_path / 'no.scene')]
    assert main([*scene, '--dataset', '7scenes', '--path', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'no.scene' in error and error.count('\n') == 1 and 'Traceback' not in error


@pytest.mark.parametrize('arguments', [[], ['evaluate'], ['unknown']])
def test_bad_usage_is_exit_code_2(arguments):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2


def test_an_unknown_option_is_refused_with_the_options_of_the_command(capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['export', '--scene', 'a.scene', '--out', 'a.onnx', '--into', 'b'])
    error = capsys.readouterr().err
    assert '--format {onnx,openvino}' in error
    assert 'pose_reloc export: error: unrecognized arguments: --into b' in error
