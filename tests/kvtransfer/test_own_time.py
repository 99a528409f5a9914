"""What counts of a loop's time: what it stood still for does not, and yet it waits for nobody."""

from penstock.kvtransfer.own_time import CATCH_UP, LONGEST_GAP, OwnTime

STEP = 0.01


def looked(*moments: float) -> OwnTime:
    own = OwnTime()
    for moment in moments:
        own.look(moment)
    return own


def run(own: OwnTime, start: float, seconds: float) -> float:
    """Turns of a loop as it should be; the moment of the last."""
    for turn in range(1, round(seconds / STEP) + 1):
        own.look(start + turn * STEP)
    return start + seconds


def test_a_loop_that_runs_owns_all_its_time() -> None:
    own = looked(1000.0)
    assert own.now == 0.0, "whatever the clock says"
    run(own, 1000.0, 3.0)
    assert abs(own.now - 3.0) < 1e-6
    assert own.late(2.99) and not own.late(3.01)


def test_a_standstill_counts_as_the_longest_gap() -> None:
    assert looked(0.0, LONGEST_GAP, 3600.0).now == 2 * LONGEST_GAP


def test_a_clock_that_goes_back_is_no_time() -> None:
    own = looked(5.0, 5.05, 4.0)
    assert abs(own.now - 0.05) < 1e-9


def test_nothing_is_late_before_there_was_time_to_catch_up() -> None:
    own = looked(0.0)
    now = run(own, 0.0, 1.0)
    limit = own.now + 1e-6
    own.look(now + 60.0)
    assert not own.late(limit)
    now = run(own, now + 60.0, CATCH_UP - STEP)
    assert not own.late(limit)
    run(own, now, 2 * STEP)
    assert own.late(limit)


def test_a_loop_that_always_stands_still_gives_up_whoever_hangs() -> None:
    own = looked(0.0)
    limit, turns = 2.0, 0
    while not own.late(limit):
        turns += 1
        own.look(10.0 * turns)
        assert turns < 100
    assert own.now < limit + 2 * CATCH_UP
