"""Rule 1 on a model with latent attention and experts: one process, and prefill and decode apart.

A page is one compressed vector per token, and every token goes its own way through the experts; the
answers must be those of one process all the same, alone and in company.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from support.conformance_answers import among_others, whole
from support.conformance_table import TABLE
from support.latent_model import write_latent_model
from support.serving import Serving, serving

NAMES = (
    "completion, greedy",
    "completion, one token of answer",
    "completion, all filters",
    "completion, logprobs",
    "completion, three choices",
    "completion, long, seeded, three choices",
    "completion, shares a long prefix",
    "chat, seeded",
)
LAYOUTS = {
    "1P+1D over nixl": ("--kv-transport", "nixl", "--local-prefill-tokens", "0"),
    "1P+1D over shm": ("--kv-transport", "shm", "--local-prefill-tokens", "0"),
}
MEMORY = ("--pages", "800")

Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_latent_model(tmp_path_factory.mktemp("latent")))


def alone(cluster: Serving) -> Answers:
    return {name: whole(cluster.url, *TABLE[name]) for name in NAMES}


def check_company(cluster: Serving, reference: Answers) -> None:
    for name, answer in among_others(cluster.url, NAMES).items():
        assert answer == reference[name], f"{name}, among others"


@pytest.fixture(scope="module")
def reference(model: str) -> Iterator[Answers]:
    with serving(model, "--aggregated", *MEMORY) as cluster:
        answers = alone(cluster)
        yield answers
        check_company(cluster, answers)


def test_the_requests_are_worth_asking(reference: Answers) -> None:
    assert len({str(answer) for answer in reference.values()}) == len(NAMES)
    assert max(answer["usage"]["prompt_tokens"] for answer in reference.values()) > 1024
    greedy = reference["completion, greedy"]["choices"][0]["tokens"]
    assert len(set(greedy)) > 4, "a model that repeats itself shows little"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_answers(layout: str, model: str, reference: Answers) -> None:
    with serving(model, *LAYOUTS[layout], *MEMORY) as cluster:
        for name, answer in alone(cluster).items():
            assert answer == reference[name], name
        check_company(cluster, reference)
        assert cluster.total("penstock_flow_pulled_bytes_total") > 0, "no bytes crossed"
        assert cluster.total("penstock_alarms_total") == 0
        cluster.wait_idle()
