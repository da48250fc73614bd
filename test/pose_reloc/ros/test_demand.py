"""Which images are localized, on a clock that the test turns."""

import pytest

from pose_reloc.ros.demand import Demand
from pose_reloc.ros.parameters import NodeSettings

ON_DEMAND = NodeSettings(mode='on_demand')
ALL = NodeSettings()


class Desk:
    """A `Demand`, its clock and what it replied."""

    def __init__(self):
        self.now = 100.0
        self.demand = Demand(lambda: self.now)
        self.replies = []

    def ask(self, name):
        self.demand.ask(reply=lambda success, text: self.replies.append((name, success, text)))


@pytest.fixture
def desk():
    return Desk()


def test_every_image_or_none_without_a_request(desk):
    assert desk.demand.admit(100.0, ALL) == ([], '')
    assert desk.demand.admit(100.0, ON_DEMAND) == ([], 'not asked for')


def test_a_request_takes_the_next_image_but_none_from_before(desk):
    desk.ask('a')
    assert desk.demand.admit(99.9, ON_DEMAND) == ([], 'not asked for')
    requests, reason = desk.demand.admit(100.1, ON_DEMAND)
    assert (len(requests), reason) == (1, '')
    # Until it is served, for example because the image was too old, it stays.
    assert desk.demand.admit(100.2, ON_DEMAND) == (requests, '')
    desk.demand.served(requests, True, 'here')
    desk.demand.served(requests, True, 'once more')
    assert desk.replies == [('a', True, 'here')]
    assert desk.demand.admit(100.3, ON_DEMAND) == ([], 'not asked for')


def test_one_image_serves_all_who_asked_before_it_came(desk):
    desk.ask('a')
    desk.ask('b')
    desk.now = 101.0
    desk.ask('c')
    requests, _ = desk.demand.admit(100.5, ON_DEMAND)
    desk.demand.served(requests, False, 'lost')
    assert desk.replies == [('a', False, 'lost'), ('b', False, 'lost')]
    assert len(desk.demand.admit(101.5, ON_DEMAND)[0]) == 1


def test_requests_are_given_up_after_a_while_or_all_at_once(desk):
    desk.ask('a')
    desk.now = 104.0
    desk.ask('b')
    assert desk.demand.expire(5.0, 'too late') == 0
    desk.now = 105.5
    assert desk.demand.expire(5.0, 'too late') == 1
    desk.demand.clear('the end')
    assert desk.replies == [('a', False, 'too late'), ('b', False, 'the end')]
    assert desk.demand.admit(200.0, ON_DEMAND) == ([], 'not asked for')


def test_the_mean_rate_is_the_limit_whatever_the_camera(desk):
    """30 Hz to at most 20 Hz: every second image would be 15 Hz, and wrong."""
    settings = NodeSettings(rate_limit=20.0)
    admitted = 0
    for i in range(3000):
        desk.now = 100.0 + i / 30.0
        admitted += desk.demand.admit(desk.now, settings)[1] == ''
    assert admitted == pytest.approx(2000, abs=2)


def test_after_a_pause_there_is_no_burst(desk):
    settings = NodeSettings(rate_limit=10.0)
    assert desk.demand.admit(desk.now, settings)[1] == ''
    desk.now += 60.0
    reasons = []
    for _ in range(3):
        reasons.append(desk.demand.admit(desk.now, settings)[1])
        desk.now += 0.01
    assert reasons == ['', 'rate limit', 'rate limit']


def test_a_request_is_above_the_rate_limit(desk):
    settings = NodeSettings(rate_limit=0.001)
    assert desk.demand.admit(100.0, settings) == ([], '')
    assert desk.demand.admit(100.0, settings) == ([], 'rate limit')
    desk.ask('a')
    assert desk.demand.admit(100.0, settings)[1] == ''
