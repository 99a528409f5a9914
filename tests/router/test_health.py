"""Health names what is wrong, and is red when nothing can be served."""

from penstock.protocol.messages import Hello, WorkerState
from penstock.router.fleet import Fleet
from penstock.router.health import health, ready
from support.workers import worker


def fleet(*workers) -> Fleet:
    books = Fleet(5.0)
    for one in workers:
        books.workers[one.peer.endpoint] = one
    return books


def test_ready_needs_both_roles_or_an_aggregated_worker():
    prefill, decode = worker("p", "prefill"), worker("d", "decode")
    assert not ready(fleet())[0]
    assert not ready(fleet(prefill))[0]
    assert not ready(fleet(decode))[0]
    assert ready(fleet(prefill, decode))[0]
    assert ready(fleet(worker("a", "aggregated")))[0]
    decode.stuck = "engine"
    assert not ready(fleet(prefill, decode))[0]


def test_a_stuck_worker_makes_it_red_and_is_named():
    prefill, one, two = worker("p", "prefill"), worker("d1", "decode"), worker("d2", "decode")
    well, page = health(fleet(prefill, one, two), 1.0, {})
    assert well and page["reasons"] == []
    one.stuck = "engine: a step has been running for 130 s"
    well, page = health(fleet(prefill, one, two), 1.0, {"in_flight": 3})
    assert not well and page["status"] == "unwell" and page["in_flight"] == 3
    assert page["reasons"] == ["d1: engine: a step has been running for 130 s"]
    assert page["ready"], "the other decode worker still serves"


def test_the_page_says_what_is_missing_and_who_does_not_fit():
    books = fleet(worker("p", "prefill"))
    stranger = worker("x", "decode")
    description = stranger.description
    other = type(description.compatibility)(1, "m", "other class", "bf16", "layout", 1, "shm")
    changed = type(description)("decode", "m", other, 16, 10, 100, "k", "cpu", 1)
    assert not books.hello(stranger.peer, Hello(changed, WorkerState(), []), 0.0)
    well, page = health(books, 0.0, {})
    assert not well and "decode worker" in page["reasons"][0]
    assert "numeric_class is 'other class'" in page["not_used"][0]


def test_silence_is_noticed():
    books = fleet(worker("p", "prefill"), worker("d", "decode"))
    books.workers["tcp://p"].heard = 6.0
    assert books.silent(10.0) == ["tcp://d"]
    assert books.lost("tcp://d", 9.0) is not None and books.lost("tcp://d", 9.0) is None
    assert books.left == 1
