"""Bags as datasets: poses, cameras and depth against a known motion, and bags that lack something.

The robot moves at constant speed and turns at a constant rate, so that the pose between two
transforms is known exactly.
"""

import re

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, DatasetError
from training.cache import CacheSettings, build_cache
from training.datasets import open_dataset

FIRST = 1_700_000_000_000_000_000
CAMERA = Camera(64, 48, 60.0, 61.0, 31.0, 24.0, (0.1, -0.05, 0.001, 0.002, 0.0))
IMAGE, INFO = '/camera/image_raw', '/camera/camera_info'
BASE_T_CAMERA = np.array([[0.0, 0, 1, 0.2], [-1, 0, 0, 0.1], [0, -1, 0, 0.5], [0, 0, 0, 1]])
MAP_T_ODOM = np.eye(4)
MAP_T_ODOM[:3, 3] = 3.0, -2.0, 0.5


def odom_T_base(seconds):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0, 0, 0.4 * seconds]).as_matrix()
    pose[:3, 3] = 0.5 * seconds, 0.2 * seconds, 0.0
    return pose


def world_T_camera(seconds):
    return MAP_T_ODOM @ odom_T_base(seconds) @ BASE_T_CAMERA


def at(seconds):
    return FIRST + round(seconds * 1e9)


def picture(i, size=(48, 64)):
    return np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8)


IMAGE_TIMES = [0.1 + i / 10 for i in range(20)]
TF_TIMES = np.arange(0, 2.2, 0.05) + 0.013
# What is not at the centre of the turn moves along an arc; between poses it is taken along a chord.
CHORD = 5e-5


def record(builder, tf=True, info=True, images=IMAGE_TIMES, tf_times=TF_TIMES, topic=IMAGE):
    """A robot that is localized on TF by 20 Hz of map -> odom -> base_link -> camera."""
    if info:
        builder.info(INFO, at(0), CAMERA)
    builder.transform('base_link', 'camera_optical_frame', at(0), BASE_T_CAMERA, static=True)
    if tf:
        for t in tf_times:
            builder.transform('map', 'odom', at(t), MAP_T_ODOM)
            builder.transform('odom', 'base_link', at(t), odom_T_base(t))
    for i, t in enumerate(images):
        builder.image(topic, at(t), picture(i))
    return builder


def check(samples, times, atol=1e-9):
    """Poses, stamps and pictures of samples that were taken at these times."""
    assert [s.timestamp for s in samples] == pytest.approx([at(t) / 1e9 for t in times], abs=1e-6)
    for sample, t in zip(samples, times):
        np.testing.assert_allclose(sample.world_T_camera, world_T_camera(t), atol=atol)
        i = int(np.argmin(np.abs(np.array(IMAGE_TIMES) - t)))
        np.testing.assert_array_equal(sample.load_image(), picture(i))


@pytest.mark.parametrize('storage', ['MCAP', 'SQLITE3', 'ROS1'])
def test_images_poses_and_camera(builder, tmp_path, storage):
    path = record(builder).write(tmp_path / 'walk', storage)
    dataset = open_dataset('bag', path)
    assert dataset.name == 'walk' and not dataset.test and not dataset.warnings
    assert dataset.train[0].camera == CAMERA
    assert {s.sequence for s in dataset.train} == {'walk'}
    check(dataset.train, IMAGE_TIMES)
    for text in (IMAGE, INFO, 'TF map -> camera_optical_frame'):
        assert text in dataset.notes[0]
    assert len({s.image_path.name for s in dataset.train}) == 20
    assert all(s.file.is_file() for s in dataset.train)


def test_images_in_any_order_of_loading_and_from_many_threads(builder, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    samples = open_dataset('bag', record(builder).write(tmp_path / 'walk')).train
    order = np.random.default_rng(0).permutation(np.tile(np.arange(20), 10))
    with ThreadPoolExecutor(4) as pool:
        for i, image in zip(order, pool.map(lambda i: samples[i].load_image(), order)):
            np.testing.assert_array_equal(image, picture(i))


def test_a_sample_survives_pickling_into_another_process(builder, tmp_path):
    import multiprocessing

    samples = open_dataset('bag', record(builder).write(tmp_path / 'walk')).train
    samples[0].load_image()  # so that a forked reader would share its place in the file
    with multiprocessing.get_context('fork').Pool(2) as pool:
        images = pool.map(load, [s.image_loader for s in samples], chunksize=1)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, picture(i))


def load(loader):
    return loader()


def test_several_bags_and_a_test_bag(new_builder, tmp_path):
    paths = [record(new_builder()).write(tmp_path / name) for name in ('a', 'b', 'c')]
    (tmp_path / 'again').mkdir()
    again = record(new_builder()).write(tmp_path / 'again' / 'a')
    dataset = open_dataset('bag', paths[0], more=[paths[1], again], test_path=[paths[2]])
    assert [s.sequence for s in dataset.train[::20]] == ['a', 'b', 'a (2)']
    assert {s.sequence for s in dataset.test} == {'c'}
    check(dataset.test, IMAGE_TIMES)


# Poses


@pytest.mark.parametrize('kind', ['PoseStamped', 'PoseWithCovarianceStamped', 'Odometry'])
def test_poses_from_a_topic_and_the_mounting_from_tf(builder, tmp_path, kind):
    record(builder, tf=False)
    for t in TF_TIMES:
        builder.pose('/slam/pose', at(t), MAP_T_ODOM @ odom_T_base(t), kind=kind)
    dataset = open_dataset('bag', builder.write(tmp_path / 'walk'))
    check(dataset.train, IMAGE_TIMES)
    assert 'poses /slam/pose' in dataset.notes[0]


def test_odometry_says_whose_pose_it_is(builder, tmp_path):
    record(builder, tf=False)
    base_T_wheel = np.eye(4)
    base_T_wheel[:3, 3] = 0.1, 0.3, -0.2
    builder.transform('base_link', 'wheel', at(0), base_T_wheel, static=True)
    for t in TF_TIMES:
        pose = MAP_T_ODOM @ odom_T_base(t) @ base_T_wheel
        builder.pose('/slam/odom', at(t), pose, kind='Odometry', child='wheel')
    check(open_dataset('bag', builder.write(tmp_path / 'walk')).train, IMAGE_TIMES, CHORD)


def test_poses_of_the_camera_itself(builder, tmp_path):
    record(builder, tf=False)
    builder.messages = [m for m in builder.messages if m[1] != '/tf_static']
    for t in TF_TIMES:
        builder.pose('/vicon/camera', at(t), world_T_camera(t))
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match='poses on /vicon/camera.*base_link.*--body-frame camera_op'):
        open_dataset('bag', path)
    check(open_dataset('bag', path, body_frame='camera_optical_frame').train, IMAGE_TIMES, CHORD)


def test_the_truth_goes_before_tf_and_can_be_overruled(builder, tmp_path):
    record(builder)
    for t in TF_TIMES:
        builder.pose('/ground_truth', at(t), odom_T_base(t))
    path = builder.write(tmp_path / 'walk')
    first = open_dataset('bag', path).train[0]
    expected = odom_T_base(IMAGE_TIMES[0]) @ BASE_T_CAMERA
    np.testing.assert_allclose(first.world_T_camera, expected, atol=1e-9)
    check(open_dataset('bag', path, pose_topic='tf').train, IMAGE_TIMES)


def test_another_map_frame(builder, tmp_path):
    path = record(builder).write(tmp_path / 'walk')
    sample = open_dataset('bag', path, map_frame='odom').train[3]
    expected = odom_T_base(IMAGE_TIMES[3]) @ BASE_T_CAMERA
    np.testing.assert_allclose(sample.world_T_camera, expected, atol=1e-9)


def test_a_clock_that_is_off(builder, tmp_path):
    """The camera's clock is 0.04 s ahead of that of the poses."""
    record(builder, images=[])
    for i, t in enumerate(IMAGE_TIMES):
        builder.image(IMAGE, at(t + 0.04), picture(i))
    samples = open_dataset('bag', builder.write(tmp_path / 'walk'), time_offset=-0.04).train
    for sample, t in zip(samples, IMAGE_TIMES):
        np.testing.assert_allclose(sample.world_T_camera, world_T_camera(t), atol=1e-9)


def test_no_pose_is_invented_in_a_gap(builder, tmp_path):
    times = TF_TIMES[(TF_TIMES < 0.62) | (TF_TIMES > 1.32)]
    path = record(builder, tf_times=times).write(tmp_path / 'walk')
    dataset = open_dataset('bag', path)
    left, right = times[times < 1].max(), times[times > 1].min()
    check(dataset.train, [t for t in IMAGE_TIMES if t <= left or t >= right])
    assert re.search(r'7 of 20 images of walk left out: 7 in gaps.*0\.3 s', dataset.warnings[0])
    check(open_dataset('bag', path, max_gap=0.8).train, IMAGE_TIMES)


def test_a_gap_in_one_part_of_the_tree_is_a_gap(builder, tmp_path):
    record(builder, tf=False)
    for t in TF_TIMES:
        builder.transform('odom', 'base_link', at(t), odom_T_base(t))
    for t in (0.0, 0.2, 0.4, 1.4, 1.6, 1.8, 2.0, 2.2):
        builder.transform('map', 'odom', at(t), MAP_T_ODOM)
    dataset = open_dataset('bag', builder.write(tmp_path / 'walk'))
    check(dataset.train, [t for t in IMAGE_TIMES if t < 0.45 or t > 1.35])


def test_images_before_the_first_pose_and_after_the_last(builder, tmp_path):
    times = TF_TIMES[(TF_TIMES > 0.55) & (TF_TIMES < 1.55)]
    dataset = open_dataset('bag', record(builder, tf_times=times).write(tmp_path / 'walk'))
    check(dataset.train, [t for t in IMAGE_TIMES if times[0] <= t <= times[-1]])
    assert '5 before the first pose, 5 after the last pose' in dataset.warnings[0]


def test_poses_that_never_meet_the_images(builder, tmp_path):
    path = record(builder, tf_times=TF_TIMES + 100).write(tmp_path / 'walk')
    with pytest.raises(DatasetError, match='no image.*has a pose: 20 of 20.*before the first pose'):
        open_dataset('bag', path)


def test_no_poses_at_all(builder, tmp_path):
    path = record(builder, tf=False).write(tmp_path / 'walk')
    with pytest.raises(BagError, match='TF has no frame map.*SLAM.*--map-frame'):
        open_dataset('bag', path)


def test_poses_in_another_frame_are_offered(builder, tmp_path):
    record(builder, tf=False)
    for t in TF_TIMES:
        builder.pose('/odom', at(t), odom_T_base(t), frame='odom', kind='Odometry')
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match=r'/odom in odom; choose one with --pose-topic'):
        open_dataset('bag', path)
    assert len(open_dataset('bag', path, pose_topic='/odom').train) == 20


def test_two_topics_with_poses_must_be_chosen_from(builder, tmp_path):
    record(builder, tf=False)
    for name in ('/amcl_pose', '/slam/pose'):
        for t in TF_TIMES:
            builder.pose(name, at(t), MAP_T_ODOM @ odom_T_base(t))
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match='several topics: /amcl_pose, /slam/pose.*--pose-topic'):
        open_dataset('bag', path)
    check(open_dataset('bag', path, pose_topic='/slam/pose').train, IMAGE_TIMES)
    with pytest.raises(BagError, match='no poses on /elsewhere; topics with poses: /amcl_pose'):
        open_dataset('bag', path, pose_topic='/elsewhere')


# Cameras


def test_two_cameras_must_be_chosen_from(builder, tmp_path):
    record(builder)
    builder.image('/rear/image_raw', at(0.5), picture(0), frame='rear_optical_frame')
    builder.info('/rear/camera_info', at(0), CAMERA)
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match='several image topics: .*/rear/image_raw.*--image-topic'):
        open_dataset('bag', path)
    check(open_dataset('bag', path, image_topic=IMAGE).train, IMAGE_TIMES)
    with pytest.raises(BagError, match='TF has no frame rear_optical_frame'):
        open_dataset('bag', path, image_topic='/rear/image_raw')
    with pytest.raises(BagError, match='no images on /front'):
        open_dataset('bag', path, image_topic='/front')


def test_a_camera_without_calibration(builder, tmp_path):
    path = record(builder, info=False).write(tmp_path / 'walk')
    with pytest.raises(BagError, match=f'nothing on {INFO}.*--camera FX FY CX CY'):
        open_dataset('bag', path)
    sample = open_dataset('bag', path, intrinsics=[50, 51, 32, 24]).train[0]
    assert sample.camera == Camera(64, 48, 50.0, 51.0, 32.0, 24.0)


def test_everything_that_is_missing_is_said_at_once(builder, tmp_path):
    path = record(builder, info=False, tf=False).write(tmp_path / 'walk')
    with pytest.raises(BagError, match='(?s)calibration.*TF has no frame map'):
        open_dataset('bag', path)


def test_rectified_images_take_the_projection_matrix(builder, tmp_path):
    record(builder, info=False, topic='/camera/image_rect_color')
    P = np.array([[40.0, 0, 30, 0], [0, 41, 20, 0], [0, 0, 1, 0]])
    builder.info(INFO, at(0), CAMERA, P=P)
    camera = open_dataset('bag', builder.write(tmp_path / 'walk')).train[0].camera
    assert camera == Camera(64, 48, 40.0, 41.0, 30.0, 20.0)


def test_images_smaller_than_their_calibration(builder, tmp_path):
    record(builder, info=False)
    builder.info(INFO, at(0), CAMERA.scaled(640, 480))
    camera = open_dataset('bag', builder.write(tmp_path / 'walk')).train[0].camera
    assert (camera.width, camera.height) == (64, 48)
    np.testing.assert_allclose(camera.K, CAMERA.K, atol=1e-9)


def test_a_frame_that_may_not_be_optical_is_pointed_out(builder, tmp_path):
    record(builder, images=[])
    builder.transform('base_link', 'camera', at(0), BASE_T_CAMERA, static=True)
    for i, t in enumerate(IMAGE_TIMES):
        builder.image(IMAGE, at(t), picture(i), frame='camera')
    path = builder.write(tmp_path / 'walk')
    dataset = open_dataset('bag', path)
    assert 'name the frame camera' in dataset.warnings[0]
    check(open_dataset('bag', path, camera_frame='camera_optical_frame').train, IMAGE_TIMES)


# Depth

DEPTH = '/camera/depth/image_rect_raw'


def depth_of(i):
    """Millimetres, with a hole."""
    mm = (1000 + 10 * np.arange(48)[:, None] + np.arange(64) + i).astype(np.uint16)
    mm[5:8, 6:9] = 0
    mm[0, 0] = 65535
    return mm


def metres_of(i):
    mm = depth_of(i).astype(np.float32)
    mm[0, 0] = 0
    return mm / 1000


def as_raw(builder, t, i, **where):
    builder.image(DEPTH, at(t), depth_of(i), **where)


def as_metres(builder, t, i, **where):
    z = metres_of(i)
    z[z == 0] = np.nan
    builder.image(DEPTH, at(t), z, **where)


def as_png(builder, t, i, **where):
    data = cv2.imencode('.png', depth_of(i))[1].tobytes()
    format = '16UC1; compressedDepth png'
    builder.compressed(f'{DEPTH}/compressedDepth', at(t), bytes(12) + data, format, **where)


def as_inverse(builder, t, i, **where):
    """As compressed_depth_image_transport: quantized inverse depth."""
    a, b = 100.0, -1.5
    z = metres_of(i)
    raw = np.where(z > 0, np.rint(a / np.where(z > 0, z, 1) + b), 0).astype(np.uint16)
    head = np.array([0], '<i4').tobytes() + np.array([a, b], '<f4').tobytes()
    data = cv2.imencode('.png', raw)[1].tobytes()
    format = '32FC1; compressedDepth png'
    builder.compressed(f'{DEPTH}/compressedDepth', at(t), head + data, format, **where)


@pytest.mark.parametrize('write', [as_raw, as_metres, as_png, as_inverse])
@pytest.mark.parametrize('storage', ['MCAP', 'ROS1'])
def test_registered_depth(builder, tmp_path, write, storage):
    record(builder)
    for i, t in enumerate(IMAGE_TIMES):
        write(builder, t + 0.004, i)
    dataset = open_dataset('bag', builder.write(tmp_path / 'walk', storage))
    assert f'depth {DEPTH}' in dataset.notes[0]
    # Half a step of the quantized inverse is 0.5 z^2 / a = 1.2 cm at 1.54 m.
    tolerance = 0.013 if write is as_inverse else 1e-6
    for i, sample in enumerate(dataset.train):
        z = sample.load_depth()
        assert z.dtype == np.float32
        np.testing.assert_array_equal(z == 0, metres_of(i) == 0)
        np.testing.assert_allclose(z, metres_of(i), atol=tolerance)


def test_depth_of_another_camera_is_registered(builder, tmp_path):
    """A plane 2 m in front of a depth camera that stands 5 cm beside the colour camera."""
    record(builder)
    color_T_depth = np.eye(4)
    color_T_depth[:3, 3] = 0.05, 0.0, 0.01
    depth = Camera(80, 60, 50.0, 50.0, 40.0, 30.0)
    builder.info('/camera/depth/camera_info', at(0), depth, frame='depth_optical_frame')
    builder.transform(
        'camera_optical_frame', 'depth_optical_frame', at(0), color_T_depth, static=True
    )
    for t in IMAGE_TIMES:
        z = np.full((60, 80), 2.0, np.float32)
        builder.image(DEPTH, at(t), z, frame='depth_optical_frame')
    z = open_dataset('bag', builder.write(tmp_path / 'walk')).train[0].load_depth()
    assert z.shape == (48, 64)
    assert (z > 0).mean() > 0.5
    np.testing.assert_allclose(z[z > 0], 2.01, atol=1e-5)
    v, u = np.nonzero(z)
    seen = CAMERA.unproject(np.stack([u, v], 1), z[v, u]) - color_T_depth[:3, 3]
    error = depth.project(seen) - np.rint(depth.project(seen))
    assert np.abs(error).max() < 0.6  # each known pixel comes from a pixel of the depth camera


def test_depth_of_some_images(builder, tmp_path, new_builder):
    for count, images, has_depth in ((18, 18, True), (8, 20, False)):
        builder = record(new_builder())
        for i, t in enumerate(IMAGE_TIMES[:count]):
            as_raw(builder, t, i)
        dataset = open_dataset('bag', builder.write(tmp_path / f'walk{count}'))
        assert len(dataset.train) == images
        assert {s.depth_loader is not None for s in dataset.train} == {has_depth}
        assert 'no depth' in dataset.warnings[0] or 'have none' in dataset.warnings[0]


def test_depth_that_matches_no_image_is_not_dropped_in_silence(builder, tmp_path):
    record(builder)
    for i, t in enumerate(IMAGE_TIMES):
        as_raw(builder, t + 0.03, i)
    dataset = open_dataset('bag', builder.write(tmp_path / 'walk'))
    assert not any(sample.depth_loader for sample in dataset.train)
    said = f'depth on {DEPTH} is not used: no image of walk has one within 0.02 s'
    assert dataset.warnings == [said]


def test_depth_that_cannot_be_placed(builder, tmp_path):
    record(builder)
    for i, t in enumerate(IMAGE_TIMES):
        as_raw(builder, t, i, frame='depth_optical_frame')
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match='no calibration of the depth camera.*--depth-topic none'):
        open_dataset('bag', path)
    assert open_dataset('bag', path, depth_topic='none').train[0].load_depth() is None


def test_several_depth_topics_must_be_chosen_from(builder, tmp_path):
    record(builder)
    for i, t in enumerate(IMAGE_TIMES):
        as_raw(builder, t, i)
        builder.image('/camera/aligned_depth/image', at(t), depth_of(i))
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match='several depth topics: .*aligned.*--depth-topic, or none'):
        open_dataset('bag', path)
    assert open_dataset('bag', path, depth_topic=DEPTH).train[0].load_depth()[0, 1] == np.float32(
        1.001
    )
    caches = tmp_path / 'caches'
    for topic in (DEPTH, '/camera/aligned_depth/image', DEPTH):
        build_cache(open_dataset('bag', path, depth_topic=topic).train, CacheSettings(48), caches)
    assert len(list(caches.iterdir())) == 2


# Selection


def test_a_robot_that_stands_still_gives_one_image(builder, tmp_path):
    builder.info(INFO, at(0), CAMERA)
    for i, t in enumerate(IMAGE_TIMES):
        pose = world_T_camera(min(t, 1.05))
        builder.transform('map', 'camera_optical_frame', at(t), pose)
        builder.image(IMAGE, at(t), picture(i))
    path = builder.write(tmp_path / 'walk')
    dataset = open_dataset('bag', path)
    assert [round(s.timestamp - FIRST / 1e9, 3) for s in dataset.train] == pytest.approx(
        IMAGE_TIMES[:11], abs=1e-3
    )
    assert '9 of 20 images left out: the camera had moved by less' in dataset.notes[1]
    assert len(open_dataset('bag', path, min_translation=0, min_rotation=0).train) == 20
    # 0.54 m/s: every second step of 0.1 s is more than 0.06 m, and the rotation is never.
    assert len(open_dataset('bag', path, min_translation=0.06, min_rotation=90).train) == 6
    # All images of a test bag are kept.
    assert len(open_dataset('bag', path, test_path=[path]).test) == 20


def test_blurred_images_are_left_out(builder, tmp_path):
    record(builder, images=[])
    blurred = {4, 5, 11}
    for i, t in enumerate(IMAGE_TIMES):
        image = picture(0)
        builder.image(IMAGE, at(t), cv2.GaussianBlur(image, (0, 0), 3) if i in blurred else image)
    path = builder.write(tmp_path / 'walk')
    assert len(open_dataset('bag', path).train) == 20
    dataset = open_dataset('bag', path, min_sharpness=0.5)
    kept = {round((s.timestamp - FIRST / 1e9) * 10) - 1 for s in dataset.train}
    assert kept == set(range(20)) - blurred
    assert '3 of 20 images are blurred' in dataset.notes[1]


# Damage


def test_an_interrupted_recording_is_read_as_far_as_it_goes(builder, tmp_path):
    """As after a power cut: no metadata.yaml, and the file ends in the middle of a record."""
    path = record(builder).write(tmp_path / 'walk')
    (path / 'metadata.yaml').unlink()
    file = next(path.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:-2000])
    dataset = open_dataset('bag', path)
    assert 0 < len(dataset.train)
    check(dataset.train, IMAGE_TIMES[: len(dataset.train)])
    assert any('was cut off' in text for text in dataset.warnings)


@pytest.mark.parametrize('name', ['walk.mcap', 'walk.db3'])
def test_a_single_file_of_a_bag(builder, tmp_path, name):
    storage = 'MCAP' if name.endswith('mcap') else 'SQLITE3'
    path = record(builder).write(tmp_path / 'walk', storage)
    dataset = open_dataset('bag', path / name)
    assert dataset.name == 'walk'
    check(dataset.train, IMAGE_TIMES)


def test_a_cut_off_database_names_the_repair(builder, tmp_path):
    path = record(builder).write(tmp_path / 'walk', 'SQLITE3')
    file = path / 'walk.db3'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BagError, match=r'sqlite3 walk\.db3 \.recover'):
        open_dataset('bag', path)


def test_damage_in_the_middle_ends_it_early(builder, tmp_path):
    """What lies in the middle of the file is overwritten."""
    record(builder, images=np.arange(0.1, 2.1, 0.002))
    path = builder.write(tmp_path / 'walk')
    file = next(path.glob('*.mcap'))
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    data[half : half + 40_000] = b'\xff' * 40_000
    file.write_bytes(data)
    dataset = open_dataset('bag', path, min_translation=0, min_rotation=0)
    assert 100 < len(dataset.train) < 900
    assert re.search(r'damaged.*the \d\.\d s before that are used', dataset.warnings[0])
    for sample in dataset.train[::50]:
        assert sample.load_image().shape == (48, 64, 3)


def test_damage_that_only_decoding_shows_names_the_way_out(builder, tmp_path):
    record(builder, images=[])
    jpeg = cv2.imencode('.jpg', picture(0))[1].tobytes()
    for i, t in enumerate(IMAGE_TIMES):
        data = jpeg[:30] + bytes(300) + jpeg[-30:] if i == 3 else jpeg
        builder.compressed(f'{IMAGE}/compressed', at(t), data, 'jpeg')
    path = builder.write(tmp_path / 'walk')
    samples = open_dataset('bag', path).train
    assert samples[2].load_image().shape == (48, 64, 3)
    with pytest.raises(DatasetError, match='walk.*OpenCV.*--min-sharpness 0.01'):
        samples[3].load_image()
    assert len(open_dataset('bag', path, min_sharpness=0.01).train) == 19


def test_an_empty_bag(builder, tmp_path):
    path = builder.write(tmp_path / 'walk')
    with pytest.raises(BagError, match='holds no images'):
        open_dataset('bag', path)


@pytest.mark.parametrize(
    'options',
    [{'max_gap': -1.0}, {'min_translation': 'nan'}, {'intrinsics': '1,2,3'}, {'speed': 3}],
)
def test_impossible_options(builder, tmp_path, options):
    path = record(builder).write(tmp_path / 'walk')
    with pytest.raises((BagError, DatasetError)):
        open_dataset('bag', path, **options)


def test_the_real_bags(data):
    bags = data / 'bags'
    mapping, query = bags / 'redkitchen_mapping', bags / 'redkitchen_query'
    dataset = open_dataset('bag', mapping, test_path=query, min_translation=0, min_rotation=0)
    assert (len(dataset.train), len(dataset.test)) == (385, 45)
    assert 'poses /ground_truth/pose' in dataset.notes[-1]
    # The same frames as files, in another world: poses relative to the first are the same.
    files = open_dataset('7scenes', data / 'redkitchen')
    for bag, file in ((dataset.train, files.train), (dataset.test, files.test)):
        first, second = ([s.world_T_camera for s in samples[::11]] for samples in (bag, file))
        for a, b in zip(first[1:], second[1:]):
            here, there = np.linalg.inv(first[0]) @ a, np.linalg.inv(second[0]) @ b
            np.testing.assert_allclose(here, there, atol=2e-3)
