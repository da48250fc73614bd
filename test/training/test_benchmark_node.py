"""`pose_reloc bench node`: what a turn makes of what came back. The probe has tests of its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from training.benchmarks.measure import CaseError
from training.benchmarks.node import _Floor, _Node


class Probe:
    """Answers every turn alike."""

    def __init__(self, latency_s, localize_s, sent=4, seconds=2.0):
        self.asked = []
        self._round = SimpleNamespace(
            sent=sent, latency_s=np.array(latency_s), localize_s=np.array(localize_s),
            seconds=seconds,
        )  # fmt: skip

    def measure(self, *what):
        self.asked.append(what)
        return self._round


def test_latency_is_a_median_and_localize_is_taken_off_image_by_image():
    probe = Probe([0.010, 0.030, 0.050], [0.008, 0.008, 0.047])
    node = _Node(probe, 30, 2.0)
    assert node() == pytest.approx(0.030)
    assert node.without_localize() == pytest.approx(0.003)
    assert node.seconds_per_pose == [pytest.approx(2.0 / 3)]
    assert _Floor(probe, 30, 2.0)() == pytest.approx(0.030)
    assert probe.asked == [('pose_reloc', 30, 2.0), ('floor', 30, 2.0)], 'one turn, two figures'


def test_a_status_that_did_not_come_is_left_out():
    node = _Node(Probe([0.010, 0.030], [np.nan, 0.020]), 30, 2.0)
    node()
    assert node.without_localize() == pytest.approx(0.010)


def test_no_answer_is_no_measurement():
    node = _Node(Probe([], []), 30, 2.0)
    with pytest.raises(CaseError, match='no image was answered'):
        node()
    assert node.seconds_per_pose == [2.0]
