"""Words said twice, words of confused peers: nobody dies of them, and no token is wrong."""

import pytest

from penstock.protocol.messages import (
    Admitted,
    Agent,
    Failed,
    FirstTokens,
    Handoff,
    Introduce,
    Prefill,
    Published,
    Release,
    Renew,
    Sampling,
    Tokens,
    WorkerState,
)
from penstock.protocol.seams import Received
from penstock.simulation.cluster import Client, Cluster
from penstock.simulation.engine import true_tokens

PROMPT = list(range(100, 130))


def expect(client, prompt=PROMPT, seed=7, count=12):
    assert client.failure is None
    assert client.tokens[0] == true_tokens(prompt, seed, 0, count)


def say(cluster, sender, to, message):
    """This arrives at `to`, whatever `sender` knows of it."""
    mailboxes = cluster.network.mailboxes
    mailboxes[f"sim://{to}"].arrived.append(Received(mailboxes[f"sim://{sender}"].me, message))


def prefill(cluster, token_ids, length):
    sampling = Sampling(1)
    return Prefill(
        9, 1, cluster.mailbox.me, "model", "", token_ids, length, [0], sampling, "sim://decode-0"
    )


@pytest.mark.parametrize(
    "kind", [Prefill, Handoff, Introduce, Agent, Published, Renew, Release, Admitted, Tokens]
)
@pytest.mark.parametrize("tokens", [0, 4, 12])
def test_words_said_twice_change_nothing(kind, tokens):
    cluster = Cluster(chunk=8)
    client = cluster.ask(PROMPT)
    cluster.until(lambda: len(client.tokens[0]) >= tokens)
    for source, to, message in list(cluster.network.sent):
        if isinstance(message, kind):
            say(cluster, source.removeprefix("sim://"), to.removeprefix("sim://"), message)
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()
    assert cluster.flow.counters.differing == 0 and cluster.flow.counters.replaced == 0


@pytest.mark.parametrize("local", [0, 1000])
def test_a_prefill_said_twice_at_once_is_computed_once(local):
    cluster = Cluster(local=local)
    client = cluster.ask(PROMPT)
    _, to, message = next(one for one in cluster.network.sent if isinstance(one[2], Prefill))
    say(cluster, "router", to.removeprefix("sim://"), message)
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()


def test_first_tokens_of_unequal_length_end_the_hand_over_alone():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    source = cluster.workers["prefill-0"]
    source.mailbox.muted.add(Published)
    cluster.until(lambda: bool(cluster.workers["decode-0"].reader.incoming))
    (lease,) = source.holder.leases
    first = FirstTokens([0], [5], ["", ""], [None])
    say(cluster, "prefill-0", "decode-0", Published(lease, 0, b"", b"", b"", b"", first))
    cluster.run(2)
    source.mailbox.muted.clear()
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.flow.counters.replaced == 1
    cluster.settle()


def test_a_renewal_of_unequal_length_or_unknown_leases_kills_nobody():
    cluster = Cluster()
    say(cluster, "decode-0", "prefill-0", Renew([1, 2], [0]))
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()


def test_a_renewal_with_a_negative_count_of_blocks_publishes_no_wrong_page():
    cluster = Cluster(chunk=4)
    client = cluster.ask(PROMPT)
    holder, plane = cluster.workers["prefill-0"].holder, cluster.workers["decode-0"].plane
    cluster.until(lambda: any(len(lease.pages) > 3 for lease in holder.leases.values()))
    (lease,) = holder.leases
    plane.hold = True
    say(cluster, "decode-0", "prefill-0", Renew([lease], [-3]))
    cluster.run(3)
    plane.hold = False
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()


@pytest.mark.parametrize("token_id", [2**40, 1000, -1])
def test_a_token_that_the_model_does_not_have_is_refused(token_id):
    cluster = Cluster()
    say(cluster, "router", "prefill-0", prefill(cluster, [token_id, 1, 2, 3], 4))
    cluster.run(3)
    (failed,) = [one for _, _, one in cluster.network.sent if isinstance(one, Failed)]
    assert "vocabulary" in failed.reason and not failed.retryable


def test_a_frame_whose_columns_differ_in_length_costs_no_other_word():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    frame = Tokens(WorkerState(), [1, 2], [1], [0], [30], [5], [""])
    say(cluster, "decode-0", "router", frame)
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.inbox.faults == 1
    cluster.settle()


def test_leases_of_two_holders_may_have_one_number():
    cluster = Cluster(prefill=2, decode=1, chunk=4)
    for name in ("prefill-0", "prefill-1"):
        cluster.workers[name].holder._last_id = 1000
    clients = [cluster.ask(PROMPT + [one], seed=one) for one in range(2)]
    cluster.until(lambda: all(client.ended for client in clients))
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one)
    handoffs = [message for _, _, message in cluster.network.sent if isinstance(message, Handoff)]
    assert [handoff.lease for handoff in handoffs] == [1001, 1001]
    cluster.settle()


def test_a_handoff_without_a_lease_holds_up_nobody_for_long():
    cluster = Cluster()
    cluster.kill("decode-0")
    cluster.start("decode-0", "decode", pages=8)
    cluster.run(3)
    too_long = Handoff(prefill(cluster, list(range(200)), 200), 77, 10.0, 0)
    say(cluster, "prefill-0", "decode-0", too_long)
    say(cluster, "prefill-0", "decode-0", too_long)
    client = cluster.ask(range(20), max_tokens=4)
    cluster.until(lambda: client.ended, 1000)
    expect(client, list(range(20)), count=4)
    cluster.settle()


def test_a_word_that_differs_is_an_alarm_even_before_its_turn():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    cluster.workers["prefill-0"].mailbox.muted.add(Tokens)  # no report: other words wait for it
    flight = cluster.flow.in_flight[client.request]
    cluster.until(lambda: len(flight.progress[0].early) > 2)
    (attempt,) = flight.placements
    frame = Tokens(WorkerState(), [client.request], [attempt], [0], [31], [999], [""])
    say(cluster, "decode-0", "router", frame)
    cluster.run(1)
    assert cluster.flow.counters.differing == 1


def test_a_listener_that_cancels_within_a_call_is_not_called_again():
    cluster = Cluster()

    class Leaving(Client):
        def token(self, choice, token_id, logprobs, finish):
            super().token(choice, token_id, logprobs, finish)
            cluster.flow.cancel(client.request)

    cluster.workers["prefill-0"].mailbox.muted.add(Tokens)
    client = cluster.ask(PROMPT, max_tokens=30)
    flight = cluster.flow.in_flight[client.request]
    cluster.until(lambda: len(flight.progress[0].early) > 4)
    flight.listener = leaving = Leaving(1)
    cluster.kill("prefill-0")  # the first tokens come from the decode worker, all at once
    cluster.run(3)
    assert len(leaving.tokens[0]) == 1
    cluster.settle()
