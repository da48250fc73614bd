"""Heartbeats for a lifecycle manager, on stand-ins for the node and for the message package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs rclpy')

from pose_reloc.ros.bond import open_bond  # noqa: E402


class Node:
    """Records what is created and published; its timers are called by hand."""

    def __init__(self):
        self.sent, self.said, self.ticks, self.destroyed = [], [], [], []

    def create_publisher(self, kind, topic, depth):
        self.topic = topic
        return SimpleNamespace(publish=self.sent.append)

    def create_timer(self, period, callback, clock):
        assert clock.clock_type.name == 'STEADY_TIME', 'a paused simulation is no death'
        self.ticks.append((period, callback))
        return 'timer'

    def destroy_timer(self, timer):
        self.destroyed.append(timer)

    def destroy_publisher(self, publisher):
        self.destroyed.append('publisher')

    def get_name(self):
        return 'pose_reloc'

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: 'now'))

    def get_logger(self):
        return SimpleNamespace(info=self.said.append)


class Status(SimpleNamespace):
    """The fields of bond/Status."""

    def __init__(self, **fields):
        super().__init__(header=SimpleNamespace(stamp=None), **fields)


@pytest.fixture
def installed(monkeypatch):
    messages = ModuleType('bond.msg')
    messages.Status = Status
    monkeypatch.setitem(sys.modules, 'bond', ModuleType('bond'))
    monkeypatch.setitem(sys.modules, 'bond.msg', messages)


def test_it_beats_ten_times_a_second_and_says_good_bye(installed):
    node = Node()
    close = open_bond(node)
    ((period, beat),) = node.ticks
    assert (node.topic, period) == ('bond', 0.1)
    beat()
    beat()
    close()
    assert [status.active for status in node.sent] == [True, True, False]
    assert {status.id for status in node.sent} == {'pose_reloc'}
    assert len({status.instance_id for status in node.sent}) == 1
    # Nav2's manager gives a node up after 4 s; one that promises less would be given up sooner.
    assert {(s.heartbeat_period, s.heartbeat_timeout) for s in node.sent} == {(0.1, 4.0)}
    assert node.destroyed == ['timer', 'publisher']


def test_every_activation_is_another_instance(installed):
    ids = []
    for _ in range(2):
        node = Node()
        open_bond(node)()
        ids.append(node.sent[0].instance_id)
    assert ids[0] != ids[1]


def test_without_the_package_it_says_what_to_set(monkeypatch):
    monkeypatch.setitem(sys.modules, 'bond.msg', None)
    node = Node()
    open_bond(node)()
    assert node.sent == []
    assert 'bond_timeout: 0.0' in node.said[0]
