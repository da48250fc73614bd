"""`pose_reloc train` and `evaluate` as a user calls them."""

import json
import re

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.cli import main
from pose_reloc.geometry import pose_matrix
from pose_reloc.scene import read_header

FAST = """
network: {backbone: resnet18, hidden: 32}
backbone_weights: none
short_side: 48
epochs: 3
batch: 8
learning_rate: 0.001
normalize_translation: true
validate_every: 1
precision: float32
views: {sources: 2}
"""


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / 'quick.yaml'
    path.write_text(FAST)
    return str(path)


def test_train_then_evaluate(room, preset, tmp_path, capsys):
    scene = tmp_path / 'room.scene'
    where = ['--dataset', '7scenes', '--path', str(room)]
    options = ['--out', str(scene), '--preset', preset, '--device', 'cpu']
    assert main(['train', *where, *options]) == 0
    out = capsys.readouterr().out
    assert 'wrote' in out and 'held-out' in out
    assert 'room on room (test split)' in out
    assert (tmp_path / 'room.html').is_file()
    header = read_header(scene)
    assert header.recipe['epochs'] == 3 and header.recipe['images'] < 48
    assert header.recipe['device'] == header.recipe['mapping']['device'] == 'cpu'
    run = tmp_path / 'room.scene.run'
    names = {p.name for p in run.iterdir()}
    assert {
        'evaluation.json',
        'metrics.csv',
        'metrics.json',
        'curves.png',
        'settings.json',
    } <= names
    assert len(json.loads((run / 'metrics.json').read_text())) == 3

    names = {'json': 'out.json', 'html': 'out.html', 'picture': 'out.png', 'tum': 'out.txt'}
    files = [x for kind, name in names.items() for x in (f'--{kind}', str(tmp_path / name))]
    evaluate = ['evaluate', '--scene', str(scene), *where, '--no-refine']
    assert main([*evaluate, '--split', 'both', *files]) == 0
    out = capsys.readouterr().out
    assert 'retrieval baseline' in out and 'on training images' in out
    assert '(test, regressor alone)' in out
    values = json.loads((tmp_path / 'out.json').read_text())
    wanted = {
        'frames', 'answered', 'recall', 'latency_p50_ms', 'latency_p95_ms', 'baselines',
        'reprojection_px',
        *(f'{s}_position_m' for s in ('median', 'mean', 'p90', 'p99', 'max')),
        *(f'{s}_rotation_deg' for s in ('median', 'mean', 'p90', 'p99', 'max')),
    }  # fmt: skip
    assert wanted <= values.keys()
    assert values['frames'] == values['answered'] == 12 and values['answers'] == {'COARSE': 12}
    assert {'0.05m_5deg', '0.25m_10deg', '0.5m_15deg'} <= values['recall'].keys()
    assert values['train']['frames'] == 48 and values['train']['reprojection_px'] > 0
    assert (tmp_path / 'out.html').read_text().startswith('<!DOCTYPE html>')
    for name in ('out.txt', 'out.truth.txt'):
        assert len((tmp_path / name).read_text().splitlines()) == 1 + 12


def small_bag(builder, folder):
    """Forty images of noise with depth, 10 cm apart, poses from TF."""
    camera = Camera(64, 48, 60.0, 60.0, 32.0, 24.0)
    rng = np.random.default_rng(0)
    builder.info('/front/camera_info', 0, camera)
    for i in range(40):
        stamp, pose = (i + 1) * 100_000_000, np.eye(4)
        pose[:3, 3] = 0.1 * i, 0, 0
        builder.transform('map', 'camera_optical_frame', stamp, pose)
        builder.image('/front/image_raw', stamp, rng.integers(0, 255, (48, 64, 3), np.uint8))
        builder.image('/front/depth', stamp, np.full((48, 64), 2000 + i, np.uint16))
    return builder.write(folder / 'walk')


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights(room, preset, tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    from training.trainer import Trainer

    where = ['--dataset', '7scenes', '--path', str(room), '--preset', preset, '--no-report']
    whole, stopped = tmp_path / 'whole.scene', tmp_path / 'stopped.scene'
    assert main(['train', *where, '--out', str(whole)]) == 0

    one_epoch = Trainer._one_epoch

    def interrupted(self, *args):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return one_epoch(self, *args)

    monkeypatch.setattr(Trainer, '_one_epoch', interrupted)
    assert main(['train', *where, '--out', str(stopped)]) == 130
    assert not stopped.exists()
    monkeypatch.setattr(Trainer, '_one_epoch', one_epoch)
    assert main(['train', *where, '--out', str(stopped), '--resume']) == 0
    first, second = load_file(whole), load_file(stopped)
    assert first.keys() == second.keys()
    different = [n for n in first if not (first[n] == second[n]).all()]
    assert different == []


def test_train_on_a_bag_with_nothing_else_said(builder, preset, tmp_path, capsys):
    """It says what it picked, and is judged by what training held out: there is no test bag."""
    bag, scene = small_bag(builder, tmp_path), tmp_path / 'office.scene'
    command = ['train', '--dataset', 'bag', '--path', str(bag), '--out', str(scene), '--no-map']
    assert main([*command, '--preset', preset, '--epochs', '1']) == 0
    out = capsys.readouterr().out
    assert 'images /front/image_raw (40), camera /front/camera_info, poses TF map' in out
    assert 'depth /front/depth' in out
    held_out = read_header(scene).recipe['images_held_out']
    assert held_out > 0
    assert f'({held_out} training images that were held out; there is no test split)' in out
    values = json.loads((tmp_path / 'office.scene.run' / 'evaluation.json').read_text())
    # The baseline must not find the very image that is asked for.
    assert (
        values['frames'] == held_out and values['baselines']['retrieval']['median_position_m'] > 0
    )
    assert (tmp_path / 'office.html').is_file()


def test_resume_with_other_settings_names_the_difference(room, preset, tmp_path, capsys):
    where = ['--dataset', '7scenes', '--path', str(room), '--preset', preset, '--no-report']
    out = ['--out', str(tmp_path / 'a.scene'), '--no-map']
    assert main(['train', *where, *out]) == 0
    assert main(['train', *where, *out, '--resume', '--batch', '4']) == 2
    assert 'began with batch=8, now it is 4' in capsys.readouterr().err


def test_a_recording_shorter_than_a_batch_is_trained_in_smaller_ones(room, tmp_path, capsys):
    preset = tmp_path / 'large.yaml'
    preset.write_text(FAST.replace('batch: 8', 'batch: 64').replace('epochs: 3', 'epochs: 1'))
    where = ['--dataset', '7scenes', '--path', str(room), '--preset', str(preset), '--no-report']
    out = ['--out', str(tmp_path / 'a.scene'), '--no-map']
    assert main(['train', *where, *out]) == 0
    recipe = read_header(tmp_path / 'a.scene').recipe
    batch = recipe['images'] // 2
    assert f'batches of {batch} instead of 64' in capsys.readouterr().out
    assert recipe['settings']['batch'] == batch
    assert main(['train', *where, *out, '--set', 'batch=64']) == 2


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (['--dataset', 'nonsense'], 'unknown dataset kind'),
        (['--preset', 'nonsense'], 'unknown preset'),
        (['--backbone', 'nonsense'], 'unknown backbone'),
        (['--loss', 'nonsense'], 'unknown loss'),
        (['--batch', '500'], 'fewer than one batch'),
        (['--backbone-weights', 'nowhere.pth'], 'no backbone weights'),
        (['--epochs', '3', '--minutes', '1'], 'not both'),
        (['--device', 'tpu'], 'device'),
    ],
)
def test_what_cannot_work_is_a_sentence(room, preset, tmp_path, capsys, options, sentence):
    command = ['train', '--dataset', '7scenes', '--path', str(room), '--preset', preset]
    code = main([*command, '--out', str(tmp_path / 'x.scene'), *options])
    error = capsys.readouterr().err
    assert code == 2 and sentence in error and 'Traceback' not in error


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('nowhere/x.scene', 'nowhere does not exist'),
        ('folder', 'it is a folder'),
        ('room.html', 'another ending than .html, as in room.scene'),
        ('x' * 250, 'name too long'),
        ('x' * 300, 'name too long'),
    ],
)
def test_a_scene_that_cannot_be_written_is_said_before_training(
    room, tmp_path, capsys, tiny_scene, name, sentence
):
    """And before mapping; nothing is left behind."""
    (tmp_path / 'folder').mkdir()
    tiny_scene.save(tmp_path / 'tiny.scene')
    out = ['--out', str(tmp_path / name)]
    where = ['--dataset', '7scenes', '--path', str(room), *out]
    for command in (['train', *where], ['map', '--scene', str(tmp_path / 'tiny.scene'), *where]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert sentence in error and len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['folder', 'tiny.scene']


@pytest.mark.parametrize('option', ['--json', '--html', '--picture', '--tum'])
def test_a_result_that_cannot_be_written_is_said_before_evaluating(
    room, tmp_path, capsys, tiny_scene, monkeypatch, option
):
    def no_work(*args):
        raise AssertionError('this was for nothing')

    monkeypatch.setattr('training.evaluate.evaluate', no_work)
    tiny_scene.save(tmp_path / 'tiny.scene')
    command = ['evaluate', '--scene', str(tmp_path / 'tiny.scene'), '--dataset', '7scenes']
    for name, sentence in (('nowhere/a.txt', 'does not exist'), ('', 'it is a folder')):
        assert main([*command, '--path', str(room), option, str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err


def test_names_with_dots_keep_scenes_and_pages_apart(builder, preset, tmp_path):
    bag = small_bag(builder, tmp_path)
    for name in ('room v1.0', 'room v1.1.scene'):
        command = ['train', '--dataset', 'bag', '--path', str(bag), '--out', str(tmp_path / name)]
        assert main([*command, '--preset', preset, '--epochs', '1', '--no-map']) == 0
        assert read_header(tmp_path / name).name == name.removesuffix('.scene')
    pages = sorted(path.name for path in tmp_path.glob('*.html'))
    assert pages == ['room v1.0.html', 'room v1.1.html']


def test_the_page_of_an_aligned_scene_is_drawn_in_one_frame(room, tmp_path, tiny_scene):
    """Truth and answers are those of the dataset; so is the training path."""
    aligned = tiny_scene.with_map_T_scene(pose_matrix(np.eye(3), [100.0, 50.0, 0.0]))
    aligned.save(tmp_path / 'a.scene')
    page = tmp_path / 'a.html'
    command = ['evaluate', '--scene', str(tmp_path / 'a.scene'), '--dataset', '7scenes']
    assert main([*command, '--path', str(room), '--no-refine', '--html', str(page)]) == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL).group(1))
    expected = tiny_scene.train_world_T_camera[:, :3, 3]
    np.testing.assert_allclose(data['train']['positions'], expected, atol=1e-3)
