"""The engine's benchmark: one real run beside a real peer, and its checkpoints."""

import json
import sys
from pathlib import Path

import pytest
import torch

from penstock.bench import engine
from penstock.bench.contenders.contender import ContenderError, Work
from penstock.bench.contenders.peers import peer
from penstock.bench.contenders.shapes import QWEN3_06B, write_random
from penstock.kernels.choice import choose
from penstock.models.registry import load_model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
RUN = ["--shapes", "demo", "--rounds", "1", "--threads", "1", "--batches", "2", "--prompts", "64"]


def test_one_run_beside_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DECODED", 4)
    file = tmp_path / "engine.json"
    assert engine.main([*RUN, "--transformers", "--profile", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "demo: decode" in said and "demo: prefill" in said and "not hidden per step" in said
    rounds = json.loads(file.read_text())["rounds"]
    assert {(one["who"], one["what"]) for one in rounds} == {
        (who, what) for who in ("penstock", "transformers") for what in ("decode 2", "prefill 64")
    }
    assert all(one["seconds"] > 0 and one["cpu"] > 0 for one in rounds)


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ContenderError, match="(?s)transformers ended with 1.*Error"):
        with peer("transformers", sys.executable, tmp_path / "nothing", 1) as one:
            one.run(Work(1, 4, 1, 100, 0))


def test_random_checkpoints_are_read_as_what_they_are(tmp_path: Path) -> None:
    config = QWEN3_06B | SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}
    loaded = load_model(write_random(tmp_path, config), choose("cpu"), torch.bfloat16)
    assert loaded.config.architecture == "Qwen3ForCausalLM"
    assert loaded.config.vocabulary == 128


def test_goals_are_of_what_is_measured() -> None:
    default = engine._options([])
    asked = {f"decode {batch}" for batch in default.batches}
    asked |= {f"prefill {prompt}" for prompt in default.prompts}
    assert set(engine.GOALS) == {(shape, what) for shape in default.shapes for what in asked}
