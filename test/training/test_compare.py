"""`pose_reloc compare`: equal runs, an honest table, and going on after a stop."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from pose_reloc.cli import main
from pose_reloc.errors import SettingsError, TrainingError
from pose_reloc.features import FeatureSettings
from pose_reloc.geometry import pose_matrix
from pose_reloc.landmarks import LandmarkMap
from pose_reloc.scene import SceneModel
from training.compare import CAMBRIDGE_THRESHOLDS, compare
from training.datasets import open_dataset
from training.settings import load_preset
from training.trainer import Trainer

PRESET = """
network: {backbone: squeezenet1_1, hidden: 16}
backbone_weights: none
short_side: 48
epochs: 2
batch: 4
learning_rate: 0.001
validate_every: 2
precision: float32
"""
CAMERA = {'width': 64, 'height': 48, 'fx': 60.0, 'fy': 60.0, 'cx': 31.5, 'cy': 23.5}


def write_sequence(folder, count, seed, depth=True):
    """Pictures of noise and depth of 1 to 4 m along a walk, as 7-Scenes stores them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        stem = folder / f'frame-{i:06d}'
        cv2.imwrite(f'{stem}.color.png', rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        if depth:
            image = rng.integers(1000, 4000, (48, 64)).astype(np.uint16)
            cv2.imwrite(f'{stem}.depth.png', image)
        R = Rotation.from_euler('y', 5 * i, degrees=True).as_matrix()
        np.savetxt(f'{stem}.pose.txt', pose_matrix(R, [0.3 * i, 0.0, 0.1 * i]))


def write_dataset(folder, depth=True):
    write_sequence(folder / 'seq-01', 12, 0, depth)
    write_sequence(folder / 'seq-02', 4, 1, depth)
    (folder / 'TrainSplit.txt').write_text('sequence1\n')
    (folder / 'TestSplit.txt').write_text('sequence2\n')
    calibration = {'color': CAMERA, 'depth': dict(CAMERA), 'color_T_depth': np.eye(4).tolist()}
    (folder / 'calibration.yaml').write_text(yaml.safe_dump(calibration))
    return folder


@pytest.fixture
def place(tmp_path):
    """A folder with the preset `tiny.yaml` and the dataset `walk`."""
    (tmp_path / 'tiny.yaml').write_text(PRESET)
    write_dataset(tmp_path / 'walk')
    return tmp_path


@pytest.fixture
def settings(place):
    return load_preset(str(place / 'tiny.yaml'))


@pytest.fixture
def dataset(place):
    return open_dataset('7scenes', place / 'walk')


def run(place, *options):
    where = ['--dataset', '7scenes', '--path', str(place / 'walk'), '--out', str(place / 'out')]
    return main(['compare', *where, '--preset', str(place / 'tiny.yaml'), *options])


def result(folder, loss):
    """What LOSS.json holds, without what a clock measured."""
    values = json.loads((folder / f'{loss}.json').read_text())
    clocks = ('seconds', 'images_per_second', 'latency_p50_ms', 'latency_p95_ms')
    for part in (values, values['train']):
        for name in clocks:
            part.pop(name, None)
    for frame in values['per_frame']:
        frame.pop('latency_ms')
    return values


def no_training(*args):
    raise AssertionError('this loss was trained before')


def test_all_losses_are_trained_alike_and_stand_in_one_table(place, capsys):
    assert run(place) == 0
    out = capsys.readouterr().out
    names = [
        'posenet', 'homoscedastic', 'geometric', 'maxerror', 'global_homography',
        'local_homography',
    ]  # fmt: skip
    table = (place / 'out' / 'compare.md').read_text()
    lines = [line.split('|') for line in table.splitlines() if line.startswith('|')]
    header, _, *rows = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert header == [
        'loss', 'train px', 'test px', 'median m', 'median deg', '0.25 m/10 deg', '0.5 m/15 deg',
        'epochs', 'images/s',
    ]  # fmt: skip
    assert [row[0] for row in rows] == [*names, 'mean pose baseline', 'retrieval baseline']
    scenes = [SceneModel.load(place / 'out' / f'{name}.scene') for name in names]
    for name, row, scene in zip(names, rows, scenes):
        values = json.loads((place / 'out' / f'{name}.json').read_text())
        assert scene.header.recipe['settings']['loss']['name'] == name
        assert values['answered'] == values['frames'] == 4 and values['train']['frames'] == 12
        assert row[1] == f'{values["train"]["reprojection_px"]:.1f}'
        assert row[2] == f'{values["reprojection_px"]:.1f}'
        assert row[3] == f'{values["median_position_m"]:.3f}'
        assert row[4] == f'{values["median_rotation_deg"]:.2f}'
        assert row[6] == f'{100 * values["recall"]["0.5m_15deg"]:.0f} %'
        assert row[7] == '2' and float(row[8]) > 0
        assert name in out
    # Equal in everything but the loss: same start, same settings; and the losses do differ.
    for scene in scenes[1:]:
        for name, start in scenes[0].start_backbone.items():
            np.testing.assert_array_equal(start, scene.start_backbone[name])
        one, other = (s.header.recipe['settings'].copy() for s in (scenes[0], scene))
        assert one.pop('loss') != other.pop('loss') and one == other
    assert len({row[1] for row in rows[:6]}) == 6
    summary = json.loads((place / 'out' / 'compare.json').read_text())
    assert list(summary['losses']) == names and summary['failures'] == {}
    assert 'per_frame' not in summary['losses']['posenet']
    assert cv2.imread(str(place / 'out' / 'compare.png')).shape[1] == 1500


def test_a_stopped_comparison_goes_on_to_the_same_result(place, dataset, settings, monkeypatch):
    losses = ['posenet', 'homoscedastic']
    whole, stopped = place / 'whole', place / 'stopped'
    compare(dataset, settings, losses, whole)

    one_epoch = Trainer._one_epoch

    def interrupted(self, *args):
        if self.settings.loss.name == 'homoscedastic' and self.epoch == 1:
            raise KeyboardInterrupt
        return one_epoch(self, *args)

    monkeypatch.setattr(Trainer, '_one_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(dataset, settings, losses, stopped)
    assert (stopped / 'posenet.json').is_file() and not (stopped / 'homoscedastic.json').exists()

    def only_the_second(self, *args):
        assert self.settings.loss.name == 'homoscedastic'
        return one_epoch(self, *args)

    monkeypatch.setattr(Trainer, '_one_epoch', only_the_second)
    compare(dataset, settings, losses, stopped)
    for loss in losses:
        assert result(stopped, loss) == result(whole, loss)

    page = place / 'losses.html'
    names = [str(stopped / f'{loss}.json') for loss in losses]
    assert main(['report', *names, '--html', str(page)]) == 0
    assert '<th>posenet</th><th>homoscedastic</th>' in page.read_text()

    # Training was over, measuring was not: the scene is taken as it is.
    monkeypatch.setattr(Trainer, '_one_epoch', no_training)
    (stopped / 'posenet.json').unlink()
    compare(dataset, settings, losses, stopped)
    assert result(stopped, 'posenet') == result(whole, 'posenet')


def test_losses_that_cannot_run_are_named_and_the_others_go_on(place, capsys):
    write_dataset(place / 'bare', depth=False)
    where = ['--path', str(place / 'bare'), '--losses', 'geometric,posenet,global_homography']
    assert run(place, *where) == 0
    out = capsys.readouterr().out
    assert 'geometric has no result: loss geometric needs 3D points' in out
    assert 'global_homography has no result: no depth, and no landmarks either: ' in out
    summary = json.loads((place / 'out' / 'compare.json').read_text())
    assert list(summary['losses']) == ['posenet']
    assert list(summary['failures']) == ['geometric', 'global_homography']
    assert summary['losses']['posenet']['reprojection_px'] is None
    assert '| posenet | - | - |' in (place / 'out' / 'compare.md').read_text()
    # The reason says what to do; doing it completes the same table.
    assert run(place, *where, '--depth-range', '1', '4') == 0
    out = capsys.readouterr().out
    assert 'posenet: finished before' in out and 'global_homography has no result' not in out
    summary = json.loads((place / 'out' / 'compare.json').read_text())
    assert set(summary['losses']) == {'posenet', 'global_homography'}


def test_without_depth_landmarks_give_the_depth_ranges(place, settings, monkeypatch, capsys):
    """They are made once, of the training images, and only for the losses that need them."""
    dataset = open_dataset('7scenes', write_dataset(place / 'bare', depth=False))
    made, settings = [], settings.changed(device='cpu')

    def landmarks_ahead(samples, mapping):
        made.append(samples)
        assert mapping.device == 'cpu'
        grid = np.stack(np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1], [2.0, 4]), axis=-1).reshape(-1, 3)
        poses = np.array([sample.world_T_camera for sample in samples])
        points = np.concatenate([grid @ T[:3, :3].T + T[:3, 3] for T in poses])
        count, each = len(poses), len(grid)
        return LandmarkMap(
            FeatureSettings(), poses, frames=np.arange(count),
            starts=np.arange(0, (count + 1) * each, each), points=points.astype(np.float32),
            descriptors=np.zeros((count * each, 128), np.uint8),
            vocabulary=np.ones((1, 128), np.float32), vlad=np.ones((count, 128), np.float16),
            anchor_frames=np.arange(count), anchor_poses=poses,
        )  # fmt: skip

    monkeypatch.setattr('training.compare.build_landmarks', landmarks_ahead)
    losses = ['posenet', 'local_homography', 'global_homography']
    found = compare(dataset, settings, losses, place / 'out')
    assert list(found.results) == losses and not found.failures
    assert made == [dataset.train]
    assert capsys.readouterr().out.count('landmarks come first') == 1
    recipes = {
        loss: SceneModel.load(place / 'out' / f'{loss}.scene').header.recipe for loss in losses
    }
    assert recipes['local_homography']['data_sha256'] == recipes['global_homography']['data_sha256']
    assert recipes['posenet']['data_sha256'] != recipes['local_homography']['data_sha256']
    # The range by hand takes the place of the landmarks.
    by_hand = settings.changed(loss=replace(settings.loss, depth_range=(1.0, 4.0)))
    compare(dataset, by_hand, ['global_homography'], place / 'by_hand')
    assert len(made) == 1


def test_thresholds_of_cambridge(place, dataset, settings):
    found = compare(dataset, settings, ['posenet'], place / 'out', CAMBRIDGE_THRESHOLDS)
    header, row = found.rows()[:2]
    assert header[5:7] == ['2 m/2 deg', '3 m/5 deg']
    recall = found.results['posenet']['recall']
    assert row[5:7] == [f'{100 * recall[key]:.0f} %' for key in ('2m_2deg', '3m_5deg')]


def test_the_numbers_are_kept_where_drawing_fails(place, dataset, settings, monkeypatch):
    comparison = compare(dataset, settings, ['posenet'], place / 'out')

    def broken(*args):
        raise RuntimeError('no fonts')

    monkeypatch.setattr('training.compare.cumulative_figure', broken)
    with pytest.raises(RuntimeError, match='no fonts'):
        comparison.write(place / 'out')
    assert list(json.loads((place / 'out' / 'compare.json').read_text())['losses']) == ['posenet']
    assert '| posenet |' in (place / 'out' / 'compare.md').read_text()


def test_nothing_but_failures_is_an_error(place, dataset, settings):
    with pytest.raises(TrainingError, match='no loss could be trained: .*fewer than one batch'):
        compare(dataset, settings.changed(batch=64), ['posenet', 'maxerror'], place / 'out')


def test_a_folder_of_another_comparison_is_refused(place, dataset, settings, monkeypatch):
    compare(dataset, settings, ['posenet'], place / 'out')
    monkeypatch.setattr(Trainer, '_one_epoch', no_training)
    with pytest.raises(SettingsError, match='with epochs=2, now it is 3; .*another --out'):
        compare(dataset, settings.changed(epochs=3), ['posenet'], place / 'out')
    with pytest.raises(SettingsError, match='a comparison with dataset='):
        compare(replace(dataset, test=dataset.test[:3]), settings, ['posenet'], place / 'out')
    (place / 'out' / 'settings.json').write_text('{')
    with pytest.raises(SettingsError, match='cannot use the folder'):
        compare(dataset, settings, ['posenet'], place / 'out')


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (['--losses', 'posenet,l3'], "unknown loss 'l3'"),
        (['--epochs', '2', '--minutes', '1'], 'not both'),
        (['--preset', 'nonsense'], 'unknown preset'),
        (['--out', '/dev/null/x'], 'cannot use the folder'),
        (['--device', 'tpu'], 'device'),
        (['--seed', '-1'], 'seed must lie in'),
    ],
)
def test_mistakes_are_sentences_and_exit_code_2(place, capsys, options, sentence):
    assert run(place, *options) == 2
    error = capsys.readouterr().err
    assert sentence in error and 'Traceback' not in error


def test_fewer_images_than_a_batch_are_compared_in_smaller_ones(place, capsys):
    preset = place / 'tiny.yaml'
    preset.write_text(preset.read_text().replace('batch: 4', 'batch: 64'))
    assert run(place, '--losses', 'posenet', '--epochs', '1') == 0
    assert 'instead of 64' in capsys.readouterr().out
