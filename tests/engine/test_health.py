"""A worker knows when a part of it makes no progress."""

from penstock.engine.health import Pulse, Rates
from penstock.protocol.loop import Gaps
from penstock.protocol.pages import PagePool


def test_a_step_that_does_not_end_is_named():
    pulse, pool = Pulse(10.0, 0.5, Gaps()), PagePool([0] * 4)
    assert pulse.stuck(0.0, pool) == ""
    pulse.step_started(1.0)
    assert pulse.stuck(11.0, pool) == ""
    assert "running for 11 s" in pulse.stuck(12.0, pool)
    pulse.step_ended()
    assert pulse.stuck(99.0, pool) == ""


def test_lasting_quarantine_asks_for_a_new_incarnation():
    pulse, pool = Pulse(10.0, 0.5, Gaps()), PagePool([0] * 4)
    pages = pool.take("a", 3)
    assert pages is not None
    pool.expect("t", pages)
    pool.release("a")
    assert pulse.stuck(1.0, pool) == "", "it may be over in a moment"
    assert "3 of 4 pages" in pulse.stuck(12.0, pool)
    pool.quiet("t")
    assert pulse.stuck(13.0, pool) == ""


def test_steps_that_fail_in_a_row_are_a_device_that_is_gone():
    pulse, pool = Pulse(10.0, 0.5, Gaps()), PagePool([0] * 4)
    for _ in range(4):
        pulse.step_ended("no such device")
    pulse.step_ended()
    for _ in range(5):
        assert pulse.stuck(0.0, pool) == ""
        pulse.step_ended("no such device")
    assert "5 steps failed, the last with no such device" in pulse.stuck(0.0, pool)


def test_rates_follow_and_gaps_are_told_once():
    rates = Rates()
    rates.step(100, 0.1)
    assert rates.tokens_per_second == 1000 and rates.step_seconds == 0.1
    rates.step(300, 0.1)
    assert 1000 < rates.tokens_per_second < 3000 and rates.tokens == 400
    gaps = Gaps()
    gaps.note(0.2)
    gaps.note(0.1)
    assert gaps.take() == 0.2 and gaps.take() == 0.0 and gaps.ever == 0.2
