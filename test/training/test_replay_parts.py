"""Parts of a replay: alignment of the answers, accounts by stamp, the sentence about the pace."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import perturb_pose, pose_matrix
from training.align import AlignError
from training.evaluate import Frame, RetrievalBaseline, baselines
from training.replay import ReplaySettings
from training.replay.alignment import Similarity, fit
from training.replay.live import _replies
from training.replay.reply import Reply, pace

R = Rotation.from_rotvec([0.3, -0.8, 1.1]).as_matrix()
T = np.array([5.0, -3, 0.5])


def make_poses(rng, count=20):
    rotations = Rotation.random(count, random_state=4).as_matrix()
    return pose_matrix(rotations, rng.normal(size=(count, 3)) * [4, 3, 0.3])


def moved(pose, scale):
    return pose_matrix(R @ pose[:3, :3], scale * R @ pose[:3, 3] + T)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize('kind, scale', [('se3', 1.0), ('sim3', 0.4)])
def test_answers_in_another_frame_are_brought_back(rng, kind, scale):
    poses = make_poses(rng)
    frames = [Frame(f'{i}', i, moved(pose, scale), pose) for i, pose in enumerate(poses)]
    frames.append(Frame('silent', 99.0, poses[0], None, status='LOST'))
    alignment = fit(frames, kind)
    np.testing.assert_allclose(alignment.R, R, atol=1e-9)
    np.testing.assert_allclose(alignment.t, T, atol=1e-9)
    assert alignment.scale == pytest.approx(scale)
    for frame in frames[:-1]:
        np.testing.assert_allclose(alignment.frame(frame).estimate, frame.truth, atol=1e-9)
    assert alignment.frame(frames[-1]) is frames[-1]
    assert ('scaled by 0.4000' in str(alignment)) == (kind == 'sim3')
    assert 'orientations' not in str(alignment)


def test_se3_does_not_hide_a_wrong_scale(rng):
    frames = [Frame(f'{i}', i, moved(pose, 0.4), pose) for i, pose in enumerate(make_poses(rng))]
    alignment = fit(frames, 'se3')
    assert alignment.scale == 1
    assert np.median([alignment.frame(f).error()[0] for f in frames]) > 1


def test_the_covariance_turns_and_grows_with_the_pose(rng):
    """Who moves the truth and the answer alike changes nothing about how well they agree."""
    alignment = Similarity(R, T, 0.4, 20, 0.0)
    for pose in make_poses(rng, 5):
        factor = rng.normal(size=(6, 6))
        truth = perturb_pose(pose, 0.05 * rng.normal(size=6))
        frame = Frame('x', 0.0, truth, pose, 1e-3 * factor @ factor.T)
        both = replace(alignment.frame(frame), truth=moved(truth, 0.4))
        assert both.nees() == pytest.approx(frame.nees(), rel=1e-6)
        assert both.error() == pytest.approx((0.4 * frame.error()[0], frame.error()[1]), rel=1e-6)


def test_the_scene_moves_with_its_answers(tiny_scene, small_scene):
    alignment = Similarity(R, T, 0.4, 20, 0.0)
    found = alignment.scene(small_scene)
    points = small_scene.landmarks.points.astype(float)  # map_T_scene is the identity
    M = found.map_T_scene
    after = found.landmarks.points @ M[:3, :3].T + M[:3, 3]
    np.testing.assert_allclose(after, 0.4 * points @ R.T + T, atol=1e-5)
    scene = tiny_scene.with_map_T_scene(pose_matrix(R.T, [1.0, 2, 3]))
    found = alignment.scene(scene)
    for before, after in zip(
        scene.map_T_scene @ scene.train_world_T_camera,
        found.map_T_scene @ found.train_world_T_camera,
    ):
        np.testing.assert_allclose(after, moved(before, 0.4), atol=1e-9)
    # The baselines are aligned as the answers are: the mean pose becomes the moved mean pose.
    retrieval = RetrievalBaseline(found)
    features = scene.start_features.astype(np.float32)
    truths = [moved(pose, 0.4) for pose in scene.map_T_scene @ scene.train_world_T_camera]
    errors = baselines(retrieval, features, truths, found.map_T_scene)
    np.testing.assert_allclose(errors['retrieval'][0], 0, atol=1e-9)


def test_a_turn_that_the_orientations_contradict_is_said(rng):
    pose = make_poses(rng)
    turned = Rotation.from_rotvec([0, 0, np.deg2rad(5)]).as_matrix()
    frames = [
        Frame(f'{i}', i, p, pose_matrix(p[:3, :3] @ turned, p[:3, 3]))
        for i, p in enumerate(pose_matrix(np.eye(3), pose[:, :3, 3]))
    ]
    alignment = fit(frames, 'se3')
    np.testing.assert_allclose(alignment.R, np.eye(3), atol=1e-9)
    assert alignment.disagreement_deg == pytest.approx(5)
    assert 'differs by 5.0 deg' in str(alignment)


@pytest.mark.parametrize('count', [0, 2])
def test_too_few_answers_cannot_be_aligned(rng, count):
    frames = [Frame(f'{i}', i, pose, pose) for i, pose in enumerate(make_poses(rng, 3)[:count])]
    with pytest.raises(AlignError, match=f'--align se3 .* {count} answers'):
        fit(frames, 'se3')


def account(outcome, reasons=(), estimate='', work_s=None):
    return SimpleNamespace(outcome=outcome, reasons=reasons, estimate=estimate, work_s=work_s)


def test_every_image_finds_its_account_by_its_stamp():
    pose, covariance = np.eye(4), np.eye(6)
    playback = SimpleNamespace(
        sent={10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0, 50: 5.0},
        received={10: (1.25, pose, covariance), 50: (5.5, pose, covariance)},
        accounts={
            10: account('answered', (), 'REFINED', 0.2),
            20: account('refused', ('blurred',), 'LOST', 0.1),
            30: account('dropped', ('superseded',)),
        },
    )
    images = [(10, 11), (20, 21), (20, 22), (30, 31), (40, 41), (50, 51)]
    replies = _replies(playback, images)
    assert [(r.stamp, r.time) for r in replies] == images
    assert [r.status for r in replies] == [
        'REFINED', 'LOST', 'same stamp', 'dropped', 'no answer', 'answered',
    ]  # fmt: skip
    assert (replies[0].latency_s, replies[0].work_s) == (0.25, 0.2)
    assert replies[1].reasons == ('blurred',) and replies[1].pose is None
    assert replies[5].latency_s == 0.5


def test_images_without_a_stamp_share_what_the_node_says_of_stamp_zero():
    accounts = {0: account('dropped', ('stamp is zero',))}
    playback = SimpleNamespace(sent={7: 1.0, 8: 2.0}, received={}, accounts=accounts)
    for reply in _replies(playback, [(7, 7), (8, 8)]):
        assert (reply.status, reply.reasons) == ('dropped', ('stamp is zero',))


def make_replies(period_s, work_s, dropped):
    """As from a camera of this period, the first of them dropped."""
    return [
        Reply(i, int(i * period_s * 1e9), 'dropped', ('superseded',))
        if i < dropped
        else Reply(i, int(i * period_s * 1e9), 'REFINED', work_s=work_s)
        for i in range(20)
    ]


def test_a_slow_machine_is_named_with_the_rate_that_it_can_do():
    text = pace(make_replies(0.066, 0.2, 12), ReplaySettings())
    assert text.startswith('12 of 20 images were dropped for newer ones')
    assert 'takes 200 ms' in text and 'every 66 ms' in text
    # 0.066 / 0.2 = 0.33 would leave no room.
    assert '--rate 0.2 ' in text and '--offline' in text


def test_a_fast_machine_is_not_worth_a_word():
    assert pace(make_replies(0.066, 0.02, 0), ReplaySettings()) == ''
    assert pace(make_replies(0.066, 0.02, 0), ReplaySettings(live=False)) == ''
    assert pace([], ReplaySettings()) == ''


def test_offline_says_what_would_happen_live():
    text = pace(make_replies(0.066, 0.2, 0), ReplaySettings(live=False))
    assert 'the node would drop some' in text
