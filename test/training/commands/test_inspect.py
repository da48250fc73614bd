"""`pose_reloc inspect`: its numbers are those of a dataset whose numbers are known."""

import json

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.cli import main
from pose_reloc.errors import DatasetError, SettingsError
from training.dataset_figure import dataset_figure, floor_view
from training.datasets import Dataset, Sample
from training.datasets.options import checked_options, parse_options
from training.inspection import depth_percentiles, inspect_dataset

CAMERA = Camera(64, 48, 60.0, 60.0, 31.5, 23.5)


def pose(position, yaw_deg=0.0):
    """Camera in a world with y down, z forward; yaw turns it to the right."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler('y', yaw_deg, degrees=True).as_matrix()
    T[:3, 3] = position
    return T


def straight_walk(tmp_path, depths=(2.0, 5.0)):
    """Train: 1 m steps along z, points ahead; test: 0.5 m beside it and turned by 7 deg."""
    world = [np.array([[0.0, 0.0, k + z] for z in depths]) for k in range(5)]
    train = [
        Sample(tmp_path / f'{k}.png', CAMERA, pose((0, 0, k)), 'a', k, None, lambda w=world[k]: w)
        for k in range(5)
    ]
    test = [Sample(tmp_path / 't.png', CAMERA, pose((0.5, 0, k), 7.0), 'b', k) for k in (1, 3)]
    return Dataset('walk', train, test, ['said by the loader'])


def test_numbers_of_a_known_walk(tmp_path):
    found = inspect_dataset(straight_walk(tmp_path))
    assert (found.train.images, found.test.images) == (5, 2)
    assert (found.train.sequences, found.test.sequences) == ({'a': 5}, {'b': 2})
    assert (found.train.path_m, found.test.path_m) == pytest.approx((4.0, 2.0))
    assert found.extent_m == pytest.approx((0, 0, 4))
    np.testing.assert_allclose(found.nearest_m, 0.5)
    np.testing.assert_allclose(found.nearest_deg, 7.0)
    assert found.depth_range_m == pytest.approx((2.0, 5.0))
    assert found.cameras == [(CAMERA, 7)]
    assert found.warnings == ['said by the loader']


def test_depth_percentiles_are_the_published_ones():
    depths = np.random.default_rng(0).permutation(np.arange(1000.0))
    assert depth_percentiles(depths) == (float(int(0.025 * 999)), float(int(0.975 * 999)))
    assert depth_percentiles(np.zeros(0)) is None


def test_points_outside_the_images_raise_suspicion(tmp_path):
    dataset = straight_walk(tmp_path)
    turned = [
        Sample(s.image_path, s.camera, s.world_T_camera @ pose((0, 0, 0), 90), 'a', 0, None,
               s.points_loader)
        for s in dataset.train
    ]  # fmt: skip
    found = inspect_dataset(Dataset('wrong', turned, dataset.test))
    assert any('only 0 % of the points' in text for text in found.warnings)


def test_empty_splits_damaged_images_and_several_sizes_are_said(tmp_path):
    dataset = straight_walk(tmp_path)
    (tmp_path / '2.png').write_bytes(b'not an image')
    found = inspect_dataset(Dataset('no test', dataset.train, []))
    assert any('test split is empty' in text for text in found.warnings)
    assert any('1 of 5 images looked into' in t and '2.png' in t for t in found.warnings)
    assert len(found.nearest_m) == 0
    other = Sample(tmp_path / 'x.png', CAMERA.scaled(32, 24), pose((0, 0, 0)))
    found = inspect_dataset(Dataset('mixed', [], [*dataset.test, other]))
    assert any('train split is empty' in text for text in found.warnings)
    assert any('2 different sizes' in text for text in found.warnings)
    assert found.extent_m is None


def test_from_above_is_not_a_mirror_image():
    """Turning right all the way round is clockwise in the picture, in every world frame."""
    angle = np.linspace(0, 1.7 * np.pi, 40)
    # Walking forwards on a circle, wider than deep so that the principal axes are distinct.
    walk = [pose((-3 * np.cos(a), 0, 2 * np.sin(a)), np.rad2deg(a)) for a in angle]
    for seed in range(6):
        frame = np.eye(4)
        frame[:3, :3] = Rotation.random(random_state=seed).as_matrix()
        T = frame @ np.array(walk)
        view = floor_view(T)
        xy = view.flat(T[:, :3, 3])
        np.testing.assert_allclose(view.axes.T @ view.axes, np.eye(2), atol=1e-12)
        x, y = (xy - xy.mean(0)).T
        assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) < 0
        distances = np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1)
        np.testing.assert_allclose(np.linalg.norm(np.diff(xy, axis=0), axis=1), distances)


def test_figure_of_one_image_and_of_many_sequences(tmp_path):
    one = Dataset('one', [Sample(tmp_path / 'a.png', CAMERA, pose((1, 2, 3)))], [])
    many = [
        Sample(tmp_path / 'a.png', CAMERA, pose((k, 0, k % 3)), f's{k % 12}') for k in range(60)
    ]
    for dataset in (one, Dataset('many', many[:50], many[50:])):
        figure = dataset_figure(dataset, inspect_dataset(dataset), 'title')
        figure.savefig(tmp_path / 'figure.png', dpi=40)
        assert len(figure.axes[0].get_legend().get_texts()) <= 9


def test_figure_shows_all_of_a_legend_with_long_names(tmp_path):
    samples = [
        Sample(tmp_path / 'a.png', CAMERA, pose((k, 0, k % 7)), f'{k % 8} {"walk" * 15}')
        for k in range(40)
    ]
    dataset = Dataset('long', samples, [])
    figure = dataset_figure(dataset, inspect_dataset(dataset), 'title')
    figure.savefig(tmp_path / 'figure.png')
    axis = figure.axes[0]
    legend, label = (a.get_window_extent() for a in (axis.get_legend(), axis.xaxis.label))
    assert legend.x0 > 0 and legend.y0 > 0 and legend.x1 < figure.bbox.x1
    assert legend.y1 < label.y0 and axis.bbox.height > figure.bbox.height / 3


def write_table(path):
    """A csv dataset of 8 images on a line, 0.25 m apart; the last two are the test split."""
    lines = ['scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4']
    for k in range(8):
        cv2.imwrite(str(path / f'{k}.png'), np.full((48, 64, 3), k, np.uint8))
        lines.append(f'lab,{"test" if k > 5 else "train"},walk,{k}.png,{0.25 * k},0,0,1,0,0,0')
    (path / 'poses.csv').write_text('\n'.join(lines) + '\n')
    return ['inspect', '--dataset', 'csv', '--path', str(path)]


def test_command_prints_writes_numbers_and_draws(tmp_path, capsys):
    command = [*write_table(tmp_path), '--option', 'intrinsics=60,60,31.5,23.5']
    picture, numbers = tmp_path / 'view.png', tmp_path / 'numbers.json'
    assert main([*command, '--picture', str(picture), '--json', str(numbers)]) == 0
    out = capsys.readouterr().out
    assert 'lab (csv)' in out and '64x48, f 60.0 60.0' in out and 'no distortion' in out
    assert '1.25 m x 0.00 m x 0.00 m' in out and '0.38 m, 0.0 deg' in out
    assert 'no depth and no 3D points' in out
    values = json.loads(numbers.read_text())
    assert values['train']['images'] == 6 and values['nearest_train_median_m'] == 0.375
    image = cv2.imread(str(picture))
    assert image.shape[1] == 1500 and len(np.unique(image.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize(
    'extra, message',
    [
        ([], 'put K.txt'),
        (['--option', 'every'], 'expected KEY=VALUE'),
        (['--option', 'colour=1'], "no option 'colour'"),
        (['--option', 'intrinsics=60'], 'fx,fy,cx,cy'),
        (['--frames', '-1'], '--frames must be 0 or more'),
        (
            ['--option', 'intrinsics=60,60,31,23', '--picture', '/no/such/folder/a.png'],
            'cannot write',
        ),
        (['--option', 'intrinsics=60,60,31,23', '--picture', 'a.nonsense'], 'cannot write'),
        (
            ['--option', 'intrinsics=60,60,31,23', '--json', '/no/such/folder/a.json'],
            'cannot write',
        ),
    ],
)
def test_mistakes_are_sentences_and_exit_code_2(tmp_path, capsys, extra, message):
    assert main([*write_table(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and 'Traceback' not in error


def test_missing_and_unknown_datasets(tmp_path, capsys):
    assert main(['inspect', '--dataset', 'csv', '--path', str(tmp_path / 'gone')]) == 2
    assert 'there is no such file or folder' in capsys.readouterr().err
    assert main(['inspect', '--dataset', 'lidar', '--path', str(tmp_path)]) == 2
    assert "unknown dataset kind 'lidar'" in capsys.readouterr().err


def test_options_get_the_type_of_their_default():
    def load(path, every: int = 8, fraction: float = 0.2, flag: bool = True, name=None):
        """A loader."""

    texts = parse_options(['every=10', 'fraction=1', 'flag=no', 'name=1,2'])
    expected = {'every': 10, 'fraction': 1.0, 'flag': False, 'name': '1,2'}
    assert checked_options('some', load, texts) == expected
    assert checked_options('some', load, {'every': 3, 'name': (1, 2)})['name'] == (1, 2)
    for bad in ({'every': 'x'}, {'fraction': ''}, {'flag': 'maybe'}, {'path': 'p'}):
        with pytest.raises(DatasetError):
            checked_options('some', load, bad)
    for bad in (['x'], ['=1'], ['a=1', 'a=2']):
        with pytest.raises(SettingsError):
            parse_options(bad)


def test_real_room(data):
    """The test walk of red kitchen is 0.23 m and 9 deg away from the training walks."""
    from training.datasets import open_dataset

    found = inspect_dataset(open_dataset('7scenes', data / 'redkitchen'), frames=4)
    assert (found.train.images, found.test.images) == (385, 45)
    assert np.median(found.nearest_m) == pytest.approx(0.23, abs=0.02)
    assert np.median(found.nearest_deg) == pytest.approx(9, abs=0.5)
    assert 0.5 < found.depth_range_m[0] < 1.2 and 2.5 < found.depth_range_m[1] < 4


# Bags


def robot(builder, tf=True, info=True):
    camera = Camera(64, 48, 60.0, 60.0, 31.5, 23.5)
    if info:
        builder.info('/front/camera_info', 10**9, camera)
    builder.transform('base_link', 'camera_optical_frame', 10**9, pose((0, 0, 1)), static=True)
    for i in (*range(10), *range(40, 50)):
        stamp = 10**9 + i * 100_000_000
        if tf:
            builder.transform('map', 'base_link', stamp, pose((0.1 * i, 0, 0)))
        builder.image('/front/image_raw', stamp, np.full((48, 64, 3), i, np.uint8))
    return builder


def test_a_bag_shows_its_topics_frames_and_gaps(builder, tmp_path, capsys):
    path = robot(builder).write(tmp_path / 'walk')
    assert main(['inspect', '--dataset', 'bag', '--path', str(path)]) == 0
    lines = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert '/front/image_raw Image 20 10.0 Hz, longest gap 3.10 s at 0.9 s' in lines
    assert 'base_link 20 times, 10.0 Hz, longest gap 3.10 s at 0.9 s' in lines
    assert 'camera_optical_frame static' in lines
    assert 'poses TF map -> camera_optical_frame' in lines
    assert 'images 20 0' in lines
    assert not any('record' in line for line in lines)


def test_a_bag_that_cannot_be_used_says_what_is_missing_and_how_to_record_it(
    builder, tmp_path, capsys
):
    path = robot(builder, tf=False, info=False).write(tmp_path / 'walk')
    assert main(['inspect', '--dataset', 'bag', '--path', str(path)]) == 2
    out = capsys.readouterr().out
    assert 'nothing on /front/camera_info' in out and 'TF has no frame map' in out
    command = 'ros2 bag record -s mcap -o my_bag /front/image_raw /front/camera_info /tf /tf_static'
    assert command in out
    fixed = ['--camera', '60', '60', '31.5', '23.5', '--map-frame', 'base_link']
    assert main(['inspect', '--dataset', 'bag', '--path', str(path), *fixed]) == 0


def test_bags_as_options_are_paths_too(builder, tmp_path, capsys):
    path = str(robot(builder).write(tmp_path / 'walk'))
    command = ['inspect', '--dataset', 'bag', '--path', path]
    for more in (['--option', f'test_path={path}'], ['--option', f'more={path}']):
        assert main([*command, *more]) == 0
        assert capsys.readouterr().out.count(f'bag {path}') == 2


def test_an_option_of_bags_is_refused_elsewhere(tmp_path, capsys):
    assert main(['inspect', '--dataset', 'tum', '--path', str(tmp_path), '--max-gap', '1',
                 '--map-frame', 'odom']) == 2  # fmt: skip
    assert "tum datasets have no option 'map_frame'" in capsys.readouterr().err
    assert main(['inspect', '--dataset', 'tum', '--path', str(tmp_path), str(tmp_path)]) == 2
    assert 'one folder, not several' in capsys.readouterr().err
