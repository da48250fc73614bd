"""TUM RGB-D recordings: association by time, interpolated poses, depth in metres."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.errors import DatasetError
from training.datasets import open_dataset

START = 1305031100.0


def screw(time):
    """`world_T_camera` (4, 4) of a constant motion: straight, and turning about one axis."""
    s = time - START
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(np.array([0.1, 0.7, -0.2]) * s).as_matrix()
    T[:3, 3] = np.array([1.0, 2.0, 3.0]) + s * np.array([0.5, -0.25, 0.1])
    return T


def write(path, world, images=20, pose_times=None, depth_shift=0.008):
    """Images at 10 Hz, depth a little later, poses at 30 Hz in disorder."""
    times = START + 0.1 * np.arange(images)
    pose_times = (
        START - 0.05 + np.arange(0, images * 0.1 + 0.1, 1 / 30)
        if pose_times is None
        else pose_times
    )
    rgb, depth = ['# color images', '# timestamp filename'], ['# depth maps']
    for i, time in enumerate(times):
        world.write_image(path / 'rgb' / f'{time:.6f}.png', i)
        rgb.append(f'{time:.6f} rgb/{time:.6f}.png')
        z = np.full((world.height, world.width), 5000 + i, np.uint16)
        z[0, 0] = 0
        (path / 'depth').mkdir(exist_ok=True)
        cv2.imwrite(str(path / 'depth' / f'{time + depth_shift:.6f}.png'), z)
        depth.append(f'{time + depth_shift:.6f} depth/{time + depth_shift:.6f}.png')
    lines = ['# timestamp tx ty tz qx qy qz qw']
    for time in pose_times[::-1]:
        T = screw(time)
        numbers = [*T[:3, 3], *Rotation.from_matrix(T[:3, :3]).as_quat()]
        lines.append(' '.join([f'{time:.6f}', *(f'{x:.12f}' for x in numbers)]))
    (path / 'rgb.txt').write_text('\n'.join(rgb) + '\n')
    (path / 'depth.txt').write_text('\n'.join(depth) + '\n')
    (path / 'groundtruth.txt').write_text('\n'.join(lines) + '\n')


def test_poses_are_interpolated_at_the_time_of_the_image(tmp_path, world):
    write(tmp_path, world)
    dataset = open_dataset('tum', tmp_path)
    assert len(dataset.train) == 16 and len(dataset.test) == 4
    samples = [*dataset.train, *dataset.test]
    assert [s.timestamp for s in samples] == sorted(s.timestamp for s in samples)
    for sample in samples:
        # Times are written to the microsecond.
        np.testing.assert_allclose(sample.world_T_camera, screw(sample.timestamp), atol=2e-6)


def test_depth_is_the_nearest_in_time_and_metric(tmp_path, world):
    write(tmp_path, world)
    (tmp_path / 'calibration.yaml').write_text(
        'color: {width: 64, height: 48, fx: 60, fy: 60, cx: 31.5, cy: 23.5}\n'
    )
    dataset = open_dataset('tum', tmp_path)
    for i, sample in enumerate(dataset.train):
        depth = sample.load_depth()
        assert depth[0, 0] == 0 and depth[5, 5] == pytest.approx((5000 + i) / 5000)
        points = sample.load_points()
        T = sample.world_T_camera
        in_camera = (points - T[:3, 3]) @ T[:3, :3]
        np.testing.assert_allclose(in_camera[:, 2], 1 + i / 5000, atol=1e-6)
        assert len(points) == 64 * 48 - 1
    assert dataset.warnings == []


def test_depth_too_far_in_time_is_not_taken(tmp_path, world):
    write(tmp_path, world, depth_shift=0.03)
    dataset = open_dataset('tum', tmp_path)
    assert all(sample.load_depth() is None for sample in dataset.train)
    assert any('have no depth within 0.02 s' in text for text in dataset.warnings)
    assert open_dataset('tum', tmp_path, max_difference=0.04).train[0].load_depth() is not None
    (tmp_path / 'depth.txt').unlink()
    assert any('no depth.txt' in text for text in open_dataset('tum', tmp_path).warnings)


@pytest.mark.parametrize(('kept', 'images', 'said'), [
    (18, 14, '2 of 16 training images left out: they have no depth'),
    (10, 16, 'depth is not used: 10 of 16 training images have none'),
])  # fmt: skip
def test_all_training_images_have_depth_or_none_has(tmp_path, world, kept, images, said):
    write(tmp_path, world)
    lines = (tmp_path / 'depth.txt').read_text().splitlines()[:1]
    lines += (tmp_path / 'depth.txt').read_text().splitlines()[-kept:]
    (tmp_path / 'depth.txt').write_text('\n'.join(lines) + '\n')
    dataset = open_dataset('tum', tmp_path)
    assert len(dataset.train) == images and len(dataset.test) == 4
    assert {sample.depth_loader is not None for sample in dataset.train} == {images < 16}
    assert said in dataset.warnings


def test_no_pose_is_invented_in_a_gap_or_beyond_the_ends(tmp_path, world):
    times = START + np.array([0.35, 0.42, 0.48, 0.52, 1.21, 1.28, 1.33])
    write(tmp_path, world, pose_times=times)
    samples = open_dataset('tum', tmp_path, test_fraction=0).train
    assert [round((s.timestamp - START) * 10) for s in samples] == [4, 5, 13]
    dataset = open_dataset('tum', tmp_path, max_gap=1.0)
    assert len([*dataset.train, *dataset.test]) == 10
    assert any('10 of 20 images' in text for text in dataset.warnings)


def test_no_pose_is_invented_in_a_jump_of_the_trajectory(tmp_path, world):
    write(tmp_path, world, pose_times=START + np.arange(-0.05, 2.1, 0.06))
    lines = (tmp_path / 'groundtruth.txt').read_text().splitlines()
    moved = [line.split() for line in lines[1:]]
    for words in moved:
        if float(words[0]) > START + 0.88:  # between two poses around the image at 0.9
            words[1] = str(float(words[1]) + 5)
    (tmp_path / 'groundtruth.txt').write_text('\n'.join(' '.join(words) for words in moved))
    dataset = open_dataset('tum', tmp_path, test_fraction=0)
    for sample in dataset.train:
        expected = screw(sample.timestamp)
        expected[0, 3] += 5 * (sample.timestamp > START + 0.9)
        np.testing.assert_allclose(sample.world_T_camera, expected, atol=1e-4)
    assert len(dataset.train) == 19
    assert any('1 of 20 images' in text and 'jumps' in text for text in dataset.warnings)


def test_a_steady_drive_is_no_jump(tmp_path, world):
    write(tmp_path, world)
    lines = [line.split() for line in (tmp_path / 'groundtruth.txt').read_text().splitlines()[1:]]
    for words in lines:
        words[1] = f'{30 * (float(words[0]) - START):.6f}'  # on a motorway
    (tmp_path / 'groundtruth.txt').write_text('\n'.join(' '.join(words) for words in lines))
    assert len(open_dataset('tum', tmp_path, test_fraction=0).train) == 20


def test_the_default_camera_is_not_stretched_to_another_aspect(tmp_path, world):
    write(tmp_path, world, images=4)
    for file in (tmp_path / 'rgb').iterdir():
        cv2.imwrite(str(file), np.zeros((36, 64, 3), np.uint8))
    with pytest.raises(DatasetError, match='64x36.*write calibration.yaml or give --camera'):
        open_dataset('tum', tmp_path)
    camera = open_dataset('tum', tmp_path, intrinsics='60,60,31.5,17.5').train[0].camera
    assert (camera.width, camera.height, camera.fy) == (64, 36, 60)


def test_default_camera_is_the_ros_default_and_announced(tmp_path, world):
    write(tmp_path, world)
    dataset = open_dataset('tum', tmp_path)
    assert dataset.train[0].camera.fx == pytest.approx(525 * 64 / 640)
    assert any('525' in text for text in dataset.warnings)
    camera = open_dataset('tum', tmp_path, intrinsics='60,61,30,20').train[0].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (60, 61, 30, 20)
    with pytest.raises(DatasetError, match='fx,fy,cx,cy'):
        open_dataset('tum', tmp_path, intrinsics='60,61')


def test_calibration_with_distortion_is_carried(tmp_path, world):
    write(tmp_path, world)
    file = tmp_path / 'calibration.yaml'
    file.write_text(
        'color: {width: 128, height: 96, fx: 120, fy: 120, cx: 63.5, cy: 47.5, '
        'distortion: [0.2, -0.7, 0, 0]}\n'
    )
    camera = open_dataset('tum', tmp_path).train[0].camera
    assert (camera.fx, camera.cx, camera.distortion) == (60, 31.5, (0.2, -0.7, 0, 0))
    file.write_text('color: {width: 50, height: 96, fx: 120, fy: 120, cx: 63.5, cy: 47.5}\n')
    with pytest.raises(DatasetError, match='calibration.yaml is for 50x96'):
        open_dataset('tum', tmp_path)
    file.write_text('color: {width: 64, height: 48}\n')
    with pytest.raises(DatasetError, match='calibration.yaml is not a calibration'):
        open_dataset('tum', tmp_path)
    file.write_text('[1, 2\n')
    with pytest.raises(DatasetError, match='calibration.yaml is not YAML'):
        open_dataset('tum', tmp_path)


def test_several_recordings_with_a_held_out_one(tmp_path, world):
    for name in ('a', 'b', 'c'):
        (tmp_path / name).mkdir()
        write(tmp_path / name, world, images=5)
    dataset = open_dataset('tum', tmp_path, test='c')
    assert {s.sequence for s in dataset.train} == {'a', 'b'}
    assert [s.sequence for s in dataset.test] == ['c'] * 5
    assert len(open_dataset('tum', tmp_path).test) == 3
    with pytest.raises(DatasetError, match="'d', which is not a recording"):
        open_dataset('tum', tmp_path, test='d')


@pytest.mark.parametrize(
    'name, new, message',
    [
        ('rgb.txt', '1 2 3', r'rgb\.txt, line 3: expected `timestamp file`'),
        ('rgb.txt', 'x rgb/a.png', 'line 3: expected numbers'),
        ('rgb.txt', '1.0 ../a.png', 'line 3: .*inside the folder'),
        ('rgb.txt', '1.0 rgb/gone.png', 'line 3: the image .* is missing'),
        ('depth.txt', '1.0 /depth.png', r'depth\.txt, line 3: .*inside the folder'),
        ('groundtruth.txt', '1 2 3', r'groundtruth\.txt, line 3: expected `timestamp x y z'),
        ('groundtruth.txt', '1 nan 0 0 0 0 0 1', 'line 3: a number is NaN'),
        ('groundtruth.txt', '1 0 0 0 0 0 0 0', 'line 3: the quaternion has length 0'),
    ],
)
def test_bad_lines_are_named(tmp_path, world, name, new, message):
    write(tmp_path, world, images=4)
    lines = (tmp_path / name).read_text().split('\n')
    lines[2] = new
    (tmp_path / name).write_text('\n'.join(lines))
    with pytest.raises(DatasetError, match=message):
        open_dataset('tum', tmp_path)


def test_missing_files(tmp_path, world):
    with pytest.raises(DatasetError, match='rgb.txt'):
        open_dataset('tum', tmp_path)
    write(tmp_path, world, images=4)
    (tmp_path / 'groundtruth.txt').write_text('# nothing\n')
    with pytest.raises(DatasetError, match='holds no poses'):
        open_dataset('tum', tmp_path)
    (tmp_path / 'groundtruth.txt').write_text('5.0 0 0 0 0 0 0 1\n')
    with pytest.raises(DatasetError, match='no image of .* has a pose'):
        open_dataset('tum', tmp_path)
    (tmp_path / 'groundtruth.txt').unlink()
    with pytest.raises(DatasetError, match='cannot read .*groundtruth.txt'):
        open_dataset('tum', tmp_path)
