"""The probe that times nodes, on its own floor; and the corner of ROS that both live in."""

import os

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy')


@pytest.mark.parametrize('compressed', [False, True])
def test_the_floor_answers_what_the_probe_sends(compressed):
    from pose_reloc.ros.isolation import isolated
    from pose_reloc.ros.probe import FLOOR_NAME, FloorProcess, Probe

    topic = '/probe/image/compressed' if compressed else '/probe/image'
    image = np.full((24, 32, 3), 7, np.uint8)
    with (
        isolated(),
        FloorProcess(topic, compressed),
        Probe(image, compressed, {FLOOR_NAME: topic}) as probe,
    ):
        probe.wait_until_ready()
        found = probe.measure(FLOOR_NAME, 20.0, 0.5)
    assert 1 <= len(found.latency_s) <= found.sent == 10
    assert (found.latency_s > 0).all()
    assert np.isnan(found.localize_s).all(), 'the floor localizes nothing'
    assert found.seconds > 0.49


def test_what_was_set_before_is_set_again(monkeypatch):
    from pose_reloc.ros.isolation import isolated

    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    monkeypatch.delenv('SOME_PROFILE', raising=False)
    with isolated(42, SOME_PROFILE='a.xml'):
        assert (os.environ['ROS_DOMAIN_ID'], os.environ['SOME_PROFILE']) == ('42', 'a.xml')
        assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert os.environ['ROS_DOMAIN_ID'] == '7' and 'SOME_PROFILE' not in os.environ
