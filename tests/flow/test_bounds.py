"""Sizes and limits: attempts, context, deadlines that grow, and what a wait may cost."""

import dataclasses

import pytest
from msgspec import structs

from penstock.kvtransfer.columns import pack
from penstock.kvtransfer.moves import Event
from penstock.kvtransfer.reader import Allowance, Reader, ReaderSettings
from penstock.protocol import blockhash
from penstock.protocol.messages import Agent, Handoff, Prefill, Published, Sampling
from penstock.protocol.pages import PagePool
from penstock.router.placement import Phase, Placement
from penstock.simulation.cluster import Cluster
from penstock.simulation.engine import true_tokens
from penstock.simulation.memory import SLOTS, Memory
from penstock.simulation.network import Network
from penstock.simulation.plane import SimulatedPlane
from penstock.simulation.worker import COMPATIBILITY

PROMPT = list(range(100, 130))


def expect(client, prompt=PROMPT, count=12):
    assert client.failure is None
    for choice, tokens in enumerate(client.tokens):
        assert tokens == true_tokens(prompt, 7, choice, count)


def restart(cluster, name, pages=64):
    cluster.kill(name)
    cluster.start(name, "decode", pages)


def test_the_last_attempt_of_choices_placed_apart_ends_the_request_once():
    cluster = Cluster(prefill=1, decode=2, max_attempts=1)
    client = cluster.ask(PROMPT, n=3, max_tokens=60)
    cluster.until(lambda: all(len(tokens) > 3 for tokens in client.tokens))
    (name,) = [name for name, worker in cluster.workers.items() if worker.engine.busy]
    restart(cluster, name)
    cluster.until(lambda: client.ended)
    assert client.failure is not None and client.failure[0] == 503
    cluster.settle()


def test_a_request_that_fails_with_one_of_its_placements_is_not_told_of_the_others():
    cluster = Cluster(max_attempts=1)
    client = cluster.ask(PROMPT, n=2)
    flight = cluster.flow.in_flight[client.request]
    (first,) = flight.placements.values()
    first.choices = {0}  # as after the words of choice 1 got lost: it is placed apart
    flight.placements[2] = Placement(2, {1}, first.route, Phase.DECODING)
    cluster.kill("prefill-0")
    cluster.until(lambda: client.ended)
    assert client.failure is not None and client.failure[0] == 503
    assert client.report is None and cluster.inbox.faults == 0
    cluster.settle()


def test_attempts_are_counted_for_each_choice():
    cluster = Cluster(pages=400)
    client = cluster.ask(PROMPT, n=16, max_tokens=60)
    for deaths in range(1, 4):
        cluster.until(lambda deaths=deaths: len(client.tokens[0]) > 3 * deaths)
        restart(cluster, "decode-0", 400)
    cluster.until(lambda: client.ended)
    expect(client, count=60)
    assert cluster.flow.counters.replaced >= 3 * 16


def test_a_small_worker_that_joins_neither_shortens_nor_fails_what_began_before():
    cluster = Cluster()
    client = cluster.ask(PROMPT, max_tokens=100)
    cluster.until(lambda: len(client.tokens[0]) > 10)
    cluster.start("decode-1", "decode", pages=20)  # 80 tokens: too few for this answer
    cluster.run(4)
    cluster.kill("decode-0")
    cluster.run(3)
    assert not client.ended
    cluster.start("decode-0", "decode")
    cluster.until(lambda: client.ended)
    expect(client, count=100)
    cluster.settle()


def test_an_answer_asked_for_while_no_worker_is_known_is_bounded_by_those_that_join():
    cluster = Cluster()
    cluster.kill("decode-0")
    cluster.kill("prefill-0")
    cluster.run(3)
    client = cluster.ask(PROMPT, max_tokens=1000)  # taken, as they have left a moment ago
    cluster.start("decode-0", "decode")
    cluster.start("prefill-0", "prefill")
    cluster.until(lambda: client.ended)
    expect(client, count=64 * SLOTS - len(PROMPT))
    cluster.settle()


def test_a_completion_that_is_not_quiet_yet_kills_nobody(monkeypatch):
    cluster = Cluster(max_attempts=2)
    plane = cluster.workers["decode-0"].plane
    progress = plane.progress
    monkeypatch.setattr(
        plane, "progress", lambda: [dataclasses.replace(one, quiet=False) for one in progress()]
    )
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended)
    assert client.failure == (503, "2 attempts to answer it failed")
    monkeypatch.setattr(plane, "progress", progress)
    served = cluster.ask(PROMPT)
    cluster.until(lambda: served.ended)
    expect(served)
    cluster.settle()


def held_read(page_bytes, pages):
    """A Reader whose one read, posted at 0, does not end."""
    network, planes = Network(), {}
    holder, me = network.mailbox("prefill"), network.mailbox("decode")
    source = SimulatedPlane(Memory(pages), holder.me.endpoint, planes)
    memory = Memory(pages)
    plane = SimulatedPlane(memory, me.me.endpoint, planes)
    plane.hold = True
    settings = ReaderSettings(SLOTS, page_bytes)
    reader = Reader(PagePool(memory.generations), me, plane, COMPATIBILITY, settings)
    length = pages * SLOTS
    prefill = Prefill(1, 1, holder.me, "model", "", [1] * length, length, [0], Sampling(1))
    root = blockhash.root(COMPATIBILITY.model, COMPATIBILITY.numeric_class, "")
    hashes = blockhash.extend(root, prefill.token_ids, SLOTS)
    words = (
        Handoff(prefill, 1, 10.0, 0),
        Agent(COMPATIBILITY, source.metadata()),
        Published(1, 0, *pack(range(pages), [1] * pages, hashes)),
    )
    for word in words:
        reader.take(holder.me, word, 0.0)
    reader.turn(Allowance(1), 0.0)
    assert plane.open
    return reader


@pytest.mark.parametrize("page_bytes, limit", [(64, 2.0), (50_000_000, 42.0)])
def test_the_deadline_of_a_read_knows_its_size(page_bytes, limit):
    reader = held_read(page_bytes, pages=20)  # 20 pages of 50 MB at 50 MB/s: twice 20 s and 2
    turns = round(limit * 20)  # a twentieth of a second apart
    for turn in range(1, turns - 1):
        reader.turn(Allowance(1), turn / 20)
    assert not reader.lost
    for turn in range(turns - 1, turns + 3):
        reader.turn(Allowance(1), turn / 20)
    assert [lost.event for lost in reader.lost] == [Event.TIMED_OUT]


@pytest.mark.parametrize("layout", [dict(prefill=0, decode=0, aggregated=1), dict()])
def test_a_prompt_that_waits_for_pages_is_not_looked_up_again_each_turn(monkeypatch, layout):
    cluster = Cluster(chunk=1000, **layout)
    pool = cluster.workers["aggregated-0" if layout else "decode-0"].pool
    prompt = list(range(120))
    pool.take("others", 40)  # leaves 24 of 64 pages, and the prompt has 30
    client = cluster.ask(prompt)
    cluster.run(10)
    lookups, lookup = [], pool.lookup

    def counted(hashes):
        lookups.append(hashes)
        return lookup(hashes)

    monkeypatch.setattr(pool, "lookup", counted)
    cluster.run(50)
    assert not lookups and not client.ended
    pool.release("others")
    cluster.until(lambda: client.ended)
    expect(client, prompt)
    assert lookups
    cluster.settle()


@pytest.fixture
def newer():
    """Workers started from now on hold another model."""

    def change(cluster):
        cluster.compatibility = structs.replace(COMPATIBILITY, model="new")

    return change


def test_a_misfit_is_used_when_those_it_did_not_fit_are_gone(newer):
    cluster = Cluster(prefill=0, decode=0, aggregated=1)
    newer(cluster)
    cluster.start("aggregated-new", "aggregated")
    cluster.run(50)
    assert cluster.fleet.misfits
    cluster.kill("aggregated-0")  # the rolling change ends
    cluster.run(100)
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()


def test_misfits_that_are_gone_are_forgotten(newer):
    cluster = Cluster(prefill=0, decode=0, aggregated=1)
    newer(cluster)
    for one in range(5):
        cluster.start(f"new-{one}", "aggregated")
        cluster.run(3)
        assert cluster.fleet.misfits
        cluster.kill(f"new-{one}")
    cluster.until(lambda: not cluster.fleet.misfits, 1000)
