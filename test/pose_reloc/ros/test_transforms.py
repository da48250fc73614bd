"""The tree of frames, against chains and interpolations worked out by SciPy."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from pose_reloc.ros.messages import MessageError
from pose_reloc.ros.transforms import Tf2Listener, TransformError, TransformTree, lookup_near

S = 1_000_000_000


def make(rng):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    pose[:3, 3] = rng.uniform(-3, 3, 3)
    return pose


@pytest.fixture
def rng():
    return np.random.RandomState(0)


def test_chains_up_down_and_across(rng):
    map_T_odom, odom_T_base, base_T_left, base_T_right = (make(rng) for _ in range(4))
    tree = TransformTree()
    # Children before parents: messages arrive in any order.
    tree.set('base', 'left', 0, base_T_left, static=True)
    tree.set('/base', '/right', 0, base_T_right, static=True)
    tree.set('odom', 'base', 5 * S, odom_T_base)
    tree.set('map', 'odom', 5 * S, map_T_odom)
    map_T_left = map_T_odom @ odom_T_base @ base_T_left
    lookups = {
        ('map', 'left'): map_T_left,
        ('left', 'map'): np.linalg.inv(map_T_left),
        ('left', 'right'): np.linalg.inv(base_T_left) @ base_T_right,
        ('odom', 'base'): odom_T_base,
        ('/map', '/odom'): map_T_odom,
        ('base', 'base'): np.eye(4),
    }
    for (target, source), truth in lookups.items():
        np.testing.assert_allclose(tree.lookup(target, source, 5 * S), truth, atol=1e-12)
        np.testing.assert_allclose(tree.lookup(target, source), truth, atol=1e-12)
    assert tree.frames() == {'map', 'odom', 'base', 'left', 'right'}


def test_interpolation_is_linear_and_slerp(rng):
    tree, poses = TransformTree(), [make(rng) for _ in range(3)]
    times = [1 * S, 3 * S, 4 * S]
    for i in (1, 0, 2):  # out of order
        tree.set('map', 'base', times[i], poses[i])
    slerp = Slerp(times, Rotation.from_matrix([p[:3, :3] for p in poses]))
    for when in (1 * S, 1.5 * S, 2.9 * S, 3 * S, 3.25 * S, 4 * S):
        found = tree.lookup('map', 'base', int(when))
        position = [np.interp(when, times, [p[i, 3] for p in poses]) for i in range(3)]
        np.testing.assert_allclose(found[:3, 3], position, atol=1e-9)
        np.testing.assert_allclose(found[:3, :3], slerp(when).as_matrix(), atol=1e-9)


def test_each_link_is_taken_at_the_time_asked_for(rng):
    tree = TransformTree()
    odom, base = [make(rng) for _ in range(2)], [make(rng) for _ in range(2)]
    tree.set('map', 'odom', 0, odom[0])
    tree.set('map', 'odom', 10 * S, odom[1])
    tree.set('odom', 'base', 0, base[0])
    tree.set('odom', 'base', 4 * S, base[1])
    np.testing.assert_allclose(tree.lookup('map', 'base', 0), odom[0] @ base[0], atol=1e-12)
    # The newest common time is that of the link that ends first.
    newest = tree.lookup('map', 'odom', 4 * S) @ base[1]
    np.testing.assert_allclose(tree.lookup('map', 'base'), newest, atol=1e-12)


def test_no_extrapolation(rng):
    tree = TransformTree()
    tree.set('map', 'base', 1 * S, make(rng))
    tree.set('map', 'base', 2 * S, make(rng))
    with pytest.raises(TransformError, match='extrapolated by 0.500 s') as caught:
        tree.lookup('map', 'base', int(2.5 * S))
    assert caught.value.late
    with pytest.raises(TransformError, match='0.250 s after') as caught:
        tree.lookup('map', 'base', int(0.75 * S))
    assert not caught.value.late
    end = tree.lookup('map', 'base', 2 * S)
    np.testing.assert_array_equal(tree.lookup('map', 'base', int(2.5 * S), tolerance=0.5), end)
    with pytest.raises(TransformError):
        tree.lookup('map', 'base', int(2.5 * S) + 1, tolerance=0.5)


class FakeTf2:
    """tf2_ros as far as `Tf2Listener` uses it, with one transform known from 1 s to 2 s."""

    class TransformException(Exception):
        pass

    class ExtrapolationException(TransformException):
        pass

    class Buffer:
        def __init__(self, cache_time):
            pass

        def lookup_transform(self, target, source, when):
            if (target, source) != ('map', 'base'):
                raise FakeTf2.TransformException('not connected')
            if when.nanoseconds and not S <= when.nanoseconds <= 2 * S:
                raise FakeTf2.ExtrapolationException('would require extrapolation')
            xyz, xyzw = dict(x=3.0, y=0.0, z=0.0), dict(x=0.0, y=0.0, z=0.0, w=1.0)
            moved = SimpleNamespace(
                translation=SimpleNamespace(**xyz), rotation=SimpleNamespace(**xyzw)
            )
            return SimpleNamespace(transform=moved)

        def get_latest_common_time(self, target, source):
            return SimpleNamespace(nanoseconds=2 * S)

    @staticmethod
    def TransformListener(buffer, node, spin_thread):
        return None


def test_tf2_says_late_only_of_what_can_still_come():
    pytest.importorskip('rclpy', reason='needs rclpy')
    listener = Tf2Listener(None, FakeTf2)
    assert listener.lookup('/map', 'base', S)[0, 3] == 3
    late = {}
    for source, stamp in (('base', S // 2), ('base', 3 * S), ('nowhere', 3 * S)):
        with pytest.raises(TransformError) as caught:
            listener.lookup('map', source, stamp)
        late[source, stamp] = caught.value.late
    assert list(late.values()) == [False, True, False]
    # What needs no exact time takes the newest where it is late, and nothing that is too new.
    assert lookup_near(listener.lookup, 'map', 'base', 3 * S)[0, 3] == 3
    with pytest.raises(TransformError):
        lookup_near(listener.lookup, 'map', 'base', S // 2)


def test_history_is_bounded(rng):
    tree, pose = TransformTree(history=2.0), make(rng)
    for i in range(1000):
        tree.set('map', 'base', i * S // 10, pose)
    kept = tree.stamps('map', 'base')
    assert (kept[0], kept[-1], len(kept)) == (979 * S // 10, 999 * S // 10, 21)


def test_a_repeated_stamp_replaces(rng):
    tree, newer = TransformTree(), make(rng)
    tree.set('map', 'base', S, make(rng))
    tree.set('map', 'base', S, newer)
    np.testing.assert_array_equal(tree.lookup('map', 'base', S), newer)
    assert tree.stamps('map', 'base') == [S]


def test_what_is_not_connected(rng):
    tree = TransformTree()
    tree.set('map', 'base', 0, make(rng), static=True)
    tree.set('other', 'camera', 0, make(rng), static=True)
    with pytest.raises(TransformError, match="'nowhere' is not on TF.*base, camera, map, other"):
        tree.lookup('map', 'nowhere')
    with pytest.raises(TransformError, match='not connected'):
        tree.lookup('base', 'camera')
    assert tree.can_connect('map', 'base')
    assert not tree.can_connect('base', 'camera')


@pytest.mark.parametrize(
    ('parent', 'child', 'word'),
    [('c', 'a', 'loop'), ('a', 'a', 'cannot go'), ('', 'a', 'cannot go'), ('a', '/', 'cannot go')],
)
def test_impossible_links_change_nothing(rng, parent, child, word):
    tree, a_T_b, b_T_c = TransformTree(), make(rng), make(rng)
    tree.set('a', 'b', 0, a_T_b, static=True)
    tree.set('b', 'c', 0, b_T_c, static=True)
    with pytest.raises(TransformError, match=word):
        tree.set(parent, child, 0, make(rng))
    np.testing.assert_allclose(tree.lookup('a', 'c'), a_T_b @ b_T_c, atol=1e-12)


def test_a_child_may_get_another_parent(rng):
    tree, new = TransformTree(), make(rng)
    tree.set('map', 'base', S, make(rng))
    tree.set('odom', 'base', 2 * S, new)
    np.testing.assert_array_equal(tree.lookup('odom', 'base', 2 * S), new)
    assert not tree.can_connect('map', 'base')


def test_clear_keeps_what_is_static(rng):
    tree = TransformTree()
    tree.set('map', 'base', S, make(rng))
    tree.set('base', 'camera', 0, make(rng), static=True)
    tree.clear()
    assert tree.can_connect('base', 'camera')
    assert not tree.can_connect('map', 'base')
    tree.set('map', 'base', S // 2, make(rng))  # an earlier time is welcome now
    assert tree.stamps('map', 'base') == [S // 2]


def test_waiting_for_a_late_transform(rng):
    tree, pose = TransformTree(), make(rng)
    timer = threading.Timer(0.1, lambda: tree.set('map', 'base', S, pose))
    timer.start()
    np.testing.assert_array_equal(tree.lookup('map', 'base', S, timeout=20.0), pose)
    timer.join()
    start = time.monotonic()
    with pytest.raises(TransformError):
        tree.lookup('map', 'base', 2 * S, timeout=0.05)
    assert time.monotonic() - start >= 0.05


def test_one_bad_transform_in_a_message_does_not_spoil_the_others():
    def item(parent, child, w):
        return SimpleNamespace(
            header=SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=1, nanosec=0)),
            child_frame_id=child,
            transform=SimpleNamespace(
                translation=SimpleNamespace(x=1.0, y=2.0, z=3.0),
                rotation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=w),
            ),
        )

    tree = TransformTree()
    message = SimpleNamespace(
        transforms=[item('map', 'a', 1.0), item('map', 'b', 0.0), item('map', 'c', 1.0)]
    )
    with pytest.raises(MessageError, match='quaternion'):
        tree.add_message(message, static=False)
    assert tree.frames() == {'map', 'a', 'c'}
    np.testing.assert_array_equal(tree.lookup('map', 'c', S)[:3, 3], [1, 2, 3])
