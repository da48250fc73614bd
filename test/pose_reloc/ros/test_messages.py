"""Images, cameras, poses and stamps of messages, against truth made with plain numpy."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.errors import CameraError
from pose_reloc.geometry import pose_matrix
from pose_reloc.ros.messages import (
    MAX_PIXELS,
    MessageError,
    camera_for_image,
    camera_from_info,
    image_from_message,
    matrix_from_pose,
    pose_message,
    stamp_ns,
)

HEIGHT, WIDTH = 6, 8


def noise(channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def raw(pixels, encoding, padding=0, bigendian=False):
    """A sensor_msgs/Image of an array (H, W, C), its rows followed by `padding` bytes of 0xAA."""
    pixels = np.asarray(pixels)
    if pixels.dtype.itemsize == 2:
        pixels = pixels.astype('>u2' if bigendian else '<u2')
    rows = [row.tobytes() + b'\xaa' * padding for row in pixels]
    return SimpleNamespace(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(bigendian),
        step=len(rows[0]),
        data=b''.join(rows),
    )


def compressed(data, kind='jpeg'):
    return SimpleNamespace(format=kind, data=bytes(data))


def with_alpha(pixels):
    return np.dstack([pixels, noise(1, 9)])


GREY = noise(1)
RGB = noise()
SAME = {
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[..., ::-1], RGB),
    '8UC3': (RGB[..., ::-1], RGB),
    'rgba8': (with_alpha(RGB), RGB),
    'bgra8': (with_alpha(RGB[..., ::-1]), RGB),
    '8UC4': (with_alpha(RGB[..., ::-1]), RGB),
    'mono8': (GREY, GREY.repeat(3, 2)),
    '8UC1': (GREY, GREY.repeat(3, 2)),
    # 65535 is as white as 255: 257 steps of the one are one step of the other.
    'rgb16': (RGB.astype(np.uint16) * 257, RGB),
    'bgr16': (RGB[..., ::-1].astype(np.uint16) * 257, RGB),
    'mono16': (GREY.astype(np.uint16) * 257, GREY.repeat(3, 2)),
}


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize('encoding', SAME)
def test_encodings_without_loss(encoding, padding):
    sent, truth = SAME[encoding]
    image = image_from_message(raw(sent, encoding, padding))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, truth)


@pytest.mark.parametrize('encoding', ['rgb16', 'bgr16', 'mono16'])
def test_big_endian(encoding):
    sent, truth = SAME[encoding]
    np.testing.assert_array_equal(image_from_message(raw(sent, encoding, 2, True)), truth)


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize(
    ('encoding', 'order'),
    [('yuv422', 'uyvy'), ('uyvy', 'uyvy'), ('yuv422_yuy2', 'yuyv'), ('yuyv', 'yuyv')],
)
def test_yuv_is_bt601(encoding, order, padding):
    rng = np.random.default_rng(1)
    y = rng.integers(16, 236, (HEIGHT, WIDTH)).astype(float)
    u, v = rng.integers(90, 166, (2, HEIGHT, WIDTH // 2)).astype(float)
    sent = np.zeros((HEIGHT, WIDTH, 2), np.uint8)
    luma, chroma = (1, 0) if order == 'uyvy' else (0, 1)
    sent[..., luma] = y
    sent[:, 0::2, chroma], sent[:, 1::2, chroma] = u, v
    u, v = u.repeat(2, 1) - 128, v.repeat(2, 1) - 128
    y = 255 / 219 * (y - 16)
    truth = np.dstack([y + 1.596 * v, y - 0.392 * u - 0.813 * v, y + 2.017 * u])
    image = image_from_message(raw(sent, encoding, padding))
    np.testing.assert_allclose(image, truth.clip(0, 255), atol=1.5)


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_of_a_plain_colour(pattern, bits):
    colour = {'r': 210, 'g': 120, 'b': 30}
    cell = np.array([colour[c] for c in pattern]).reshape(2, 2)
    sent = np.tile(cell, (HEIGHT // 2, WIDTH // 2))[..., None]
    sent = sent.astype(np.uint8) if bits == 8 else sent.astype(np.uint16) * 257
    image = image_from_message(raw(sent, f'bayer_{pattern}{bits}', 4))
    np.testing.assert_array_equal(image, np.tile([210, 120, 30], (HEIGHT, WIDTH, 1)))


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'grbg'])
def test_a_compressed_mosaic_is_the_raw_one(pattern, bits):
    """As image_transport makes it: the mosaic as it is, its encoding in `format`."""
    sent = noise(1) if bits == 8 else noise(1).astype(np.uint16) * 257
    truth = image_from_message(raw(sent, f'bayer_{pattern}{bits}'))
    data = cv2.imencode('.png', sent)[1]
    kind = f'bayer_{pattern}{bits}; png compressed '
    np.testing.assert_array_equal(image_from_message(compressed(data, kind)), truth)
    # Where it has made colours of the mosaic, it says so; and a header may lie.
    data = cv2.imencode('.png', RGB[..., ::-1])[1]
    for lie in (kind, f'{kind}bgr8', f'bayer_x{bits}; png compressed '):
        np.testing.assert_array_equal(image_from_message(compressed(data, lie)), RGB)


def test_data_may_be_an_array_and_rgb8_is_not_copied():
    message = raw(RGB, 'rgb8')
    message.data = np.frombuffer(message.data, np.uint8)
    image = image_from_message(message)
    np.testing.assert_array_equal(image, RGB)
    assert np.shares_memory(image, message.data)


def test_the_last_row_may_lack_its_padding():
    message = raw(RGB, 'rgb8', padding=5)
    message.data = message.data[:-5]
    np.testing.assert_array_equal(image_from_message(message), RGB)


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        ({'encoding': '32FC1'}, '32FC1'),
        ({'encoding': ''}, 'supported'),
        ({'height': 0}, 'cannot be'),
        ({'width': 0}, 'cannot be'),
        ({'height': HEIGHT + 1}, 'needs'),
        ({'step': 3 * WIDTH - 1}, 'step'),
        ({'data': b''}, '0 bytes'),
        ({'height': 2**32 - 1, 'width': 2**32 - 1, 'step': 2**32 - 1}, 'cannot be'),
        ({'height': 60_000, 'width': 60_000, 'step': 0}, str(MAX_PIXELS)),
        ({'encoding': 'yuv422', 'width': 7, 'step': 14}, 'even width'),
        ({'encoding': 'bayer_rggb8', 'width': 1}, 'too small'),
    ],
)
def test_impossible_images(change, word):
    message = raw(RGB, 'rgb8')
    vars(message).update(change)
    with pytest.raises(MessageError, match=word):
        image_from_message(message)


def smooth():
    v, u = np.mgrid[0:96, 0:128]
    return np.dstack([u * 2, v * 2, 128 + 0 * u]).astype(np.uint8)


@pytest.mark.parametrize(('kind', 'tolerance'), [('.png', 0), ('.jpg', 6)])
def test_compressed_is_rgb(kind, tolerance):
    data = cv2.imencode(kind, smooth()[..., ::-1])[1].tobytes()
    image = image_from_message(compressed(data, f'rgb8; {kind[1:]} compressed bgr8'))
    assert np.abs(image.astype(int) - smooth()).max() <= tolerance


def test_zeros_behind_a_jpeg_do_no_harm():
    data = cv2.imencode('.jpg', smooth())[1].tobytes()
    image = image_from_message(compressed(data + bytes(5000)))
    np.testing.assert_array_equal(image, image_from_message(compressed(data)))


@pytest.mark.parametrize('kind', ['.png', '.jpg'])
@pytest.mark.parametrize('part', [0.0, 0.05, 0.5, 0.95])
def test_truncated_pictures_are_refused(kind, part):
    data = cv2.imencode(kind, noise(3).repeat(16, 0).repeat(16, 1))[1].tobytes()
    with pytest.raises(MessageError):
        image_from_message(compressed(data[: int(part * len(data))]))


@pytest.mark.parametrize('data', [b'\0', b'\0' * 100, b'hello', b'\xff\xd8', b'\xff\xd8\xff\xd9'])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(MessageError):
        image_from_message(compressed(data))


@pytest.mark.parametrize('kind', ['.png', '.jpg'])
def test_a_picture_that_claims_to_be_huge_is_not_decoded(kind):
    data = bytearray(cv2.imencode(kind, smooth())[1].tobytes())
    if kind == '.png':
        data[16:24] = (60_000).to_bytes(4, 'big') * 2
    else:
        frame = data.index(b'\xff\xc0')
        data[frame + 5 : frame + 9] = (60_000).to_bytes(2, 'big') * 2
    with pytest.raises(MessageError, match=str(MAX_PIXELS)):
        image_from_message(compressed(data))


def test_random_damage_never_raises_anything_else():
    good = cv2.imencode('.jpg', smooth())[1]
    rng = np.random.default_rng(2)
    for _ in range(200):
        data = good.copy()
        where = rng.integers(0, len(data), 8)
        data[where] = rng.integers(0, 256, 8)
        try:
            assert image_from_message(compressed(data)).ndim == 3
        except MessageError:
            pass


def test_a_depth_image_is_refused():
    with pytest.raises(MessageError, match='depth'):
        image_from_message(compressed(b'', '16UC1; compressedDepth png'))


def info(**changes):
    """A sensor_msgs/CameraInfo."""
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {
        'width': 640,
        'height': 480,
        'k': np.array([500.0, 0, 320, 0, 510, 240, 0, 0, 1]),
        'd': [0.1, -0.2, 0.001, 0.002, 0.05],
        'p': np.array([450.0, 0, 315, 0, 0, 460, 235, 0, 0, 0, 1, 0]),
        'distortion_model': 'plumb_bob',
        'binning_x': 0,
        'binning_y': 0,
        'roi': roi,
    }
    return SimpleNamespace(**(fields | changes))


def test_camera_info():
    camera = camera_from_info(info())
    assert (camera.width, camera.height) == (640, 480)
    np.testing.assert_array_equal(camera.K, [[500, 0, 320], [0, 510, 240], [0, 0, 1]])
    assert camera.distortion == (0.1, -0.2, 0.001, 0.002, 0.05)


def test_camera_info_of_rectified_images_is_p():
    camera = camera_from_info(info(), rectified=True)
    np.testing.assert_array_equal(camera.K, [[450, 0, 315], [0, 460, 235], [0, 0, 1]])
    assert camera.is_pinhole


@pytest.mark.parametrize(('roi', 'binning'), [(True, 1), (False, 2), (True, 2), (True, 4)])
def test_region_of_interest_and_binning_see_the_same_points(roi, binning):
    window = SimpleNamespace(x_offset=64, y_offset=32, width=400, height=320)
    full = camera_from_info(info())
    change = {'roi': window} if roi else {}
    part = camera_from_info(info(binning_x=binning, binning_y=binning, **change))
    points = np.random.default_rng(3).uniform((-0.5, -0.5, 2), (0.5, 0.5, 4), (50, 3))
    offset = (64, 32) if roi else (0, 0)
    # Pixel i of a binned image covers the pixels from i * binning on, centre to centre.
    expected = (full.project(points) - offset + 0.5) / binning - 0.5
    np.testing.assert_allclose(part.project(points), expected, atol=1e-9)
    size = (400, 320) if roi else (640, 480)
    assert (part.width, part.height) == (size[0] // binning, size[1] // binning)


@pytest.mark.parametrize(
    ('change', 'rectified'),
    [
        ({'k': np.zeros(9)}, False),
        ({'p': np.zeros(12)}, True),
        ({'p': np.zeros(9)}, True),
        ({'k': np.full(9, np.nan)}, False),
        ({'width': 0}, False),
        ({'distortion_model': 'magic'}, False),
        ({'d': [0.1, 0.2, 0.3]}, False),
    ],
)
def test_impossible_cameras(change, rectified):
    with pytest.raises(CameraError):
        camera_from_info(info(**change), rectified)


def test_a_smaller_image_of_the_same_view():
    camera = camera_from_info(info())
    half = camera_for_image(camera, np.zeros((240, 320, 3), np.uint8))
    assert (half.width, half.height, half.fx, half.fy) == (320, 240, 250, 255)
    with pytest.raises(CameraError, match='another shape'):
        camera_for_image(camera, np.zeros((240, 240, 3), np.uint8))


def pose(position, xyzw):
    x, y, z = position
    a, b, c, w = xyzw
    return SimpleNamespace(
        position=SimpleNamespace(x=x, y=y, z=z), orientation=SimpleNamespace(x=a, y=b, z=c, w=w)
    )


def test_pose_of_a_message_is_xyzw():
    rotation = Rotation.random(random_state=4)
    found = matrix_from_pose(pose((1.0, 2.0, 3.0), 5.0 * rotation.as_quat()))
    np.testing.assert_allclose(found[:3, :3], rotation.as_matrix(), atol=1e-12)
    np.testing.assert_array_equal(found[:, 3], [1, 2, 3, 1])


@pytest.mark.parametrize(
    ('position', 'xyzw'),
    [((0, 0, np.nan), (0, 0, 0, 1)), ((0, np.inf, 0), (0, 0, 0, 1)), ((0, 0, 0), (0, 0, 0, 0)),
     ((0, 0, 0), (0, 0, 0, np.nan))],
)  # fmt: skip
def test_impossible_poses(position, xyzw):
    with pytest.raises(MessageError):
        matrix_from_pose(pose(position, xyzw))


def test_messages_go_there_and_back():
    pytest.importorskip('rclpy', reason='needs the message packages')
    from pose_reloc.ros.messages import (
        matrix_from_transform,
        pose_message,
        stamp_message,
        transform_message,
    )

    stamp = 1_700_000_123_999_999_999
    assert stamp_ns(stamp_message(stamp)) == stamp
    truth = np.eye(4)
    truth[:3, :3] = Rotation.random(random_state=5).as_matrix()
    truth[:3, 3] = 1, 2, 3
    covariance = np.arange(36.0).reshape(6, 6)
    message = pose_message(stamp, 'map', truth, covariance)
    assert (message.header.frame_id, stamp_ns(message.header.stamp)) == ('map', stamp)
    np.testing.assert_allclose(matrix_from_pose(message.pose.pose), truth, atol=1e-12)
    np.testing.assert_array_equal(message.pose.covariance, covariance.ravel())
    q = message.pose.pose.orientation
    np.testing.assert_allclose(
        Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), truth[:3, :3], atol=1e-12
    )
    moved = transform_message(stamp, 'a', 'b', truth)
    assert (moved.header.frame_id, moved.child_frame_id) == ('a', 'b')
    np.testing.assert_allclose(matrix_from_transform(moved.transform), truth, atol=1e-12)


# What a ROS distribution brings along


@pytest.fixture
def installed(monkeypatch):
    """installed(name, module): puts a stand-in in the place of an optional package."""
    import sys

    from pose_reloc.ros import messages

    def put(name, module):
        monkeypatch.setitem(sys.modules, name, module)
        messages._tf_transformations.cache_clear()

    yield put
    messages._tf_transformations.cache_clear()


def convert(count=50):
    """Poses to messages and back: (quaternions xyzw, matrices)."""
    quaternions, matrices = [], []
    for rotation in Rotation.random(count, random_state=3):
        pose = pose_matrix(rotation.as_matrix(), [1.0, 2.0, 3.0])
        message = pose_message(0, 'map', pose, np.eye(6)).pose.pose
        q = message.orientation
        quaternions.append([q.x, q.y, q.z, q.w])
        matrices.append(matrix_from_pose(message))
    return np.array(quaternions), np.array(matrices)


def test_tf_transformations_changes_nothing(installed):
    pytest.importorskip('rclpy', reason='needs rclpy')
    calls = []

    def quaternion_matrix(q_xyzw):  # as its documentation says: xyzw in, 4x4 out
        calls.append(q_xyzw)
        return pose_matrix(Rotation.from_quat(q_xyzw).as_matrix(), np.zeros(3))

    def quaternion_from_matrix(matrix):
        calls.append(matrix)
        return -Rotation.from_matrix(matrix[:3, :3]).as_quat()

    installed('tf_transformations', None)
    without = convert()
    assert calls == []
    installed('tf_transformations', SimpleNamespace(
        quaternion_matrix=quaternion_matrix, quaternion_from_matrix=quaternion_from_matrix
    ))  # fmt: skip
    with_it = convert()
    assert len(calls) == 100
    np.testing.assert_allclose(with_it[0], without[0], atol=1e-12)
    np.testing.assert_allclose(with_it[1], without[1], atol=1e-12)


def test_the_real_tf_transformations_gives_the_same(installed):
    pytest.importorskip('rclpy', reason='needs rclpy')
    real = pytest.importorskip('tf_transformations', reason='comes with a ROS distribution')
    installed('tf_transformations', None)
    without = convert()
    installed('tf_transformations', real)
    np.testing.assert_allclose(convert()[0], without[0], atol=1e-12)
    np.testing.assert_allclose(convert()[1], without[1], atol=1e-12)


def test_an_encoding_of_its_own_goes_through_cv_bridge(installed):
    asked = []

    class CvBridge:
        def imgmsg_to_cv2(self, message, desired):
            asked.append((message.encoding, desired))
            if message.height == 3:
                raise TypeError('buffer is too small for requested array')
            return np.full((message.height, message.width, 3), 7, np.uint8)

    nv21 = SimpleNamespace(height=2, width=4, encoding='nv21', is_bigendian=0, step=4, data=b'')
    installed('cv_bridge', None)
    with pytest.raises(MessageError, match='more with cv_bridge installed'):
        image_from_message(nv21)
    installed('cv_bridge', SimpleNamespace(CvBridge=CvBridge))
    assert image_from_message(nv21).shape == (2, 4, 3)
    assert asked == [('nv21', 'rgb8')]
    nv21.height = 3
    with pytest.raises(MessageError, match='cv_bridge says buffer is too small'):
        image_from_message(nv21)
    nv21.width = 2**32 - 1
    with pytest.raises(MessageError, match='cannot be'):
        image_from_message(nv21)
    assert len(asked) == 2, 'sizes are checked before anything is allocated'
