"""Where is up, and what was walked."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from training.floor_view import floor_view, walked


def carried(heading_deg, tilt_deg, position):
    """The pose of a camera without roll in a world whose z axis points up."""
    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # looks along x
    turn = Rotation.from_euler('ZY', [heading_deg, tilt_deg], degrees=True).as_matrix()
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = turn @ level, position
    return T


def walk(headings, tilts, rng):
    positions = rng.uniform(-1, 1, (len(headings), 3)) * (4, 1, 0.5)
    return np.array([carried(h, t, p) for h, t, p in zip(headings, tilts, positions)])


@pytest.mark.parametrize('seed', range(4))
def test_up_is_found_however_the_cameras_are_tilted(seed):
    """Cameras without roll, in any world, whatever way they looked and moved."""
    rng = np.random.default_rng(seed)
    T = walk(rng.uniform(-180, 180, 30), rng.uniform(-30, 60, 30), rng)
    world = np.eye(4)
    world[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    view = floor_view(world @ T)
    assert view.up @ world[:3, 2] > np.cos(np.deg2rad(2))
    # The longer side of the walk lies to the right.
    flat = view.flat((world @ T)[:, :3, 3])
    assert np.ptp(flat[:, 0]) > np.ptp(flat[:, 1])


def test_cameras_that_all_look_the_same_way():
    """Their x axes leave a choice; the images' tops decide."""
    rng = np.random.default_rng(0)
    T = walk(np.full(20, 30.0), rng.uniform(-5, 5, 20), rng)
    assert floor_view(T).up[2] > np.cos(np.deg2rad(5))


def test_one_camera_and_cameras_at_one_place():
    for count in (1, 5):
        view = floor_view(np.array([carried(20 * k, 0, (1, 2, 3)) for k in range(count)]))
        np.testing.assert_allclose(view.up, [0, 0, 1], atol=1e-9)
        np.testing.assert_allclose(view.axes.T @ view.axes, np.eye(2), atol=1e-12)


def test_a_jump_and_another_sequence_are_not_walked():
    x = np.array([0, 1, 2, 3, 4, 60, 61, 62, 63.0, 64])
    points = np.stack([x, 0 * x], axis=1)
    names = ['a'] * 8 + ['b'] * 2
    np.testing.assert_array_equal(walked(points), [0, 1, 2, 3, 5, 6, 7, 8])
    np.testing.assert_array_equal(walked(points, names), [0, 1, 2, 3, 5, 6, 8])


@pytest.mark.parametrize('count', [2, 3, 4, 9])
def test_an_even_walk_is_walked_however_short_it_is(count):
    points = np.arange(count)[:, None] * [0.6, 0, 0.8]
    np.testing.assert_array_equal(walked(points), np.arange(count - 1))


def test_a_loose_collection_has_no_path():
    rng = np.random.default_rng(1)
    assert len(walked(rng.uniform(0, 10, (40, 3)))) == 0
    assert len(walked(np.zeros((1, 3)))) == 0
