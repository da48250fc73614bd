"""What each tf_mode sends, and how it gives way to another owner of its transform."""

import numpy as np
import pytest

from pose_reloc.geometry import invert_pose
from pose_reloc.ros.parameters import NodeSettings
from pose_reloc.ros.tf_output import TfOutput
from pose_reloc.ros.transforms import TransformError, TransformTree

SECOND = 1_000_000_000


class Harness:
    """A TfOutput, what it sent, the frames it can look up, and a clock."""

    def __init__(self, **settings):
        self.sent = []
        self.tree = TransformTree()
        self.now = 0.0
        self.output = TfOutput(
            NodeSettings(tf_timeout=0.0, **settings), self._send, self._lookup, lambda: self.now
        )

    def _send(self, parent, child, stamp, pose):
        self.sent.append((parent, child, stamp, pose))

    def _lookup(self, target, source, stamp, timeout):
        return self.tree.lookup(target, source, stamp, timeout)

    def names(self):
        return [(parent, child) for parent, child, _, _ in self.sent]


@pytest.fixture
def poses(random_pose):
    rng = np.random.default_rng(7)
    return [random_pose(rng) for _ in range(4)]


def test_map_to_odom_closes_the_chain_at_the_moment_of_the_image(poses):
    map_T_base, odom_T_base0, odom_T_base1, _ = poses
    harness = Harness(tf_mode='map_to_odom', tf_tolerance=0.5)
    harness.tree.set('odom', 'base_link', 1 * SECOND, odom_T_base0)
    harness.tree.set('odom', 'base_link', 2 * SECOND, odom_T_base1)
    harness.output.answer(1 * SECOND, map_T_base, 3 * SECOND)
    harness.output.tick(4 * SECOND)
    harness.output.tick(4 * SECOND)
    assert harness.names() == [('map', 'odom')] * 2, 'a clock that stands still sends nothing'
    assert [stamp for _, _, stamp, _ in harness.sent] == [3.5 * SECOND, 4.5 * SECOND]
    for *_, map_T_odom in harness.sent:
        np.testing.assert_allclose(map_T_odom @ odom_T_base0, map_T_base, atol=1e-12)


def test_nothing_is_sent_before_the_first_answer_nor_after_a_clock_jump(poses):
    harness = Harness(tf_mode='map_to_odom')
    harness.tree.set('odom', 'base_link', SECOND, poses[0])
    harness.output.tick(SECOND)
    assert harness.sent == []
    harness.output.answer(SECOND, poses[1], 100 * SECOND)
    harness.output.clear()
    harness.output.tick(2 * SECOND)
    assert len(harness.sent) == 1
    harness.output.answer(SECOND, poses[1], 2 * SECOND)
    assert len(harness.sent) == 2, 'the clock may be earlier than before the jump'


def test_missing_odometry_is_said_and_the_last_correction_is_held(poses):
    harness = Harness(tf_mode='map_to_odom')
    harness.output.answer(SECOND, poses[0], SECOND)
    assert harness.sent == []
    assert "needs the transform 'odom' -> 'base_link'" in harness.output.problem
    harness.tree.set('odom', 'base_link', SECOND, poses[1])
    harness.output.answer(SECOND, poses[0], SECOND)
    assert harness.output.problem == ''
    harness.output.answer(9 * SECOND, poses[2], 9 * SECOND)
    assert harness.output.problem
    harness.output.tick(10 * SECOND)
    np.testing.assert_allclose(harness.sent[-1][3] @ poses[1], poses[0], atol=1e-12)


def test_an_answer_that_the_clock_overtakes_is_not_held(poses):
    """The clock jumps back while odometry is waited for; another thread clears everything then."""
    harness = Harness(tf_mode='map_to_odom')
    harness.tree.set('odom', 'base_link', 100 * SECOND, poses[0])
    current, wait = [True], harness._lookup

    def lookup(*question):
        current[0] = False
        harness.output.clear()
        return wait(*question)

    harness.output._lookup = lookup
    harness.output.answer(100 * SECOND, poses[1], 100 * SECOND, is_current=lambda: current[0])
    harness.output.tick(SECOND)
    assert harness.sent == []


def test_what_is_less_certain_than_odometry_does_not_move_the_robot(poses):
    coarse, carried, odom_T_base, before = poses
    harness = Harness(tf_mode='map_to_odom')
    for second in (1, 2, 3):
        harness.tree.set('odom', 'base_link', second * SECOND, odom_T_base)
    harness.output.answer(SECOND, coarse, SECOND, carried)
    np.testing.assert_allclose(harness.sent[-1][3] @ odom_T_base, carried, atol=1e-12)
    harness.output.answer(2 * SECOND, before, 2 * SECOND)
    harness.output.answer(3 * SECOND, coarse, 3 * SECOND, carried)
    harness.output.tick(4 * SECOND)
    np.testing.assert_allclose(harness.sent[-1][3] @ odom_T_base, before, atol=1e-12)

    for mode, pose in (('map_to_base', carried), ('separate', coarse)):
        harness = Harness(tf_mode=mode)
        harness.output.answer(SECOND, coarse, SECOND, carried)
        np.testing.assert_array_equal(harness.sent[-1][3], pose)


@pytest.mark.parametrize('mode, child', [('map_to_odom', 'odom'), ('map_to_base', 'base_link')])
def test_our_own_messages_are_no_conflict_and_foreign_ones_are(poses, mode, child):
    harness = Harness(tf_mode=mode)
    harness.tree.set('odom', 'base_link', SECOND, np.eye(4))
    harness.output.answer(SECOND, poses[0], SECOND)
    parent, sent_child, stamp, pose = harness.sent[0]
    assert sent_child == child
    harness.output.observe(parent, child, stamp, float(pose[0, 3]), static=False)
    assert harness.output.conflict() == ''

    harness.output.observe('world', child, stamp + 1, 0.0, static=False)
    assert f"another node publishes the transform 'world' -> '{child}'" in harness.output.conflict()
    harness.output.answer(2 * SECOND, poses[1], 2 * SECOND)
    harness.output.tick(3 * SECOND)
    assert harness.names()[1:] == [('map', 'base_link_reloc')]
    np.testing.assert_array_equal(harness.sent[1][3], poses[1])

    harness.now += 6.0
    assert harness.output.conflict() == '', 'the other one has been silent'
    harness.output.tick(9 * SECOND)
    assert len(harness.sent) == 2, 'what was true before it came is not said again'
    harness.output.answer(SECOND, poses[1], 9 * SECOND)
    assert harness.names()[2:] == [('map', child)]


def test_a_static_owner_is_not_forgotten(poses):
    harness = Harness(tf_mode='map_to_base')
    harness.output.observe('map', 'base_link', 0, 0.0, static=True)
    harness.now += 1000.0
    harness.output.clear()
    assert harness.output.conflict()


def test_force_publishes_anyway_and_says_so(poses):
    harness = Harness(tf_mode='map_to_base', tf_force=True)
    harness.output.observe('odom', 'base_link', 0, 0.0, static=False)
    harness.output.answer(SECOND, poses[0], SECOND)
    assert harness.names() == [('map', 'base_link')]
    assert 'tf_force is set' in harness.output.conflict()


def test_separate_and_none_give_way_to_nobody(poses):
    for mode, names in (('separate', [('map', 'base_link_reloc')]), ('none', [])):
        harness = Harness(tf_mode=mode)
        assert harness.output.can_conflict == bool(names)
        harness.output.observe('map', 'base_link_reloc', 0, 0.0, static=True)
        said = 'give the parameter reloc_frame of one of them another name'
        assert (said in harness.output.conflict()) == bool(names)
        harness.output.answer(SECOND, poses[0], SECOND)
        harness.output.tick(2 * SECOND)
        assert harness.names() == names


def test_separate_does_not_take_its_own_messages_for_those_of_another(poses):
    harness = Harness(tf_mode='separate')
    harness.output.answer(SECOND, poses[0], SECOND)
    parent, child, stamp, pose = harness.sent[0]
    harness.output.observe(parent, child, stamp, float(pose[0, 3]), static=False)
    assert harness.output.conflict() == ''


def test_a_clock_that_was_set_back_is_said_until_it_has_caught_up(poses):
    harness = Harness(tf_mode='map_to_odom')
    harness.tree.set('odom', 'base_link', 0, poses[0], static=True)
    harness.output.answer(1000 * SECOND, poses[1], 1000 * SECOND)
    harness.output.tick(1000 * SECOND - SECOND // 2)
    assert harness.output.problem == '', 'clocks are corrected a little all the time'
    harness.output.tick(400 * SECOND)
    harness.output.answer(400 * SECOND, poses[1], 400 * SECOND)
    said = "the clock was set back: 'map' -> 'odom' is not sent for another 600 s"
    assert said in harness.output.problem, 'an answer does not mend it'
    assert len(harness.sent) == 1
    harness.output.tick(1001 * SECOND)
    assert harness.output.problem == '' and len(harness.sent) == 2


def test_corrected_odometry_is_where_the_camera_says(poses):
    """map_T_odom @ odom_T_base(t), looked up over the tree, is the answer at the image's moment."""
    harness = Harness(tf_mode='map_to_odom')
    harness.tree.set('odom', 'base_link', SECOND, poses[2])
    harness.output.answer(SECOND, poses[3], SECOND)
    parent, child, stamp, pose = harness.sent[0]
    robot = TransformTree()
    robot.set('odom', 'base_link', SECOND, poses[2])
    robot.set(parent, child, stamp, pose)
    found = robot.lookup('base_link', 'map', SECOND, tolerance=1.0)
    np.testing.assert_allclose(found, invert_pose(poses[3]), atol=1e-12)
    with pytest.raises(TransformError):
        robot.lookup('base_link', 'map', 5 * SECOND)
