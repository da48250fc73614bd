"""The documentation says what is true: commands that parse, files that exist, diffs that apply."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pose_reloc import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FOLDERS = ('config', 'docs', 'environment', 'launch', 'pose_reloc', 'test', 'training')


def code_of(text: str) -> str:
    """The indented and fenced code of a page, continued lines joined."""
    fenced = re.findall(r'^```\w*\n(.*?)^```', text, re.M | re.S)
    indented = re.findall(r'^    .*$', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S), re.M)
    return re.sub(r'\s*\\\n\s*', ' ', '\n'.join([*fenced, *indented]))


def commands_of(code: str) -> list[str]:
    """The lines that call `pose_reloc` with a command, in a ROS workspace too."""
    start = r'^\s*(?:\$ )?(?:ros2 run pose_reloc )?pose_reloc +([a-z].*)$'
    return [line for line in re.findall(start, code, re.M)]


COMMANDS = [(page.name, line) for page in PAGES for line in commands_of(code_of(page.read_text()))]


def parse(line: str, monkeypatch) -> int:
    """Parses a command line as the program does, without doing what it says."""
    # `...` stands for what the command always needs.
    out = '' if line.startswith('evaluate') else ' --out chess.scene'
    line = line.replace(' ...', f' --dataset 7scenes --path chess{out}')
    words = shlex.split(line, comments=True)
    assert words[0] in cli.COMMANDS, f'no command {words[0]}'
    module = importlib.import_module(cli.COMMANDS[words[0]][0])
    monkeypatch.setattr(module, 'run', lambda args: 0)
    try:
        return cli.main(words)
    except SystemExit as stop:  # argparse: bad usage
        return stop.code


@pytest.mark.parametrize(('page', 'line'), COMMANDS)
def test_every_command_in_the_documentation_is_one(page, line, monkeypatch):
    assert parse(line, monkeypatch) == 0


def test_there_are_commands_and_wrong_ones_are_found(monkeypatch):
    assert len(COMMANDS) > 10
    found = commands_of(code_of('text\n\n    pose_reloc train --out a \\\n        --frobnicate\n'))
    assert found == ['train --out a --frobnicate']
    assert parse(found[0], monkeypatch) == 2


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text()
    prose = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    links = [link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', prose)]
    missing = [link for link in links if link and '://' not in link]
    missing = [link for link in missing if not (page.parent / link).exists()]
    # `pose_reloc/cli.py` and the like; names with * or capitals stand for several files.
    named = re.findall(rf'`((?:{"|".join(FOLDERS)})/[a-z0-9_./]*)`', prose)
    assert missing + [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_every_make_target_that_a_page_names_exists(page):
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    text = page.read_text()
    named = re.findall(r'`make ([a-z]+)', text) + re.findall(r'^    make ([a-z]+)', text, re.M)
    assert set(named) - targets == set()


def test_every_test_that_the_page_on_reliability_names_exists():
    text = (ROOT / 'docs' / 'reliability.md').read_text()
    sources = '\n'.join(path.read_text() for path in (ROOT / 'test').rglob('test_*.py'))
    named = set(re.findall(r'`(test_[a-z0-9_]+)(?=[`\[])', text))
    assert len(named) > 20
    assert [name for name in sorted(named) if f'def {name}(' not in sources] == []


def test_the_web_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip('mkdocs', reason='mkdocs builds the site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'WARNING' not in done.stderr
    for page in ('index.html', 'docs/training/index.html', 'CONTRIBUTING/index.html'):
        assert (tmp_path / page).stat().st_size > 1000


# What a reader of CONTRIBUTING.md has after each of its changes, in a process of its own.
USE = """
import sys
import numpy as np
import torch

from training.losses import LossSettings, PoseTarget, build_loss
from pose_reloc.network import NetworkSettings, PosePrediction, PoseRegressor
loss = build_loss(LossSettings('axes'))
c, q = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 0, 0, 0]])
def error(shift, turn):
    prediction = PosePrediction(c + torch.tensor(shift), torch.tensor([turn]))
    return float(loss(prediction, PoseTarget(c, q)))
assert error([0.0, 0, 0], [2.0, 0, 0, 0]) == 0
assert abs(error([3.0, 4, 0], [1.0, 0, 0, 0]) - 5) < 1e-6
assert abs(error([0.0, 0, 0], [0.0, 1, 0, 0]) - 2) < 1e-6  # upside down: the axis is opposite

from training.datasets import open_dataset
dataset = open_dataset('folder', sys.argv[1], intrinsics='60,60,31.5,23.5', every='3')
assert (len(dataset.train), len(dataset.test)) == (4, 2)
assert dataset.train[0].world_T_camera[:3, 3].tolist() == [1, 2, 3]
assert dataset.train[0].load_image().shape == (48, 64, 3)

network = PoseRegressor(NetworkSettings(backbone='patches', hidden=8))
assert network(torch.zeros(2, 3, 48, 64)).w_t_c.shape == (2, 3)

from pose_reloc.backends import open_backend
from pose_reloc.scene import SceneModel
scene = SceneModel.load(sys.argv[2])
camera = scene.header.network_camera
shape = (1, camera.height, camera.width, 3)
image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
answers = [open_backend(scene, 'cpu', 'float32', name)(image) for name in ('torch', 'exported')]
for first, second in zip(*answers, strict=True):
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
"""


def test_what_contributing_shows_can_be_applied_and_used(tmp_path, tiny_scene):
    if not shutil.which('git'):
        pytest.skip('git applies the diffs')
    for name in ('pose_reloc', 'training'):
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    diffs = re.findall(r'^```diff\n(.*?)^```', (ROOT / 'CONTRIBUTING.md').read_text(), re.M | re.S)
    assert len(diffs) == 4
    apply = ['git', 'apply', '--unsafe-paths', '--whitespace=nowarn', '-']
    for diff in diffs:
        done = subprocess.run(apply, input=diff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f'{done.stderr}\n{diff}'
    changed = [path for path in tmp_path.rglob('*.py') if new_or_other(path, tmp_path)]
    assert len(changed) == 5
    (tmp_path / 'walk').mkdir()
    for i in range(6):
        cv2.imwrite(str(tmp_path / 'walk' / f'{i}.png'), np.zeros((48, 64, 3), np.uint8))
        pose = np.eye(4)
        pose[:3, 3] = i, 2 * i, 3 * i
        np.savetxt(tmp_path / 'walk' / f'{i}.txt', pose)
    tiny_scene.save(tmp_path / 'tiny.scene')
    arguments = [str(tmp_path / 'walk'), str(tmp_path / 'tiny.scene')]
    done = subprocess.run(
        [sys.executable, '-c', USE, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def new_or_other(path: Path, root: Path) -> bool:
    original = ROOT / path.relative_to(root)
    return not original.is_file() or original.read_bytes() != path.read_bytes()
