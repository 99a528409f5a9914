"""After a loss: placed again oldest first, so much in a turn and no more, whatever happens then."""

from typing import Any

import pytest

from penstock.protocol import blockhash
from penstock.protocol.messages import Cancel, Prefill
from penstock.router.placement import Phase
from penstock.router.placing import PLACE_TOKENS
from penstock.simulation.cluster import Client, Cluster
from penstock.simulation.engine import true_tokens

PROMPT = list(range(100, 130))


class Slow(Cluster):
    """Its router takes one step in a turn, and turns when the test says so."""

    def __init__(self, **layout: Any):
        self.steps = 10**6  # that the router may still take
        super().__init__(turn_tokens=1, **layout)

    def turn(self) -> None:
        flow_turn = self.flow.turn
        self.flow.turn = lambda now: None  # type: ignore[method-assign]
        super().turn()
        self.flow.turn = flow_turn  # type: ignore[method-assign]
        for _ in range(40):
            if self.steps and self.flow.behind:
                self.steps -= 1
                self.flow.turn(self.now)

    def sent(self, kind: type) -> list[tuple[str, Any]]:
        """What the router said of this kind: (to, message)."""
        me = self.mailbox.me.endpoint
        sent = self.network.sent
        return [(to, one) for by, to, one in sent if by == me and isinstance(one, kind)]


def lose(cluster: Slow, name: str) -> None:
    """The worker dies and the router hears of it, and does nothing more yet."""
    cluster.steps = 0
    cluster.kill(name)
    cluster.turn()
    cluster.network.sent.clear()


def asked(cluster: Slow, count: int, **more: Any) -> list[Client]:
    clients = [cluster.ask([one, *PROMPT], seed=one, **more) for one in range(count)]
    cluster.until(lambda: all(len(tokens) > 2 for one in clients for tokens in one.tokens))
    return clients


def right(client: Client, one: int, count: int) -> bool:
    return client.failure is None and all(
        tokens == true_tokens([one, *PROMPT], one, choice, count)
        for choice, tokens in enumerate(client.tokens)
    )


def finish(cluster: Slow, clients: list[Client], count: int) -> None:
    cluster.steps = 10**6
    cluster.until(lambda: all(client.ended for client in clients))
    assert all(right(client, one, count) for one, client in enumerate(clients))
    cluster.settle()
    assert cluster.inbox.faults == 0 and not cluster.flow.behind


def two(**more: Any) -> Slow:
    return Slow(prefill=0, decode=0, aggregated=2, pages=200, **more)


def fuller(cluster: Slow) -> str:
    """The worker with more of the requests."""
    counts = {name: one.mailbox.me.endpoint for name, one in cluster.workers.items()}
    return max(counts, key=lambda name: len(cluster.fleet.workers[counts[name]].bookings))


def test_a_loss_itself_does_nothing_but_put_them_in_line():
    cluster = two()
    clients = asked(cluster, 6, max_tokens=60)
    lose(cluster, fuller(cluster))
    assert not cluster.sent(Prefill) and cluster.flow.behind
    assert all(flight.placements for flight in cluster.flow.in_flight.values())
    finish(cluster, clients, 60)


def test_the_oldest_is_placed_first_and_one_step_is_taken_in_a_turn():
    cluster = two()
    clients = asked(cluster, 8, max_tokens=60)
    lose(cluster, fuller(cluster))
    placed: list[int] = []
    for _ in range(60):
        before = len(placed)
        cluster.flow.turn(cluster.now)
        placed = [message.request for _, message in cluster.sent(Prefill)]
        assert len(placed) - before <= 1
    assert len(placed) >= 4 and placed == sorted(placed) and not cluster.flow.behind
    finish(cluster, clients, 60)


def test_a_budget_is_spent_and_not_much_more():
    cluster = two()
    clients = asked(cluster, 8, max_tokens=60)
    lose(cluster, fuller(cluster))
    cluster.flow._placing.turn(cluster.now, 2 * PLACE_TOKENS)
    assert 1 <= len(cluster.sent(Prefill)) <= 2
    finish(cluster, clients, 60)


def test_two_losses_at_once_are_one_line():
    cluster = Slow(prefill=0, decode=0, aggregated=3, pages=200)
    clients = asked(cluster, 9, max_tokens=60)
    lose(cluster, "aggregated-1")
    lose(cluster, "aggregated-0")
    for _ in range(100):
        cluster.flow.turn(cluster.now)
    placed = [message.request for _, message in cluster.sent(Prefill)]
    assert placed == sorted(placed) and len(placed) >= 6
    assert {to for to, _ in cluster.sent(Prefill)} == {"sim://aggregated-2"}
    finish(cluster, clients, 60)


def test_who_is_cancelled_in_line_is_passed_over():
    cluster = two()
    clients = asked(cluster, 6, max_tokens=60)
    lose(cluster, fuller(cluster))
    for client in clients[:3]:
        cluster.flow.cancel(client.request)
    cluster.steps = 10**6
    cluster.until(lambda: all(client.ended for client in clients[3:]))
    again = {message.request for _, message in cluster.sent(Prefill)}
    assert again and again <= {client.request for client in clients[3:]}
    assert not any(client.ended for client in clients[:3]), "their listeners are not called"
    cluster.settle()


def test_a_deadline_passes_in_line():
    cluster = two(request_seconds=5.0)
    clients = asked(cluster, 4, max_tokens=60)
    for worker in cluster.workers.values():
        worker.engine.hold = True
    lose(cluster, fuller(cluster))
    cluster.run(600)
    assert all(client.failure is not None and client.failure[0] == 504 for client in clients)
    for worker in cluster.workers.values():
        worker.engine.hold = False
    cluster.steps = 10**6
    cluster.settle()
    assert not cluster.sent(Prefill) and not cluster.flow.behind


def test_a_worker_that_dies_while_they_wait_is_not_chosen_and_its_own_join_them():
    cluster = Slow(prefill=1, decode=3, pages=200)
    clients = asked(cluster, 9, max_tokens=60)
    lose(cluster, "decode-0")
    cluster.steps = 7  # some are placed again, on either of the others
    cluster.turn()
    assert cluster.flow.behind
    lose(cluster, "decode-1")
    finish(cluster, clients, 60)
    assert {message.decode_at for _, message in cluster.sent(Prefill)} == {"sim://decode-2"}


def test_one_that_is_started_again_at_the_same_address_keeps_what_it_was_given_since():
    cluster = two()
    clients = asked(cluster, 6, max_tokens=60)
    name = fuller(cluster)
    lose(cluster, name)
    cluster.start(name, "aggregated", 200)
    cluster.turn()
    late = cluster.ask([50, *PROMPT], seed=50, max_tokens=60)
    (placement,) = cluster.flow.in_flight[late.request].placements.values()
    assert placement.route.decode == f"sim://{name}", "the emptiest"
    finish(cluster, clients, 60)
    assert late.ended and late.tokens == [true_tokens([50, *PROMPT], 50, 0, 60)]
    assert cluster.sent(Prefill)[0][1].request == late.request
    times = [message.request for _, message in cluster.sent(Prefill)].count(late.request)
    assert times == 1, "the old loss is none of its"


def test_words_of_the_worker_that_is_left_are_taken_until_their_turn():
    cluster = Slow()
    client = cluster.ask(PROMPT, n=2, max_tokens=60)
    cluster.until(lambda: len(client.tokens[0]) > 2)
    lose(cluster, "prefill-0")
    cluster.until(lambda: client.ended)
    assert client.tokens == [true_tokens(PROMPT, 7, one, 60) for one in range(2)]
    assert not cluster.sent(Prefill), "decode had all it needs"


def test_the_line_ends_when_the_router_leaves():
    cluster = Slow(prefill=0, decode=0, aggregated=1, failover_seconds=100.0)
    clients = asked(cluster, 4, max_tokens=60)
    lose(cluster, "aggregated-0")
    cluster.flow.leave()
    cluster.run(3)
    assert not any(client.ended for client in clients), "its turn has not come"
    cluster.steps = 10**6
    cluster.run(2)
    assert [client.failure is not None and client.failure[0] for client in clients] == [503] * 4
    assert not cluster.flow.behind and not cluster.flow.in_flight


def test_those_that_waited_before_it_leaves_end_too():
    cluster = Slow(prefill=0, decode=0, aggregated=1, failover_seconds=100.0)
    clients = asked(cluster, 4, max_tokens=60)
    lose(cluster, "aggregated-0")
    cluster.steps = 10**6
    cluster.run(20)
    assert not any(client.ended for client in clients)
    cluster.flow.leave()
    cluster.run(3)
    assert all(client.failure is not None for client in clients)


def test_while_nothing_changes_the_stranded_are_left_alone(monkeypatch):
    cluster = Slow(prefill=0, decode=0, aggregated=1, failover_seconds=100.0)
    clients = asked(cluster, 4, max_tokens=60)
    lose(cluster, "aggregated-0")
    cluster.steps = 10**6
    cluster.run(20)
    places, looked = cluster.flow._placing.places, []
    find = places.find
    monkeypatch.setattr(places, "find", lambda *asked: looked.append(1) or find(*asked))
    cluster.run(200)
    assert len(looked) <= 3 * 4, "once a second"
    cluster.start("aggregated-0", "aggregated", 200)
    cluster.run(3)
    assert not cluster.flow._placing._stranded, "it joined, and that was enough"
    finish(cluster, clients, 60)


@pytest.mark.parametrize("also_its_end", [False, True])
def test_one_that_breaks_the_router_ends_alone(monkeypatch, also_its_end):
    cluster = two()
    clients = asked(cluster, 6, max_tokens=60)
    lose(cluster, fuller(cluster))
    places, bad = cluster.flow._placing.places, clients[0].request
    for flight in cluster.flow.in_flight.values():
        if any(one.depends_on(to) for one in flight.placements.values() for to in gone(cluster)):
            bad = flight.id
            break
    find = places.find

    def broken(flight, token_ids):
        if flight.id == bad:
            raise RuntimeError("a fault")
        return find(flight, token_ids)

    monkeypatch.setattr(places, "find", broken)
    hit = next(client for client in clients if client.request == bad)
    if also_its_end:
        monkeypatch.setattr(hit, "failed", broken)
    cluster.steps = 10**6
    others = [client for client in clients if client is not hit]
    cluster.until(lambda: all(client.ended for client in others))
    assert all(right(client, one, 60) for one, client in enumerate(clients) if client is not hit)
    assert cluster.inbox.faults == 1 + also_its_end
    assert also_its_end or hit.failure == (
        500,
        "the router met a fault of its own when it placed this request again",
    )
    cluster.settle()


def gone(cluster: Slow) -> list[str]:
    """Where requests are placed and no worker is."""
    flights = cluster.flow.in_flight.values()
    routes = [one.route for flight in flights for one in flight.placements.values()]
    return [route.decode for route in routes if route.decode not in cluster.fleet.workers]


def test_one_that_cannot_be_looked_at_costs_no_other_its_tick(monkeypatch):
    cluster = Cluster(inquire_seconds=0.5)
    silence = cluster.flow._silence
    one, other = cluster.ask(PROMPT, max_tokens=60), cluster.ask(PROMPT[::-1], max_tokens=60)
    visit, visited = silence._visit, []

    def broken(flight, *rest):
        visited.append(flight.id)
        if flight.id == one.request:
            raise RuntimeError("a fault")
        visit(flight, *rest)

    monkeypatch.setattr(silence, "_visit", broken)
    cluster.until(lambda: one.ended and other.ended)
    assert one.request in visited and other.request in visited and cluster.inbox.faults > 0


def test_the_hashes_of_a_prompt_are_made_once_and_extended(monkeypatch):
    hashed: list[int] = []
    extend = blockhash.extend

    def counted(parent, token_ids, slots, known=0):
        hashed.append((len(token_ids) - known * slots) // slots)
        return extend(parent, token_ids, slots, known)

    cluster = two(inquire_seconds=1e6)
    clients = asked(cluster, 4, max_tokens=60)
    flights = list(cluster.flow.in_flight.values())
    assert all(len(flight.hashes) == 7 for flight in flights), "31 tokens, 4 in a block"
    monkeypatch.setattr("penstock.router.places.blockhash.extend", counted)
    cluster.steps = 0
    cluster.kill(fuller(cluster))
    cluster.turn()
    emitted = [len(flight.progress[0].emitted) for flight in flights]
    while cluster.flow.behind:
        cluster.flow.turn(cluster.now)
    assert hashed and max(hashed) <= max(emitted) // 4 + 1, "of what was emitted since, no more"
    finish(cluster, clients, 60)


def test_cancels_of_a_lost_attempt_go_to_the_worker_that_is_left():
    cluster = Slow(prefill=1, decode=2, pages=200)
    cluster.workers["prefill-0"].engine.hold = True
    client = cluster.ask(PROMPT)
    cluster.run(2)
    (placement,) = cluster.flow.in_flight[client.request].placements.values()
    assert placement.phase is Phase.PREFILLING
    lose(cluster, placement.route.decode.removeprefix("sim://"))
    cluster.flow.turn(cluster.now)
    assert [(to, message.attempt) for to, message in cluster.sent(Cancel)] == [
        ("sim://prefill-0", 1)
    ]
    cluster.workers["prefill-0"].engine.hold = False
    cluster.steps = 10**6
    cluster.until(lambda: client.ended)
    assert client.tokens == [true_tokens(PROMPT, 7, 0, 12)]
    cluster.settle()
