"""What nobody speaks of: asked for, found lost or only slow, and ended at its deadline."""

import pytest

from penstock.protocol.messages import Inquire, Peer, Sampling, Tokens, Unknown
from penstock.protocol.seams import Received
from penstock.router.flow_numbers import FlowCounters
from penstock.router.guard import Guard
from penstock.router.placement import InFlight, Phase, Placement, Progress
from penstock.router.policy import Route
from penstock.router.request import Submission
from penstock.router.silence import VISITS, Silence
from penstock.simulation.cluster import Client, Cluster
from penstock.simulation.engine import true_tokens

PROMPT = list(range(100, 130))
P, D = Peer("p", 1, "sim://p"), Peer("d", 2, "sim://d")


def expect(client, count=12):
    assert client.failure is None
    for choice, tokens in enumerate(client.tokens):
        assert tokens == true_tokens(PROMPT, 7, choice, count)


def in_flight(number=1, choices=1, local=False) -> InFlight:
    """One request, placed at time 0."""
    kind, prefill = ("local", D) if local else ("remote", P)
    route = Route(kind, prefill.endpoint, D.endpoint, 1, 0.0)
    submission = Submission("m", PROMPT, choices, Sampling(1))
    flight = InFlight(number, submission, Client(choices), [Progress() for _ in range(choices)])
    flight.placements[1] = Placement(1, set(range(choices)), route)
    for progress in flight.progress:
        progress.placed(0.0)
    return flight


def unknown(flight, attempt=1, choice=0) -> Unknown:
    return Unknown([flight.id], [attempt], [choice])


class Asking:
    """One request and the Silence that looks at it."""

    def __init__(self, flight: InFlight):
        self.flight, self.flights = flight, {flight.id: flight}
        self.silence = Silence(5.0, FlowCounters(), Guard())

    def asked(self, now: float) -> set[str]:
        return set(self.silence.look(self.flights, now).inquiries)

    def lost(self, sender: Peer, message: Unknown) -> bool:
        return bool(self.silence.unknown(self.flights, sender, message))


def test_both_workers_must_have_nothing_twice():
    one = Asking(in_flight())
    assert not one.asked(4.9)
    assert one.asked(6.0) == {P.endpoint, D.endpoint}
    assert not one.lost(D, unknown(one.flight)) and not one.lost(P, unknown(one.flight))
    assert not one.asked(10.9), "one inquiry in five seconds"
    assert one.asked(12.0)
    assert not one.lost(P, unknown(one.flight)), "the other may have it by now"
    assert one.lost(D, unknown(one.flight))


def test_one_answer_is_not_counted_twice():
    one = Asking(in_flight())
    one.asked(6.0)
    for _ in range(3):
        assert not one.lost(P, unknown(one.flight)) and not one.lost(D, unknown(one.flight))


def test_a_round_in_which_one_worker_had_it_begins_anew():
    one = Asking(in_flight())
    for now, both in ((6.0, True), (12.0, False), (18.0, True)):
        one.asked(now)
        assert not one.lost(P, unknown(one.flight))
        assert not (both and one.lost(D, unknown(one.flight)))


def test_after_the_hand_over_only_decode_is_asked_and_once_is_enough():
    one = Asking(in_flight())
    one.flight.placements[1].move(Phase.DECODING)
    assert one.asked(6.0) == {D.endpoint}
    assert not one.lost(P, unknown(one.flight)), "it was not asked"
    assert one.lost(D, unknown(one.flight))


@pytest.mark.parametrize("word", [dict(attempt=2), dict(choice=1)])
def test_answers_about_something_else_are_ignored(word):
    one = Asking(in_flight(local=True))
    one.asked(6.0)
    assert not one.lost(D, unknown(one.flight, **word))
    assert not one.lost(D, unknown(in_flight(number=2)))


def test_an_answer_that_crosses_a_word_is_ignored():
    one = Asking(in_flight(local=True))
    assert not one.lost(D, unknown(one.flight)), "nobody asked"
    one.asked(6.0)
    one.flight.heard(one.flight.placements[1], 6.5)
    assert not one.lost(D, unknown(one.flight))
    assert not one.asked(11.0)
    assert one.asked(12.0)
    assert one.lost(D, unknown(one.flight))


def test_a_look_is_bounded_and_asks_each_worker_once():
    flights = {number: in_flight(number, choices=2) for number in range(VISITS + 10)}
    silence = Silence(5.0, FlowCounters(), Guard())
    asked = [silence.look(flights, 6.0 + turn / 10).inquiries for turn in range(3)]
    assert [len(one[D.endpoint].requests) if one else 0 for one in asked] == [2 * VISITS, 20, 0]


def test_what_only_waits_is_not_placed_again():
    cluster = Cluster(pages=32)
    cluster.workers["prefill-0"].engine.hold = True
    before = cluster.ask(PROMPT[::-1])
    cluster.run(2)
    client = cluster.ask(PROMPT)  # the decode worker does not hear of it before it is its turn
    cluster.run(2000)
    cluster.workers["prefill-0"].engine.hold = False
    cluster.workers["decode-0"].pool.take("others", 30)
    cluster.run(2000)  # now it waits for pages
    cluster.workers["decode-0"].pool.release("others")
    cluster.until(lambda: client.ended and before.ended)
    expect(client)
    counters = cluster.flow.counters
    assert counters.inquired > 5 and counters.unknown > 2 and counters.replaced == 0
    cluster.settle()


def test_a_choice_that_misses_a_word_goes_on_alone(monkeypatch):
    cluster, lost = Cluster(pages=100, inquire_seconds=0.2), []
    client = cluster.ask(PROMPT, n=3, max_tokens=60)
    cluster.until(lambda: all(len(tokens) > 3 for tokens in client.tokens))
    receive = cluster.mailbox.receive

    def lossy():
        for arrival in (arrivals := receive()):
            frame = arrival.message if isinstance(arrival, Received) else None
            if isinstance(frame, Tokens) and 1 in frame.choices and not lost:
                lost.append(row := frame.choices.index(1))
                for column in (frame.requests, frame.attempts, frame.choices, frame.positions):
                    del column[row]
                del frame.token_ids[row], frame.finish[row]
        return arrivals

    monkeypatch.setattr(cluster.mailbox, "receive", lossy)
    counters = cluster.flow.counters
    cluster.until(lambda: counters.replaced > 0)
    assert lost and not any(client.finish), "the others are going on"
    cluster.workers["prefill-0"].engine.hold = True  # the new attempt takes its time
    cluster.run(100)
    assert counters.replaced == 1
    cluster.workers["prefill-0"].engine.hold = False
    cluster.until(lambda: client.ended)
    expect(client, 60)
    assert counters.replaced == 1
    cluster.settle()


def test_a_report_that_was_lost_says_what_decode_knew():
    cluster = Cluster()
    first = cluster.ask(PROMPT)
    cluster.until(lambda: first.ended)
    cluster.workers["prefill-0"].mailbox.muted.add(Tokens)
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended)
    expect(client)
    assert client.report is not None and client.report.cached_tokens == 28
    assert cluster.flow.counters.replaced == 0
    cluster.settle()


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_request_ends_at_its_deadline_everywhere(role):
    cluster = Cluster(request_seconds=30.0)
    worker = cluster.workers[f"{role}-0"]
    before = cluster.ask(PROMPT)
    cluster.until(lambda: before.ended)
    worker.engine.hold = True
    client, started = cluster.ask(PROMPT, n=2), cluster.now
    cluster.run(1500)
    later = cluster.ask(PROMPT[::-1])
    cluster.until(lambda: client.ended)
    assert client.failure == (504, "the request did not end within request_seconds = 30")
    assert 30.0 <= cluster.now - started < 30.1 and not later.ended
    worker.engine.hold = False
    cluster.until(lambda: later.ended)
    assert later.failure is None and cluster.flow.counters.overdue == 1
    cluster.settle()


def test_a_request_that_no_worker_takes_ends_at_its_deadline_too():
    cluster = Cluster(request_seconds=3.0, failover_seconds=100.0)
    cluster.kill("prefill-0")
    cluster.run(2)
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended, 400)
    assert client.failure is not None and client.failure[0] == 504


def test_without_a_limit_a_request_may_take_as_long_as_it_needs():
    cluster = Cluster(request_seconds=0.0)
    cluster.workers["prefill-0"].engine.hold = True
    client = cluster.ask(PROMPT)
    for _ in range(100):
        cluster.now += 100.0
        cluster.inbox.tick(cluster.now)
    assert not client.ended


def test_an_inquiry_whose_columns_differ_in_length_kills_no_worker():
    cluster = Cluster()
    for name in ("prefill-0", "decode-0"):
        mailbox = cluster.workers[name].mailbox
        mailbox.arrived.append(Received(cluster.mailbox.me, Inquire([1, 2], [1], [])))
    decode = cluster.workers["decode-0"].mailbox.me
    cluster.mailbox.arrived.append(Received(decode, Unknown([1, 2], [1], [0])))
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.inbox.faults == 1
