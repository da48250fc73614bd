"""The command line: fast help, clear sentences, exit codes."""

import subprocess
import sys

import pytest

from pose_reloc.cli import COMMANDS, main


def test_help_needs_no_heavy_import():
    code = (
        'import sys; from pose_reloc.cli import main\n'
        'try: main(["--help"])\n'
        'except SystemExit: pass\n'
        'heavy = {"torch", "cv2", "matplotlib", "rclpy", "scipy"} & set(sys.modules)\n'
        'sys.exit(str(heavy) if heavy else 0)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


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
