"""The camera against OpenCV's projection, real resizing and its own inverse."""

import cv2
import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.errors import CameraError

PINHOLE = Camera(640, 480, 525, 530, 315, 242)
PLUMB_BOB = Camera(640, 480, 480, 485, 322, 238, (-0.28, 0.09, 0.001, -0.0008, -0.01))
RATIONAL = Camera(
    1280, 720, 700, 705, 642, 355,
    (0.4, -0.2, 0.0005, 0.0003, 0.02, 0.7, -0.1, 0.03), 'rational_polynomial',
)  # fmt: skip
FISHEYE = Camera(800, 600, 300, 301, 398, 303, (0.02, -0.01, 0.004, -0.001), 'equidistant')
IDEAL = Camera(800, 600, 300, 301, 398, 303, (0.0,) * 4, 'equidistant')
CAMERAS = pytest.mark.parametrize(
    'camera',
    [PINHOLE, PLUMB_BOB, RATIONAL, FISHEYE, IDEAL],
    ids=['pinhole', 'plumb', 'rational', 'fish', 'ideal fish'],
)


def points_in_view(camera, N=200, seed=0):
    rng = np.random.default_rng(seed)
    half = 0.45 * np.array([camera.width / camera.fx, camera.height / camera.fy])
    z = rng.uniform(0.3, 8, size=(N, 1))
    return np.concatenate([rng.uniform(-half, half, size=(N, 2)) * z, z], axis=1)


def opencv_projection(camera, points):
    points = points.reshape(-1, 1, 3)
    if camera.distortion_model == 'equidistant':
        zero = np.zeros((1, 1, 3))
        D = np.array(camera.distortion)
        return cv2.fisheye.projectPoints(points, zero, zero, camera.K, D)[0].reshape(-1, 2)
    D = np.array(camera.distortion) if camera.distortion else None
    zero = np.zeros(3)
    return cv2.projectPoints(points, zero, zero, camera.K, D)[0].reshape(-1, 2)


@CAMERAS
def test_projection_is_opencvs(camera):
    points = points_in_view(camera)
    np.testing.assert_allclose(camera.project(points), opencv_projection(camera, points), atol=1e-9)


def test_projection_by_hand():
    camera = Camera(640, 480, 500, 400, 320, 240)
    uv = camera.project([[0, 0, 1], [1, -1, 2], [0.5, 0.25, 5]])
    np.testing.assert_allclose(uv, [[320, 240], [570, 40], [370, 260]])


@CAMERAS
def test_points_at_or_behind_the_camera_have_no_pixel(camera):
    points = np.array([[0.1, 0.2, 2], [0.1, 0.2, 0], [0.1, 0.2, -2]])
    uv = camera.project(points)
    assert np.isfinite(uv[0]).all() and np.isnan(uv[1:]).all()
    assert np.isnan(camera.project(points[1:])).all()
    assert camera.project(np.zeros((0, 3))).shape == (0, 2)


@CAMERAS
def test_unprojection_inverts_projection(camera):
    points = points_in_view(camera, seed=1)
    found = camera.unproject(camera.project(points), points[:, 2])
    np.testing.assert_allclose(found, points, atol=1e-6)
    assert camera.unproject(np.zeros((0, 2)), np.zeros(0)).shape == (0, 3)


@CAMERAS
def test_scaling_moves_projections_with_the_image(camera):
    """The edges (-0.5 and width - 0.5) of the image stay edges."""
    points = points_in_view(camera, seed=2)
    small = camera.scaled(200, 160)
    scale = np.array([200 / camera.width, 160 / camera.height])
    expected = (camera.project(points) + 0.5) * scale - 0.5
    np.testing.assert_allclose(small.project(points), expected, atol=1e-9)
    assert (small.width, small.height) == (200, 160)
    assert small.distortion == camera.distortion


@pytest.mark.parametrize('size', [(320, 240), (341, 256), (160, 200)])
def test_scaling_is_that_of_resized_images(size):
    """Corners of a checkerboard, found by OpenCV in the image before and after resizing it."""
    board = np.kron(np.indices((8, 10)).sum(0) % 2, np.ones((48, 48))) * 200 + 30
    image = np.full((480, 640), 128, np.uint8)
    image[48:432, 80:560] = board
    image = cv2.GaussianBlur(image, (0, 0), 1.5)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-6)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    corners = np.array([[128 + 48 * i, 96 + 48 * j] for i in range(9) for j in range(7)]) - 0.5
    before = cv2.cornerSubPix(
        image, corners.astype(np.float32).reshape(-1, 1, 2), (9, 9), (-1, -1), criteria
    ).reshape(-1, 2)
    rays = PINHOLE.unproject(before, np.ones(len(before)))
    predicted = PINHOLE.scaled(*size).project(rays)
    after = cv2.cornerSubPix(
        resized, predicted.astype(np.float32).reshape(-1, 1, 2), (4, 4), (-1, -1), criteria
    ).reshape(-1, 2)
    # Forgetting the half pixel would shift every corner by 0.25 px at half size.
    assert np.abs((after - predicted).mean(axis=0)).max() < 0.02
    assert np.abs(after - predicted).max() < 0.08


@CAMERAS
def test_undistort_map_sends_each_target_pixel_to_its_ray(camera):
    target = Camera(320, 200, 0.6 * camera.fx, 0.6 * camera.fy, 150, 105)
    u, v = camera.undistort_map(target)
    assert u.shape == v.shape == (200, 320) and u.dtype == np.float32
    grid = np.stack(np.meshgrid(np.arange(320), np.arange(200)), -1).reshape(-1, 2)
    expected = camera.project(target.unproject(grid, np.ones(len(grid))))
    inside = (expected >= 0).all(1) & (expected < (camera.width, camera.height)).all(1)
    assert inside.mean() > 0.2
    found = np.stack([u, v], -1).reshape(-1, 2)
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)


def test_undistorted_keeps_the_matrix():
    plain = PLUMB_BOB.undistorted()
    assert plain.is_pinhole and not PLUMB_BOB.is_pinhole
    np.testing.assert_array_equal(plain.K, PLUMB_BOB.K)
    np.testing.assert_array_equal(PINHOLE.K, [[525, 0, 315], [0, 530, 242], [0, 0, 1]])


def test_camera_info():
    k = [500, 0, 320, 0, 501, 240, 0, 0, 1]
    camera = Camera.from_camera_info(640, 480, k)
    assert camera == Camera(640, 480, 500, 501, 320, 240)
    zeros = Camera.from_camera_info(640, 480, np.array(k), np.zeros(5), 'plumb_bob')
    assert zeros == camera and zeros.is_pinhole
    assert Camera.from_camera_info(640, 480, k, (), 'equidistant').is_pinhole
    eight = Camera.from_camera_info(640, 480, k, [0.1] * 8, 'plumb_bob')
    assert eight.distortion_model == 'rational_polynomial'
    assert Camera.from_camera_info(640, 480, k, [0.1] * 5, '').distortion_model == 'plumb_bob'


def test_four_zeros_of_a_fisheye_are_no_pinhole():
    """They are an ideal one: the distance from the centre is f times the angle of the ray."""
    k = [300, 0, 398, 0, 301, 303, 0, 0, 1]
    camera = Camera.from_camera_info(800, 600, k, np.zeros(4), 'equidistant')
    assert camera == IDEAL and not camera.is_pinhole
    angle = np.linspace(0.0, 1.2, 20)
    rays = np.stack([np.sin(angle), np.zeros(20), np.cos(angle)], axis=1)
    uv = np.stack([398 + 300 * angle, np.full(20, 303)], axis=1)
    np.testing.assert_allclose(camera.project(rays), uv, atol=1e-6)


def test_dictionary_round_trip():
    for camera in (PINHOLE, PLUMB_BOB, RATIONAL, FISHEYE, IDEAL):
        assert Camera.from_dict(camera.to_dict()) == camera
    for broken in (
        {},
        {**PINHOLE.to_dict(), 'fx': 'wide'},
        {**PINHOLE.to_dict(), 'lens': 1},
        {key: value for key, value in PINHOLE.to_dict().items() if key != 'cy'},
        {**PINHOLE.to_dict(), 'distortion': 5},
        {**PINHOLE.to_dict(), 'distortion': ['a', 'b', 'c', 'd']},
        {**PINHOLE.to_dict(), 'width': None},
        None,
    ):
        with pytest.raises(CameraError):
            Camera.from_dict(broken)


@pytest.mark.parametrize(
    'change',
    [
        {'width': 0},
        {'height': 100000},
        {'fx': 0.0},
        {'fy': -500.0},
        {'cx': np.nan},
        {'distortion': (0.1, np.inf, 0, 0)},
        {'distortion': (0.1, 0.2)},
        {'distortion': (0.1,) * 4, 'distortion_model': 'mystery'},
        {'distortion': (0.1,) * 5, 'distortion_model': 'equidistant'},
    ],
)
def test_impossible_cameras_are_refused(change):
    with pytest.raises(CameraError):
        Camera(**{**PINHOLE.to_dict(), **change})


def test_camera_info_with_too_few_numbers():
    with pytest.raises(CameraError, match='9 numbers'):
        Camera.from_camera_info(640, 480, [500, 0, 320])
