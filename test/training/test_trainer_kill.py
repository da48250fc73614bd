"""A run that is killed again and again ends where one that was left alone ends, to the bit."""

import multiprocessing
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from pose_reloc.cli import main

PRESET = """
network: {backbone: squeezenet1_1, hidden: 16, dropout: 0.2}
loss: {name: homoscedastic}
views: {sources: 2}
backbone_weights: none
short_side: 48
points: 32
epochs: 8
batch: 8
learning_rate: 0.001
schedule: cosine
ema: 0.9
normalize_translation: true
validate_every: 3
precision: float32
device: cpu
"""


@pytest.fixture
def start(room, tmp_path):
    """A function that starts a training in a process of its own."""
    preset = tmp_path / 'preset.yaml'
    preset.write_text(PRESET)
    # A server that has imported everything starts a process in no time.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['training.commands.train', 'training.build'])

    def process(name, *options):
        command = ['train', '--dataset', '7scenes', '--path', str(room), '--preset', str(preset)]
        out = ['--out', str(tmp_path / f'{name}.scene')]
        child = context.Process(target=main, args=([*command, *out, *options],), daemon=True)
        child.start()
        return child

    return process


@pytest.mark.slow
def test_kill_9_at_any_moment_then_resume(start, tmp_path):
    whole = start('whole')
    rng = np.random.default_rng(4)
    checkpoint = tmp_path / 'killed.scene.run' / 'checkpoint.pt'
    times = [0]
    for number in range(3):
        child = start('killed', *(['--resume'] if number else []))
        deadline = time.monotonic() + 200
        while not checkpoint.is_file() or checkpoint.stat().st_mtime_ns == times[-1]:
            assert child.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        child.kill()
        child.join()
        times.append(checkpoint.stat().st_mtime_ns)
    assert not (tmp_path / 'killed.scene').exists(), 'the run was over before it was killed'
    last = start('killed', '--resume')
    for child in (whole, last):
        child.join(300)
        assert child.exitcode == 0
    first, second = (load_file(tmp_path / f'{name}.scene') for name in ('whole', 'killed'))
    assert first.keys() == second.keys()
    assert [name for name in first if not np.array_equal(first[name], second[name])] == []
    left = {p.name for p in (tmp_path / 'killed.scene.run').iterdir() if p.name.startswith('.')}
    assert left == set()
