"""Training on a machine that fails: killed at any moment, a full disk, two runs at once, damage.

`make soak` sets POSE_RELOC_KILLS to kill more often than `make test` does.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from subprocess import PIPE

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation

from pose_reloc.cli import main
from pose_reloc.errors import TrainingError
from pose_reloc.scene import SceneModel, read_header
from training.cache import CacheSettings, build_cache
from training.checkpoint import CheckpointWriter, load_checkpoint
from training.datasets import open_dataset

KILLS = int(os.environ.get('POSE_RELOC_KILLS', 4))
ROOT = Path(__file__).resolve().parents[2]
PRESET = """
network: {backbone: squeezenet1_1, hidden: 8}
backbone_weights: none
short_side: 48
points: 16
epochs: 6
batch: 4
learning_rate: 0.001
validation: 0.2
validate_every: 2
precision: float32
device: cpu
compile: 'off'
"""


def write_wall(root):
    """A walk along a painted wall: 16 frames with depth, in 7-Scenes layout."""
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(0, 255, (90, 160, 3), np.uint8), (1600, 900))
    K = np.array([[130.0, 0, 79.5], [0, 130, 59.5], [0, 0, 1]])
    (root / 'seq-01').mkdir(parents=True)
    for split in ('Train', 'Test'):
        (root / f'{split}Split.txt').write_text('sequence1\n')
    camera = '{width: 160, height: 120, fx: 130.0, fy: 130.0, cx: 79.5, cy: 59.5}'
    eye = np.eye(4).tolist()
    (root / 'calibration.yaml').write_text(
        f'color: {camera}\ndepth: {camera}\ncolor_T_depth: {eye}\n'
    )
    v, u = np.mgrid[:120, :160]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    for i in range(16):
        T = np.eye(4)
        T[:3, :3] = Rotation.from_rotvec([0.01 * i, 0.02 * (i % 5), 0]).as_matrix()
        T[:3, 3] = 0.1 * i, 0.05 * (i % 3), -2
        world = rays @ T[:3, :3].T
        depth = 2 / world[..., 2]  # the wall is the plane z = 0 of the world
        hit = T[:3, 3] + depth[..., None] * world
        pixels = (hit[..., :2] * 300 + (400, 450)).astype(np.float32)
        stem = root / 'seq-01' / f'frame-{i:06d}'
        cv2.imwrite(f'{stem}.color.png', cv2.remap(wall, pixels, None, cv2.INTER_LINEAR))
        cv2.imwrite(f'{stem}.depth.png', np.rint(1000 * depth).astype(np.uint16))
        np.savetxt(f'{stem}.pose.txt', T)


@pytest.fixture(scope='module')
def wall(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'wall'
    write_wall(root)
    return root


@pytest.fixture(scope='module')
def samples(wall):
    return open_dataset('7scenes', wall).train


# A process that has imported everything and forks: a training starts in no time. Each line it reads
# is a job: start one, or wait for one.
SERVER = """
import json, os, resource, sys, traceback
import training.build, training.commands.train
from pose_reloc.cli import main

def run(job):
    os.environ['POSE_RELOC_CACHE'] = job['cache']
    sys.argv[1:] = job['arguments']
    log = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    if job['file_limit'] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job['file_limit'], resource.RLIM_INFINITY))
    try:
        return main(job['arguments'])
    except BaseException:
        traceback.print_exc()
        return 1

print(os.getpid(), flush=True)  # ready
for line in sys.stdin:
    job = json.loads(line)
    if 'wait' in job:
        pid, status = os.waitpid(job['wait'], 0 if job['long'] else os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else None, flush=True)
    else:
        pid = os.fork()
        if pid == 0:
            os._exit(run(job))
        print(pid, flush=True)
"""


class Runs:
    """Trainings in processes of their own, in one folder with one cache."""

    def __init__(self, wall, folder):
        self.folder, self.cache = folder, folder / 'cache'
        preset = folder / 'preset.yaml'
        preset.write_text(PRESET)
        where = ['--dataset', '7scenes', '--path', str(wall), '--preset', str(preset)]
        self.command = ['train', *where]
        self._server = subprocess.Popen(
            [sys.executable, '-c', SERVER], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT
        )
        self._server.stdout.readline()

    def start(self, name, *options, file_limit=None) -> int:
        """Trains NAME.scene; returns the process id."""
        return self._ask(
            arguments=[*self.command, '--out', str(self.folder / f'{name}.scene'), *options],
            log=str(self.folder / f'{name}.log'),
            cache=str(self.cache),
            file_limit=file_limit,
        )

    def result(self, process: int, wait: bool = True) -> int | None:
        """The exit code; None for a process that still runs, if that is not waited for."""
        return self._ask(wait=process, long=wait)

    def kill(self, process: int) -> bool:
        """False for a process that had ended by itself just before."""
        os.kill(process, signal.SIGKILL)
        result = self.result(process)
        assert result in (-signal.SIGKILL, 0)
        return result != 0

    def log(self, name) -> str:
        return (self.folder / f'{name}.log').read_text(errors='replace')

    def left_over(self) -> list:
        """Temporary files and folders in all the places that are written to."""
        return [path for path in self.folder.rglob('.*')]

    def end(self) -> None:
        self._server.communicate()

    def _ask(self, **job) -> int | None:
        self._server.stdin.write(json.dumps(job) + '\n')
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline().replace('None', 'null'))


@pytest.fixture(scope='module')
def runs(wall, tmp_path_factory):
    runs = Runs(wall, tmp_path_factory.mktemp('runs'))
    yield runs
    runs.end()


@pytest.fixture(scope='module')
def whole(runs):
    """A scene file of a training that nobody disturbed, and the seconds it took."""
    start = time.perf_counter()
    assert runs.result(runs.start('whole')) == 0, runs.log('whole')
    return runs.folder / 'whole.scene', time.perf_counter() - start


def same(first, second) -> bool:
    """True where two scene files hold the same tensors, to the bit."""
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n], equal_nan=True) for n in a)


def test_two_trainings_on_one_cache_at_the_same_time(runs, whole):
    processes = [runs.start(f'twin{i}') for i in range(2)]
    for i, process in enumerate(processes):
        assert runs.result(process) == 0, runs.log(f'twin{i}')
        assert same(whole[0], runs.folder / f'twin{i}.scene')
    assert len([path for path in runs.cache.iterdir() if path.is_dir()]) == 1


def test_same_seed_same_scene_and_a_recipe_that_says_how(runs, whole, wall, tmp_path):
    """Another process, another cache, files in another place: the same bits."""
    write_wall(tmp_path / 'copy')
    other = Runs(tmp_path / 'copy', tmp_path)
    assert other.result(other.start('whole')) == 0, other.log('whole')
    other.end()
    assert same(whole[0], tmp_path / 'whole.scene')
    recipes = [read_header(path).recipe for path in (whole[0], tmp_path / 'whole.scene')]
    for recipe in recipes:
        assert recipe['settings']['seed'] == 0 and '--preset' in recipe['command']
        assert {'pose_reloc', 'python', 'torch', 'numpy', 'cv2'} <= recipe['versions'].keys()
    unequal = {k for k in recipes[0] if recipes[0][k] != recipes[1][k]}
    assert unequal <= {'command', 'created', 'seconds', 'images_per_second', 'history', 'dataset'}
    assert len(recipes[0]['data_sha256']) == 64
    losses = [[row['loss'] for row in recipe['history']] for recipe in recipes]
    assert losses[0] == losses[1]


def test_other_images_have_another_hash(samples, tmp_path):
    first = build_cache(samples[:4], CacheSettings(48, 16), tmp_path / 'a')
    again = build_cache(samples[:4], CacheSettings(48, 16), tmp_path / 'b')
    other = build_cache(samples[1:5], CacheSettings(48, 16), tmp_path / 'c')
    assert first.sha256 == again.sha256 != other.sha256


def test_kill_9_at_random_moments_then_resume(runs, whole, capsys):
    """Caching, training, mapping, saving: the scene is absent or whole, and the end is the same."""
    rng = np.random.default_rng()
    scene, cache = runs.folder / 'killed.scene', runs.cache
    phases, kills, rounds = Counter(), 0, 0
    while kills < KILLS:
        for path in (scene, runs.folder / 'killed.scene.run' / 'checkpoint.pt'):
            path.unlink(missing_ok=True)
        runs.cache = runs.folder / f'cache{rounds}'
        rounds += 1
        for attempt in range(4):
            process = runs.start('killed', *(['--resume'] if attempt else []))
            # The first is early: caching is over in a moment.
            time.sleep(rng.uniform(0, whole[1] * (1 if attempt else 0.15)))
            if runs.result(process, wait=False) is not None:
                break
            if not runs.kill(process):
                break
            kills += 1
            phases[phase(runs)] += 1
            if scene.exists():
                SceneModel.load(scene)
        assert runs.result(runs.start('killed', '--resume')) == 0, runs.log('killed')
        assert same(whole[0], scene)
        left = [p for p in runs.left_over() if p.parent != runs.folder or 'killed' in p.name]
        assert left == []
    runs.cache = cache
    with capsys.disabled():
        print(f'\n{kills} kills in {rounds} runs: {dict(phases)}')


def phase(runs) -> str:
    """What a killed run was doing, by what it left."""
    scene = runs.folder / 'killed.scene'
    if scene.exists():
        mapped = any(name.startswith('landmarks.') for name in load_file(scene))
        return 'after mapping' if mapped else 'mapping'
    if not any(not p.name.startswith('.') for p in runs.cache.glob('*')):
        return 'before and during caching'
    return 'training'


def test_a_disk_that_gets_full_is_a_sentence_and_training_goes_on_from_there(runs, whole):
    """Files may grow to 2 MB: the cache fits, the checkpoint does not."""
    assert runs.result(runs.start('full', file_limit=2_000_000)) == 2
    assert 'File too large' in runs.log('full') and 'Traceback' not in runs.log('full')
    assert not (runs.folder / 'full.scene').exists()
    assert runs.result(runs.start('full', '--resume')) == 0, runs.log('full')
    assert same(whole[0], runs.folder / 'full.scene')


@pytest.mark.parametrize('what', ['out', 'run', 'cache'])
def test_a_folder_that_cannot_be_written_is_a_sentence(what, runs, tmp_path, capsys, monkeypatch):
    # Nobody can write there, not even root.
    monkeypatch.setenv('POSE_RELOC_CACHE', '/proc/cache' if what == 'cache' else str(tmp_path))
    out = '/proc/x.scene' if what == 'out' else str(tmp_path / 'x.scene')
    run = '/proc/run' if what == 'run' else str(tmp_path / 'run')
    assert main([*runs.command, '--out', out, '--run', run]) == 2
    error = capsys.readouterr().err
    assert 'cannot write' in error and '/proc' in error and 'Traceback' not in error


@pytest.fixture
def cache_folder(samples, tmp_path):
    """A built cache, and a function that opens it again."""
    build_cache(samples[:4], CacheSettings(48, 16), tmp_path)
    (folder,) = tmp_path.iterdir()
    return folder, lambda: build_cache(samples[:4], CacheSettings(48, 16), tmp_path)


@pytest.mark.parametrize(
    'damage',
    [
        lambda data, i: data[:i],
        lambda data, i: data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :],
        lambda data, i: b'',
        lambda data, i: b'\x93NUMPY\x01\x00v\x00' + b'9' * 300,
    ],
)
def test_a_damaged_cache_is_refused(damage, cache_folder):
    folder, reopen = cache_folder
    assert len(os.listdir(folder)) == 6
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for i in {0, 6, 9, 60, len(whole) // 2, len(whole) - 2} & set(range(len(whole))):
            file.write_bytes(damage(whole, i))
            with pytest.raises(TrainingError, match='is damaged .* delete that folder'):
                reopen()
        file.unlink()
        with pytest.raises(TrainingError, match='is damaged'):
            reopen()
        file.write_bytes(whole)
    reopen()


@pytest.mark.parametrize('meta', [[], {}, None, {'sha256': 1}, {'camera': 3, 'sha256': ''}])
def test_a_cache_with_another_meta_file_is_refused(meta, cache_folder):
    folder, reopen = cache_folder
    (folder / 'meta.json').write_text(json.dumps(meta))
    with pytest.raises(TrainingError, match='is damaged'):
        reopen()


def test_a_cache_does_not_fit_on_the_disk(samples, tmp_path):
    """An error, where writing to a memory map without space would kill the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(TrainingError, match='File too large; free some space'):
            build_cache(samples, CacheSettings(48, 16), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    state = {'settings': {}, 'data_key': '', 'learner': [np.pi], 'weights': {'a': 1.5}}
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: state)
    path = tmp_path / 'checkpoint.pt'
    whole, refused = path.read_bytes(), 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        try:
            found = load_checkpoint(tmp_path, {}, '')
        except TrainingError:
            refused += 1
        else:  # times and paddings of the zip format mean nothing
            assert found == state | {'version': found['version']}
    assert refused > len(whole) / 4
