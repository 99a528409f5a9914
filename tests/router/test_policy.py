"""Placement: a function of what is known, nothing else."""

import pytest

from penstock.protocol import blockhash
from penstock.router.fleet import Booking, Worker
from penstock.router.policy import Demand, Route, choose
from support.workers import SLOTS, worker


def demand(tokens: int, **more) -> Demand:
    hashes = blockhash.extend(b"root", list(range(tokens)), SLOTS)
    return Demand(tokens, tokens + 100, hashes, SLOTS, **more)


def route_of(demand: Demand, workers: list[Worker], local: int) -> Route:
    route = choose(demand, workers, local)
    assert route is not None
    return route


def test_short_prompts_are_prefilled_on_decode_and_long_ones_are_not():
    workers = [worker("p", "prefill"), worker("d", "decode")]
    assert route_of(demand(100), workers, 100).kind == "local"
    route = route_of(demand(101), workers, 100)
    assert (route.kind, route.prefill, route.decode) == ("remote", "tcp://p", "tcp://d")
    assert route_of(demand(1), workers, 0).kind == "remote", "0 = never"


def test_what_counts_is_the_uncached_remainder():
    long = demand(1600)
    workers = [worker("p", "prefill"), worker("d", "decode", cached=long.hashes[:95])]
    route = route_of(long, workers, 100)
    assert route.kind == "local" and route.uncached == 80


def test_a_cached_prompt_still_computes_its_last_token():
    full = demand(160)
    assert (
        route_of(
            full, [worker("p", "prefill", cached=full.hashes), worker("d", "decode")], 0
        ).uncached
        == 1
    )


def test_prefill_goes_where_it_is_done_first():
    long = demand(8000)
    decode = worker("d", "decode")
    idle_slow = worker("slow", "prefill", tokens_per_second=1000.0)
    busy_fast = worker("fast", "prefill", tokens_per_second=5000.0, waiting_tokens=20000)
    assert route_of(long, [idle_slow, busy_fast, decode], 0).prefill == "tcp://fast"  # 5.6 s < 8 s
    busy_fast.bookings.add((1, 1), Booking(40000, 0))  # placed since its last word
    assert route_of(long, [idle_slow, busy_fast, decode], 0).prefill == "tcp://slow"
    cached = worker("warm", "prefill", cached=long.hashes[:400], waiting_tokens=5000)
    route = route_of(long, [idle_slow, cached, decode], 0)
    assert route.prefill == "tcp://warm" and route.uncached == 8000 - 6400
    assert route.predicted_seconds == pytest.approx(6.6)


def test_decode_goes_where_there_is_most_room():
    prefill = worker("p", "prefill")
    full, roomy = worker("a", "decode", held_pages=900), worker("b", "decode", held_pages=100)
    assert route_of(demand(160), [prefill, full, roomy], 0).decode == "tcp://b"
    roomy.bookings.add((1, 1), Booking(0, 950))
    assert route_of(demand(160), [prefill, full, roomy], 0).decode == "tcp://a"


def test_stuck_and_leaving_workers_get_nothing():
    prefill, one, other = worker("p", "prefill"), worker("a", "decode"), worker("b", "decode")
    one.stuck = "engine"
    assert route_of(demand(160), [prefill, one, other], 0).decode == "tcp://b"
    other.stuck = "page pool"
    assert choose(demand(160), [prefill, one, other], 0) is None
    assert choose(demand(160), [one, worker("c", "decode")], 0) is None, "no prefill worker"


def test_an_answer_of_one_token_needs_no_decode_worker():
    route = route_of(demand(160, answers_at_once=True), [worker("p", "prefill")], 0)
    assert route.kind == "prefill_only" and route.decode == route.prefill


def test_an_aggregated_worker_does_both():
    route = route_of(demand(16000), [worker("x", "aggregated")], 10)
    assert route.kind == "aggregated" and route.decode == route.prefill == "tcp://x"


def test_ties_are_broken_by_name_so_that_a_decision_can_be_replayed():
    workers = [
        worker("p2", "prefill"),
        worker("p1", "prefill"),
        worker("d2", "decode"),
        worker("d1", "decode"),
    ]
    route = route_of(demand(160), workers, 0)
    assert (route.prefill, route.decode) == ("tcp://p1", "tcp://d1")
    assert route == route_of(demand(160), workers[::-1], 0)


def test_without_prefill_an_aggregated_worker_takes_what_a_decode_worker_cannot():
    decode, both = worker("d", "decode"), worker("a", "aggregated", held_pages=500)
    assert route_of(demand(160), [decode, both], 0).decode == "tcp://a", "d has more room"
    assert route_of(demand(160), [decode, both], 200).decode == "tcp://d", "alone it can"
    assert choose(demand(160), [decode], 0) is None
