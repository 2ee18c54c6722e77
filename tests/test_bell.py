"""Waking and waiting: every ring is heard, once or by all, from threads and signal handlers."""

from __future__ import annotations

import threading

from stormphase._bell import Bell, Latch


def test_a_bell_that_rang_before_is_heard():
    """Who comes late still hears it, so that nothing has to be asked before waiting."""
    bell = Bell()
    bell.ring()
    assert True is bell.wait(0)


def test_a_ring_is_used_up_by_one_wait():
    """Ringing twice is ringing once, and the second wait finds it silent."""
    bell = Bell()
    bell.ring()
    bell.ring()
    assert (True, False) == (bell.wait(0), bell.wait(0))


def test_a_bell_wakes_who_waits(step_thread):
    """A thread that already waits goes on at the ring."""
    bell = Bell()
    waiting = step_thread().begin(bell.wait, 30)
    bell.ring()
    assert True is waiting.result(30)


def test_a_latch_lets_all_pass_for_good(step_thread):
    """Every thread that waits, and every one that comes later, passes."""
    latch = Latch()
    waiting = [step_thread().begin(latch.wait, 30) for _ in range(4)]
    latch.open()
    assert [True] * 4 == [each.result(30) for each in waiting]
    assert (True, True) == (latch.wait(0), latch.wait(0))


def test_a_closed_latch_keeps_its_timeout():
    """Nobody passes a latch that nobody opened."""
    assert False is Latch().wait(0)


def test_opening_twice_is_opening_once():
    """A latch may be opened by two threads at once."""
    latch = Latch()
    threads = [threading.Thread(target=latch.open) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True is latch.wait(0)
