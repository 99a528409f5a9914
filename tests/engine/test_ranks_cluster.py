"""Workers of several ranks in a real cluster: the answers of one process, and lost ranks mended."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.conformance_answers import whole
from support.conformance_table import TABLE
from support.http_client import ask
from support.latent_model import write_latent_model
from support.serving import Serving, children_of, free_port, gone, serving, until

NAMES = (
    "completion, greedy",
    "completion, all filters",
    "completion, logprobs",
    "completion, three choices",
    "completion, shares a long prefix",
)
CONFIG = """
[router]
local_prefill_tokens = 0
control = "tcp://127.0.0.1:PORT"
[worker]
shards = 2
pages = 600
threads = 1
"""
EXPERTS = {
    **{"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 3},
    **{"num_key_value_heads": 2, "head_dim": 32, "norm_topk_prob": True, "rope_scaling": None},
}
LONG = {"prompt": "def total(values):\n", "max_tokens": 160, "ignore_eos": True}

Answers = dict[str, dict[str, Any]]


def answers(cluster: Serving) -> Answers:
    return {name: whole(cluster.url, *TABLE[name]) for name in NAMES}


def long_answers(cluster: Serving) -> list[str]:
    """Several at once, so that every decode worker has some."""
    bodies = [LONG | {"seed": seed} for seed in range(6)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = list(pool.map(lambda body: ask(cluster.url, "/v1/completions", body), bodies))
    assert [status for status, _ in found] == [200] * len(bodies), found
    return [answer["choices"][0]["text"] for _, answer in found]


def written(folder: Path, *workers: str) -> str:
    tables = [f"[[{role}]]\n{keys}" for role, _, keys in (one.partition(":") for one in workers)]
    (folder / "cluster.toml").write_text(
        "\n".join([CONFIG.replace("PORT", str(free_port())), *tables])
    )
    return str(folder / "cluster.toml")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Experts, and key heads that two ranks share out."""
    folder = tmp_path_factory.mktemp("experts")
    return str(write_latent_model(folder, **EXPERTS))


@pytest.fixture(scope="module")
def expected(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, list[str]]:
    """Of one worker that does it all."""
    folder = tmp_path_factory.mktemp("aggregated")
    with serving(model, "--config", written(folder, "aggregated:")) as cluster:
        return answers(cluster), long_answers(cluster)


def test_prefill_on_two_ranks_and_decode_on_one_answer_as_one_worker(
    model: str, expected: tuple[Answers, list[str]], tmp_path: Path
) -> None:
    workers = ("prefill:ranks = 2", "decode:")
    with serving(model, "--config", written(tmp_path, *workers)) as cluster:
        assert answers(cluster) == expected[0]
        classes = {one["numeric_class"] for one in cluster.health()["workers"]}
        assert len(classes) == 1 and "2 shards" in classes.pop()
        assert cluster.total("penstock_flow_pulled_bytes_total") > 0, "no bytes crossed"


@pytest.fixture(scope="module")
def cluster(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """decode-0 has two ranks, decode-1 one; both hold two shards."""
    folder = tmp_path_factory.mktemp("several")
    workers = ("prefill:", "decode:ranks = 2", "decode:")
    with serving(model, "--config", written(folder, *workers)) as running:
        yield running


def well(cluster: Serving) -> bool:
    status, page = ask(cluster.url, "/health")
    return status == 200 and len(page["workers"]) == 3


def started(cluster: Serving, name: str) -> bool:
    lines = [Path(f"/proc/{one}/cmdline") for one in children_of(cluster.process.pid)]
    return any(name in line.read_text().split("\0") for line in lines if line.exists())


def test_decode_on_two_ranks_answers_as_one_worker(
    cluster: Serving, expected: tuple[Answers, list[str]]
) -> None:
    until(lambda: well(cluster), "all is well")
    assert answers(cluster) == expected[0]
    assert long_answers(cluster) == expected[1]
    devices = {one["name"]: one["device"] for one in cluster.health()["workers"]}
    assert devices == {"prefill-0": "cpu", "decode-0": "cpu, 2 ranks", "decode-1": "cpu"}


def test_a_rank_that_dies_takes_its_worker_down_and_it_comes_back(
    cluster: Serving, expected: tuple[Answers, list[str]]
) -> None:
    until(lambda: well(cluster), "all is well")
    leader = cluster.pid_of("decode-0")
    (follower,) = children_of(leader)

    def busy() -> bool:
        held = cluster.metric("penstock_worker_held_pages").items()
        return any(value for name, value in held if "decode-0" in name)

    def named() -> bool:
        words = f"rank 1 (process {follower}) was killed by SIGKILL"
        return any(words in reason for reason in cluster.health()["reasons"])

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(long_answers, cluster)
        until(busy, "decode-0 has requests")
        os.kill(follower, signal.SIGKILL)
        until(named, "the rank is named in /health")
        assert asked.result() == expected[1]
    until(lambda: gone(leader) and well(cluster), "the worker is back")
    assert long_answers(cluster) == expected[1]
    cluster.wait_idle()


def test_a_leader_that_dies_takes_its_followers_along(cluster: Serving) -> None:
    until(lambda: well(cluster), "all is well")
    leader = cluster.pid_of("decode-0")
    (follower,) = children_of(leader)
    os.kill(leader, signal.SIGKILL)
    until(lambda: gone(follower), "the follower is gone")
    until(lambda: gone(leader) and started(cluster, "decode-0"), "it is started again")
    until(lambda: well(cluster), "the worker is back")
