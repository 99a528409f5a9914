"""Two models behind one router, for real: each with its workers, its tokenizer and its template."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from penstock.models.tokenizer import Tokenizer
from penstock.protocol.config import DEMO_MODEL
from support.byte_tokenizer import END, VOCABULARY, write_tokenizer
from support.http_client import ask
from support.serving import Serving, serving
from support.small_model import CONFIG, write_model

pytestmark = pytest.mark.slow

NORWAY = {"role": "user", "content": "What is the capital of Norway?"}
COUNT = 8
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "eos_token_id": END}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second model: two layers of chance, a token per byte."""
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    return write_model(folder, **SIZES)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Serving]:
    models = ("--model", f"demo={DEMO_MODEL}", "--model", f"bytes={folder}")
    options = ("--threads", "1", "--pages", "512", "--local-prefill-tokens", "0")
    with serving(*models, *options, "--dtype", "float32") as cluster:
        yield cluster


def reference(folder: Path, prompt: list[int]) -> list[int]:
    """The greedy answer of another implementation."""
    model = LlamaForCausalLM(LlamaConfig(**(CONFIG | SIZES))).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(COUNT):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def chat(cluster: Serving, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [NORWAY], "temperature": 0, "max_tokens": COUNT}
    body |= {"ignore_eos": model == "bytes", "return_token_ids": True}
    status, answer = ask(cluster.url, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["model"] == model
    return answer


def test_both_answer_at_the_same_time_each_as_itself(cluster: Serving, folder: Path) -> None:
    prompt = Tokenizer(folder).encode(f"<u>{NORWAY['content']}<a>", False)
    right = reference(folder, prompt)
    asked = ["demo", "bytes"] * 8
    with ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda model: chat(cluster, model), asked))
    for model, answer in zip(asked, answers, strict=True):
        if model == "demo":
            text = answer["choices"][0]["message"]["content"]
            assert text == "The capital of Norway is Oslo."
        else:
            assert answer["usage"]["prompt_tokens"] == len(prompt)
            assert answer["choices"][0]["token_ids"] == right
    cluster.wait_idle()


def test_both_are_listed_and_another_one_is_named_as_missing(cluster: Serving) -> None:
    listed = cluster.get("/v1/models")["data"]
    assert [one["id"] for one in listed] == ["demo", "bytes"]
    assert [one["max_model_len"] for one in listed] == [32768, 2048]
    status, said = ask(cluster.url, "/v1/completions", {"model": "gpt-x", "prompt": "a"})
    assert status == 404 and said["error"] == {
        "message": "the model gpt-x does not exist here; these do: demo, bytes",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_health_and_metrics_tell_them_apart(cluster: Serving) -> None:
    health = cluster.health()
    assert health["status"] == "well" and health["models"] == {"demo": True, "bytes": True}
    assert [one["model"] for one in sorted(health["workers"], key=lambda one: one["name"])] == [
        *("demo", "bytes"),  # decode-0, decode-1
        *("demo", "bytes"),
    ]
    drawn = cluster.metric("vllm:generation_tokens_total")
    assert set(drawn) == {'model_name="demo"', 'model_name="bytes"'}
    assert sum(drawn.values()) == cluster.total("penstock_generated_tokens_total")
