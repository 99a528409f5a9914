"""When a process is started again, and when no more."""

from penstock.deploy.restarts import FIRST_SECONDS, MOST_IN_WINDOW, WINDOW_SECONDS, Restarts


def test_pauses_double() -> None:
    restarts = Restarts()
    pauses = [restarts.ended(0.0, was_ready=True, reason="x") for _ in range(4)]
    assert pauses == [FIRST_SECONDS * 2**n for n in range(4)]


def test_the_same_fault_at_start_twice_is_enough() -> None:
    restarts = Restarts()
    assert restarts.ended(0.0, was_ready=False, reason="x") is not None
    assert restarts.ended(1.0, was_ready=False, reason="x") is None
    assert "twice for the same reason: x" in restarts.given_up


def test_another_fault_or_a_good_start_between_counts_anew() -> None:
    restarts = Restarts()
    ends = [(False, "x"), (False, "y"), (True, "x"), (False, "x")]
    for now, (was_ready, reason) in enumerate(ends):
        assert restarts.ended(float(now), was_ready, reason) is not None


def test_a_crash_loop_ends() -> None:
    restarts = Restarts()
    for number in range(MOST_IN_WINDOW):
        assert restarts.ended(float(number), was_ready=True, reason="x") is not None
    assert restarts.ended(10.0, was_ready=True, reason="x") is None
    assert "ended 7 times in 10 minutes: x" in restarts.given_up


def test_a_rare_end_is_forgotten() -> None:
    restarts = Restarts()
    for number in range(100):
        now = number * (WINDOW_SECONDS + 1.0)
        assert restarts.ended(now, was_ready=True, reason="x") == now + FIRST_SECONDS
