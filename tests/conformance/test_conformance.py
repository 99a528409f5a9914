"""Rule 1: one process, prefill and decode apart, any plane, any company: the same tokens.

The numeric class that makes this exact on CPU is the default one (docs/numerics.md): packed bf16
linears whose rows do not depend on each other, and attention in a fixed order of its own.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from support.conformance_answers import (
    alone,
    alone_streamed,
    among_others,
    whole,
    without_logprobs,
)
from support.conformance_table import TABLE
from support.serving import Serving, serving

LAYOUTS: dict[str, list[str]] = {
    "1P+1D over nixl": ["--kv-transport", "nixl", "--local-prefill-tokens", "0"],
    "1P+1D over zmq": ["--kv-transport", "zmq", "--local-prefill-tokens", "0"],
    "1P+1D over tcp": ["--kv-transport", "tcp", "--local-prefill-tokens", "0"],
    "1P+1D over shm": ["--kv-transport", "shm", "--local-prefill-tokens", "0"],
    "2P+2D, checked": [
        *("--prefill", "2", "--decode", "2", "--local-prefill-tokens", "0", "--kv-checked")
    ],
    "1P+1D, default threshold": [],
}
MEMORY = ["--pages", "2000"]


@pytest.fixture(scope="module")
def reference() -> Iterator[dict[str, Any]]:
    """The answers of one process."""
    with serving("--aggregated", *MEMORY) as cluster:
        answers = alone(cluster.url)
        yield answers
        check_company(cluster, answers)


def check_company(cluster: Serving, reference: dict[str, Any]) -> None:
    """Again (now from a warm cache), as streams, and among 16 others."""
    for name, answer in among_others(cluster.url).items():
        assert answer == reference[name], f"{name}, among others"
    for name, answer in alone_streamed(cluster.url).items():
        assert without_logprobs(answer) == without_logprobs(reference[name]), f"{name}, streamed"


def test_the_table_is_worth_asking(reference):
    """Answers are long enough, differ, and use what they ask for."""
    assert len({str(answer) for answer in reference.values()}) > len(TABLE) - 3
    finishes = {
        one["finish"] for answer in reference.values() for one in answer["choices"].values()
    }
    assert finishes == {"stop", "length"}
    assert max(answer["usage"]["prompt_tokens"] for answer in reference.values()) > 1024
    choices = reference["completion, three choices"]["choices"].values()
    assert len({one["text"] for one in choices}) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_answers(layout, reference):
    with serving(*LAYOUTS[layout], *MEMORY) as cluster:
        for name, answer in alone(cluster.url).items():
            assert answer == reference[name], name
        check_company(cluster, reference)
        crossed = cluster.total("penstock_flow_pulled_bytes_total")
        decisions = cluster.metric("penstock_routing_decisions_total")
        assert crossed > 0, "no bytes crossed"
        if "--local-prefill-tokens" in LAYOUTS[layout]:
            assert decisions['path="local"'] == 0
        else:
            assert decisions['path="local"'] > 0 and decisions['path="remote"'] > 0
        assert cluster.total("penstock_alarms_total") == 0
        cluster.wait_idle()


def test_float32_is_exact_too():
    """The other dtype of the CPU: a few requests of each kind, one process against two."""
    names = [name for name in TABLE if "long" in name or "seeded" in name or "all filters" in name]
    answers = []
    for layout in (["--aggregated"], ["--kv-transport", "zmq", "--local-prefill-tokens", "0"]):
        with serving("--dtype", "float32", *layout, *MEMORY) as cluster:
            assert "float32" in cluster.health()["workers"][0]["numeric_class"]
            answers.append({name: whole(cluster.url, *TABLE[name]) for name in names})
            answers.append(among_others(cluster.url, names))
    assert len(names) >= 6
    assert all(answer == answers[0] for answer in answers[1:])
