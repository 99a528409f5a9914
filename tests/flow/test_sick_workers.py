"""Workers that live but cannot work: they say so, and their requests are answered elsewhere."""

import pytest

from penstock.protocol.seams import Disconnected
from penstock.router.health import health
from penstock.router.request import Refusal
from penstock.simulation.cluster import Cluster
from penstock.simulation.engine import true_tokens

PROMPT = list(range(100, 130))


def expect(client, prompt=PROMPT, seed=7, count=12):
    assert client.failure is None
    assert client.tokens[0] == true_tokens(prompt, seed, 0, count)


def fail_steps(monkeypatch, worker, fails=lambda step: True):
    """From now on, every step that `fails` picks fails."""
    finished = worker.engine.finished

    def failing():
        step = worker.engine.step
        worker.engine.fail_next = "device-side assert" if step and fails(step) else ""
        return finished()

    monkeypatch.setattr(worker.engine, "finished", failing)


def quarantine(cluster, count):
    """A read of so many pages is given up on decode-0, and its bytes may land for ever."""
    plane = cluster.workers["decode-0"].plane
    client = cluster.ask(range(count * 4), max_tokens=2)
    plane.hold = True
    cluster.until(lambda: sum(len(pages) for _, _, pages in plane.open.values()) == count)
    plane.loud.update(plane.open)
    cluster.flow.cancel(client.request)
    plane.hold = False
    cluster.run(10)
    assert cluster.workers["decode-0"].pool.quarantined == count


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_whose_every_step_fails_costs_no_request(monkeypatch, role):
    cluster = Cluster(prefill=2, decode=2)
    fail_steps(monkeypatch, cluster.workers[f"{role}-0"])
    clients = [cluster.ask(PROMPT + [one], seed=one) for one in range(4)]
    cluster.until(lambda: all(client.ended for client in clients))
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one)
    cluster.settle()


def test_a_worker_whose_every_step_fails_says_it_is_stuck_and_is_not_used(monkeypatch):
    cluster = Cluster(failover_seconds=1.0)
    fail_steps(monkeypatch, cluster.workers["decode-0"])
    client = cluster.ask(PROMPT)
    cluster.until(lambda: client.ended)
    assert client.failure is not None and client.failure[0] == 503
    assert "steps failed" in cluster.fleet.workers["sim://decode-0"].stuck
    with pytest.raises(Refusal, match="only prefill workers are usable"):
        cluster.ask(PROMPT)
    cluster.settle()


def test_a_request_that_breaks_its_step_takes_no_other_with_it(monkeypatch):
    cluster = Cluster(prefill=0, decode=0, aggregated=1)
    poisoned = [13, 1, 2, 3]
    fail_steps(
        monkeypatch,
        cluster.workers["aggregated-0"],
        lambda step: any(part.sequence.token_ids[0] == 13 for part in step.slices),
    )
    poison = cluster.ask(poisoned)
    clients = [cluster.ask(PROMPT + [one], seed=one) for one in range(4)]
    cluster.until(lambda: poison.ended and all(client.ended for client in clients))
    assert poison.failure is not None
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one)
    cluster.settle()


def test_an_engine_that_hangs_costs_no_request():
    cluster = Cluster(decode=2)
    client = cluster.ask(PROMPT, max_tokens=60)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    (sick,) = [worker for worker in cluster.workers.values() if worker.engine.busy]
    sick.engine.hold = True  # its loop lives, and says so when the step takes too long
    cluster.until(lambda: client.ended, 10000)
    expect(client, count=60)
    assert "a step has been running" in sick.worker.stuck


def test_a_pair_that_cannot_exchange_pages_is_left_where_another_can(monkeypatch):
    cluster = Cluster(prefill=1, decode=2)
    plane = cluster.workers["decode-0"].plane
    progress = plane.progress

    def failing():
        plane.abandoned.update(plane.open)
        return progress()

    monkeypatch.setattr(plane, "progress", failing)
    clients = [cluster.ask(PROMPT + [one], seed=one) for one in range(4)]
    cluster.until(lambda: all(client.ended for client in clients))
    for one, client in enumerate(clients):
        expect(client, PROMPT + [one], one)
    assert cluster.flow.counters.replaced > 0
    cluster.settle()


def test_a_large_read_given_up_makes_a_worker_stuck_only_when_its_quarantine_lasts():
    cluster = Cluster()
    worker = cluster.workers["decode-0"]
    quarantine(cluster, 40)  # of 64: more than the share that a worker may lose
    cluster.run(800)
    assert worker.worker.stuck == "", "milliseconds of quarantine are no reason to start again"
    cluster.run(400)
    assert "40 of 64 pages are quarantined" in worker.worker.stuck
    assert cluster.fleet.workers["sim://decode-0"].stuck == worker.worker.stuck


@pytest.mark.parametrize("local", [0, 10**6])
def test_a_prompt_that_quarantine_leaves_no_room_for_does_not_block_those_behind_it(local):
    cluster = Cluster(max_attempts=1, local=local)
    if local:  # nothing is handed over where all is local: quarantine pages by hand
        pool = cluster.workers["decode-0"].pool
        pages = pool.take("given up", 10)
        assert pages is not None
        pool.expect("read", pages)
        pool.release("given up")
    else:
        quarantine(cluster, 10)
    big = cluster.ask(range(500, 740), max_tokens=4)  # 60 pages: the pool has 64, and 54 are left
    small = cluster.ask(PROMPT, max_tokens=4)
    cluster.until(lambda: small.ended and big.ended, 8000)
    expect(small, count=4)
    assert big.failure is not None
    assert cluster.workers["decode-0"].worker.stuck == ""


def health_of(cluster):
    well, page = health(cluster.fleet, cluster.now, {})
    assert well == (not page["reasons"])
    return page["reasons"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_loop_that_hangs_is_named_until_it_goes_on(role):
    cluster = Cluster(prefill=2, decode=2)
    client = cluster.ask(PROMPT, max_tokens=60)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    assert health_of(cluster) == []
    frozen = cluster.workers.pop(f"{role}-0")  # its process stands still, its links do not
    cluster.until(lambda: health_of(cluster) != [])
    (reason,) = health_of(cluster)
    assert reason == f"{role}-0: loop: said nothing for 5.0 s"
    cluster.until(lambda: client.ended)
    expect(client, count=60)
    cluster.run(500)
    assert len(health_of(cluster)) == 1
    cluster.workers[f"{role}-0"] = frozen
    cluster.until(lambda: health_of(cluster) == [])
    after = [cluster.ask(PROMPT + [one], seed=one) for one in range(4)]
    cluster.until(lambda: all(one.ended for one in after))
    cluster.settle()


def test_a_loop_that_hangs_is_not_named_any_more_when_it_is_started_again():
    cluster = Cluster(prefill=2, decode=2)
    frozen = cluster.workers["decode-0"]
    del cluster.workers["decode-0"]
    cluster.until(lambda: health_of(cluster) != [])
    cluster.workers["decode-0"] = frozen
    cluster.kill("decode-0")
    cluster.run(100)
    assert len(health_of(cluster)) == 1 and "sim://decode-0" not in cluster.mailbox.wanted
    cluster.start("decode-0", "decode")
    cluster.until(lambda: health_of(cluster) == [])
    assert len(cluster.fleet.workers) == 4


def test_a_link_that_breaks_of_silence_leaves_the_worker_named():
    cluster = Cluster(prefill=2, decode=2)
    client = cluster.ask(PROMPT, max_tokens=60)
    cluster.until(lambda: len(client.tokens[0]) > 3)
    frozen = {name: cluster.workers.pop(name) for name in ("decode-0", "prefill-0")}
    cluster.run(450)
    for name in frozen:
        cluster.mailbox.arrived.append(Disconnected(f"sim://{name}"))
    cluster.run(2)
    assert [one.split(" for ")[0] for one in health_of(cluster)] == [
        "decode-0: loop: said nothing",
        "prefill-0: loop: said nothing",
    ]
    cluster.until(lambda: client.ended)
    expect(client, count=60)
    cluster.workers |= frozen
    cluster.until(lambda: health_of(cluster) == [])
    cluster.settle()


def test_a_plane_whose_reads_never_end_asks_for_a_new_incarnation():
    cluster = Cluster()
    quarantine(cluster, 5)
    worker = cluster.workers["decode-0"]
    for _ in range(35):
        cluster.run(300)  # the prefill worker has something to say all the time
        assert worker.worker.stuck == ""
        client = cluster.ask(PROMPT, max_tokens=2)
        cluster.until(lambda client=client: client.ended)
    for _ in range(10):
        cluster.run(300)
        if worker.worker.stuck:
            break
        client = cluster.ask(PROMPT, max_tokens=2)
        cluster.until(lambda client=client: client.ended)
    assert "decode-0: transfer: 3 reads have not ended for 12" in health_of(cluster)[0]


def test_pages_that_nobody_gives_back_ask_for_a_new_incarnation():
    cluster = Cluster()
    pool = cluster.workers["prefill-0"].pool
    pool.take("forgotten", 3)
    cluster.until(lambda: health_of(cluster) != [])
    assert health_of(cluster)[0] == "prefill-0: page pool: 3 of 64 pages are held, and nothing runs"
