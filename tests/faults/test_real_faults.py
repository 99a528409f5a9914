"""Real processes that die, hang, leave and join; the client sees the same tokens or a clear end."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.http_client import Stream, ask
from support.serving import Serving, serving, until

SMALL = ["--pages", "2000", "--local-prefill-tokens", "0"]
LONG = " ".join(f"word{number}" for number in range(1500))


def body(number: int, **more):
    prompt = f"{number}: def total(values):\n"
    long_enough = {"max_tokens": 700, "ignore_eos": True}  # to be still going on when it is broken
    return {"prompt": prompt, "seed": number, "temperature": 0.9} | long_enough | more


def text_of(stream: Stream) -> str:
    return "".join(part["text"] for event in stream for part in event["choices"])


def answers(cluster: Serving, requests: list[dict]) -> list[str]:
    """All at once; each as one whole answer."""
    with ThreadPoolExecutor(len(requests)) as pool:
        asked = [pool.submit(ask, cluster.url, "/v1/completions", one) for one in requests]
        results = [one.result() for one in asked]
    assert [status for status, _ in results] == [200] * len(results), results
    return [answer["choices"][0]["text"] for _, answer in results]


@pytest.fixture(scope="module")
def cluster():
    with serving("--prefill", "2", "--decode", "2", *SMALL) as running:
        yield running


@pytest.fixture(autouse=True)
def whole_again(request):
    """After each test: every worker is back, no page is held, no token differed."""
    yield
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        until(lambda: len(cluster.health()["workers"]) == 4, "four workers")
        cluster.wait_idle()
        assert cluster.total("penstock_alarms_total") == 0


@pytest.mark.parametrize("victim", ["decode-0", "decode-1"])
def test_decode_worker_killed_during_streams(cluster, victim):
    expected = answers(cluster, [body(number) for number in range(6)])
    before = cluster.total("penstock_placed_again_total")
    streams = [Stream(cluster.url, "/v1/completions", body(number)) for number in range(6)]
    begun = [next(stream)["choices"][0]["text"] for stream in streams]
    os.kill(cluster.pid_of(victim), signal.SIGKILL)
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(text_of, streams))
    assert [one + rest for one, rest in zip(begun, texts, strict=True)] == expected
    assert all(stream.done for stream in streams)
    assert cluster.total("penstock_placed_again_total") > before


def test_prefill_worker_killed_during_prompts_and_transfers(cluster):
    requests = [body(number, prompt=f"{number} {LONG}", max_tokens=20) for number in range(6)]
    expected = answers(cluster, requests)
    # Other tenants: nothing of this is cached, so that the prompts are computed and pulled again.
    again = [one | {"cache_salt": "again"} for one in requests]
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, cluster.url, "/v1/completions", one) for one in again]
        until(lambda: cluster.total("penstock_worker_leases") > 0, "a lease")
        os.kill(cluster.pid_of("prefill-0"), signal.SIGKILL)
        texts = [one.result()[1]["choices"][0]["text"] for one in asked]
    assert texts == expected


def test_a_worker_that_leaves_is_noticed(cluster):
    pid = cluster.pid_of("decode-1")
    os.kill(pid, signal.SIGKILL)
    names = lambda: [worker["name"] for worker in cluster.health()["workers"]]  # noqa: E731
    until(lambda: "decode-1" not in names(), "decode-1 is gone from the books")
    assert cluster.health()["status"] == "well", "the other decode worker serves"


def test_a_hanging_worker_is_replaced_and_its_return_changes_nothing(cluster):
    expected = answers(cluster, [body(number) for number in range(4)])
    streams = [Stream(cluster.url, "/v1/completions", body(n)) for n in range(4)]
    begun = [next(stream)["choices"][0]["text"] for stream in streams]
    pid = cluster.pid_of("decode-0")
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(text_of, streams))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [one + rest for one, rest in zip(begun, texts, strict=True)] == expected


def test_client_disconnect_frees_blocks_on_both_sides(cluster):
    streams = [
        Stream(cluster.url, "/v1/completions", body(n, prompt=f"{n} {LONG}", max_tokens=1000, n=2))
        for n in range(4)
    ]
    next(streams[0])
    until(lambda: cluster.total("penstock_worker_held_pages") > 0, "pages are held")
    for stream in streams:
        stream.close()
    until(lambda: cluster.total("penstock_requests_running") == 0, "all requests are gone")
    cluster.wait_idle()
    held = cluster.metric("penstock_worker_held_pages")
    assert {role for role in ("prefill", "decode") for labels in held if f"{role}-" in labels} == {
        "prefill",
        "decode",
    }, "both sides are counted"
    assert set(held.values()) == {0.0}
    assert cluster.total("penstock_worker_leases") == 0


def test_the_engine_survives_a_full_pool():
    with serving("--pages", "90", "--local-prefill-tokens", "0") as cluster:
        requests = [body(number, max_tokens=300, ignore_eos=True) for number in range(16)]
        alone = [answers(cluster, [one])[0] for one in requests[:3]]
        assert answers(cluster, requests)[:3] == alone
        preempted = cluster.total("penstock_worker_counter_preemptions_total")
        assert preempted > 0, "the pool was never full; the test asks too little"
        status, answer = ask(
            cluster.url, "/v1/completions", body(0, prompt=[5] * 90 * 32 + [5], max_tokens=1)
        )
        assert status == 400 and "2880" in answer["error"]["message"]
        cluster.wait_idle()


def test_no_worker_left_is_a_clear_error_and_a_restarted_one_serves():
    with serving("--pages", "500", "--local-prefill-tokens", "0") as cluster:
        assert answers(cluster, [body(1)])
        os.kill(cluster.pid_of("prefill-0"), signal.SIGKILL)
        status, answer = ask(cluster.url, "/v1/completions", body(2))
        assert status in (200, 503)
        if status == 503:
            assert "prefill" in answer["error"]["message"]
        until(cluster.ready, "the worker is started again")
        assert answers(cluster, [body(2)])


def test_roles_started_by_hand_find_each_other_in_any_order(tmp_path):
    from support.serving import free_port

    http, control = free_port(), free_port()
    file = tmp_path / "cluster.toml"
    file.write_text(
        f"""
        [router]
        port = {http}
        control = "tcp://127.0.0.1:{control}"
        local_prefill_tokens = 0
        [worker]
        pages = 500
        [[prefill]]
        name = "p"
        [[decode]]
        name = "d"
        """
    )

    def start(role: str, name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "penstock", role, "--config", str(file), "--name", name]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    url = f"http://127.0.0.1:{http}"

    def ready() -> bool:
        try:
            return ask(url, "/ready")[0] == 200
        except OSError:
            return False

    running = [start("decode", "d"), start("prefill", "p")]  # before there is a router
    try:
        running.append(start("router", "router"))
        until(ready, "workers joined the router that came last")
        first = ask(url, "/v1/completions", body(1))[1]["choices"]
        running[2].kill()
        running[2].wait()
        running[2] = start("router", "router")  # the workers stay and join the new one
        until(ready, "workers joined the new router")
        assert ask(url, "/v1/completions", body(1))[1]["choices"] == first
    finally:
        for process in running:
            process.terminate()
        assert [process.wait(60) for process in running] == [0, 0, 0]
