"""Tracker: consistent answers are confirmed, outliers are not, and a carried camera is found."""

import numpy as np
import pytest

from pose_reloc.geometry import invert_pose, perturb_pose, pose_residual
from pose_reloc.relocalizer import PoseEstimate, Status
from pose_reloc.tracking import Motion, Tracker, TrackerSettings, Verdict

STD = np.array([0.03] * 3 + [0.01] * 3)
COVARIANCE = np.diag(STD**2)
ODOMETRY = np.diag(np.array([0.01] * 3 + [0.005] * 3) ** 2)


def answer(pose, status=Status.REFINED, reasons=(), **given):
    return PoseEstimate(status, pose, COVARIANCE, reasons=reasons, **given)


def refused(pose, **given):
    """The relocalizer refuses what contradicts its prior."""
    return answer(pose, Status.LOST, ('contradicts_prior',), **given)


def way(count):
    """A walk on a circle of 2 m, looking ahead: 10 cm and 3 deg a step."""
    poses = []
    for angle in np.deg2rad(3.0) * np.arange(count):
        twist = np.r_[2 * np.sin(angle), 0.0, 2 - 2 * np.cos(angle), 0.0, -angle, 0.0]
        poses.append(perturb_pose(np.eye(4), twist))
    return poses


def follow(tracker, truths, answers, with_odometry=True):
    """The verdict on each answer, and the priors."""
    verdicts, priors, before = [], [], None
    for i, (truth, given) in enumerate(zip(truths, answers, strict=True)):
        motion = None
        if with_odometry and before is not None:
            motion = Motion(invert_pose(before) @ truth, ODOMETRY)
        priors.append(tracker.predict(0.1 * i, motion))
        verdicts.append(tracker.judge(given))
        before = truth
    return verdicts, priors


def noisy(truths):
    rng = np.random.default_rng(0)
    return [answer(perturb_pose(pose, STD * rng.normal(size=6))) for pose in truths]


@pytest.mark.parametrize('with_odometry', [True, False])
def test_consistent_answers_are_confirmed_from_the_third_on(with_odometry):
    truths = way(20)
    verdicts, priors = follow(Tracker(), truths, noisy(truths), with_odometry)
    assert verdicts == [Verdict.WAITING] * 2 + [Verdict.CONFIRMED] * 18
    assert priors[:3] == [None] * 3
    for prior, truth in zip(priors[3:], truths[3:], strict=True):
        residual = pose_residual(truth, prior.world_T_camera)
        distance = np.sqrt(residual @ np.linalg.solve(prior.covariance_66, residual))
        assert distance < 5.0


def test_an_outlier_is_refused_and_changes_nothing():
    truths = way(12)
    good = noisy(truths)
    away = perturb_pose(truths[7], [1.5, 0, 0, 0, 0, 0])
    bad = [*good[:7], answer(away), *good[8:]]
    verdicts, priors = follow(Tracker(), truths, bad)
    assert verdicts[7] is Verdict.REFUSED
    assert verdicts[3:7] + verdicts[8:] == [Verdict.CONFIRMED] * 8
    assert np.linalg.norm(priors[8].world_T_camera[:3, 3] - truths[8][:3, 3]) < 0.2


def test_answers_that_disagree_with_each_other_are_never_confirmed():
    rng = np.random.default_rng(1)
    truths = way(30)
    answers = [answer(perturb_pose(np.eye(4), 3 * rng.normal(size=6))) for _ in truths]
    verdicts, priors = follow(Tracker(), truths, answers)
    assert set(verdicts) == {Verdict.WAITING}
    assert priors == [None] * 30


def test_a_camera_that_was_carried_away_is_found_again():
    truths = way(16)
    there = [perturb_pose(pose, [4.0, 0, 0, 0, 0, 0]) for pose in truths]
    given = noisy(truths)[:8] + noisy(there)[8:]
    for i in (8, 9, 10):  # still witnesses
        given[i] = refused(given[i].world_T_camera, likeness=0.9, refined=True)
    verdicts, priors = follow(Tracker(), truths, given)
    assert verdicts[8:10] == [Verdict.REFUSED] * 2
    assert verdicts[10:] == [Verdict.CONFIRMED] * 6
    assert np.linalg.norm(priors[11].world_T_camera[:3, 3] - there[11][:3, 3]) < 0.2


@pytest.mark.parametrize('landmarks', [True, False])
def test_regressed_poses_end_a_belief_only_where_there_are_no_landmarks(landmarks):
    """A network errs alike in image after image."""
    truths = way(16)
    there = [perturb_pose(pose, [2.5, 0, 0, 0, 0, 0]) for pose in truths]
    likeness = 0.9 if landmarks else None
    given = noisy(truths)[:8] + [refused(pose, likeness=likeness) for pose in there[8:]]
    verdicts, priors = follow(Tracker(), truths, given)
    kept = truths if landmarks else there
    assert np.linalg.norm(priors[15].world_T_camera[:3, 3] - kept[15][:3, 3]) < 0.2
    assert (Verdict.CONFIRMED in verdicts[8:]) is not landmarks


def test_an_answer_refused_for_another_reason_is_no_witness():
    truths = way(6)
    lost = [answer(pose, Status.LOST, ('unfamiliar',)) for pose in truths]
    verdicts, _ = follow(Tracker(), truths, lost)
    assert set(verdicts) == {Verdict.REFUSED}


def test_a_belief_grows_old_without_odometry():
    tracker = Tracker()
    follow(tracker, way(5), noisy(way(5)), with_odometry=False)
    soon = tracker.predict(1.4).covariance_66
    later = tracker.predict(2.4).covariance_66
    # Variances of independent seconds add up: the speed of 0.7 m/s in each of them.
    assert (np.diag(later - soon)[:3] >= 0.7**2 - 1e-9).all()
    assert tracker.predict(10.0) is None


def test_the_prior_carries_odometry_as_sampling_does():
    tracker = Tracker(TrackerSettings(agree=1, least_m=0.0, least_rad=0.0))
    start = perturb_pose(np.eye(4), [1.0, 2.0, 3.0, 0.3, -0.8, 0.4])
    step = perturb_pose(np.eye(4), [0.5, 0.1, 1.0, 0.1, 0.4, -0.2])
    tracker.predict(0.0)
    tracker.judge(answer(start))
    prior = tracker.predict(1.0, Motion(step, ODOMETRY))
    assert np.allclose(prior.world_T_camera, start @ step)
    rng = np.random.default_rng(2)
    count = 20000
    ends = perturb_pose(np.tile(start, (count, 1, 1)), STD * rng.normal(size=(count, 6))) @ (
        perturb_pose(
            np.tile(step, (count, 1, 1)), np.sqrt(np.diag(ODOMETRY)) * rng.normal(size=(count, 6))
        )
    )
    residual = pose_residual(ends, np.broadcast_to(start @ step, ends.shape))
    sampled = np.cov(residual.T)
    scale = np.sqrt(np.outer(np.diag(sampled), np.diag(sampled)))
    assert np.abs((prior.covariance_66 - sampled) / scale).max() < 0.05


def test_a_clock_that_jumps_back_starts_anew():
    tracker = Tracker()
    follow(tracker, way(5), noisy(way(5)))
    assert tracker.predict(0.5) is not None
    assert tracker.predict(0.1) is None
