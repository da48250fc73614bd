"""`pose_reloc train` with every backbone and many settings; what cannot work is one sentence."""

import csv

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pose_reloc.cli import main
from pose_reloc.scene import SceneModel, read_header
from training.datasets import open_dataset
from training.trainer import Trainer

PRESET = """
network: {backbone: squeezenet1_1, hidden: 8}
backbone_weights: none
short_side: 64
points: 16
epochs: 1
batch: 4
learning_rate: 0.001
validation: 0
precision: float32
device: cpu
"""


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / 'preset.yaml'
    path.write_text(PRESET)
    return path


@pytest.fixture
def link(room, tmp_path):
    """A function that makes a small 7-Scenes folder of links to the room's first frames."""

    def make(frames=8, depth=True):
        folder = tmp_path / 'small'
        (folder / 'seq-01').mkdir(parents=True)
        for name in ('TrainSplit.txt', 'TestSplit.txt'):
            (folder / name).write_text('sequence1\n')
        (folder / 'calibration.yaml').symlink_to(room / 'calibration.yaml')
        for index in range(frames):
            for suffix in ('color.png', 'color.jpg', 'pose.txt', *(['depth.png'] if depth else [])):
                name = f'frame-{index:06d}.{suffix}'
                if (room / 'seq-01' / name).is_file():
                    (folder / 'seq-01' / name).symlink_to(room / 'seq-01' / name)
        return folder

    return make


@pytest.fixture
def train(preset, tmp_path):
    """A function that trains as a user does and returns the exit code and the scene file."""

    def run(folder, *options, kind='7scenes'):
        out = tmp_path / 'out.scene'
        where = ['--dataset', kind, '--path', str(folder), '--out', str(out)]
        return main(['train', *where, '--preset', str(preset), *options]), out

    return run


@pytest.mark.parametrize(
    'backbone',
    [
        'mobilenet_v2',
        pytest.param('googlenet', marks=pytest.mark.slow),
        'resnet18',
        pytest.param('resnet50', marks=pytest.mark.slow),
        pytest.param('efficientnet_b0', marks=pytest.mark.slow),
        'mobilenet_v3_large',
        pytest.param('convnext_tiny', marks=pytest.mark.slow),
    ],
)
def test_every_backbone_trains_to_a_scene(backbone, link, train):
    code, out = train(link(4), '--backbone', backbone)
    assert code == 0
    scene = SceneModel.load(out)
    assert scene.header.network['backbone'] == backbone
    assert np.isfinite(scene.header.recipe['history'][-1]['loss'])
    scene.build_network()


def test_any_setting_can_be_set(link, train, capsys):
    options = {
        'network.rotation': '6d',
        'network.dropout': '0.1',
        'network.hidden': '12',
        'loss.beta': '250',
        'loss.unit_quaternion': 'true',
        'views.sigma_m': '0.05',
        'learning_rate': '2e-4',
        'ema': '0.9',
    }
    texts = [word for name, value in options.items() for word in ('--set', f'{name}={value}')]
    code, out = train(link(), *texts, '--loss', 'posenet', '--precision', 'bfloat16')
    assert code == 0, capsys.readouterr().err
    recipe = read_header(out).recipe
    settings = recipe['settings']
    assert settings['network'] == {
        'backbone': 'squeezenet1_1', 'hidden': 12, 'dropout': 0.1, 'rotation': '6d'
    }  # fmt: skip
    assert (settings['loss']['name'], settings['loss']['beta']) == ('posenet', 250)
    assert settings['loss']['unit_quaternion'] is True
    assert settings['views']['sigma_m'] == 0.05 and settings['views']['sources'] == 2
    assert (settings['learning_rate'], settings['ema']) == (2e-4, 0.9)
    assert recipe['precision'] == 'bfloat16'
    assert SceneModel.load(out).build_network().head[-1].out_features == 9


@pytest.mark.parametrize('loss', ['posenet', 'homoscedastic', 'maxerror'])
def test_poses_alone_are_enough_for(loss, link, train):
    assert train(link(depth=False), '--loss', loss)[0] == 0


def test_a_depth_range_by_hand_takes_the_place_of_depth(link, train, capsys):
    folder = link(depth=False)
    assert train(folder, '--loss', 'global_homography', '--no-map')[0] == 2
    assert '--depth-range NEAR FAR' in capsys.readouterr().err
    assert train(folder, '--loss', 'global_homography', '--depth-range', '0.5', '4')[0] == 0


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (['--loss', 'geometric'], 'geometric needs 3D points'),
        (['--loss', 'local_homography', '--no-map'], '--loss global_homography'),
        (['--batch', '9'], '8 training images are fewer than one batch of 9; use --batch 4'),
        (['--backbone', 'resnet19'], "unknown backbone 'resnet19'; torchvision has: alexnet"),
        (['--backbone', 'vit_b_16'], 'does not take images of any size'),
        (['--set', 'loss.betta=3'], "unknown setting 'betta'"),
        (['--set', 'loss.beta=much'], "beta must be a number, got 'much'"),
        (['--set', 'loss.norm=l3'], "'l1' or 'l2'"),
        (['--set', 'batch'], 'expected KEY=VALUE'),
        (['--set', 'epochs.x=1'], 'only network, loss, views have fields'),
        (['--set', 'views.sources=0'], 'sources must be at least 1'),
        (['--set', 'ema=1'], 'ema must lie in [0, 1)'),
        (['--compile', 'perhaps'], "compile must be 'auto', 'on' or 'off'"),
        (['--precision', 'int8'], 'precision must be'),
        (['--learning-rate', '0'], 'learning_rate must be positive'),
        (['--set', 'name=2001-99-99'], 'the value is not YAML'),
        (['--seed', '99999999999999999999'], 'seed must lie in [0, 2^63)'),
    ],
)
def test_what_cannot_work_is_one_sentence(options, sentence, link, train, capsys):
    code, out = train(link(depth=False), '--loss', 'posenet', *options)
    lines = [line for line in capsys.readouterr().err.splitlines() if 'pose_reloc train' in line]
    assert code == 2 and len(lines) == 1 and sentence in lines[0]
    assert not out.exists()


def test_an_empty_split_and_mismatched_poses_are_sentences(link, train, capsys):
    folder = link()
    (folder / 'TrainSplit.txt').write_text('\n')
    assert train(folder)[0] == 2
    assert 'train' in capsys.readouterr().err.lower()
    (folder / 'TrainSplit.txt').write_text('sequence1\n')
    pose = folder / 'seq-01' / 'frame-000003.pose.txt'
    text = pose.read_text()
    pose.unlink()
    pose.write_text(' '.join(text.split()[:12]))  # three of its four rows
    assert train(folder)[0] == 2
    assert 'frame-000003.pose.txt is not a pose' in capsys.readouterr().err
    pose.write_text(text)
    for image in (folder / 'seq-01').glob('frame-000005.color.*'):
        image.unlink()
    assert train(folder)[0] == 2
    assert 'frame-000005.pose.txt has no image' in capsys.readouterr().err


def write_table(room, folder, far=None):
    """The room's first images as a table of poses; `far` moves the camera of the third."""
    folder.mkdir()
    with open(folder / 'poses.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        names = ('t1', 't2', 't3', 'q1', 'q2', 'q3', 'q4')
        writer.writerow(['scene', 'split', 'seq', 'img_path', *names])
        for index, sample in enumerate(open_dataset('7scenes', room).train[:8]):
            q_xyzw = Rotation.from_matrix(sample.world_T_camera[:3, :3].T).as_quat()
            centre = sample.world_T_camera[:3, 3]
            if index == 3 and far:
                centre = [far, 0.0, 0.0]
            path = sample.image_path.relative_to(room)
            row = ['room', 'train', 'walk', path, *centre, *np.roll(q_xyzw, 1)]
            writer.writerow(row)
    return folder


def table_options(room):
    values = (f'images={room}', 'intrinsics=525,525,320,240', 'rotation=world_to_camera')
    return [word for value in values for word in ('--option', value)]


def test_divergence_says_why_and_keeps_what_can_be_gone_on_from(
    room, train, tmp_path, capsys, monkeypatch
):
    folder = write_table(room, tmp_path / 'table')
    common = [*table_options(room), '--loss', 'posenet', '--epochs', '30']
    code, out = train(folder, *common, '--learning-rate', '1e20', kind='csv')
    error = capsys.readouterr().err
    assert code == 2 and 'diverged at learning rate 1e+20' in error
    assert 'start again with a lower --learning-rate' in error
    # Begins well and fails later.
    one_epoch = Trainer._one_epoch

    def failing(trainer, *arguments):
        if trainer.epoch == 12:
            with torch.no_grad():
                next(trainer.learner.network.head.parameters()).fill_(float('inf'))
        return one_epoch(trainer, *arguments)

    monkeypatch.setattr(Trainer, '_one_epoch', failing)
    code, out = train(folder, *common, '--learning-rate', '1e-3', kind='csv')
    error = capsys.readouterr().err
    assert code == 2 and '--resume and a lower --learning-rate' in error
    monkeypatch.undo()
    code, out = train(folder, *common, '--learning-rate', '1e-4', '--resume', kind='csv')
    assert code == 0, capsys.readouterr().err
    recipe = read_header(out).recipe
    assert recipe['epochs'] == 30 and np.isfinite(recipe['history'][-1]['loss'])


def test_divergence_by_an_absurd_pose_names_the_image(room, train, tmp_path, capsys):
    folder = write_table(room, tmp_path / 'table', far=1.5e4)
    options = [*table_options(room), '--loss', 'maxerror', '--epochs', '9']
    code, out = train(folder, *options, '--learning-rate', '1e20', kind='csv')
    error = capsys.readouterr().err
    assert code == 2 and "training image 3 (sequence 'walk') lies 1.5e+04 m" in error
    assert '`pose_reloc inspect`' in error and not out.exists()
