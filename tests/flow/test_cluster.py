"""The whole path on fakes: the right tokens, once, in order, and every page back."""

import pytest

from penstock.protocol.messages import Admitted, Published, Release, Tokens
from penstock.simulation.cluster import Cluster
from penstock.simulation.engine import true_tokens

PROMPT = list(range(100, 130))  # 30 tokens: 7 full blocks of 4 and a tail of 2


def expect(client, prompt=PROMPT, seed=7, count=12):
    for choice, tokens in enumerate(client.tokens):
        assert tokens == true_tokens(prompt, seed, choice, count)
        assert client.finish[choice] == "length"


def cached(client):
    assert client.report is not None
    return client.report.cached_tokens


@pytest.mark.parametrize(
    "layout",
    [
        dict(prefill=0, decode=0, aggregated=1),
        dict(prefill=1, decode=1),
        dict(prefill=2, decode=2),
        dict(prefill=1, decode=1, local=1000),
    ],
)
@pytest.mark.parametrize("choices", [1, 3])
def test_every_layout_gives_the_true_tokens(layout, choices):
    cluster = Cluster(**layout)
    clients = [cluster.ask(PROMPT + [one], n=choices, seed=one) for one in range(16)]
    cluster.until(lambda: all(client.ended for client in clients))
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one)
    cluster.settle()
    assert cluster.flow.counters.differing == 0


def test_blocks_cross_and_the_prefix_is_not_pulled_twice():
    cluster = Cluster()
    first = cluster.ask(PROMPT)
    cluster.until(lambda: first.ended)
    assert cluster.flow.counters.pulled_pages == 8
    second = cluster.ask(PROMPT)
    cluster.until(lambda: second.ended)
    expect(second)
    assert cluster.flow.counters.pulled_pages == 9  # the tail alone
    assert cached(second) == 28
    cluster.settle()


def test_blocks_are_pulled_while_later_chunks_compute():
    cluster = Cluster(chunk=8)
    client = cluster.ask(range(64))
    cluster.until(lambda: cluster.workers["decode-0"].reader.bytes_read > 0)
    assert not client.tokens[0], "the first pull came before the first token"
    cluster.until(lambda: client.ended)
    expect(client, list(range(64)))
    cluster.settle()


def test_cache_salt_separates_tenants():
    cluster = Cluster()
    one = cluster.ask(PROMPT, salt="a")
    cluster.until(lambda: one.ended)
    other = cluster.ask(PROMPT, salt="b")
    cluster.until(lambda: other.ended)
    assert cached(other) == 0
    expect(other)


def test_a_request_that_ends_with_its_first_token_has_no_hand_over():
    cluster = Cluster()
    client = cluster.ask(PROMPT, max_tokens=1)
    cluster.until(lambda: client.ended)
    expect(client, count=1)
    assert not any(isinstance(message, Admitted) for _, _, message in cluster.network.sent)
    assert cluster.flow.counters.placed_prefill_only == 1
    cluster.settle()


def test_stop_token_at_the_first_position_ends_the_lease():
    token = true_tokens(PROMPT, 7, 0, 1)[0]
    cluster = Cluster()
    client = cluster.ask(PROMPT, n=1, stop_token_ids=(token,))
    cluster.until(lambda: client.ended)
    assert client.tokens == [[token]] and client.finish == ["stop"]
    cluster.settle()


def test_some_choices_end_at_once_and_others_go_on():
    token = true_tokens(PROMPT, 7, 0, 1)[0]
    cluster = Cluster()
    client = cluster.ask(PROMPT, n=3, stop_token_ids=(token,))
    cluster.until(lambda: client.ended)
    assert client.tokens[0] == [token]
    assert client.tokens[1] == true_tokens(PROMPT, 7, 1, 12)
    assert client.tokens[2] == true_tokens(PROMPT, 7, 2, 12)
    cluster.settle()


@pytest.mark.parametrize("layout", [dict(), dict(prefill=0, decode=0, aggregated=1)])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_scored_prompts(layout, max_tokens):
    cluster = Cluster(**layout)
    for _ in range(2):  # the second time the blocks are cached, and must not be used
        client = cluster.ask(PROMPT, prompt_logprobs=1, max_tokens=max_tokens)
        cluster.until(lambda client=client: client.ended)
        scores = [None if one is None else one.logprob for one in client.prompt_scores]
        assert scores == [None, *(-float(one) for one in range(1, 30))]
        expect(client, count=max_tokens)
    cluster.settle()


def test_decode_pool_too_small_for_all_preempts_and_loses_nothing():
    cluster = Cluster(pages=24)
    clients = [cluster.ask(PROMPT + [one], max_tokens=40, seed=one) for one in range(6)]
    cluster.until(lambda: all(client.ended for client in clients))
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one, 40)
    assert cluster.workers["decode-0"].preemptions > 0
    cluster.settle()


def test_choices_of_one_request_may_preempt_each_other():
    cluster = Cluster(pages=24)
    client = cluster.ask(PROMPT, n=5, max_tokens=40)
    cluster.until(lambda: client.ended)
    expect(client, count=40)
    cluster.settle()


@pytest.mark.parametrize("moment", range(0, 26, 2))
@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_kill_at_any_moment(victim, moment):
    cluster = Cluster(prefill=2, decode=2)
    clients = [cluster.ask(PROMPT + [one], n=2, seed=one, logprobs=0) for one in range(4)]
    cluster.run(moment)
    cluster.kill(victim)
    cluster.until(lambda: all(client.ended for client in clients))
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one)
        assert all(score is not None for choice in client.logprobs for score in choice)
    cluster.settle()
    assert cluster.flow.counters.differing == 0


@pytest.mark.parametrize("moment", range(0, 20, 3))
def test_no_worker_left_is_a_clear_error(moment):
    cluster = Cluster(failover_seconds=1.0)
    client = cluster.ask(PROMPT)
    cluster.run(moment)
    cluster.kill("decode-0")
    cluster.until(lambda: client.ended)
    if client.failure is not None:
        assert client.failure[0] == 503 and "decode" in client.failure[1]
    cluster.settle()


def test_a_worker_that_appears_in_time_saves_the_request():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    cluster.run(9)
    cluster.kill("decode-0")
    cluster.run(5)
    cluster.start("decode-1", "decode")
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.settle()


@pytest.mark.parametrize("moment", range(0, 24, 2))
@pytest.mark.parametrize("held", [False, True])
def test_cancel_at_any_moment_returns_every_page(moment, held):
    cluster = Cluster()
    client = cluster.ask(PROMPT, n=2)
    other = cluster.ask(PROMPT[::-1])
    cluster.run(moment)
    for worker in cluster.workers.values():
        worker.engine.hold = worker.plane.hold = held
    cluster.flow.cancel(client.request)
    cluster.run(3)
    for worker in cluster.workers.values():
        worker.engine.hold = worker.plane.hold = False
    cluster.until(lambda: other.ended)
    expect(other, PROMPT[::-1])
    assert not client.ended or client.failure is None
    cluster.settle()


def test_a_stop_string_ends_one_choice_alone():
    cluster = Cluster()
    client = cluster.ask(PROMPT, n=2, max_tokens=30)
    cluster.until(lambda: len(client.tokens[0]) >= 4)
    cluster.flow.stop_choice(client.request, 0)
    seen = len(client.tokens[0])
    cluster.until(lambda: bool(client.finish[1]))
    assert len(client.tokens[0]) == seen
    assert client.tokens[1] == true_tokens(PROMPT, 7, 1, 30)
    cluster.settle()


@pytest.mark.parametrize("kind", [Published, Release, Admitted, Tokens])
def test_a_lost_message_is_made_good(kind):
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    source = "decode-0" if kind in (Release, Admitted) else "prefill-0"
    cluster.workers[source].mailbox.muted.add(kind)
    cluster.run(30)
    cluster.workers[source].mailbox.muted.clear()
    if kind is Tokens:
        cluster.kill("prefill-0")  # only then is its word known to be lost
    cluster.until(lambda: client.ended)
    expect(client)
    cluster.until(lambda: cluster.workers["decode-0"].pool.held == 0)
    if kind is Release:  # nobody renews it: the lease runs out
        cluster.until(lambda: cluster.workers["prefill-0"].pool.held == 0)


def test_a_stale_generation_is_seen_and_the_request_placed_again():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    reader, holder = cluster.workers["decode-0"], cluster.workers["prefill-0"]
    reader.plane.hold = True
    cluster.until(lambda: bool(reader.plane.open))
    holder.memory.generations[next(iter(reader.plane.open.values()))[1][0]] += 1
    reader.plane.hold = False
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.flow.counters.replaced == 1
    cluster.settle()


def test_a_failed_read_and_a_failed_step_are_made_good():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    cluster.workers["decode-0"].plane.break_next = True
    cluster.until(lambda: bool(client.tokens[0]))
    cluster.workers["decode-0"].engine.fail_next = "out of memory"
    cluster.until(lambda: client.ended)
    expect(client)
    assert cluster.flow.counters.replaced == 2
    cluster.settle()


def test_pages_with_late_bytes_are_quarantined_until_quiet():
    cluster = Cluster()
    client = cluster.ask(PROMPT)
    reader = cluster.workers["decode-0"]
    reader.plane.hold = True
    cluster.until(lambda: bool(reader.plane.open))
    reader.plane.loud.update(reader.plane.open)
    cluster.flow.cancel(client.request)
    cluster.run(2)
    assert reader.pool.quarantined > 0
    reader.plane.hold = False
    cluster.run(3)
    assert reader.pool.quarantined > 0, "the completion alone proves nothing here"
    reader.plane.loud.clear()
    cluster.settle()


def test_a_router_that_dies_frees_everything_it_asked_for():
    cluster = Cluster()
    for one in range(4):
        cluster.ask(PROMPT + [one], max_tokens=60)
    cluster.run(14)
    cluster.network.kill(cluster.mailbox)
    for _ in range(30):
        cluster.now += 0.01
        for worker in cluster.workers.values():
            worker.worker.turn(cluster.now)
    for worker in cluster.workers.values():
        assert worker.pool.held == 0


def test_a_hanging_worker_is_noticed_by_its_silence():
    cluster = Cluster(decode=2)
    client = cluster.ask(PROMPT, max_tokens=60)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    busy = [name for name, one in cluster.workers.items() if one.engine.busy][0]
    stopped = cluster.workers.pop(busy)  # it lives, but turns no more
    cluster.until(lambda: client.ended)
    expect(client, count=60)
    cluster.workers[busy] = stopped  # and comes back: its late words change nothing
    cluster.run(100)
    assert cluster.flow.counters.differing == 0
    assert stopped.mailbox.me.endpoint in cluster.fleet.workers, "it is known again"
    cluster.settle()
