"""The picture of an answer: what is drawn, and where."""

from types import SimpleNamespace

import numpy as np
import pytest

from pose_reloc.camera import Camera
from pose_reloc.geometry import invert_pose
from pose_reloc.ros.debug_image import draw

CAMERA = Camera(200, 150, 150.0, 150.0, 99.5, 74.5)
GREEN, RED = 1, 0


def grey():
    return np.full((150, 200, 3), 100, np.uint8)


def estimate(world_T_camera=np.eye(4), uv=(), points=(), reasons=()):
    matches = SimpleNamespace(
        uv=np.asarray(uv, np.float32).reshape(-1, 2), points=np.asarray(points).reshape(-1, 3)
    )
    return SimpleNamespace(
        status=SimpleNamespace(value='LOST' if reasons else 'REFINED'),
        world_T_camera=world_T_camera,
        covariance_66=np.eye(6) * 1e-4,
        inliers=len(matches.uv),
        reasons=reasons,
        matches=matches,
    )


def tinted(picture, channel):
    """(x, y) of the pixels in which this channel stands out."""
    others = [c for c in range(3) if c != channel]
    excess = picture[..., channel].astype(int) - picture[..., others].max(axis=2)
    return np.argwhere(excess > 40)[:, ::-1]


@pytest.fixture
def world_T_camera(random_pose):
    return random_pose(np.random.default_rng(4))


def test_a_landmark_that_fits_is_a_circle_where_it_was_seen(world_T_camera):
    points_c = np.array([[0.2, 0.1, 2.0], [-0.3, -0.2, 1.5]])
    points = points_c @ world_T_camera[:3, :3].T + world_T_camera[:3, 3]
    uv = points_c[:, :2] / points_c[:, 2:] * 150.0 + (99.5, 74.5)
    image = grey()
    picture = draw(image, CAMERA, estimate(world_T_camera, uv, points))
    assert (image == 100).all(), 'the image itself is not drawn on'
    green = tinted(picture, GREEN)
    for centre in uv:
        near = green[np.abs(green - centre).max(axis=1) < 6]
        assert len(near) > 8
        np.testing.assert_allclose(near.mean(axis=0), centre, atol=0.5)


def test_a_landmark_that_does_not_fit_has_a_line_to_where_the_pose_puts_it(world_T_camera):
    in_front = invert_pose(world_T_camera)
    point = world_T_camera[:3, :3] @ [0.0, 0.0, 2.0] + world_T_camera[:3, 3]
    np.testing.assert_allclose(in_front[:3, :3] @ point + in_front[:3, 3], [0, 0, 2], atol=1e-9)
    picture = draw(grey(), CAMERA, estimate(world_T_camera, [[139.5, 74.5]], [point]))
    red = tinted(picture, RED)
    assert red[:, 0].min() == pytest.approx(99.5, abs=1.5), 'the line begins where it projects'
    assert red[:, 0].max() > 130
    assert np.abs(red[:, 1] - 74.5).max() < 4


@pytest.mark.parametrize('shape', [(150, 200), (1, 1), (1080, 1920)])
def test_it_is_a_picture_of_the_same_size_whatever_there_is_to_tell(shape):
    image = np.full((*shape, 3), 100, np.uint8)
    for what in (
        estimate(),
        estimate(np.full((4, 4), np.nan), reasons=('too_dark', 'outside_map')),
        estimate(uv=[[1e9, -1e9]], points=[[0.0, 0.0, -1.0]]),
        SimpleNamespace(**{**vars(estimate()), 'matches': None}),
    ):
        picture = draw(image, CAMERA, what)
        assert (picture.shape, picture.dtype) == (image.shape, np.uint8)


def test_the_reasons_are_written_on_it():
    plain = draw(grey(), CAMERA, estimate())
    lost = draw(grey(), CAMERA, estimate(np.full((4, 4), np.nan), reasons=('too_dark',)))
    assert (plain[:120] == 100).all() and (lost[:120] == 100).all(), 'the caption is at the bottom'
    assert (plain[120:] != lost[120:]).any()
