"""A worker knows when a part of it makes no progress."""

from penstock.engine.health import Pulse, Rates
from penstock.engine.step import Step, StepResult
from penstock.engine.stranded import StrandedReads
from penstock.engine.thread import EngineThread
from penstock.protocol.loop import Gaps
from penstock.protocol.pages import PagePool


def test_a_step_that_does_not_end_is_named():
    pulse, pool = Pulse(10.0, 0.5, Gaps()), PagePool([0] * 4)
    assert pulse.stuck(0.0, pool) == ""
    pulse.step_started(1.0)
    assert pulse.stuck(11.0, pool) == ""
    assert "running for 11 s" in pulse.stuck(12.0, pool)
    pulse.step_ended(2.0)
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
        pulse.step_ended(2.0, "no such device")
    pulse.step_ended(2.0)
    for _ in range(5):
        assert pulse.stuck(0.0, pool) == ""
        pulse.step_ended(2.0, "no such device")
    assert "5 steps failed, the last with no such device" in pulse.stuck(0.0, pool)


class Unused:
    def run(self, step: Step) -> StepResult:
        raise AssertionError("no step was asked for")


def test_an_engine_thread_that_ended_is_named():
    engine = EngineThread(Unused())
    pulse, pool = Pulse(10.0, 0.5, Gaps(), engine), PagePool([0] * 4)
    assert pulse.stuck(0.0, pool) == ""
    engine.close()
    assert pulse.stuck(0.0, pool) == "engine: its thread has ended"


def test_what_the_engine_stands_on_is_named_where_it_failed():
    failures = [""]
    pulse, pool = Pulse(10.0, 0.5, Gaps(), failure=lambda: failures[0]), PagePool([0] * 4)
    assert pulse.stuck(0.0, pool) == ""
    failures[0] = "ranks: rank 1 was killed"
    assert pulse.stuck(0.0, pool) == "ranks: rank 1 was killed"


def test_pages_held_while_nothing_runs_are_a_leak():
    pulse, pool = Pulse(10.0, 0.5, Gaps()), PagePool([0] * 4)
    pool.take("a", 1)
    assert pulse.stuck(0.0, pool, idle=False) == pulse.stuck(100.0, pool, idle=False) == ""
    assert pulse.stuck(101.0, pool, idle=True) == ""
    assert pulse.stuck(105.0, pool, idle=False) == "", "something ran: it may have been its page"
    assert pulse.stuck(110.0, pool, idle=True) == pulse.stuck(120.0, pool, idle=True) == ""
    reason = "page pool: 1 of 4 pages are held, and nothing runs"
    assert pulse.stuck(121.0, pool, idle=True) == reason
    pool.release("a")
    assert pulse.stuck(122.0, pool, idle=True) == ""


def stranded(speaks, until=200, given_up=(5,), since=10) -> str:
    """What is said at `until` of reads given up at `since`; the holder speaks when `speaks`."""
    reads, said = StrandedReads(), ""
    for now in range(until + 1):
        if speaks(now):
            reads.heard("p", float(now))
        said = reads.stuck({one: "p" for one in given_up} if now >= since else {}, float(now))
    return said


def test_reads_that_do_not_end_while_their_holder_speaks_are_named():
    assert stranded(lambda now: True, until=130) == ""
    said = stranded(lambda now: True, until=131, given_up=(5, 6, 7))
    assert said == "transfer: 3 reads have not ended for 121 s"
    assert stranded(lambda now: now % 4 == 0) != ""


def test_reads_of_a_holder_that_stands_still_are_its_fault():
    assert stranded(lambda now: False) == ""
    assert stranded(lambda now: now < 60) == ""
    assert stranded(lambda now: now < 60 or now > 190) == "", "it has come back just now"
    assert stranded(lambda now: now % 20 == 0) == "", "nobody knows what it does meanwhile"


def test_reads_that_ended_are_forgotten():
    reads = StrandedReads()
    for now in range(300):
        reads.heard("p", float(now))
        given_up = {1: "p"} if now % 100 < 90 else {}
        assert reads.stuck(given_up, float(now)) == ""
    reads.lost("p")
    assert reads.stuck({1: "p"}, 1000.0) == ""


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
