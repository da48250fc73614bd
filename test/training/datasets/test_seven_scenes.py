"""The 7-Scenes loader on a scene written by hand, and on the real red kitchen where it is given."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.errors import DatasetError
from pose_reloc.geometry import pose_error, pose_matrix
from training.datasets import open_dataset

COLOR = Camera(96, 72, 80.0, 81.0, 47.0, 36.5)
DEPTH = Camera(80, 60, 70.0, 70.0, 39.5, 29.0)
COLOR_T_DEPTH = pose_matrix(Rotation.from_rotvec([0.02, -0.05, 0.01]).as_matrix(), [-0.05, 0.01, 0])
# The world is one slanted wall: normal . X = 2 (metres).
NORMAL = np.array([0.2, -0.3, 1.0]) / np.linalg.norm([0.2, -0.3, 1.0])
DISTANCE = 2.0


def wall_depth(camera, world_T_camera):
    """Depth (H, W) of the wall, each pixel's own ray intersected with it."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    along = rays @ world_T_camera[:3, :3].T @ NORMAL
    return (DISTANCE - NORMAL @ world_T_camera[:3, 3]) / along


def depth_poses():
    """Poses of the depth camera in the world: sequence -> (N, 4, 4)."""
    rng = np.random.default_rng(0)
    poses = {}
    for name, N in (('seq-01', 3), ('seq-12', 2), ('seq-02', 2)):
        turn = Rotation.from_rotvec(rng.normal(scale=0.1, size=(N, 3))).as_matrix()
        poses[name] = pose_matrix(turn, rng.normal(scale=0.2, size=(N, 3)))
    return poses


def camera_yaml(camera):
    fields = ('width', 'height', 'fx', 'fy', 'cx', 'cy')
    return '{' + ', '.join(f'{name}: {getattr(camera, name)}' for name in fields) + '}'


def write_scene(root, suffix='png'):
    """Native files; frame i of a sequence has colour i * 20 + 40 and a hole in its depth."""
    root.mkdir(exist_ok=True)
    (root / 'TrainSplit.txt').write_text('sequence1\nsequence12\n')
    (root / 'TestSplit.txt').write_text('sequence2\n\n')
    rows = ', '.join(str(row) for row in COLOR_T_DEPTH.tolist())
    (root / 'calibration.yaml').write_text(
        f'color: {camera_yaml(COLOR)}\ndepth: {camera_yaml(DEPTH)}\ncolor_T_depth: [{rows}]\n'
    )
    for sequence, poses in depth_poses().items():
        folder = root / sequence
        folder.mkdir()
        for i, world_T_depth in enumerate(poses):
            stem = folder / f'frame-{3 * i:06d}'
            image = np.zeros((COLOR.height, COLOR.width, 3), np.uint8)
            image[:] = (200, 100, 40 + 20 * i)  # BGR
            assert cv2.imwrite(f'{stem}.color.{suffix}', image)
            depth = np.rint(1000 * wall_depth(DEPTH, world_T_depth)).astype(np.uint16)
            depth[10:14, 20:30] = 0
            depth[40:42, 50:60] = 65535
            assert cv2.imwrite(f'{stem}.depth.png', depth)
            np.savetxt(f'{stem}.pose.txt', world_T_depth, fmt='%.7e', delimiter='\t ')
    return root


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / 'wall')


def test_splits_sequences_and_times(scene):
    dataset = open_dataset('7scenes', scene)
    assert dataset.name == 'wall' and dataset.warnings == []
    assert [s.sequence for s in dataset.train] == ['seq-01'] * 3 + ['seq-12'] * 2
    assert [s.sequence for s in dataset.test] == ['seq-02'] * 2
    assert [round(30 * s.timestamp) for s in dataset.train] == [0, 3, 6, 0, 3]
    assert all(s.camera == COLOR for s in dataset.train + dataset.test)


def test_poses_are_those_of_the_colour_camera(scene):
    dataset = open_dataset('7scenes', scene)
    poses = depth_poses()
    truth = np.concatenate([poses['seq-01'], poses['seq-12'], poses['seq-02']])
    for sample, world_T_depth in zip(dataset.train + dataset.test, truth, strict=True):
        expected = world_T_depth @ np.linalg.inv(COLOR_T_DEPTH)
        np.testing.assert_allclose(sample.world_T_camera, expected, atol=1e-6)
    # A loader that took the file's pose for the colour camera's would be 5 cm off.
    assert np.linalg.norm(dataset.train[0].world_T_camera[:3, 3] - truth[0][:3, 3]) > 0.04


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_images_are_rgb(tmp_path, suffix):
    sample = open_dataset('7scenes', write_scene(tmp_path / 'wall', suffix)).train[1]
    image = sample.load_image()
    assert image.shape == (COLOR.height, COLOR.width, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[30, 40], (60, 100, 200), atol=3)


def test_depth_is_registered_to_the_colour_camera(scene):
    for sample in open_dataset('7scenes', scene).train:
        depth = sample.load_depth()
        assert depth.shape == (COLOR.height, COLOR.width) and depth.dtype == np.float32
        known = depth > 0
        assert 0.5 < known.mean() < 0.95  # the colour image is finer, so gaps stay
        expected = wall_depth(COLOR, sample.world_T_camera)
        # A depth pixel lands up to half a colour pixel away from the ray it is compared with.
        step = np.abs(np.gradient(expected)).sum(axis=0).max() / 2 + 0.001
        assert np.abs(depth - expected)[known].max() < step
        unregistered = cv2.resize(
            wall_depth(DEPTH, depth_poses()['seq-01'][0]), (COLOR.width, COLOR.height)
        )
        assert np.abs(unregistered - expected).max() > 2 * step  # else the test could not fail


def test_points_lie_on_the_wall_and_reproject_to_their_pixels(scene):
    dataset = open_dataset('7scenes', scene)
    for sample in dataset.train + dataset.test:
        points = sample.load_points()
        depth = sample.load_depth()
        assert len(points) == np.count_nonzero(depth) > 1000
        distance = points @ NORMAL - DISTANCE
        assert np.abs(distance).max() < 0.015 and abs(distance.mean()) < 0.001
        camera_T_world = np.linalg.inv(sample.world_T_camera)
        local = points @ camera_T_world[:3, :3].T + camera_T_world[:3, 3]
        uv = sample.camera.project(local)
        np.testing.assert_allclose(uv, np.rint(uv), atol=1e-3)
        u, v = np.rint(uv).astype(int).T
        np.testing.assert_allclose(local[:, 2], depth[v, u], rtol=1e-6)


def test_invalid_depth_is_unknown(scene):
    """0 and 65535 leave holes where the colour camera sees them, and nothing at 65 m."""
    sample = open_dataset('7scenes', scene).train[0]
    depth = sample.load_depth()
    world_T_depth = depth_poses()['seq-01'][0]
    z = wall_depth(DEPTH, world_T_depth)
    for v, u in ((12, 25), (41, 55)):
        x = np.append(DEPTH.unproject([[u, v]], [z[v, u]])[0], 1)
        column, row = np.rint(COLOR.project((COLOR_T_DEPTH @ x)[None, :3])[0]).astype(int)
        assert depth[row, column] == 0
    assert depth.max() < 5


def test_without_calibration_both_cameras_share_the_usual_pose(scene):
    (scene / 'calibration.yaml').unlink()
    dataset = open_dataset('7scenes', scene)
    assert any('calibration.yaml' in warning for warning in dataset.warnings)
    camera = dataset.train[0].camera
    assert (camera.width, camera.height, camera.fx, camera.cx) == (640, 480, 525, 320)
    np.testing.assert_allclose(
        dataset.train[0].world_T_camera, depth_poses()['seq-01'][0], atol=1e-6
    )


def test_rotations_are_projected(scene):
    """Real files hold rotations that are off by 4e-4: alone, they would cost 1 deg."""
    path = scene / 'seq-01' / 'frame-000000.pose.txt'
    exact = depth_poses()['seq-01'][0]
    rough = exact.copy()
    rough[:3, :3] += np.random.default_rng(1).uniform(-4e-4, 4e-4, (3, 3))
    np.savetxt(path, rough)
    T = open_dataset('7scenes', scene).train[0].world_T_camera
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-14)
    metres, radians = pose_error(exact @ np.linalg.inv(COLOR_T_DEPTH), T)
    assert radians < 1e-3 and metres < 1e-4


def test_without_depth_there_are_no_points(scene):
    for path in scene.rglob('*.depth.png'):
        path.unlink()
    dataset = open_dataset('7scenes', scene)
    assert dataset.train[0].load_depth() is None and dataset.train[0].load_points() is None
    assert any('no depth' in warning for warning in dataset.warnings)


def test_one_image_without_depth_does_not_cost_the_others_theirs(scene):
    (scene / 'seq-01' / 'frame-000000.depth.png').unlink()
    dataset = open_dataset('7scenes', scene)
    assert len(dataset.train) == 4 and all(sample.depth_loader for sample in dataset.train)
    assert dataset.warnings == ['1 of 5 training images left out: they have no depth']


def test_frames_whose_tracking_was_lost_are_left_out_and_counted(scene):
    for stem, number in (('seq-01/frame-000003', 'nan'), ('seq-12/frame-000000', '-inf')):
        np.savetxt(scene / f'{stem}.pose.txt', np.full((4, 4), float(number)))
    dataset = open_dataset('7scenes', scene)
    assert [round(30 * s.timestamp) for s in dataset.train] == [0, 6, 3]
    assert len(dataset.warnings) == 2 and '1 of 3 frames of' in dataset.warnings[0]
    assert 'tracking was lost' in dataset.warnings[1]


def cut(path, fraction=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_truncated_images_are_named(tmp_path, suffix):
    root = write_scene(tmp_path / 'wall', suffix)
    path = root / 'seq-01' / f'frame-000003.color.{suffix}'
    rng = np.random.default_rng(0)
    assert cv2.imwrite(str(path), rng.integers(0, 256, (72, 96, 3), dtype=np.uint8))
    dataset = open_dataset('7scenes', root)
    for fraction in (0.9, 0.5, 0.0):
        cut(path, fraction)
        with pytest.raises(DatasetError, match=path.name):
            dataset.train[1].load_image()
    dataset.train[0].load_image()  # the others are still there


def test_truncated_depth_is_named(scene):
    sample = open_dataset('7scenes', scene).train[0]
    path = scene / 'seq-01' / 'frame-000000.depth.png'
    cut(path)
    for load in (sample.load_depth, sample.load_points):
        with pytest.raises(DatasetError, match=path.name):
            load()


@pytest.mark.parametrize('image', [np.zeros((60, 80), np.uint8), np.zeros((30, 40), np.uint16)])
def test_depth_of_another_kind_is_named(scene, image):
    sample = open_dataset('7scenes', scene).train[0]
    path = scene / 'seq-01' / 'frame-000000.depth.png'
    assert cv2.imwrite(str(path), image)
    with pytest.raises(DatasetError, match=path.name):
        sample.load_depth()


def test_image_of_another_size_is_named(scene):
    sample = open_dataset('7scenes', scene).train[0]
    path = scene / 'seq-01' / 'frame-000000.color.png'
    assert cv2.imwrite(str(path), np.zeros((50, 96, 3), np.uint8))
    with pytest.raises(DatasetError, match=path.name):
        sample.load_image()


@pytest.mark.parametrize(
    'name',
    ['TrainSplit.txt', 'seq-12', 'seq-01/frame-000003.color.png', 'seq-01/frame-000000.depth.png'],
)
def test_missing_files_are_named(scene, name):
    path = scene / name
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    elif path.name.endswith('depth.png'):
        sample = open_dataset('7scenes', scene).train[0]
        path.unlink()
        with pytest.raises(DatasetError, match=path.name):
            sample.load_depth()
        return
    else:
        path.unlink()
    with pytest.raises(DatasetError, match=path.name):
        open_dataset('7scenes', scene)


@pytest.mark.parametrize(
    'name, text',
    [
        ('seq-01/frame-000003.pose.txt', '1 0 0 0\n0 1 0 0\n'),
        ('seq-01/frame-000003.pose.txt', 'a pose'),
        ('seq-01/frame-000003.pose.txt', ' '.join(['0'] * 16)),
        ('TrainSplit.txt', 'sequence one\n'),
        ('TrainSplit.txt', '../elsewhere\n'),
        ('calibration.yaml', 'color: {fx: 1'),
        ('calibration.yaml', 'color: 5\n'),
        ('calibration.yaml', ''),
    ],
)
def test_files_that_make_no_sense_are_named(scene, name, text):
    (scene / name).write_text(text)
    with pytest.raises(DatasetError, match=Path(name).name):
        open_dataset('7scenes', scene)


def test_other_folders_are_no_scene(tmp_path):
    with pytest.raises(DatasetError, match='TrainSplit.txt'):
        open_dataset('7scenes', tmp_path)
    with pytest.raises(DatasetError, match='nowhere'):
        open_dataset('7scenes', tmp_path / 'nowhere')
    with pytest.raises(DatasetError, match='7scenes'):
        open_dataset('8scenes', tmp_path)


@pytest.fixture(scope='module')
def kitchen():
    root = os.environ.get('POSE_RELOC_DATA')
    if not root:
        pytest.skip('POSE_RELOC_DATA is not set: no real 7-Scenes images here')
    return open_dataset('7scenes', Path(root) / 'redkitchen')


def test_red_kitchen_is_complete(kitchen):
    assert (len(kitchen.train), len(kitchen.test)) == (385, 45)
    for sample in kitchen.train + kitchen.test:
        R = sample.world_T_camera[:3, :3]
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(R) > 0
    assert kitchen.test[0].load_image().shape == (480, 640, 3)


def test_red_kitchen_frames_agree_on_depth(kitchen):
    """Points of a frame, moved by the poses, are where a neighbouring frame measured them."""
    for first, second in ((30, 45), (200, 230), (330, 345)):
        a, b = kitchen.train[first], kitchen.train[second]
        metres, radians = pose_error(a.world_T_camera, b.world_T_camera)
        assert a.sequence == b.sequence and metres > 0.15 and radians > 0.08
        camera_T_world = np.linalg.inv(b.world_T_camera)
        local = a.load_points()[::17] @ camera_T_world[:3, :3].T + camera_T_world[:3, 3]
        uv = np.rint(np.nan_to_num(b.camera.project(local), nan=-1)).astype(int)
        inside = (uv >= 0).all(1) & (uv < (640, 480)).all(1)
        column, row = uv[inside].T
        measured, unmoved = b.load_depth()[row, column], a.load_depth()[row, column]
        known = (measured > 0) & (unmoved > 0)
        assert known.sum() > 3000
        assert np.median(np.abs(local[inside, 2] - measured)[known]) < 0.02
        # The two depth images themselves differ: agreement is the merit of the poses.
        assert np.median(np.abs(unmoved - measured)[known]) > 0.1
