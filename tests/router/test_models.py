"""Several models behind one router: whose tokenizer, whose template, whose workers."""

from typing import Any

import pytest

from penstock.models.chat_template import ChatTemplate
from penstock.protocol.messages import Hello, Sampling, WorkerState
from penstock.router.app import Model
from penstock.router.fleet import Fleet, Worker
from penstock.router.flow_numbers import FlowCounters, FlowSettings
from penstock.router.health import health, ready
from penstock.router.openai_facts import Facts
from penstock.router.placement import InFlight, Progress
from penstock.router.places import Places
from penstock.router.request import Refusal, Submission
from penstock.simulation.cluster import Client
from support.surface import CHAT, END, TEXT, VOCABULARY, ByteTokenizer, Surface, chat, run
from support.workers import worker


class Shouting(ByteTokenizer):
    """Another tokenizer: capitals, and a template of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.upper().encode())


SECOND = Model(Facts(("loud",), 64, VOCABULARY, (END,)), Shouting())


def asked(*requests: tuple[str, dict[str, Any]]):
    """Replies to them, and what reached the flow."""

    async def scenario():
        async with Surface(models=[SECOND]) as surface:
            replies = [await surface.post(path, body) for path, body in requests]
            models = await surface.get("/v1/models")
            page = (await surface.get("/metrics")).body.decode()
            return replies, surface.requests.submissions, models.json(), page

    return run(scenario())


def test_the_model_field_chooses_tokenizer_template_and_workers():
    replies, submissions, _, page = asked(
        (CHAT, chat("hi", model="loud")), (CHAT, chat("hi", model="alias"))
    )
    assert [reply.json()["model"] for reply in replies] == ["loud", "alias"]
    assert [one.model for one in submissions] == ["loud", "tiny"]
    told = [bytes(one.token_ids).decode() for one in submissions]
    assert told == ["[HI]", "<user>hi\n<assistant>"]
    for model, tokens in (("tiny", 20), ("loud", 4)):
        assert f'vllm:prompt_tokens_total{{model_name="{model}"}} {tokens}.0' in page
    assert "penstock_prompt_tokens_total 24.0" in page


def test_each_model_has_its_own_limits():
    replies, _, listed, _ = asked(
        (TEXT, {"model": "loud", "prompt": "x" * 70}), (TEXT, {"model": "tiny", "prompt": "x" * 70})
    )
    assert [reply.status for reply in replies] == [400, 200]
    assert "64 tokens" in replies[0].error()["message"]
    assert {one["id"]: one["max_model_len"] for one in listed["data"]} == {
        "tiny": 4096,
        "alias": 4096,
        "loud": 64,
    }


@pytest.mark.parametrize(
    "body, status, code",
    [({"model": "other"}, 404, "model_not_found"), ({}, 400, None)],
)
def test_an_unknown_or_unsaid_model_is_refused_with_those_there_are(body, status, code):
    (reply,), submissions, _, _ = asked((TEXT, {"prompt": "x", **body}))
    error = reply.error()
    assert (reply.status, error["param"], error["code"]) == (status, "model", code)
    assert error["message"].endswith("tiny, alias, loud") and not submissions


# --- the fleet ------------------------------------------------------------------------------------


def of_model(name: str, role: Any, model: str) -> Worker:
    one = worker(name, role)
    described, kind = one.description, one.description.compatibility
    other = type(kind)(1, f"weights of {model}", "c", "bf16", "layout", 1, "shm")
    changed = type(described)(role, model, other, 16, 1000, 1 << 20, "k", "cpu", 1)
    one.description = changed
    return one


def joined(fleet: Fleet, *workers: Worker) -> list[bool]:
    return [
        fleet.hello(one.peer, Hello(one.description, WorkerState(), []), 0.0) for one in workers
    ]


def two_models() -> Fleet:
    fleet = Fleet(5.0, models=("a", "b"))
    workers = [
        of_model(f"{role}-{model}", role, model)
        for model in ("a", "b")
        for role in ("prefill", "decode")
    ]
    assert all(joined(fleet, *workers))
    return fleet


def in_flight(model: str) -> InFlight:
    submission = Submission(model, list(range(100)), 1, Sampling(1))
    return InFlight(1, submission, Client(1), [Progress()])


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_request_goes_to_workers_of_its_model_alone(model):
    places = Places(two_models(), FlowSettings(0), FlowCounters())
    flight = in_flight(model)
    route = places.find(flight, flight.submission.token_ids)
    assert route is not None
    assert (route.prefill, route.decode) == (f"tcp://prefill-{model}", f"tcp://decode-{model}")


def test_without_workers_of_its_model_there_is_no_route_and_the_sentence_names_it():
    fleet = two_models()
    fleet.lost("tcp://prefill-b", 0.0)
    places = Places(fleet, FlowSettings(0), FlowCounters())
    assert places.find(in_flight("b"), list(range(100))) is None
    assert places.find(in_flight("a"), list(range(100))) is not None
    assert places.why_none("b").startswith("no route for b: only decode workers are usable")
    able, page = ready(fleet)
    assert able and page["models"] == {"a": True, "b": False}, "a is not taken down by b"
    well, page = health(fleet, 0.0, {})
    assert not well and page["reasons"] == [
        "b: a prefill and a decode worker (or an aggregated one) are needed; usable are: "
        "{'decode': 1}"
    ]


def test_a_worker_of_a_model_that_is_not_served_is_not_used():
    fleet = two_models()
    assert joined(fleet, of_model("x", "decode", "c")) == [False]
    said = fleet.misfits["tcp://x"].reason
    assert said == "model is 'c', and this router serves a, b"


def test_workers_must_agree_within_their_model_only():
    fleet = two_models()
    odd = of_model("odd", "decode", "a")
    odd.description = type(odd.description)(
        "decode", "a", worker("w", "decode").description.compatibility, 16, 9, 9, "k", "cpu", 1
    )
    assert joined(fleet, odd) == [False]
    fleet.lost("tcp://prefill-b", 0.0)
    fleet.lost("tcp://decode-b", 0.0)
    assert "tcp://odd" in fleet.misfits, "those it differs from are still there"
    fleet.lost("tcp://prefill-a", 0.0)
    fleet.lost("tcp://decode-a", 0.0)
    assert not fleet.misfits


def test_the_workers_memory_bounds_a_request_by_its_own_model():
    fleet = two_models()
    small = of_model("small", "decode", "b")
    small.description = type(small.description)(
        "decode", "b", small.description.compatibility, 16, 2, 32, "k", "cpu", 1
    )
    fleet.lost("tcp://decode-b", 0.0)
    assert joined(fleet, small) == [True]
    places = Places(fleet, FlowSettings(0), FlowCounters())
    places.bounded(in_flight("a").submission)
    with pytest.raises(Refusal, match="holds 32 tokens"):
        places.bounded(in_flight("b").submission)
