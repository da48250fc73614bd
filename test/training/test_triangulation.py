"""Triangulation: rendered features with known truth, and a real courtyard."""

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from pose_reloc.camera import Camera
from pose_reloc.features import Features, RootSift, root_sift
from pose_reloc.geometry import invert_pose, perturb_pose, pose_error, pose_matrix
from training.datasets import open_dataset
from training.triangulation import TriangulationSettings, _choose_pairs, triangulate

CAMERA = Camera(640, 480, 520.0, 530.0, 319.5, 239.5)
NOISE_PX = 0.5


def _walk(count=16, step=0.15):
    """Cameras on an arc that look at the origin of a scene 5 m away, and turn a little."""
    poses = []
    for n in range(count):
        centre = np.array([step * (n - count / 2), 0.3 * np.sin(n), -5 + 0.05 * n])
        turn = Rotation.from_euler('xyz', [0.02 * np.cos(n), -centre[0] / 8, 0.05 * np.sin(2 * n)])
        poses.append(pose_matrix(turn.as_matrix(), centre))
    return np.array(poses)


def _look(rng, poses, points, wrong=0.0, strays=100, identity=None):
    """What each camera sees.

    Args:
        wrong: share of the features that show a point where it is not.
        strays: features of no point, per image.
        identity: what the points look like (N, 128); None draws it.

    Returns:
        Features, and for each the point of each feature (-1 for a stray) and which are wrong.
    """
    if identity is None:
        identity = rng.exponential(size=(len(points), 128))
    features, shown, misplaced = [], [], []
    for pose in poses:
        c_T_w = invert_pose(pose)
        uv = CAMERA.project(points @ c_T_w[:3, :3].T + c_T_w[:3, 3])
        inside = np.flatnonzero(((uv > 0) & (uv < (640, 480))).all(axis=1))
        seen = rng.permutation(inside)[: int(0.8 * len(inside))]
        bad = rng.random(len(seen)) < wrong
        place = uv[seen] + rng.normal(size=(len(seen), 2)) * NOISE_PX
        place[bad] = rng.uniform((0, 0), (640, 480), size=(bad.sum(), 2))
        uv = np.concatenate([place, rng.uniform((0, 0), (640, 480), size=(strays, 2))])
        descriptors = np.concatenate([identity[seen], rng.exponential(size=(strays, 128))])
        descriptors = descriptors * rng.uniform(0.8, 1.2, size=descriptors.shape)
        features.append(Features(uv.astype(np.float32), root_sift(descriptors)))
        shown.append(np.concatenate([seen, np.full(strays, -1)]))
        misplaced.append(np.concatenate([bad, np.zeros(strays, bool)]))
    return features, shown, misplaced


def _scene(rng, count=600):
    return rng.uniform((-2.5, -1.5, -1), (2.5, 1.5, 1.5), size=(count, 3))


def _triangulate(features, poses, **settings):
    return triangulate(features, [CAMERA] * len(poses), poses, TriangulationSettings(**settings))


def _truth_of(found, shown):
    """For each triangulated point, the true points that its features show."""
    track = np.concatenate(found.track_id)
    true = np.concatenate(shown)
    return [true[track == t] for t in range(len(found.positions))]


def _covariance(point, poses, noise_px):
    """Covariance of the best estimate of a point, from numeric derivatives of the projection."""
    information = np.zeros((3, 3))
    for pose in poses:
        c_T_w = invert_pose(pose)
        steps = np.concatenate([np.eye(3), -np.eye(3)]) * 1e-5
        uv = CAMERA.project((point + steps) @ c_T_w[:3, :3].T + c_T_w[:3, 3])
        J = (uv[:3] - uv[3:]).T / 2e-5
        information += J.T @ J / noise_px**2
    return np.linalg.inv(information)


def test_points_are_as_accurate_as_the_noise_allows():
    rng = np.random.default_rng(0)
    points, poses = _scene(rng), _walk()
    features, shown, _ = _look(rng, poses, points)
    found = _triangulate(features, poses)
    assert np.array_equal(found.world_T_camera, poses)  # nothing to adjust
    image = np.repeat(np.arange(len(poses)), [len(f) for f in features])
    track, true = np.concatenate(found.track_id), np.concatenate(shown)
    squared, recovered = [], set()
    for t, position in enumerate(found.positions):
        members = np.flatnonzero(track == t)
        assert len(members) == found.views[t] == len(set(image[members]))
        if found.views[t] < 4 or len(set(true[members])) > 1 or true[members[0]] < 0:
            continue
        error = position - points[true[members[0]]]
        covariance = _covariance(position, poses[image[members]], NOISE_PX)
        squared.append(error @ np.linalg.solve(covariance, error))
        recovered.add(true[members[0]])
    assert len(recovered) > 0.9 * len(points)
    # Chi-squared with 3 degrees of freedom; the robust loss costs a little.
    assert 2.6 < np.mean(squared) < 3.6
    assert np.mean(np.array(squared) < 11.34) > 0.97


def test_numbers_of_a_point_are_those_of_its_features():
    rng = np.random.default_rng(1)
    points, poses = _scene(rng, 300), _walk()
    features, _, _ = _look(rng, poses, points)
    found = _triangulate(features, poses)
    rays = {t: [] for t in range(len(found.positions))}
    errors = {t: [] for t in range(len(found.positions))}
    for n, pose in enumerate(poses):
        seen = np.flatnonzero(found.track_id[n] >= 0)
        position = found.points(n)
        assert np.isnan(np.delete(position, seen, axis=0)).all()
        R = pose[:3, :3].T
        uv, _ = cv2.projectPoints(
            position[seen], cv2.Rodrigues(R)[0], -R @ pose[:3, 3], CAMERA.K, None
        )
        assert ((position[seen] - pose[:3, 3]) @ pose[:3, 2] > 0).all()
        for t, p, e in zip(found.track_id[n][seen], position[seen], uv[:, 0]):
            rays[t].append((p - pose[:3, 3]) / np.linalg.norm(p - pose[:3, 3]))
            index = np.flatnonzero(found.track_id[n] == t)[0]
            errors[t].append(np.linalg.norm(e - features[n].uv[index]))
    for t in rays:
        assert found.views[t] == len(rays[t]) >= 2
        widest = np.arccos(np.clip(np.array(rays[t]) @ np.array(rays[t]).T, -1, 1)).max()
        assert np.isclose(found.angle[t], widest, atol=1e-6)
        assert widest > np.deg2rad(1.5)
        assert np.isclose(found.error_px[t], np.mean(errors[t]), atol=1e-6)
        assert max(errors[t]) < 2.0


def test_features_in_wrong_places_get_no_point():
    rng = np.random.default_rng(2)
    points, poses = _scene(rng), _walk()
    features, shown, misplaced = _look(rng, poses, points, wrong=0.3)
    found = _triangulate(features, poses, min_views=3)
    has_point = np.concatenate(found.track_id) >= 0
    wrong, stray = np.concatenate(misplaced), np.concatenate(shown) < 0
    # Some fall near the right place by chance: 2 px about a point are 3e-5 of the image.
    assert has_point[wrong].mean() < 0.02 and has_point[stray].mean() < 0.02
    assert has_point[~wrong & ~stray].mean() > 0.85
    error = [
        np.linalg.norm(position - points[true[0]])
        for position, true in zip(found.positions, _truth_of(found, shown))
        if true[0] >= 0
    ]
    assert np.percentile(error, 98) < 0.1  # at 5 m


def test_what_was_moved_between_two_walks_becomes_two_points():
    rng = np.random.default_rng(3)
    before = _scene(rng, 300)
    after = before + (0.3, 0, 0)  # along the walk: epipolar planes do not tell
    poses = np.tile(np.eye(4), (16, 1, 1))
    poses[:, :3, 3] = [(0.3 * (n % 8) + 0.1 * (n // 8) - 1, 0, -5) for n in range(16)]
    identity = rng.exponential(size=(300, 128))
    first, _, _ = _look(rng, poses[:8], before, strays=0, identity=identity)
    second, _, _ = _look(rng, poses[8:], after, strays=0, identity=identity)
    found = _triangulate(first + second, poses)
    for truth in (before, after):
        gap = np.linalg.norm(found.positions[:, None] - truth, axis=2)
        assert (gap.min(axis=0) < 0.05).mean() > 0.7


def test_no_baseline_gives_no_points():
    rng = np.random.default_rng(4)
    points, poses = _scene(rng, 300), _walk()
    poses[:, :3, 3] = (0, 0, -5)  # the camera only turns
    features, _, _ = _look(rng, poses, points)
    found = _triangulate(features, poses)
    assert found.positions.shape == (0, 3)
    assert all((t == -1).all() and len(t) == len(f) for t, f in zip(found.track_id, features))


def test_points_too_far_for_the_baseline_are_refused():
    rng = np.random.default_rng(5)
    points, poses = _scene(rng, 600), _walk(step=0.05)
    far = rng.random(600) < 0.5
    points[far] = points[far] * 20 + (0, 0, 100)  # 0.75 m of way at 100 m: 0.4 deg
    features, shown, _ = _look(rng, poses, points, strays=0)
    found = _triangulate(features, poses)
    got = {t[0] for t in _truth_of(found, shown) if len(set(t)) == 1}
    near = set(np.flatnonzero(~far).tolist())
    assert len(got & near) > 0.8 * len(near)
    assert len(got - near) < 0.02 * len(near)


def test_poses_that_disagree_are_adjusted():
    rng = np.random.default_rng(6)
    points, poses = _scene(rng), _walk()
    features, _, _ = _look(rng, poses, points)
    given = perturb_pose(poses, rng.normal(size=(len(poses), 6)) * np.repeat([0.02, 0.006], 3))
    found = _triangulate(features, given)
    fixed = _triangulate(features, given, pose_error_px=2.0)  # too strict for such poses
    assert found.views.mean() > 2 * fixed.views.mean()
    before, after = (_error_of_neighbours(poses, p) for p in (given, found.world_T_camera))
    assert before > 0.006 and after < 0.25 * before


def _error_of_neighbours(truth, poses):
    """Median error in rad of the rotation from each image to the next."""
    steps = [invert_pose(p[:-1]) @ p[1:] for p in (truth, poses)]
    return np.median(pose_error(*steps)[1])


def test_the_result_repeats_and_images_without_features_do_no_harm():
    rng = np.random.default_rng(7)
    points, poses = _scene(rng, 200), _walk(8)
    features, _, _ = _look(rng, poses, points)
    features[3] = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    first, second = (_triangulate(features, poses) for _ in range(2))
    assert len(first.positions) > 100 and len(first.track_id[3]) == 0
    assert np.array_equal(first.positions, second.positions)
    assert all(map(np.array_equal, first.track_id, second.track_id))


def test_an_image_has_few_partners_that_see_the_same_from_various_places():
    ahead = np.tile(np.eye(4), (200, 1, 1))
    ahead[:, 0, 3] = 0.02 * np.arange(200)
    behind = ahead.copy()
    behind[:, :3, :3] = np.diag([-1.0, 1, -1])  # looks the other way
    poses = np.concatenate([ahead, behind])
    pairs = _choose_pairs([CAMERA] * 400, poses, depth=5.0, partners=6)
    assert 400 * 6 / 2 <= len(pairs) <= 400 * 6
    assert ((pairs[:, 0] < 200) == (pairs[:, 1] < 200)).all()
    baseline = np.linalg.norm(poses[pairs[:, 0], :3, 3] - poses[pairs[:, 1], :3, 3], axis=1)
    assert (np.arctan(baseline / 5.0) > np.deg2rad(4)).all()
    assert np.ptp(np.percentile(baseline, (5, 95))) > 1.0
    assert len(_choose_pairs([CAMERA] * 400, poses, depth=None, partners=6)) == 0


def test_castle(data):
    """A part of a real courtyard without depth: queries 2 m from every image, to centimetres."""
    dataset = open_dataset('cambridge', data / 'castle')
    train, test = dataset.train[4:14], dataset.test[1:4]
    extractor = RootSift()
    features = [extractor.extract(sample.load_image()) for sample in train]
    poses = np.array([sample.world_T_camera for sample in train])
    found = triangulate(features, [sample.camera for sample in train], poses)
    seen = [np.flatnonzero(track >= 0) for track in found.track_id]
    points = np.concatenate([found.points(n)[s] for n, s in enumerate(seen)])
    descriptors = np.concatenate([f.descriptors[s] for f, s in zip(features, seen)])
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    for sample in test:
        query = extractor.extract(sample.load_image())
        start = 0
        uv, xyz = [], []
        for s in seen:  # image by image: the ratio test would meet the same point again
            part = slice(start, start + len(s))
            start += len(s)
            both = matcher.knnMatch(
                query.descriptors.astype(np.float32), descriptors[part].astype(np.float32), k=2
            )
            for best, second in both:
                if best.distance < 0.8 * second.distance:
                    uv.append(query.uv[best.queryIdx])
                    xyz.append(points[part][best.trainIdx])
        ok, rvec, t, inliers = cv2.solvePnPRansac(
            np.array(xyz), np.array(uv), sample.camera.K, None, reprojectionError=3.0
        )
        inliers = inliers.ravel()
        rvec, t = cv2.solvePnPRefineLM(
            np.array(xyz)[inliers], np.array(uv)[inliers], sample.camera.K, None, rvec, t
        )
        estimate = invert_pose(pose_matrix(cv2.Rodrigues(rvec)[0], t.ravel()))
        distance, angle = pose_error(sample.world_T_camera, estimate)
        assert distance < 0.05 and np.rad2deg(angle) < 0.1


def test_points_are_placed_by_the_rays_of_the_other_images():
    rng = np.random.default_rng(11)
    poses = _walk()
    features, _, _ = _look(rng, poses, _scene(rng, 300))
    features = [f.chosen(rng.random(len(f)) < 0.4) for f in features]  # few views for each point
    found, settings = _triangulate(features, poses), TriangulationSettings(min_angle_deg=6)
    hidden = np.arange(len(poses)) < 8
    placed, kept = found.placed_without(hidden, settings)
    shown = ~hidden[found.seen.image]
    outcomes, costs = [], []
    for t, position in enumerate(found.positions):
        rows = np.flatnonzero((found.seen.track == t) & shown)
        if len(rows) == found.views[t] or len(rows) < 2:
            assert np.array_equal(placed[t], position) and kept[t] == (len(rows) >= 2)
            outcomes.append('as it was' if kept[t] else 'too few rays')
            continue
        uv, cameras = found.seen.uv[rows], [invert_pose(poses[i]) for i in found.seen.image[rows]]

        def cost(point, uv=uv, cameras=cameras):
            seen = [CAMERA.project((T[:3, :3] @ point + T[:3, 3])[None])[0] for T in cameras]
            squared = ((seen - uv) ** 2).sum(axis=1) / (settings.feature_error_px / 2) ** 2
            return np.log1p(squared).sum()

        best = minimize(cost, placed[t], method='Nelder-Mead', options={'fatol': 1e-9}).x
        ray = placed[t] - poses[found.seen.image[rows], :3, 3]
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        widest = np.degrees(np.arccos((ray @ ray.T).min()))
        assert kept[t] == (widest >= settings.min_angle_deg)
        costs.append((cost(position), cost(placed[t]), cost(best)))
        outcomes.append('moved' if kept[t] else 'too small an angle')
    assert min(outcomes.count(o) for o in set(outcomes)) > 3 and len(set(outcomes)) == 4
    before, after, least = np.sum(costs, axis=0)
    assert after - least < 0.01 * (before - least)
