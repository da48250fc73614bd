"""Matching under known epipolar geometry: against the whole matrix of all pairs of features."""

import numpy as np
import pytest

from training.epipolar_matching import Rays, match_rays

TOLERANCE, RATIO = 0.004, 0.8


def _unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _views(rng, baseline, noise=0.0, points=400, strays=300):
    """Two images of the same points, with descriptors; the last features see nothing common."""
    world = rng.uniform((-2, -1.5, 3), (2, 1.5, 6), size=(points, 3))
    descriptors = _unit(np.abs(rng.normal(size=(points, 16))))
    views = []
    for centre in (np.zeros(3), np.asarray(baseline, float)):
        directions = _unit(world - centre) + rng.normal(size=(points, 3)) * noise
        stray = rng.normal(size=(strays, 3)) * (0.4, 0.3, 0) + (0, 0, 1)
        seen = _unit(descriptors + rng.normal(size=descriptors.shape) * 0.03)
        other = _unit(np.abs(rng.normal(size=(strays, 16))))
        views.append(
            Rays(
                centre,
                _unit(np.concatenate([directions, stray])),
                np.concatenate([seen, other]).astype(np.float32),
            )
        )
    return world, *views


def _brute_force(a, b):
    """Mutual nearest neighbours by the definitions, over all pairs."""
    t = _unit(b.centre - a.centre)
    normal_a, normal_b = np.cross(t, a.directions), np.cross(t, b.directions)
    sin_a, sin_b = np.linalg.norm(normal_a, axis=1), np.linalg.norm(normal_b, axis=1)
    sampson = np.abs(normal_a @ b.directions.T) / np.hypot(sin_a[:, None], sin_b)
    angle = np.arccos(b.directions @ t) - np.arccos(a.directions @ t)[:, None]
    allowed = (sampson < TOLERANCE) & (normal_a @ normal_b.T > 0)
    allowed &= (angle > -TOLERANCE) & (angle < np.deg2rad(60))
    allowed &= (sin_a[:, None] > np.sin(np.deg2rad(2))) & (sin_b > np.sin(np.deg2rad(2)))
    distance = np.linalg.norm(a.descriptors[:, None] - b.descriptors, axis=2)
    distance[~allowed] = 2.0
    found = set()
    for i, row in enumerate(distance):
        j = row.argmin()
        rival = np.delete(row, j).min()
        if row[j] < RATIO * min(rival, 2.0) and distance[:, j].argmin() == i and allowed[i, j]:
            found.add((i, int(j)))
    return found


# Sideways; towards the scene, so that the epipole is in the image; and askew.
@pytest.mark.parametrize('baseline', [(0.5, 0, 0), (0, 0, 0.5), (0.2, -0.3, 0.4)])
def test_matches_are_those_of_all_pairs(baseline):
    _, a, b = _views(np.random.default_rng(0), baseline, noise=0.001)
    found = match_rays(a, b, TOLERANCE, RATIO)
    expected = _brute_force(a, b)
    assert len(expected) > 200
    assert set(zip(found.first.tolist(), found.second.tolist())) == expected
    right = found.first == found.second
    assert right[found.first < 400].mean() > 0.95


def test_the_distance_is_where_the_rays_meet():
    world, a, b = _views(np.random.default_rng(1), (0.6, 0.1, 0))
    found = match_rays(a, b, TOLERANCE, RATIO)
    right = (found.first == found.second) & (found.first < 400)
    assert right.sum() > 200
    truth = np.linalg.norm(world[found.first[right]] - a.centre, axis=1)
    assert np.allclose(found.distance[right], truth, rtol=1e-3)
    cosine = (a.directions[found.first] * b.directions[found.second]).sum(axis=1)
    assert np.allclose(np.cos(found.angle), cosine, atol=1e-3)


def test_ambiguous_features_are_told_apart_by_geometry():
    rng = np.random.default_rng(2)
    world, a, b = _views(rng, (0.5, 0, 0), strays=0)
    # Every descriptor occurs twice: matching without geometry has nothing to go by.
    for view in (a, b):
        view.descriptors[200:] = view.descriptors[:200]
    found = match_rays(a, b, TOLERANCE, RATIO)
    assert len(found.first) > 300
    assert (found.first == found.second).mean() > 0.95


def test_no_baseline_and_no_features_give_no_matches():
    rng = np.random.default_rng(3)
    _, a, b = _views(rng, (0.5, 0, 0))
    nothing = Rays(b.centre, np.zeros((0, 3)), np.zeros((0, 16), np.float32))
    for first, second in ((a, a), (a, nothing), (nothing, b)):
        assert len(match_rays(first, second, TOLERANCE, RATIO).first) == 0
