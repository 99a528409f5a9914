"""Whole clusters: the router killed under load, pools full on both sides, a short soak."""

import http.client
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from penstock.bench import soak
from penstock.bench.traffic import requests
from penstock.bench.traffic.run import Plan
from support.http_client import Stream, ask
from support.serving import Serving, serving, until

STREAMS = 4
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
LONG = " ".join(f"word{number}" for number in range(400))


def body(number: int, **more: Any) -> dict[str, Any]:
    asked = {"prompt": f"{number} {LONG}", "seed": number, "temperature": 0.9}
    return asked | {"max_tokens": 300, "ignore_eos": True, "return_token_ids": True} | more


def tokens_of(answer: tuple[int, Any]) -> list[int]:
    status, fields = answer
    assert status == 200, fields
    return fields["choices"][0]["token_ids"]


def rest(stream: Stream) -> list[int]:
    """What still comes of a stream, also where its connection breaks."""
    seen: list[int] = []
    try:
        for event in stream:
            for choice in event["choices"]:
                seen += choice.get("token_ids") or []
    except (OSError, http.client.HTTPException):
        stream.close()
    return seen


# --- the router -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Serving]:
    words = ["--prefill", "2", "--decode", "2", "--pages", "2000", "--local-prefill-tokens", "0"]
    with serving(*words) as running:
        yield running


def test_the_router_killed_under_load_comes_back_to_the_same_workers(cluster: Serving) -> None:
    """Its requests are dropped by the workers, nothing stays held, and what they cached is used."""
    requests = [body(number, max_tokens=400) for number in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        expected = list(
            pool.map(lambda one: tokens_of(ask(cluster.url, "/v1/completions", one)), requests)
        )
    workers = {name: cluster.pid_of(name) for name in WORKERS}
    router = cluster.pid_of("router")
    others = [one | {"cache_salt": "again"} for one in requests]  # so that pages cross again
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = list(pool.map(lambda one: Stream(cluster.url, "/v1/completions", one), others))
    begun = [next(stream)["choices"][0]["token_ids"] for stream in streams[: STREAMS // 2]]
    os.kill(router, signal.SIGKILL)
    for stream, wanted in zip(streams, expected, strict=True):
        seen = (begun.pop(0) if begun else []) + rest(stream)
        assert not stream.done and seen == wanted[: len(seen)], "cut, but nothing wrong was said"
    until(cluster.ready, "the router is back and has met the workers")
    assert cluster.pid_of("router") != router
    until(lambda: len(cluster.health()["workers"]) == len(WORKERS), "all workers")
    assert {name: cluster.pid_of(name) for name in WORKERS} == workers, "no worker was restarted"
    cluster.wait_idle()  # the workers dropped what the dead router had asked for
    for name in ("running", "waiting", "leases", "pulling"):
        until(lambda name=name: cluster.total(f"penstock_worker_{name}") == 0, f"no {name}")
    for one, wanted in zip(requests, expected, strict=True):
        status, answer = ask(cluster.url, "/v1/completions", one)
        assert tokens_of((status, answer)) == wanted
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "caches were kept"
    assert cluster.total("penstock_alarms_total") == 0


# --- full pools -----------------------------------------------------------------------------------


def most_waiting(cluster: Serving, asked: list[Future[Any]]) -> dict[str, float]:
    """By role, the most requests that were seen waiting while these are answered."""
    most = {"prefill": 0.0, "decode": 0.0}
    while not all(one.done() for one in asked):
        for labels, value in cluster.metric("penstock_worker_waiting").items():
            role = "prefill" if 'role="prefill"' in labels else "decode"
            most[role] = max(most[role], value)
    return most


def test_full_pools_on_both_sides_delay_and_lose_nothing() -> None:
    """Each side holds one long prompt and a half. All end, with the tokens of an empty cluster."""
    with serving("--pages", "80", "--local-prefill-tokens", "0") as cluster:
        requests = [body(number, max_tokens=40) for number in range(7)]
        alone = [tokens_of(ask(cluster.url, "/v1/completions", one)) for one in requests]
        again = [one | {"cache_salt": f"tenant {n}"} for n, one in enumerate(requests)]
        with ThreadPoolExecutor(len(again)) as pool:
            asked = [pool.submit(ask, cluster.url, "/v1/completions", one) for one in again]
            most = most_waiting(cluster, asked)
        assert [tokens_of(one.result()) for one in asked] == alone
        assert min(most.values()) > 0, f"a pool was never full; the test asks too little: {most}"
        assert cluster.total("penstock_alarms_total") == 0
        cluster.wait_idle()


# --- a short soak ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> soak.Reference:
    return soak.reference(requests.cases(5, len(requests.KINDS)), 2000)


@pytest.mark.parametrize("transport", ["nixl", "zmq"])
def test_a_short_soak_finds_nothing_wrong(transport: str, known: soak.Reference) -> None:
    words = ["--prefill", "2", "--decode", "2", "--pages", "64", "--local-prefill-tokens", "64"]
    plan = Plan(seed=5, seconds=10.0, concurrency=8, fault_seconds=1.5, limit_seconds=300.0)
    outcome = soak.soak([*words, "--kv-transport", transport], known, plan)
    assert [soak.told(one) for one in outcome.violations] == []
    assert any(one.kind == "kill" for one in outcome.faults), "nothing was killed"
    assert sum(one.outcome == "right" for one in outcome.exchanges) > 2 * len(known.cases)
