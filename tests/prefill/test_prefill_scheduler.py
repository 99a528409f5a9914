"""Prefill's chunk decisions."""

from msgspec import structs

from penstock.engine.chunking import Blocks
from penstock.prefill.scheduler import PrefillScheduler
from penstock.protocol.messages import Peer, Prefill, Sampling
from penstock.protocol.pages import PagePool
from penstock.simulation.worker import COMPATIBILITY

ROUTER = Peer("r", 1, "r")


def prompt(request: int, length: int, **sampling) -> Prefill:
    tokens = [request] * length
    wanted = Sampling(seed=1, **sampling)
    return Prefill(request, 1, ROUTER, "m", "", tokens, length, [0], wanted, "d")


def scheduler(pages=16, chunk=8, limit=16):
    pool = PagePool([0] * pages)
    blocks = Blocks(pool, COMPATIBILITY, 4)
    return blocks, PrefillScheduler(blocks, chunk, limit)


def run(blocks, step):
    for part in step.slices:
        blocks.computed(part)


def parts(step):
    return [(one.sequence.prefill.request, one.start, one.count, one.draw) for one in step.slices]


def test_chunks_go_on_in_order_and_fill_the_budget():
    blocks, schedule = scheduler()
    for request, length in ((1, 12), (2, 3), (3, 10)):
        schedule.add(blocks.sequence(prompt(request, length), 0.0))
    step = schedule.next_step(0, 0.0)
    assert parts(step) == [(1, 0, 8, ())]
    run(blocks, step)
    step = schedule.next_step(0, 0.0)
    assert parts(step) == [(1, 8, 4, (0,)), (2, 0, 3, (0,)), (3, 0, 1, ())]
    assert schedule.waiting_tokens == 12 + 3 + 10 - 8


def test_a_prompt_starts_only_when_all_its_pages_can_be_had():
    blocks, schedule = scheduler(pages=4)
    schedule.add(blocks.sequence(prompt(1, 10), 0.0))  # 3 pages
    schedule.add(blocks.sequence(prompt(2, 8), 0.0))  # 2 pages: must wait
    step = schedule.next_step(0, 0.0)
    run(blocks, step)
    step = schedule.next_step(0, 0.0)
    assert parts(step) == [(1, 8, 2, (0,))]
    run(blocks, step)
    schedule.remove(schedule.started[0])
    assert parts(schedule.next_step(0, 0.0)) == [(2, 0, 8, (0,))]


def test_unpulled_blocks_beyond_the_limit_hold_new_prompts_back():
    blocks, schedule = scheduler(limit=5)
    schedule.add(blocks.sequence(prompt(1, 20), 0.0))
    run(blocks, schedule.next_step(5, 0.0))
    schedule.add(blocks.sequence(prompt(2, 4), 0.0))
    step = schedule.next_step(6, 0.0)
    assert parts(step) == [(1, 8, 8, ())], "what is started goes on"
    run(blocks, step)
    run(blocks, schedule.next_step(6, 0.0))
    schedule.remove(schedule.started[0])
    assert schedule.next_step(6, 0.0) is None
    assert parts(schedule.next_step(5, 0.0)) == [(2, 0, 4, (0,))]


def test_a_cached_prefix_is_skipped_and_a_scored_prompt_is_not():
    blocks, schedule = scheduler()
    schedule.add(blocks.sequence(prompt(1, 8), 0.0))
    run(blocks, schedule.next_step(0, 0.0))
    schedule.remove(schedule.started[0])
    schedule.add(blocks.sequence(prompt(1, 8), 0.0))
    step = schedule.next_step(0, 0.0)
    assert parts(step) == [(1, 4, 4, (0,))], "the last block is computed for its logits"
    assert schedule.started[0].cached_tokens == 4
    run(blocks, step)
    schedule.remove(schedule.started[0])
    schedule.add(blocks.sequence(prompt(1, 8, prompt_logprobs=0), 0.0))
    assert parts(schedule.next_step(0, 0.0)) == [(1, 0, 8, (0,))]


def test_prompts_that_can_never_run_are_refused():
    blocks, _ = scheduler()
    assert "context of 20" in blocks.refuse(prompt(1, 21), 20, 9)
    assert blocks.refuse(prompt(1, 20), 20, 9) == ""
    assert "no tokens" in blocks.refuse(prompt(1, 0), 20, 9)
    twice = structs.replace(prompt(1, 5), choices=[0, 1, 0])  # one would let the other's pages go
    assert "named twice" in blocks.refuse(twice, 20, 9)
    assert "vocabulary of 9" in blocks.refuse(prompt(9, 5), 20, 9)
    assert "vocabulary of 9" in blocks.refuse(prompt(-1, 5), 20, 9)
