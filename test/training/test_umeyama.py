"""The alignment of two sets of points, against scipy, and against every small change of it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from training.umeyama import umeyama


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize('scale', [1.0, 0.2, 7.0])
def test_a_known_similarity_is_found(rng, scale):
    source = rng.normal(size=(20, 3)) * [5, 2, 0.1]
    R, t = Rotation.random(random_state=1).as_matrix(), np.array([100.0, -20, 3])
    found = umeyama(source, scale * source @ R.T + t, with_scale=True)
    for value, expected in zip(found, (R, t, scale)):
        np.testing.assert_allclose(value, expected, atol=1e-9)


def test_three_points_suffice_and_lie_in_a_plane(rng):
    source = rng.normal(size=(3, 3))
    R = Rotation.from_rotvec([0.0, np.pi, 0]).as_matrix()
    found, t, s = umeyama(source, source @ R.T + 1, with_scale=False)
    np.testing.assert_allclose(found, R, atol=1e-9)
    np.testing.assert_allclose(t, np.ones(3), atol=1e-9)
    assert s == 1.0


def test_the_rotation_is_that_of_scipy(rng):
    source, target = rng.normal(size=(2, 50, 3))
    centred = [points - points.mean(0) for points in (target, source)]
    expected = Rotation.align_vectors(*centred)[0].as_matrix()
    for with_scale in (False, True):
        R, t, s = umeyama(source, target, with_scale)
        np.testing.assert_allclose(R, expected, atol=1e-7)
        np.testing.assert_allclose(t, target.mean(0) - s * R @ source.mean(0))


def test_mirrored_points_still_give_a_rotation(rng):
    source = rng.normal(size=(30, 3))
    R, _, s = umeyama(source, source * [1, 1, -1], with_scale=True)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1)
    assert 0 < s < 1


@pytest.mark.parametrize('with_scale', [False, True])
def test_no_change_makes_the_fit_better(rng, with_scale):
    source = rng.normal(size=(40, 3))
    target = 1.3 * source @ Rotation.random(random_state=2).as_matrix().T
    target += 0.3 * rng.normal(size=target.shape)
    R, t, s = umeyama(source, target, with_scale)

    def cost(R, t, s):
        return ((target - s * source @ R.T - t) ** 2).sum()

    least = cost(R, t, s)
    for _ in range(50):
        turned = Rotation.from_rotvec(1e-3 * rng.normal(size=3)).as_matrix() @ R
        stretched = s + (1e-3 * rng.normal() if with_scale else 0)
        assert cost(turned, t + 1e-3 * rng.normal(size=3), stretched) > least


@pytest.mark.parametrize(
    'source, message',
    [
        (np.zeros((5, 3)), 'one line'),
        (np.outer(np.arange(5), [1, 2, 3]), 'one line'),
        (np.eye(3)[:2], '2 points'),
        (np.zeros((5, 2)), r'\(N, 3\)'),
    ],
)
def test_what_does_not_determine_a_rotation_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        umeyama(source, source, with_scale=True)


def test_sets_of_different_size_are_refused(rng):
    with pytest.raises(ValueError, match='two arrays'):
        umeyama(rng.normal(size=(5, 3)), rng.normal(size=(6, 3)), with_scale=False)
