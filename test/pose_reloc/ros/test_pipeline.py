"""From an image message to an answer, without ROS: messages are plain objects with their fields."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pose_reloc.gates import GateSettings
from pose_reloc.geometry import invert_pose
from pose_reloc.pnp import CameraFit
from pose_reloc.ros.diagnostics import Outcome
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.pipeline import CameraSource, Frame, Mounting, Notices, Pipeline
from pose_reloc.ros.prior import BasePrior
from pose_reloc.ros.transforms import TransformError, TransformTree

SECOND = 1_000_000_000
NOW = 1000 * SECOND


class Transforms:
    """A TransformTree with the interface of a listener, that notes how long it is told to wait."""

    def __init__(self):
        self.tree = TransformTree()
        self.waits = []

    def lookup(self, target, source, stamp=None, timeout=0.0):
        self.waits.append(timeout)
        return self.tree.lookup(target, source, stamp)

    def is_empty(self):
        return not self.tree.frames()


class Said:
    """Notices and what they said."""

    def __init__(self):
        self.warned, self.informed = [], []
        self.notices = Notices(self.warned.append, self.informed.append)


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(11)
    return [random_pose(rng) for _ in range(4)]


def image(index=0, stamp=NOW, frame_id='camera', shape=(24, 32)):
    height, width = shape
    header = SimpleNamespace(
        stamp=SimpleNamespace(sec=stamp // SECOND, nanosec=stamp % SECOND), frame_id=frame_id
    )
    data = np.full(height * width * 3, index, np.uint8)
    return SimpleNamespace(
        header=header, height=height, width=width, encoding='rgb8', is_bigendian=0,
        step=3 * width, data=data,
    )  # fmt: skip


def camera_info(fx=30.0, width=32, height=24):
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    k = [fx, 0.0, width / 2, 0.0, fx, height / 2, 0.0, 0.0, 1.0]
    return SimpleNamespace(
        width=width, height=height, k=k, d=[], p=[0.0] * 12, distortion_model='plumb_bob',
        binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def make_pipeline(relocalizer, said, transforms=None, errors=None, now=NOW, **settings):
    settings = NodeSettings(**{'base_frame': '', 'tf_timeout': 0.0} | settings)
    camera = CameraSource(False, said.notices, lambda: False)
    error = (errors if errors is not None else []).append
    return Pipeline(
        settings, relocalizer, transforms or Transforms(), camera, said.notices, lambda: now, error
    )


def process(pipeline, message):
    return pipeline.process(Frame(message, time.perf_counter()))


def test_the_fake_speaks_as_the_relocalizer_does(make_fake):
    """Or every other test here would prove nothing."""
    from dataclasses import fields
    from inspect import signature

    from pose_reloc.relocalizer import PoseEstimate, Relocalizer

    estimate = make_fake([np.eye(4)], np.eye(6)).localize(np.zeros((1, 1, 3), np.uint8))
    assert [f.name for f in fields(estimate)] == [f.name for f in fields(PoseEstimate)]
    parameters = signature(Relocalizer.localize).parameters
    assert hasattr(make_fake([np.eye(4)], np.eye(6)), 'gate_settings')
    assert isinstance(Relocalizer.gate_settings, property)
    # Positions, not names, are what the pipeline relies on.
    assert len(signature(make_fake.localize).parameters) == len(parameters) == 4


@pytest.mark.parametrize(
    'stamp, now, reason',
    [
        (0, NOW, 'stamp is zero'),
        (NOW - 2 * SECOND, NOW, 'too old'),
        (NOW + SECOND, NOW, 'in the future'),
        (NOW, 0, 'no clock'),
        (NOW - SECOND, NOW, ''),
        (NOW + SECOND // 4, NOW, ''),
    ],
)
def test_stamps(make_fake, poses, said, stamp, now, reason):
    fake = make_fake(poses, np.eye(6))
    answer = process(make_pipeline(fake, said, now=now, max_image_age=1.5), image(0, stamp))
    assert answer.stamp == stamp
    if reason:
        assert (answer.outcome, answer.reasons) == (Outcome.DROPPED, (reason,))
        assert fake.seen == [], 'dropped before any work'
    else:
        assert answer.outcome is Outcome.ANSWERED


def test_without_a_limit_only_the_zero_stamp_is_dropped(make_fake, poses, said):
    pipeline = make_pipeline(make_fake(poses, np.eye(6)), said, max_image_age=0.0)
    assert process(pipeline, image(0, 1)).outcome is Outcome.ANSWERED
    assert process(pipeline, image(0, 2 * NOW)).outcome is Outcome.ANSWERED
    assert process(pipeline, image(0, 0)).outcome is Outcome.DROPPED


@pytest.mark.parametrize(
    'refined, likeness, undecided', [(True, 0.9, True), (False, 0.9, False), (False, None, True)]
)
def test_a_request_is_left_open_by_what_may_overrule_the_track(
    make_fake, poses, said, refined, likeness, undecided
):
    from pose_reloc.relocalizer import PoseEstimate, Status

    fake = make_fake(poses, np.eye(6))
    reasons = ('contradicts_prior',)
    fake.localize = lambda *_: PoseEstimate(
        Status.LOST, poses[0], np.eye(6), reasons=reasons, likeness=likeness, refined=refined
    )
    answer = process(make_pipeline(fake, said, track=True), image())
    assert (answer.outcome, answer.reasons) == (Outcome.REFUSED, reasons)
    assert answer.undecided is undecided


def test_a_message_without_a_stamp_or_a_crash_is_an_answer_too(make_fake, poses, said):
    errors = []
    pipeline = make_pipeline(make_fake(poses, np.eye(6)), said, errors=errors)
    answer = process(pipeline, SimpleNamespace())
    assert (answer.outcome, answer.reasons) == (Outcome.FAILED, ('internal error',))
    answer = process(pipeline, image(255))
    assert answer.reasons == ('internal error',)
    assert 'a fault inside the relocalizer' in answer.sentence
    assert 'Traceback' in errors[1]
    assert process(pipeline, image(1)).outcome is Outcome.ANSWERED


def test_gates_that_are_changed_hold_for_the_next_image(make_fake, poses, said):
    fake = make_fake(poses, np.eye(6))
    pipeline = make_pipeline(fake, said)
    process(pipeline, image())
    assert fake.gate_settings == GateSettings()
    pipeline.settings = replace(pipeline.settings, min_inliers=40)
    process(pipeline, image())
    assert fake.gate_settings == GateSettings(min_inliers=40)


def test_an_answer_that_is_not_finite_is_not_published(make_fake, poses, said):
    poses[0] = poses[0].copy()
    poses[0][0, 3] = np.nan
    pipeline = make_pipeline(make_fake(poses, np.eye(6)), said)
    assert process(pipeline, image(0)).reasons == ('not finite',)
    pipeline = make_pipeline(make_fake(poses, np.full((6, 6), np.inf)), said)
    assert process(pipeline, image(1)).reasons == ('not finite',)


def test_an_image_of_another_shape_than_its_camera_fails(make_fake, poses, said):
    pipeline = make_pipeline(make_fake(poses, np.eye(6)), said)
    answer = process(pipeline, image(0, shape=(32, 32)))
    assert (answer.outcome, answer.reasons) == (Outcome.FAILED, ('wrong camera',))
    answer = process(pipeline, image(0, shape=(48, 64)))
    assert answer.outcome is Outcome.ANSWERED, 'twice the size shows the same view'


def test_the_map_is_the_scene_moved(make_fake, poses, said):
    covariance = np.diag([1.0, 2.0, 3.0, 0.1, 0.2, 0.3])
    map_T_scene = np.eye(4)
    map_T_scene[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # a quarter turn: x becomes y
    map_T_scene[:3, 3] = [10, 20, 30]
    answer = process(make_pipeline(make_fake(poses, covariance, map_T_scene), said), image(2))
    np.testing.assert_allclose(answer.map_T_camera, map_T_scene @ poses[2])
    np.testing.assert_allclose(
        np.diag(answer.camera_covariance_66), [2.0, 1.0, 3.0, 0.2, 0.1, 0.3], atol=1e-12
    )


def test_a_camera_that_does_not_fit_the_map_is_a_standing_warning(make_fake, poses, said):
    fake = make_fake(poses, np.eye(6))
    pipeline = make_pipeline(fake, said)
    fake.camera_fit = CameraFit(np.array([0.1, 0.1, 0, 0]), 1e4, np.zeros(6), np.eye(6))
    for _ in range(40):
        assert process(pipeline, image()).outcome is Outcome.ANSWERED
    complaints = [text for text in said.warned if 'does not fit the map' in text]
    assert len(complaints) == 1 and 'fx 30' in complaints[0] and 'fx 33' in complaints[0]
    fake.camera_fit = CameraFit(np.zeros(4), 4.0, np.zeros(6), np.eye(6))
    for _ in range(40):
        process(pipeline, image())
    assert not any('does not fit' in text for text in said.notices.sentences())


def test_the_parameter_overrules_the_map_of_the_scene(make_fake, poses, said):
    fake = make_fake(poses, np.eye(6), poses[3])
    given = '1 2 3 0 0 0.6 0.8'  # cos = 0.28, sin = 0.96
    map_T_scene = np.array([[0.28, -0.96, 0, 1], [0.96, 0.28, 0, 2], [0, 0, 1.0, 3], [0, 0, 0, 1]])
    pipeline = make_pipeline(fake, said, map_T_scene=given)
    answer = process(pipeline, image(2))
    np.testing.assert_allclose(answer.map_T_base, map_T_scene @ poses[2], atol=1e-12)
    np.testing.assert_allclose(answer.raw_map_T_base[:3, :3], answer.map_T_base[:3, :3])
    # A hint given in the map reaches the relocalizer in the scene.
    pipeline.process(Frame(image(2), 0.0), BasePrior(map_T_scene @ poses[1], np.eye(6)))
    np.testing.assert_allclose(fake.priors[-1].world_T_camera, poses[1], atol=1e-12)


def test_mounting_from_tf(make_fake, poses, said):
    transforms = Transforms()
    transforms.tree.set('base_link', 'mast', 0, poses[0], static=True)
    transforms.tree.set('mast', 'camera', 0, poses[1], static=True)
    pipeline = make_pipeline(make_fake(poses, np.eye(6)), said, transforms, base_frame='base_link')
    answer = process(pipeline, image(2))
    np.testing.assert_allclose(
        answer.map_T_base, poses[2] @ invert_pose(poses[0] @ poses[1]), atol=1e-9
    )
    answer = process(pipeline, image(2, frame_id=''))
    assert answer.outcome is Outcome.UNMOUNTED and 'camera_frame' in answer.sentence
    pipeline = make_pipeline(
        make_fake(poses, np.eye(6)), said, transforms, base_frame='base_link', camera_frame='mast'
    )
    np.testing.assert_allclose(
        process(pipeline, image(2)).map_T_base, poses[2] @ invert_pose(poses[0]), atol=1e-9
    )


def test_a_moving_mount_is_looked_up_at_the_time_of_the_image(make_fake, poses, said):
    transforms = Transforms()
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    transforms.tree.set('base_link', 'camera', NOW - SECOND, np.eye(4))
    transforms.tree.set('base_link', 'camera', NOW, turned)
    pipeline = make_pipeline(
        make_fake(poses, np.eye(6)), said, transforms, base_frame='base_link', max_image_age=0.0
    )
    for stamp, base_T_camera in ((NOW - SECOND, np.eye(4)), (NOW, turned)):
        answer = process(pipeline, image(1, stamp))
        np.testing.assert_allclose(
            answer.map_T_base, poses[1] @ invert_pose(base_T_camera), atol=1e-9
        )
    assert process(pipeline, image(1, NOW + SECOND)).outcome is Outcome.UNMOUNTED


def test_a_mounting_that_is_late_still_says_where_to_look(make_fake, poses, said):
    transforms = Transforms()
    transforms.tree.set('base_link', 'camera', NOW - SECOND // 30, poses[0])
    fake = make_fake(poses, np.eye(6))
    pipeline = make_pipeline(fake, said, transforms, base_frame='base_link')
    hint = BasePrior(poses[1], np.eye(6))
    answer = pipeline.process(Frame(image(2), time.perf_counter()), hint)
    assert answer.outcome is Outcome.UNMOUNTED, 'an answer needs it exactly'
    np.testing.assert_allclose(fake.priors[-1].world_T_camera, poses[1] @ poses[0], atol=1e-12)
    assert answer.raw_map_T_base is not None


class Drive:
    """A robot with odometry that is localized once a second, and how well."""

    FINE, COARSE = (np.diag([sigma**2] * 3 + [0.1 * sigma**2] * 3) for sigma in (0.03, 0.4))

    def __init__(self, make_fake, said, **settings):
        self.fake = make_fake([self.at(x) for x in (0.0, 1.0, 1.8, 9.0)], self.FINE)
        self.transforms = Transforms()
        self.transforms.tree.set('base_link', 'camera', 0, np.eye(4), static=True)
        self.pipeline = make_pipeline(
            self.fake, said, self.transforms,
            base_frame='base_link', max_image_age=0.0, **settings,
        )  # fmt: skip
        self.stamp = NOW

    @staticmethod
    def at(x):
        return np.block([[np.eye(3), np.array([[x], [0], [0]])], [np.zeros(3), 1.0]])

    def look(self, index, status, covariance_66=None, hint=None, odom=0.0):
        """The answer with pose `index` of `status`, at `odom` in the odometry."""
        self.stamp += SECOND
        self.transforms.tree.set('odom', 'base_link', self.stamp, self.at(odom))
        self.fake.status = status
        self.fake.covariance_66 = self.FINE if status == 'REFINED' else self.COARSE
        if covariance_66 is not None:
            self.fake.covariance_66 = covariance_66
        return self.pipeline.process(Frame(image(index, self.stamp), 0.0), hint)


def test_a_coarse_answer_knows_where_odometry_has_carried_the_refined_one(make_fake, said):
    drive = Drive(make_fake, said)
    assert drive.look(2, 'COARSE').carried_map_T_base is None, 'nothing is to be carried yet'
    assert drive.look(1, 'REFINED').carried_map_T_base is None
    answer = drive.look(2, 'COARSE', odom=0.25)
    np.testing.assert_allclose(answer.map_T_base, drive.at(1.8))
    np.testing.assert_allclose(answer.carried_map_T_base, drive.at(1.25))
    assert drive.look(1, 'COARSE', drive.FINE, odom=0.25).carried_map_T_base is None, 'more certain'


def test_who_overrules_odometry_moves_the_robot(make_fake, said):
    drive = Drive(make_fake, said)
    drive.look(1, 'REFINED')
    hint = BasePrior(drive.at(9.0), np.eye(6))
    assert drive.look(3, 'COARSE', hint=hint).carried_map_T_base is None
    drive.look(3, 'COARSE')
    assert drive.fake.priors[-1] is None, 'the old place is not looked at any more'

    drive = Drive(make_fake, said, odometry_prior=False)
    drive.look(1, 'REFINED')
    assert drive.look(2, 'COARSE').carried_map_T_base is None


def test_coarse_answers_do_not_keep_the_belief_in_an_old_place_alive(make_fake, said):
    drive = Drive(make_fake, said)
    drive.look(1, 'REFINED')
    for _ in range(4):
        drive.look(254, 'LOST')
    drive.look(2, 'COARSE')
    drive.look(254, 'LOST')
    assert drive.fake.priors[-1] is not None
    drive.look(1, 'REFINED')
    assert drive.fake.priors[-1] is None, 'five were refused since the last refined answer'


def test_a_missing_mounting_costs_time_only_at_first_and_is_said_once(said):
    transforms = Transforms()
    transforms.tree.set('base_link', 'wheel', 0, np.eye(4), static=True)
    mounting = Mounting(NodeSettings(), transforms, said.notices)
    for _ in range(20):
        with pytest.raises(TransformError):
            mounting.camera_T_base('camera', NOW, 0.1)
    assert transforms.waits == [0.1] * 5 + [0.0] * 15
    assert len(said.warned) == 1 and "no transform 'base_link' -> 'camera'" in said.warned[0]
    assert len(said.notices.sentences()) == 1
    transforms.tree.set('base_link', 'camera', 0, np.eye(4), static=True)
    mounting.camera_T_base('camera', NOW, 0.1)
    assert said.notices.sentences() == ()
    assert len(said.informed) == 1


def test_late_transforms_are_worth_waiting_for_every_time(said):
    transforms = Transforms()
    transforms.tree.set('base_link', 'camera', NOW, np.eye(4))
    mounting = Mounting(NodeSettings(), transforms, said.notices)
    for _ in range(8):
        with pytest.raises(TransformError):
            mounting.camera_T_base('camera', NOW + SECOND, 0.1)
    assert transforms.waits == [0.1] * 8


@pytest.mark.parametrize('something_on_tf', [False, True])
def test_the_camera_is_the_base_only_where_there_is_no_tf_at_all(
    said, monkeypatch, something_on_tf
):
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    transforms = Transforms()
    if something_on_tf:
        transforms.tree.set('odom', 'base_link', 0, np.eye(4), static=True)
    mounting = Mounting(NodeSettings(mounting_timeout=3.0), transforms, said.notices)
    for now[0] in (10.0, 12.9):
        with pytest.raises(TransformError):
            mounting.camera_T_base('camera', NOW, 0.0)
    now[0] = 13.1
    if something_on_tf:
        with pytest.raises(TransformError):
            mounting.camera_T_base('camera', NOW, 0.0)
        return
    np.testing.assert_array_equal(mounting.camera_T_base('camera', NOW, 0.0), np.eye(4))
    assert 'the camera itself is taken as' in said.warned[-1]
    moved = np.eye(4)
    moved[0, 3] = 0.5
    transforms.tree.set('base_link', 'camera', 0, moved, static=True)
    np.testing.assert_allclose(
        mounting.camera_T_base('camera', NOW, 0.0), invert_pose(moved), atol=1e-12
    )


def test_camera_info_is_parsed_once_and_followed_when_it_changes(said, monkeypatch):
    import pose_reloc.ros.pipeline as pipeline

    parsed = []
    parse = pipeline.camera_from_info
    monkeypatch.setattr(
        pipeline, 'camera_from_info', lambda *args: parsed.append(args) or parse(*args)
    )
    source = CameraSource(False, said.notices, lambda: True)
    for fx in (30.0, 30.0, 40.0, 40.0):
        source.update(camera_info(fx))
    assert source.camera().fx == 40.0
    assert len(parsed) == 2
    source.update(camera_info(0.0))
    assert source.camera() is None, 'an uncalibrated camera is no camera'
    assert 'camera_info is not used' in said.warned[-1]
    source.update(camera_info(50.0))
    assert source.camera().fx == 50.0
    assert said.notices.sentences() == ()


@pytest.mark.parametrize(
    'topic, rectified, p, doubted',
    [
        ('/camera/image_rect_color', False, 24.0, True),
        ('/camera/image_rect/compressed', False, 24.0, True),
        ('/camera/image_rect', True, 24.0, False),
        ('/camera/image_rect', False, 30.0, False),  # k and p are the same camera
        ('/camera/image_rect', False, 0.0, False),  # there is no p
        ('/camera/image_raw', False, 24.0, False),
    ],
)
def test_a_name_that_contradicts_rectified_is_said(said, topic, rectified, p, doubted):
    source = CameraSource(rectified, said.notices, lambda: True, topic)
    info = camera_info(30.0)
    info.p = [p, 0.0, 16.0, 0.0, 0.0, p, 12.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    source.update(info)
    assert source.camera().fx == (p if rectified else 30.0), 'what was asked for'
    assert [('rectified:=true' in text, topic in text) for text in said.warned] == (
        [(True, True)] if doubted else []
    )


def test_the_first_image_waits_for_a_camera_info_that_is_on_its_way(said):
    source = CameraSource(False, said.notices, lambda: True)
    asked = threading.Event()
    source._arrived.wait, wait = lambda t: (asked.set(), wait(10))[1], source._arrived.wait
    found = []
    thread = threading.Thread(target=lambda: found.append(source.camera()))
    thread.start()
    assert asked.wait(10)
    source.update(camera_info(33.0))
    thread.join(10)
    assert found[0].fx == 33.0
    assert said.warned == []


def test_nobody_waits_for_a_camera_info_that_nobody_publishes(said):
    source = CameraSource(False, said.notices, lambda: False)
    source._arrived.wait = pytest.fail
    assert source.camera() is None
    assert source.camera() is None
    assert len(said.warned) == 1 and 'camera of the training images' in said.warned[0]
