"""Health names what is wrong, and is red when nothing can be served."""

from penstock.protocol.messages import Hello, Peer, Status, WorkerState
from penstock.router.fleet import Booking, Bookings, Fleet
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
    one.bookings.add((7, 1), Booking(30, 2))
    booked = {
        told["name"]: told["booked"] for told in health(fleet(one, two), 1.0, {})[1]["workers"]
    }
    assert booked == {"d1": 1, "d2": 0}


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


def test_a_worker_that_hangs_is_named_until_it_is_heard_or_gone():
    prefill, one, two = worker("p", "prefill"), worker("d1", "decode"), worker("d2", "decode")
    books = fleet(prefill, one, two)
    one.heard = 4.0
    books.hangs("tcp://d1", 10.0)
    well, page = health(books, 10.0, {})
    assert not well and page["reasons"] == ["d1: loop: said nothing for 6.0 s"]
    assert page["ready"] and page["usable_workers"] == {"prefill": 1, "decode": 1}
    assert books.hello(one.peer, Hello(one.description, WorkerState(), []), 11.0)
    assert health(books, 11.0, {})[0]


def test_a_link_that_breaks_of_silence_leaves_the_worker_named_until_it_starts_again():
    books = fleet(worker("p", "prefill"), one := worker("d", "decode"))
    one.heard = 10.0
    assert not books.stood_still("tcp://d", 13.0), "a process that ended breaks its links at once"
    assert books.stood_still("tcp://d", 14.0)
    assert not books.unlinked("tcp://d", 14.0)
    books.hangs("tcp://d", 14.0)
    assert books.unlinked("tcp://d", 14.0)
    books.silent(600.0)
    assert "d: loop: said nothing for 590.0 s" in health(books, 600.0, {})[1]["reasons"]
    again = Peer("d", 2, "tcp://other")
    assert books.hello(again, Hello(one.description, WorkerState(), []), 601.0)
    assert not books.hanging


def test_a_worker_that_hung_and_never_came_back_is_forgotten_in_the_end():
    books = fleet(worker("p", "prefill"), worker("d", "decode"))
    books.hangs("tcp://d", 6.0)
    books.unlinked("tcp://d", 7.0)
    books.silent(608.0)
    assert not books.hanging


def test_what_a_plane_really_uses_is_shown_once_it_is_known():
    books = fleet(one := worker("d", "decode"))
    (shown,) = health(books, 0.0, {})[1]["workers"]
    assert shown["transport"] == one.description.transport
    books.status(one.peer, Status(WorkerState(), [], [], {}, "", "nixl UCX (same host: cma)"), 1.0)
    (shown,) = health(books, 1.0, {})[1]["workers"]
    assert shown["transport"] == "nixl UCX (same host: cma)"


def test_silence_is_noticed():
    books = fleet(worker("p", "prefill"), worker("d", "decode"))
    books.workers["tcp://p"].heard = 6.0
    assert books.silent(10.0) == ["tcp://d"]
    assert books.lost("tcp://d", 9.0) is not None and books.lost("tcp://d", 9.0) is None
    assert books.left == 1


def test_the_books_of_a_worker_add_up():
    books = Bookings()
    for attempt, booking in enumerate((Booking(30, 2), Booking(0, 5), Booking(7, 1))):
        books.add((1, attempt), booking)
    books.add((1, 0), Booking(10, 3))  # in place of the first
    assert (len(books), books.tokens, books.pages) == (3, 17, 9)
    books.computed((1, 2))
    books.computed((1, 2))
    books.drop((1, 1))
    books.drop((1, 1))
    assert (len(books), books.tokens, books.pages) == (2, 10, 4)
    books.drop((1, 0))
    books.drop((1, 2))
    assert (len(books), books.tokens, books.pages) == (0, 0, 0)
