"""The refinement core on worlds whose truth is known: landmarks, PnP, covariance, drift."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.drift import DriftField
from pose_reloc.errors import SceneError, SettingsError
from pose_reloc.features import (
    DESCRIPTOR_SCALE,
    FeatureExtractor,
    Features,
    FeatureSettings,
    mutual_matches,
    root_sift,
)
from pose_reloc.geometry import invert_pose, perturb_pose, pose_error, pose_matrix, pose_residual
from pose_reloc.landmarks import LandmarkMap, global_descriptor, view_overlap
from pose_reloc.refine import Refiner, pnp_covariance
from pose_reloc.relocalizer import PosePrior

CAMERA = Camera(640, 480, 500.0, 505.0, 322.0, 238.0, (0.12, -0.2, 0.001, -0.002, 0.0))


def _descriptors(rng, count):
    """Random descriptors of unit length times the scale, as uint8."""
    raw = rng.gamma(0.5, size=(count, 128))
    return root_sift(raw.astype(np.float32))


def _world(rng, count=400):
    """Points in front of the origin, in a box of 4 x 3 x 3 m."""
    return rng.uniform((-2, -1.5, 2), (2, 1.5, 5), (count, 3))


def _map(rng, points, descriptors, poses):
    K, P = len(poses), len(points)
    vocabulary = descriptors[:8].astype(np.float32) / DESCRIPTOR_SCALE
    vocabulary /= np.linalg.norm(vocabulary, axis=1, keepdims=True)
    vlad = global_descriptor(descriptors, vocabulary)
    return LandmarkMap(
        FeatureSettings(),
        poses,
        np.arange(K),
        np.arange(K + 1) * P,
        np.tile(points, (K, 1)).astype(np.float32),
        np.tile(descriptors, (K, 1)),
        vocabulary,
        np.tile(vlad, (K, 1)).astype(np.float16),
        np.arange(K),
        poses,
    )


class _Given:
    """An extractor that answers with prepared features."""

    def __init__(self, features):
        self.features = features

    def extract(self, image):
        return self.features


def _query(rng, points, descriptors, pose, noise_px, wrong):
    """Features of a view through OpenCV's projection; a share of them carries wrong descriptors."""
    c_T_w = invert_pose(pose)
    rvec = Rotation.from_matrix(c_T_w[:3, :3]).as_rotvec()
    uv, _ = cv2.projectPoints(points, rvec, c_T_w[:3, 3], CAMERA.K, np.asarray(CAMERA.distortion))
    uv = uv[:, 0] + rng.normal(size=(len(points), 2)) * noise_px
    descriptors = descriptors.copy()
    false = rng.random(len(points)) < wrong
    descriptors[false] = descriptors[rng.permutation(np.flatnonzero(false))]
    return Features(uv.astype(np.float32), descriptors)


def test_root_sift_is_the_square_root_of_the_l1_normalised_descriptor():
    raw = np.random.default_rng(0).integers(0, 200, (5, 128)).astype(np.float32)
    expected = np.sqrt(raw / raw.sum(1, keepdims=True)) * 512
    assert np.abs(root_sift(raw).astype(float) - expected.clip(max=255)).max() <= 1
    cosine = (root_sift(raw).astype(float) ** 2).sum(1) / DESCRIPTOR_SCALE**2
    assert np.allclose(cosine, 1, atol=0.03)  # what cutting to whole numbers costs


def test_matches_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    a, b = _descriptors(rng, 40), _descriptors(rng, 30)
    b[:15] = a[10:25]
    row, column = mutual_matches(torch.from_numpy(a).float() @ torch.from_numpy(b).float().T, 0.9)
    expected = []
    for i, x in enumerate(a.astype(float)):
        products = b.astype(float) @ x
        j = int(products.argmax())
        second = np.partition(products, -2)[-2]
        near, far = (np.sqrt(max(DESCRIPTOR_SCALE**2 - p, 0)) for p in (products[j], second))
        if (a.astype(float) @ b[j].astype(float)).argmax() == i and near < 0.9 * far:
            expected.append((i, j))
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == expected
    assert len(expected) >= 15


def test_a_shrunk_image_keeps_its_pixels():
    rng = np.random.default_rng(2)
    small = cv2.GaussianBlur(rng.integers(0, 256, (240, 320), dtype=np.uint8), (0, 0), 3)
    small = cv2.normalize(small, None, 0, 255, cv2.NORM_MINMAX)
    image = cv2.cvtColor(cv2.resize(small, (1280, 960)), cv2.COLOR_GRAY2RGB)
    full = FeatureExtractor(FeatureSettings(max_side=1280, max_features=300)).extract(image)
    shrunk = FeatureExtractor(FeatureSettings(max_side=640, max_features=300)).extract(image)
    nearest = np.linalg.norm(full.uv[:, None] - shrunk.uv[None], axis=2).min(axis=0)
    assert len(shrunk) > 50 and np.median(nearest) < 0.5


def test_no_structure_no_features():
    features = FeatureExtractor().extract(np.full((120, 160, 3), 90, dtype=np.uint8))
    assert len(features) == 0 and features.descriptors.shape == (0, 128)


def test_overlap_of_views_has_no_unit_of_length():
    rng = np.random.default_rng(3)
    points, pose = _world(rng, 32), np.eye(4)
    inside = ((p := CAMERA.undistorted().project(points)) >= 0).all(1) & (p <= (639, 479)).all(1)
    for scale in (1.0, 100.0):
        moved = pose_matrix(np.eye(3), np.array([0.3, 0, 0.2]) * scale)
        args = (points[None] * scale, pose[None])
        assert view_overlap(*args, pose, CAMERA)[0] == pytest.approx(inside.mean())
        first = view_overlap(
            points[None], pose[None], pose_matrix(np.eye(3), [0.3, 0, 0.2]), CAMERA
        )
        assert view_overlap(*args, moved, CAMERA)[0] == pytest.approx(first[0])
    back = pose_matrix(Rotation.from_euler('y', 180, degrees=True).as_matrix(), [0, 0, 0])
    assert view_overlap(points[None], pose[None], back, CAMERA)[0] == 0


@pytest.mark.parametrize('wrong', [0.0, 0.5])
def test_pnp_finds_the_pose_through_a_distorting_lens(wrong):
    rng = np.random.default_rng(4)
    points, descriptors = _world(rng), _descriptors(rng, 400)
    landmarks = _map(rng, points, descriptors, np.tile(np.eye(4), (1, 1, 1)))
    truth = perturb_pose(np.eye(4), np.array([0.2, -0.1, 0.1, 0.05, -0.08, 0.03]))
    refiner = Refiner(landmarks)
    refiner._extractor = _Given(_query(rng, points, descriptors, truth, 0.5, wrong))
    found, likeness = refiner.refine(None, CAMERA, [np.eye(4)])
    metres, radians = pose_error(truth, found.world_T_camera)
    # 400 points, half a pixel, f = 500, 3.5 m away: about half a millimetre; an order of margin.
    assert metres < 0.005 and np.degrees(radians) < 0.1
    assert len(found.uv) > 0.4 * (1 - wrong) * 400
    # Without any guess the global descriptor finds the keyframe.
    assert refiner.refine(None, CAMERA, [])[0] is not None


def test_a_foreign_image_is_not_refined():
    rng = np.random.default_rng(5)
    points, descriptors = _world(rng), _descriptors(rng, 400)
    refiner = Refiner(_map(rng, points, descriptors, np.tile(np.eye(4), (1, 1, 1))))
    uv = rng.uniform(0, 480, (400, 2)).astype(np.float32)
    refiner._extractor = _Given(Features(uv, _descriptors(rng, 400)))
    assert refiner.refine(None, CAMERA, [np.eye(4)])[0] is None
    refiner._extractor = _Given(Features(uv[:0], descriptors[:0]))
    assert refiner.refine(None, CAMERA, [np.eye(4)])[0] is None


def test_covariance_of_pnp_is_that_of_many_draws():
    rng = np.random.default_rng(6)
    pinhole, points, sigma = CAMERA.undistorted(), _world(rng, 150), 0.8
    truth = perturb_pose(np.eye(4), np.array([0.2, -0.1, 0.1, 0.05, -0.08, 0.03]))
    exact = pinhole.project((points - truth[:3, 3]) @ truth[:3, :3])
    errors = []
    for _ in range(300):
        uv = exact + rng.normal(size=exact.shape) * sigma
        c_T_w = invert_pose(truth)
        rvec, tvec = Rotation.from_matrix(c_T_w[:3, :3]).as_rotvec(), c_T_w[:3, 3].copy()
        rvec, tvec = cv2.solvePnPRefineLM(points, uv, pinhole.K, None, rvec, tvec)
        c_T_w[:3, :3], c_T_w[:3, 3] = Rotation.from_rotvec(rvec.ravel()).as_matrix(), tvec.ravel()
        errors.append(pose_residual(truth, invert_pose(c_T_w)))
    drawn = np.cov(np.array(errors).T)
    uv = exact + rng.normal(size=exact.shape) * sigma
    computed, error = pnp_covariance(uv, points, truth, pinhole, 100.0)
    assert np.sqrt(np.diag(computed)) == pytest.approx(np.sqrt(np.diag(drawn)), rel=0.2)
    assert error == pytest.approx(np.linalg.norm(uv - exact, axis=1))


def test_drift_that_is_known_nearby_is_carried_back():
    t = np.linspace(0, 1, 40)
    adjusted = np.array(
        [
            pose_matrix(Rotation.from_euler('y', 60 * x, degrees=True).as_matrix(), [3 * x, 0, x])
            for x in t
        ]
    )
    residual = np.stack(
        [0.05 * np.sin(5 * t), 0.03 * t, 0 * t, 0 * t, 0.02 * np.cos(5 * t), 0 * t], axis=1
    )
    given = perturb_pose(adjusted, residual)
    kept = np.arange(40) % 4 != 2
    field = DriftField(adjusted[kept], given[kept])
    for n in np.flatnonzero(~kept):
        moved, covariance = field.to_given(adjusted[n])
        metres, radians = pose_error(given[n], moved)
        assert metres < 0.005 and radians < 0.002  # of 5 cm and 0.02 rad
        assert np.linalg.eigvalsh(covariance)[0] >= 0
    far = adjusted[0].copy()
    far[:3, 3] += 20
    assert pose_error(far, field.to_given(far)[0])[0] < 1e-6  # nothing is known there
    assert field.to_given(far)[1][0, 0] > 10 * field.to_given(adjusted[5])[1][0, 0]
    exact = DriftField(adjusted, adjusted)
    assert np.allclose(exact.to_given(adjusted[3])[0], adjusted[3])


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('starts', np.array([0, 500])),
        ('starts', np.array([1, 400])),
        ('points', np.full((400, 3), np.nan, np.float32)),
        ('vlad', np.zeros((1, 7), np.float16)),
        ('descriptors', np.zeros((400, 64), np.uint8)),
        ('descriptors', np.zeros((400, 128), np.float32)),
        ('starts', np.array([0.0, 400.0])),
        ('starts', np.array([0, 400], np.uint64)),  # its differences are never negative
        ('vocabulary', np.zeros((8, 128), np.float64)),
        ('anchor_frames', np.array([0.0])),
        ('anchor_poses', np.full((1, 4, 4), np.inf)),
    ],
)
def test_malformed_landmarks_are_refused(name, value):
    rng = np.random.default_rng(7)
    good = _map(rng, _world(rng), _descriptors(rng, 400), np.tile(np.eye(4), (1, 1, 1)))
    tensors = {k.removeprefix('landmarks.'): v for k, v in good.to_tensors().items()}
    LandmarkMap.from_tensors(dict(tensors), {})
    with pytest.raises(SceneError, match=name):
        LandmarkMap.from_tensors(tensors | {name: value}, {})


def test_missing_unknown_and_empty_tensors_are_refused():
    rng = np.random.default_rng(7)
    good = _map(rng, _world(rng), _descriptors(rng, 400), np.tile(np.eye(4), (1, 1, 1)))
    tensors = {k.removeprefix('landmarks.'): v for k, v in good.to_tensors().items()}
    for name, value in tensors.items():
        without = {k: v for k, v in tensors.items() if k != name}
        with pytest.raises(SceneError, match=name):
            LandmarkMap.from_tensors(without, {})
        with pytest.raises(SceneError):
            LandmarkMap.from_tensors(tensors | {name: value[:0]}, {})
    with pytest.raises(SceneError, match='extra'):
        LandmarkMap.from_tensors(tensors | {'extra': np.zeros(3)}, {})


@pytest.mark.parametrize(
    'features',
    [
        {'max_side': 0},
        {'max_features': '9'},
        {'max_features': 10**12},
        {'contrast_threshold': float('nan')},
        {'depth': 3},
        [1],
    ],
)
def test_feature_settings_that_cannot_work_are_refused(features):
    rng = np.random.default_rng(7)
    good = _map(rng, _world(rng), _descriptors(rng, 400), np.tile(np.eye(4), (1, 1, 1)))
    tensors = {k.removeprefix('landmarks.'): v for k, v in good.to_tensors().items()}
    with pytest.raises(SceneError, match='malformed'):
        LandmarkMap.from_tensors(tensors, features)


@pytest.mark.parametrize('name', ['frames', 'anchor_frames'])
@pytest.mark.parametrize('frame', [-1, 2])
def test_a_frame_that_is_no_training_image_is_refused(name, frame):
    rng = np.random.default_rng(8)
    poses = np.tile(np.eye(4), (2, 1, 1))
    good = _map(rng, _world(rng), _descriptors(rng, 400), poses)
    good.drift(poses)
    with pytest.raises(SceneError, match=name):
        replace(good, **{name: np.array([0, frame])}).drift(poses)


def test_anchors_that_are_no_poses_are_refused():
    rng = np.random.default_rng(8)
    poses = np.tile(np.eye(4), (2, 1, 1))
    good = _map(rng, _world(rng), _descriptors(rng, 400), poses)
    with pytest.raises(SceneError, match='anchor_poses'):
        replace(good, anchor_poses=0 * poses).drift(poses)


def test_vlad_is_the_sum_of_differences_from_the_nearest_words():
    rng = np.random.default_rng(9)
    descriptors = _descriptors(rng, 60)
    words = _descriptors(rng, 4).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    unit = descriptors / DESCRIPTOR_SCALE
    sums = np.zeros((4, 128))
    for d in unit:
        word = int((words @ d).argmax())
        sums[word] += d - words[word]
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    vlad = global_descriptor(descriptors, words)
    assert vlad == pytest.approx(sums.ravel() / 2, abs=1e-5)  # four parts of equal length
    assert np.linalg.norm(vlad) == pytest.approx(1, abs=1e-5)
    assert not global_descriptor(descriptors[:0], words).any()


def test_a_keyframe_is_most_alike_itself():
    rng = np.random.default_rng(10)
    descriptors = _descriptors(rng, 400)
    poses = np.tile(np.eye(4), (4, 1, 1))
    one = _map(rng, _world(rng), descriptors, poses[:1])
    vlad = [global_descriptor(descriptors[k::4], one.vocabulary) for k in range(4)]
    good = replace(
        _map(rng, _world(rng), descriptors, poses), vlad=np.array(vlad).astype(np.float16)
    )
    for k in range(4):
        assert good.alike(vlad[k], 1) == [k]


def test_drift_is_gaussian_process_regression():
    """Against Rasmussen & Williams 2006, eq. 2.25-26, with explicit inverses, Matern 3/2."""
    rng = np.random.default_rng(11)
    adjusted = perturb_pose(np.tile(np.eye(4), (12, 1, 1)), rng.normal(size=(12, 6)) * 0.4)
    residual = rng.normal(size=(12, 6)) * 0.03
    given = perturb_pose(adjusted, residual)
    query = perturb_pose(np.eye(4), rng.normal(size=6) * 0.3)

    def kernel(a, b):
        metres, radians = pose_error(a, b)
        r = np.sqrt(3 * ((metres / 0.8) ** 2 + (radians / np.deg2rad(45)) ** 2))
        return (1 + r) * np.exp(-r)

    K = np.array([[kernel(a, b) for b in adjusted] for a in adjusted]) + 0.01 * np.eye(12)
    k = np.array([kernel(query, a) for a in adjusted])
    inverse = np.linalg.inv(K)
    field = DriftField(adjusted, given)
    moved, covariance = field.to_given(query)
    assert pose_residual(moved, query) == pytest.approx(k @ inverse @ residual, abs=1e-9)
    variance = np.array([y @ inverse @ y / 12 for y in residual.T])
    assert np.diag(covariance) == pytest.approx(variance * (1.01 - k @ inverse @ k), rel=1e-6)
    # Without any anchor nothing is carried and nothing is made up.
    none = field.without(np.ones(12, bool))
    assert np.array_equal(none.to_given(query)[0], query)
    assert np.isfinite(none.to_given(query)[1]).all()


@pytest.mark.parametrize(
    ('pose', 'covariance'),
    [
        (np.full((4, 4), np.nan), np.eye(6)),
        (np.eye(4), np.eye(3)),
        (np.eye(4), np.full((6, 6), np.inf)),
    ],
)
def test_a_prior_that_is_none_is_refused(pose, covariance):
    with pytest.raises(SettingsError, match='prior'):
        PosePrior(pose, covariance)
