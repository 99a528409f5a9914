"""Decode's batch decisions."""

from msgspec.structs import replace

from penstock.decode.admission import allowance
from penstock.decode.scheduler import DecodeScheduler
from penstock.engine.chunking import Blocks
from penstock.engine.sequence import Sequence
from penstock.engine.step import Step
from penstock.protocol.messages import Peer, Prefill, Sampling
from penstock.protocol.pages import PagePool
from penstock.simulation.worker import COMPATIBILITY

ROUTER = Peer("r", 1, "r")
NEVER = float("inf")


def make(pages=16, chunk=8, batch=8):
    pool = PagePool([0] * pages)
    blocks = Blocks(pool, COMPATIBILITY, 4)
    return pool, blocks, DecodeScheduler(blocks, chunk, batch)


def sequence(request: int, length: int, arrived: float) -> Sequence:
    tokens = [request] * length
    prefill = Prefill(request, 1, ROUTER, "m", "", tokens, length, [0], Sampling(seed=1))
    return Sequence(prefill, [0], tokens, arrived=arrived)


def running(pool, schedule, request: int, length: int, arrived: float) -> Sequence:
    """As after a hand-over: all but the last token computed."""
    one = sequence(request, length, arrived)
    one.pages = pool.take(one.holder, -(-(length - 1) // 4))
    one.computed = length - 1
    one.sealed = one.computed // 4
    schedule.join(one)
    return one


def parts(step):
    return [(one.sequence.prefill.request, one.start, one.count, one.draw) for one in step.slices]


def test_every_running_sequence_gets_one_token_and_the_rest_goes_to_prompts():
    pool, blocks, schedule = make()
    running(pool, schedule, 1, 5, 0.0)
    running(pool, schedule, 2, 6, 1.0)
    schedule.add(sequence(3, 12, 2.0))
    step = schedule.next_step(NEVER, 5.0)
    assert parts(step) == [(1, 4, 1, (0,)), (2, 5, 1, (0,)), (3, 0, 8, ())]


def test_the_youngest_gives_its_pages_up_and_the_oldest_never():
    pool, blocks, schedule = make(pages=4)
    old = running(pool, schedule, 1, 9, 0.0)  # 2 full pages: needs a third now
    young = running(pool, schedule, 2, 9, 1.0)
    step = schedule.next_step(NEVER, 5.0)
    assert parts(step) == [(1, 8, 1, (0,))]
    assert schedule.running == [old] and schedule.waiting == [young]
    assert young.pages == [] and young.computed == 0 and schedule.preemptions == 1
    schedule.remove(old)
    assert parts(schedule.next_step(NEVER, 6.0)) == [(2, 0, 8, ())]


def test_equal_arrivals_do_not_wait_for_each_other():
    pool, blocks, schedule = make(pages=4)
    running(pool, schedule, 1, 9, 0.0)
    running(pool, schedule, 2, 9, 0.0)
    assert len(parts(schedule.next_step(NEVER, 5.0))) == 1


def test_local_prompts_do_not_overtake_older_hand_overs_nor_the_reverse():
    pool, blocks, schedule = make()
    schedule.add(sequence(1, 8, 2.0))
    assert schedule.next_step(1.0, 5.0) is None
    assert allowance(schedule).before == 2.0
    assert parts(schedule.next_step(3.0, 5.0)) == [(1, 0, 8, (0,))]
    assert allowance(schedule).before == NEVER


def test_growth_of_what_runs_keeps_headroom():
    pool, blocks, schedule = make(pages=6)
    for request in (1, 2):
        running(pool, schedule, request, 4, float(request))
    schedule.add(sequence(3, 12, 9.0))  # 3 pages of 4 free, but 2 may be needed to grow
    assert len(parts(schedule.next_step(NEVER, 9.0))) == 2
    assert allowance(schedule).headroom == 2


def test_the_batch_is_bounded():
    pool, blocks, schedule = make(batch=2)
    for request in range(3):
        schedule.add(sequence(request, 2, float(request)))
    step = schedule.next_step(NEVER, 5.0)
    assert len(parts(step)) == 2 and allowance(schedule).sequences == 0


def planned(schedule) -> Step:
    step = schedule.next_step(NEVER, 5.0)
    assert step is not None
    return step


def follows(step):
    return [(one.sequence.prefill.request, one.start, one.follows) for one in step.slices]


def test_the_step_behind_follows_what_runs_and_takes_who_joined():
    pool, blocks, schedule = make()
    running(pool, schedule, 1, 5, 0.0)
    last = planned(schedule)
    running(pool, schedule, 2, 8, 1.0)
    behind = schedule.step_behind(last, 100)
    assert behind is not None
    assert follows(behind) == [(1, 5, True), (2, 7, False)]
    assert [one.draw for one in behind.slices] == [(0,), (0,)]


def test_the_step_behind_has_a_slot_for_what_is_not_drawn_yet():
    pool, blocks, schedule = make(pages=3)
    one = running(pool, schedule, 1, 8, 0.0)  # position 7 is the last of its second page
    last = planned(schedule)
    assert len(one.pages) == 2
    assert follows(schedule.step_behind(last, 100)) == [(1, 8, True)]
    assert len(one.pages) == 3
    pool, blocks, schedule = make(pages=2)
    running(pool, schedule, 1, 8, 0.0)
    last = planned(schedule)
    assert schedule.step_behind(last, 100) is None and schedule.preemptions == 0


def test_what_its_length_ends_is_not_followed():
    pool, blocks, schedule = make()
    running(pool, schedule, 1, 5, 0.0)
    last = planned(schedule)
    assert schedule.step_behind(last, 6) is None  # the context ends with the token being drawn
    assert follows(schedule.step_behind(last, 7)) == [(1, 5, True)]
    one = schedule.running[0]
    one.prefill = replace(one.prefill, sampling=Sampling(seed=1, max_tokens=1))
    assert schedule.step_behind(last, 100) is None


def test_nothing_starts_behind_what_must_be_seen_first():
    pool, blocks, schedule = make()
    one = running(pool, schedule, 1, 5, 0.0)
    last = planned(schedule)
    waiting = sequence(2, 12, 2.0)
    schedule.add(waiting)
    assert schedule.step_behind(last, 100) is None  # a prompt shall not wait for another step
    schedule.remove(waiting)
    assert schedule.step_behind(last, 100) is not None
    one.prefill = replace(one.prefill, sampling=Sampling(seed=1, presence_penalty=1.0))
    assert schedule.step_behind(last, 100) is None  # its penalties count the token being drawn
    one.prefill = replace(one.prefill, sampling=Sampling(seed=1))
    one.cancelled = True
    assert schedule.step_behind(last, 100) is None
