"""Words lost with a link, and links that break one way: every request still gets its answer."""

import pytest
from msgspec import structs

from penstock.protocol.messages import (
    Agent,
    Drain,
    Handoff,
    Hello,
    Introduce,
    Status,
    Tokens,
    WorkerState,
)
from penstock.protocol.seams import Connected, Disconnected, Received
from penstock.simulation.cluster import ROUTER, Cluster
from penstock.simulation.engine import true_tokens

PROMPT = list(range(100, 130))


def expect(client, prompt=PROMPT, count=12):
    assert client.failure is None
    assert client.tokens[0] == true_tokens(prompt, 7, 0, count)


def lose(cluster, source, kind):
    """Go on until `source` says a word of this kind: it is lost, and nobody is told."""
    mailbox, sent = cluster.workers[source].mailbox, cluster.network.sent
    before = len(sent)
    mailbox.muted.add(kind)
    cluster.until(
        lambda: any(
            sender == mailbox.me.endpoint and isinstance(message, kind)
            for sender, _, message in sent[before:]
        )
    )
    mailbox.muted.clear()


def break_link(cluster, source, destination):
    """One direction breaks: its sender is told and it comes back; the other end hears nothing."""
    mailbox = cluster.workers[source].mailbox
    mailbox.arrived.append(Disconnected(destination))
    if destination in mailbox.wanted:
        mailbox.arrived.append(Connected(destination))


def test_a_decode_worker_that_lost_its_link_to_the_router_hangs_no_request():
    cluster = Cluster()
    client = cluster.ask(PROMPT, max_tokens=40)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    break_link(cluster, "decode-0", ROUTER)
    cluster.until(lambda: client.ended)
    expect(client, count=40)
    cluster.settle()


def test_a_prefill_worker_that_lost_its_link_to_the_router_hangs_no_request():
    cluster = Cluster()
    engine = cluster.workers["prefill-0"].engine
    started, waiting = cluster.ask(PROMPT), cluster.ask(PROMPT[::-1])
    engine.hold = True
    cluster.run(3)
    break_link(cluster, "prefill-0", ROUTER)
    cluster.run(2)
    engine.hold = False
    cluster.until(lambda: started.ended and waiting.ended)
    expect(started)
    expect(waiting, PROMPT[::-1])
    cluster.settle()


def test_a_report_lost_with_the_link_to_the_router_hangs_no_request():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    lose(cluster, "prefill-0", Tokens)
    cluster.run(20)
    assert client.report is None, "the decode worker's tokens wait for the report"
    break_link(cluster, "prefill-0", ROUTER)
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()


@pytest.mark.parametrize("kind, source", [(Introduce, "decode-0"), (Agent, "prefill-0")])
def test_a_lost_introduction_is_said_again(kind, source):
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    lose(cluster, source, kind)
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.flow.counters.replaced == 0
    cluster.settle()


def test_a_lost_introduction_does_not_spoil_the_pair():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    lose(cluster, "prefill-0", Agent)
    cluster.flow.cancel(client.request)
    second = cluster.ask(PROMPT)
    cluster.until(lambda: second.ended)
    expect(second)
    cluster.settle()


def test_a_lost_handoff_is_made_good_when_its_lease_ends():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    lose(cluster, "prefill-0", Handoff)
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.flow.counters.replaced == 1
    cluster.settle()


def test_a_handoff_lost_with_its_link_is_made_good_at_once():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    lose(cluster, "prefill-0", Handoff)
    break_link(cluster, "prefill-0", "sim://decode-0")
    began = cluster.now
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.now - began < 5.0, "it did not wait for the end of the lease"
    cluster.settle()


def test_a_router_that_was_paused_hears_what_was_said_before_it_judges_silence():
    cluster = Cluster()
    client = cluster.ask(PROMPT, max_tokens=40)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    for _ in range(600):  # six seconds, in which the workers go on and speak
        cluster.now += 0.01
        for worker in cluster.workers.values():
            worker.worker.turn(cluster.now)
    cluster.inbox.tick(cluster.now)  # its timer may come before what it received
    cluster.until(lambda: client.ended)
    expect(client, count=40)
    assert cluster.flow.counters.replaced == 0
    cluster.settle()


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_late_words_of_a_dead_incarnation_cost_the_new_one_nothing(role):
    """What a killed process had sent can be read after the first word of the one in its place."""
    cluster = Cluster()
    peer = cluster.workers[f"{role}-0"].mailbox.me
    hello = Hello(cluster.fleet.workers[peer.endpoint].description, WorkerState(), [])
    client = cluster.ask(PROMPT, max_tokens=40)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    dead = structs.replace(peer, incarnation=peer.incarnation - 1)
    words = (Status(WorkerState(), [], [], {}), hello, Drain())
    cluster.inbox.deliver([Received(dead, word) for word in words], cluster.now)
    cluster.run(5)
    assert cluster.fleet.knows(peer) and cluster.flow.counters.replaced == 0
    cluster.until(lambda: client.ended)
    assert client.failure is None and cluster.flow.counters.replaced == 0
    cluster.settle()
