"""Real processes that stop making progress: /health is red, says which part, and turns green."""

import os
import signal

import pytest

from support.http_client import ask
from support.serving import Serving, serving, until

REQUEST = {"prompt": "def total(values):\n", "seed": 1, "max_tokens": 40, "ignore_eos": True}


@pytest.fixture(scope="module")
def cluster():
    arguments = ("--prefill", "1", "--decode", "2", "--pages", "500", "--local-prefill-tokens", "0")
    with serving(*arguments) as running:
        yield running


def answer(cluster: Serving) -> str:
    status, body = ask(cluster.url, "/v1/completions", REQUEST)
    assert status == 200, body
    return body["choices"][0]["text"]


def well(cluster: Serving) -> bool:
    status, page = ask(cluster.url, "/health")
    assert (status == 200) == (page["status"] == "well") == (not page["reasons"])
    return status == 200 and len(page["workers"]) == 3


def named(cluster: Serving, name: str) -> bool:
    status, page = ask(cluster.url, "/health")
    found = any(one.startswith(f"{name}: loop: said nothing for") for one in page["reasons"])
    assert not found or status == 503
    return found


@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_a_loop_that_stands_still_is_named_until_it_goes_on(cluster, name):
    expected = answer(cluster)
    until(lambda: well(cluster), "all is well")
    pid = cluster.pid_of(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: named(cluster, name), f"{name} is named")
        if name != "prefill-0":
            assert answer(cluster) == expected, "the other decode worker serves"
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: well(cluster), "all is well again")
    assert cluster.pid_of(name) == pid, "it was not started again"
    assert answer(cluster) == expected
    cluster.wait_idle()


def test_a_loop_that_stood_still_and_died_is_named_no_longer(cluster):
    until(lambda: well(cluster), "all is well")
    pid = cluster.pid_of("decode-1")
    os.kill(pid, signal.SIGSTOP)
    until(lambda: named(cluster, "decode-1"), "decode-1 is named")
    os.kill(pid, signal.SIGKILL)
    until(lambda: well(cluster), "it was started again")
    assert cluster.pid_of("decode-1") != pid


def test_the_lane_and_the_loops_gap_are_shown(cluster):
    answer(cluster)
    page = cluster.health()
    assert page["longest_loop_gap_seconds"] >= 0
    shown = {one["name"]: one["transport"] for one in page["workers"]}
    labels = cluster.metric("penstock_worker_transport_info")
    for name, transport in shown.items():
        assert any(f'worker="{name}"' in one and transport in one for one in labels), labels
