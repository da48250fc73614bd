"""Two processes under `torchrun` (gloo) against one: the same losses; one crash ends them all."""

import json
import os
import signal
import subprocess
import sys

import pytest

from training.processes import Processes, local_device

# No BatchNorm: its statistics are those of each process's share of a batch.
PRESET = """
network: {backbone: squeezenet1_1, hidden: 16}
views: {sources: 2}
backbone_weights: none
short_side: 48
points: 32
epochs: 3
batch: 8
learning_rate: 0.001
normalize_translation: true
validate_every: 1
precision: float32
device: cpu
"""


@pytest.fixture
def command(room, tmp_path):
    """Arguments of a training, and the environment in which processes share the cores."""
    preset = tmp_path / 'preset.yaml'
    preset.write_text(PRESET)
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    options = ['--dataset', '7scenes', '--path', str(room), '--preset', str(preset)]
    return ['train', *options, '--out'], environment


def torchrun(program, environment, **options):
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    return subprocess.Popen(
        [*launch, *program],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(command, tmp_path):
    arguments, environment = command
    two = torchrun(
        ['-m', 'pose_reloc.cli', *arguments, str(tmp_path / 'two.scene')],
        environment,
        stderr=subprocess.PIPE,
    )
    one = [sys.executable, '-m', 'pose_reloc.cli', *arguments, str(tmp_path / 'one.scene')]
    subprocess.run(one, check=True, env=environment, capture_output=True, timeout=300)
    out, error = two.communicate(timeout=300)
    assert two.returncode == 0, error
    assert out.count('two.scene (') == 1 and out.count('48 training images') == 1
    rows = {}
    for name in ('one', 'two'):
        rows[name] = json.loads((tmp_path / f'{name}.scene.run' / 'metrics.json').read_text())
        assert (tmp_path / f'{name}.scene').is_file()
    assert len(rows['one']) == 3
    # Sums over a batch are taken in another order: float32 differs, then Adam carries it on.
    for column, tolerance in (('loss', 1e-4), ('median_position_m', 1e-3)):
        values = [[row[column] for row in rows[name]] for name in ('one', 'two')]
        assert values[1] == pytest.approx(values[0], rel=tolerance)


def test_a_crash_of_one_process_does_not_hang_the_other(command, tmp_path):
    arguments, environment = command
    program = tmp_path / 'crash.py'
    program.write_text(
        'import os, signal, sys\n'
        'from pose_reloc.cli import main\n'
        'from training.trainer import Trainer\n'
        'one_epoch = Trainer._one_epoch\n'
        'def crash(self, *args):\n'
        '    if self.epoch == 2 and self.processes.rank == 1:\n'
        '        os.kill(os.getpid(), signal.SIGKILL)\n'
        '    return one_epoch(self, *args)\n'
        'Trainer._one_epoch = crash\n'
        'sys.exit(main(sys.argv[1:]))\n'
    )
    scene = tmp_path / 'x.scene'
    run = torchrun([str(program), *arguments, str(scene)], environment, stderr=subprocess.DEVNULL)
    try:
        run.communicate(timeout=300)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode not in (0, None) and not scene.exists()
    # What was reached is there to go on from.
    assert (tmp_path / 'x.scene.run' / 'checkpoint.pt').is_file()


def test_every_process_names_a_gpu_of_its_own_before_it_opens_one(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    names = ('auto', 'cuda', 'cuda:1', 'cpu', 'tpu')
    assert [local_device(name) for name in names] == list(names)
    monkeypatch.setenv('LOCAL_RANK', '3')
    own = ['cuda:3', 'cuda:3', 'cuda:3', 'cpu', 'tpu']
    assert [local_device(name) for name in names] == own
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert local_device('auto') == 'auto'


def test_a_process_alone_agrees_with_itself():
    import torch

    alone = Processes.join(torch.device('cpu'))
    assert (alone.rank, alone.count) == (0, 1) and alone.agreed(0.25) == 0.25
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(alone.mean(values), values)
    alone.leave()
