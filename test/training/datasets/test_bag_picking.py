"""What is taken from a bag, and what is refused: whose poses, in which world, which depth."""

import re

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.errors import BagError, DatasetError
from training.datasets import open_dataset
from training.datasets.bag.poses import PoseTopic, Truth, topic_named_truth

FIRST = 1_700_000_000_000_000_000
CAMERA = Camera(64, 48, 60.0, 61.0, 31.0, 24.0)
IMAGE = '/camera/image_raw'
FRAME = 'camera_optical_frame'
TIMES = np.arange(20) / 10  # of images and poses, seconds


def at(seconds):
    return FIRST + round(seconds * 1e9)


def place(x, yaw_deg=0.0):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler('z', yaw_deg, degrees=True).as_matrix()
    pose[0, 3] = x
    return pose


def record(builder, images=TIMES, topic=IMAGE):
    """Images of a camera that is mounted at the origin of base_link."""
    builder.info(f'{topic.rsplit("/", 1)[0]}/camera_info', at(0), CAMERA)
    builder.transform('base_link', FRAME, at(0), np.eye(4), static=True)
    for i, t in enumerate(images):
        builder.image(topic, at(t), np.full((48, 64, 3), i, np.uint8))
    return builder


def posed(builder, topic, x=0.0, frame='map', **how):
    """Poses on a topic; the robot drives from x on at 0.5 m/s."""
    for t in TIMES:
        builder.pose(topic, at(t), place(x + 0.5 * t), frame=frame, **how)
    return builder


def first_x(dataset):
    return dataset.train[0].world_T_camera[0, 3]


# The world of the poses


@pytest.mark.parametrize(
    'name', ['/gt', '/gt_pose', '/drone/gt0/odom', '/ground_truth/pose', '/groundTruth', '/truth']
)
def test_names_of_the_truth(name):
    assert topic_named_truth(['/odom', name]) == name


@pytest.mark.parametrize('name', ['/gtsam/pose', '/algtrack', '/truthful_slam'])
def test_names_that_only_contain_these_letters(name):
    assert topic_named_truth([name]) is None


def test_a_topic_of_gtsam_is_no_truth(builder, tmp_path):
    posed(record(builder), '/gtsam/pose', x=100, frame='odom_gtsam')
    for t in TIMES:
        builder.transform('map', 'base_link', at(t), place(0.5 * t))
    path = builder.write(tmp_path / 'walk')
    assert first_x(open_dataset('bag', path)) == 0
    chosen = open_dataset('bag', path, pose_topic='/gtsam/pose')
    assert first_x(chosen) == 100 and not chosen.warnings
    assert 'poses /gtsam/pose in odom_gtsam' in chosen.notes[0]


def test_poses_in_another_world_than_the_one_asked_for(builder, tmp_path):
    path = posed(record(builder), '/gt/pose', frame='mocap').write(tmp_path / 'walk')
    for options in ({}, {'map_frame': 'odom'}, {'map_frame': 'odom', 'pose_topic': '/gt/pose'}):
        (text,) = open_dataset('bag', path, **options).warnings
        assert f'are in mocap, not in {options.get("map_frame", "map")}' in text
        assert '--map-frame mocap' in text
    for options in ({'map_frame': 'mocap'}, {'pose_topic': '/gt/pose'}):
        assert not open_dataset('bag', path, **options).warnings


@pytest.mark.parametrize('option', ['more', 'test_path'])
def test_bags_of_different_worlds_are_not_mixed(new_builder, tmp_path, option):
    first, second = (
        posed(record(new_builder()), '/pose', frame=frame).write(tmp_path / frame)
        for frame in ('map', 'odom2')
    )
    message = 'different frames: map in map, odom2 in odom2.*--map-frame'
    with pytest.raises(DatasetError, match=message):
        open_dataset('bag', first, pose_topic='/pose', **{option: second})


def test_the_way_out_for_odometry_that_says_whose_poses_it_holds(builder, tmp_path):
    """--body-frame would change nothing: the messages say that it is the IMU."""
    path = posed(record(builder), '/vio', kind='Odometry', child='imu').write(tmp_path / 'walk')
    with pytest.raises(BagError, match='those of imu.*--camera-frame imu if'):
        open_dataset('bag', path)
    assert first_x(open_dataset('bag', path, camera_frame='imu')) == 0


# Poses over time


def test_poses_without_stamps_have_those_of_their_recording(new_builder, tmp_path):
    for kind in ('pose', 'transform'):
        builder = record(new_builder())
        for t in TIMES:
            if kind == 'pose':
                builder.pose('/pose', 0, place(0.5 * t))
            else:
                builder.transform('map', 'base_link', 0, place(0.5 * t))
            _, topic, name, message = builder.messages[-1]
            builder.messages[-1] = (at(t), topic, name, message)
        dataset = open_dataset('bag', builder.write(tmp_path / kind))
        x = [sample.world_T_camera[0, 3] for sample in dataset.train]
        np.testing.assert_allclose(x, 0.5 * TIMES, atol=1e-9)


def truth(place_at, hertz=10, seconds=4):
    """A topic of poses, `place_at` of each time in seconds."""
    poses = PoseTopic('/pose', 'map')
    for t in np.arange(seconds * hertz) / hertz:
        poses.tree.set('world', 'body', at(t), place_at(t))
    return poses.truth()


@pytest.mark.parametrize('step', [place(5.0), place(0.0, 90.0)])
def test_inside_a_jump_nobody_was(step):
    found = truth(lambda t: place(0.2 * t) @ step if t > 1.95 else place(0.2 * t))
    jumps = [t for t in np.arange(0.01, 3.9, 0.01) if found.jumps_at(at(t))]
    np.testing.assert_allclose(jumps, np.arange(1.91, 1.995, 0.01))  # not where it was measured


def test_fast_motion_is_no_jump():
    for motion in (lambda t: place(40 * t), lambda t: place(4 * t**2, 500 * t)):
        found = truth(motion)
        assert not any(found.jumps_at(at(t)) for t in np.arange(0, 3.9, 0.0123))


def test_jumps_of_a_part_of_tf():
    """A loop closure moves map -> odom while odom -> base_link goes on at another rate."""
    tree = PoseTopic('').tree
    for t in np.arange(80) / 20:
        tree.set('map', 'odom', at(t), place(1.0, 20.0) if t > 1.97 else np.eye(4))
    for t in np.arange(200) / 50 + 0.003:
        tree.set('odom', 'base_link', at(t), place(100 + t, 20 * t))
    found = Truth('TF', tree, 'map', 'base_link')
    jumps = [t for t in np.arange(0.011, 3.9, 0.01) if found.jumps_at(at(t))]
    np.testing.assert_allclose(jumps, np.arange(1.951, 1.995, 0.01))


def test_images_in_jumps_are_left_out_and_counted(builder, tmp_path):
    record(builder, images=TIMES[:-1] + 0.05)
    for t in TIMES:
        builder.pose('/pose', at(t), place(0.5 * t + (5 if t > 0.95 else 0)))
    dataset = open_dataset('bag', builder.write(tmp_path / 'walk'))
    assert len(dataset.train) == 18
    assert '1 of 19 images of walk left out: 1 in jumps of the poses' in dataset.warnings[0]


@pytest.mark.parametrize('options', [{'time_offset': 1e300}, {'max_gap': 1e300}])
def test_times_longer_than_any_recording(builder, tmp_path, options):
    path = posed(record(builder), '/pose').write(tmp_path / 'walk')
    with pytest.raises(BagError, match=f'{next(iter(options))} cannot be 1e'):
        open_dataset('bag', path, **options)


# Images


def test_the_only_camera_may_be_named_like_depth(builder, tmp_path):
    topic = '/depth_camera/image_raw'
    path = posed(record(builder, topic=topic), '/pose').write(tmp_path / 'walk')
    dataset = open_dataset('bag', path)
    assert f'images {topic} (20)' in dataset.notes[0] and 'depth none' in dataset.notes[0]


def test_torn_images_are_left_out_and_counted(builder, tmp_path):
    """Pictures and depth that were cut off, beside whole ones with zeros behind them."""
    posed(record(builder, images=()), '/pose')
    rng = np.random.default_rng(0)
    jpeg = cv2.imencode('.jpg', rng.integers(0, 255, (48, 64, 3), np.uint8))[1].tobytes()
    png = cv2.imencode('.png', np.full((48, 64), 2000, np.uint16))[1].tobytes()
    for i, t in enumerate(TIMES):
        data = {3: jpeg[: len(jpeg) // 2], 5: jpeg + bytes(9000), 7: b''}.get(i, jpeg)
        builder.compressed(f'{IMAGE}/compressed', at(t), data, 'rgb8; jpeg compressed bgr8')
        builder.compressed(
            '/camera/depth/image/compressedDepth', at(t), bytes(12) + (png[:40] if i == 9 else png),
            '16UC1; compressedDepth png',
        )  # fmt: skip
    dataset = open_dataset('bag', builder.write(tmp_path / 'walk'))
    assert any(
        re.search(r'2 of 20 images on .*compressed are.*left out', t) for t in dataset.warnings
    )
    assert len(dataset.train) == 17  # and one without depth
    for sample in dataset.train:
        assert sample.load_image().shape == (48, 64, 3) and sample.load_depth().min() == 2


# Depth


def test_the_depth_that_is_asked_for_may_have_any_name(builder, tmp_path):
    posed(record(builder, topic='/oak/rgb/image_raw'), '/pose')
    for t in TIMES:
        builder.image('/oak/stereo/image_raw', at(t), np.full((48, 64), 2000, np.uint16))
    path = builder.write(tmp_path / 'walk')
    images = {'image_topic': '/oak/rgb/image_raw'}
    assert open_dataset('bag', path, **images).train[0].load_depth() is None
    dataset = open_dataset('bag', path, **images, depth_topic='/oak/stereo/image_raw')
    assert dataset.train[0].load_depth().min() == 2


@pytest.mark.parametrize(
    ('topic', 'problem'),
    [('/nope', 'there are no images on it; image topics: /camera'), (IMAGE, "encoding 'rgb8'")],
)
def test_depth_that_is_asked_for_and_missing(builder, tmp_path, topic, problem):
    path = posed(record(builder), '/pose').write(tmp_path / 'walk')
    with pytest.raises(BagError, match=f'has no depth on {topic}: .*{problem}.*--depth-topic none'):
        open_dataset('bag', path, depth_topic=topic)
