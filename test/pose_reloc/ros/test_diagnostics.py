"""Counters, latencies and the verdict, on a clock that the test turns."""

from dataclasses import replace

import numpy as np
import pytest

from pose_reloc.ros.diagnostics import Health, Level, Outcome, Statistics, values, verdict

ACTIVE = Health(active=True, image_topic='/image', image_timeout=2.0, lost_timeout=10.0)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def statistics(clock):
    return Statistics(clock)


def see(statistics, clock, outcome, count=1, period=0.1, reasons=(), timings=None):
    """`count` images, one every `period` seconds, all with this outcome."""
    for _ in range(count):
        clock.now += period
        statistics.received()
        statistics.finished(outcome, reasons, timings)


def test_rate_latency_and_age_are_those_of_the_last_ten_seconds(statistics, clock):
    see(statistics, clock, Outcome.ANSWERED, 50, 0.2, timings={'total': 9.0})
    rng = np.random.default_rng(0)
    totals = rng.uniform(0.01, 0.05, 100)
    for total in totals:
        see(statistics, clock, Outcome.ANSWERED, 1, 0.0999, timings={'total': total})
    clock.now += 0.5
    numbers = statistics.snapshot()
    assert numbers.received == 150
    assert numbers.rate == pytest.approx(9.5, abs=0.11)
    p50, p95, worst = numbers.latency_ms['total']
    recent = totals[5:] * 1e3
    assert (p50, p95) == pytest.approx(tuple(np.percentile(recent, (50, 95))), rel=0.03)
    assert worst == pytest.approx(recent.max())
    assert numbers.pose_age == pytest.approx(0.5)


def test_reasons_are_counted_by_name(statistics, clock):
    see(statistics, clock, Outcome.REFUSED, 3, reasons=('too_dark', 'empty'))
    see(statistics, clock, Outcome.DROPPED, 2, reasons=('superseded',))
    table = values(ACTIVE, statistics.snapshot())
    assert table['reason: too_dark'] == table['reason: empty'] == '3'
    assert table['reason: superseded'] == table['images dropped'] == '2'
    assert (table['images refused'], table['images answered']) == ('3', '0')
    statistics.reset()
    assert 'reason: too_dark' not in values(ACTIVE, statistics.snapshot())


def test_all_is_well(statistics, clock):
    assert verdict(ACTIVE, statistics.snapshot()) == (Level.OK, 'waiting for images')
    see(statistics, clock, Outcome.ANSWERED, 20)
    assert verdict(ACTIVE, statistics.snapshot()) == (Level.OK, 'localizing')


def test_images_that_do_not_come_or_stop(statistics, clock):
    clock.now += 3.0
    level, sentence = verdict(ACTIVE, statistics.snapshot())
    assert level is Level.WARN and "no image has come on '/image'" in sentence
    see(statistics, clock, Outcome.ANSWERED, 20)
    clock.now += 2.5
    level, sentence = verdict(ACTIVE, statistics.snapshot())
    assert level is Level.WARN and 'for 2.5 s' in sentence


def test_refusing_is_a_warning_and_lost_an_error(statistics, clock):
    see(statistics, clock, Outcome.ANSWERED, 5)
    see(statistics, clock, Outcome.REFUSED, 50)
    assert verdict(ACTIVE, statistics.snapshot())[0] is Level.WARN
    see(statistics, clock, Outcome.REFUSED, 60)
    level, sentence = verdict(ACTIVE, statistics.snapshot())
    assert level is Level.ERROR and 'lost' in sentence
    see(statistics, clock, Outcome.ANSWERED)
    assert verdict(ACTIVE, statistics.snapshot())[0] is Level.OK


def test_a_dark_room_at_night_is_not_lost_when_no_images_come(statistics, clock):
    see(statistics, clock, Outcome.REFUSED, 5)
    clock.now += 60.0
    level, sentence = verdict(ACTIVE, statistics.snapshot())
    assert level is Level.WARN and 'no image' in sentence


def test_the_worst_comes_first_and_nothing_is_hidden(statistics, clock):
    see(statistics, clock, Outcome.ANSWERED)
    see(statistics, clock, Outcome.FAILED, 3)
    health = Health(active=True, warnings=('no camera_info',), errors=('two owners of TF',))
    level, sentence = verdict(health, statistics.snapshot())
    assert level is Level.ERROR
    assert sentence.startswith('two owners of TF; ')
    assert 'no camera_info' in sentence and '3 images could not be used' in sentence


def test_images_none_of_which_can_be_used_are_an_error(statistics, clock):
    see(statistics, clock, Outcome.FAILED, 2, reasons=('bad image',))
    assert verdict(ACTIVE, statistics.snapshot())[0] is Level.WARN
    see(statistics, clock, Outcome.FAILED, reasons=('wrong camera',))
    level, sentence = verdict(ACTIVE, statistics.snapshot())
    assert level is Level.ERROR
    assert (
        sentence == 'none of the last 3 images could be used: bad image, wrong camera; see the log'
    )
    see(statistics, clock, Outcome.ANSWERED)
    assert verdict(ACTIVE, statistics.snapshot())[0] is Level.WARN


@pytest.mark.parametrize('why', ['stamp is zero', 'no clock', 'too old', 'in the future'])
@pytest.mark.parametrize('on_demand', [False, True])
def test_images_that_are_all_dropped_for_their_stamp_are_an_error(
    statistics, clock, why, on_demand
):
    health = replace(ACTIVE, on_demand=on_demand)
    see(statistics, clock, Outcome.ANSWERED, 20)
    see(statistics, clock, Outcome.DROPPED, 5, reasons=(why,))
    assert verdict(health, statistics.snapshot())[0] is Level.OK, 'others are answered'
    clock.now += 10.0
    see(statistics, clock, Outcome.DROPPED, 40, reasons=(why,))
    level, sentence = verdict(health, statistics.snapshot())
    assert level is Level.ERROR
    assert sentence == f'none of the last 40 images could be used: {why}; see the log'


def test_images_that_a_newer_one_has_overtaken_are_no_error(statistics, clock):
    see(statistics, clock, Outcome.DROPPED, 40, reasons=('superseded',))
    assert verdict(ACTIVE, statistics.snapshot()) == (Level.OK, 'waiting for images')


def test_a_failed_start_is_an_error_and_an_inactive_node_is_not(statistics):
    numbers = statistics.snapshot()
    assert verdict(Health(active=False, failure='no scene'), numbers) == (Level.ERROR, 'no scene')
    assert verdict(Health(active=False), numbers) == (Level.OK, 'not active')


def test_one_refusal_on_demand_is_no_standing_state(statistics, clock):
    see(statistics, clock, Outcome.REFUSED, reasons=('too_dark',))
    see(statistics, clock, Outcome.SKIPPED, 600)
    on_demand = replace(ACTIVE, on_demand=True)
    assert verdict(on_demand, statistics.snapshot()) == (Level.OK, 'waiting to be asked')
    assert verdict(ACTIVE, statistics.snapshot())[0] is Level.ERROR
    assert values(on_demand, statistics.snapshot())['images skipped'] == '600'


def test_fewer_poses_than_wanted_are_a_warning(statistics, clock):
    wanting = replace(ACTIVE, min_rate=5.0)
    see(statistics, clock, Outcome.ANSWERED, 5)
    assert verdict(wanting, statistics.snapshot())[0] is Level.OK, 'too early to tell'
    see(statistics, clock, Outcome.ANSWERED, 200)
    assert verdict(wanting, statistics.snapshot())[0] is Level.OK
    for _ in range(50):
        see(statistics, clock, Outcome.ANSWERED)
        see(statistics, clock, Outcome.DROPPED, 2)
    level, sentence = verdict(wanting, statistics.snapshot())
    assert level is Level.WARN and 'only 3.3 poses per second' in sentence
    assert verdict(ACTIVE, statistics.snapshot())[0] is Level.OK


def test_diagnostics_of_several_nodes_have_several_names(make_system, make_fake, wait):
    system = make_system(make_fake([], None), arguments=['-r', '__ns:=/robot2'])
    wait(lambda: system.diagnostics)
    assert system.diagnostics[0].status[0].name == 'robot2/pose_reloc: localization'
