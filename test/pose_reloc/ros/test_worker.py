"""The slot that holds only the newest item, and the thread that empties it."""

import threading

from pose_reloc.ros.worker import NewestSlot, Worker


def test_a_newer_item_displaces_one_that_nobody_took():
    slot = NewestSlot()
    assert slot.put('a') is None
    assert slot.put('b') == 'a'
    assert slot.take() == 'b'
    assert slot.put('c') is None, 'a taken item displaces nothing'
    assert slot.clear() == 'c'
    assert slot.clear() is None


def test_take_waits_for_an_item_and_ends_when_the_slot_is_closed():
    slot, taken, got = NewestSlot(), [], threading.Event()

    def take():
        taken.append(slot.take())
        got.set()
        taken.append(slot.take())

    thread = threading.Thread(target=take)
    thread.start()
    slot.put('late')
    assert got.wait(10)
    slot.close()
    thread.join(10)
    assert taken == ['late', None]


def test_every_item_is_taken_or_displaced_exactly_once():
    slot, taken, displaced = NewestSlot(), [], []

    def take():
        while (item := slot.take()) is not None:
            taken.append(item)

    thread = threading.Thread(target=take)
    thread.start()
    numbers = range(1, 20001)
    for number in numbers:
        old = slot.put(number)
        if old is not None:
            displaced.append(old)
    last = slot.clear()
    slot.close()
    thread.join(10)
    left = [] if last is None else [last]
    assert sorted(taken + displaced + left) == list(numbers)
    assert taken == sorted(taken), 'no item overtakes another'


def test_a_worker_processes_one_item_at_a_time_and_the_newest_next():
    begun, go, seen = threading.Event(), threading.Event(), []

    def process(item):
        seen.append(item)
        begun.set()
        assert go.wait(10)

    worker = Worker(process)
    worker.slot.put(1)
    assert begun.wait(10)
    for item in (2, 3, 4):
        worker.slot.put(item)
    begun.clear()
    go.set()
    assert begun.wait(10)
    assert worker.stop()
    assert seen == [1, 4]


def test_stopping_does_not_wait_forever_for_a_call_that_hangs():
    begun, release = threading.Event(), threading.Event()

    def process(item):
        begun.set()
        release.wait(60)

    worker = Worker(process)
    worker.slot.put(1)
    assert begun.wait(10)
    assert not worker.stop(timeout=0.05)
    release.set()
    assert worker.stop()
