"""What generation_config.json says is taken where the client says nothing, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.models.config import GenerationDefaults, ModelConfig, read_config
from penstock.models.fields import ModelError
from support.small_model import CONFIG


def read(folder: Path, **generation: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"dtype": "float32"}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config(folder)


def test_values_of_published_models(tmp_path: Path) -> None:
    llama = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 8, 9]}
    config = read(tmp_path, bos_token_id=3, **llama)
    assert config.defaults == GenerationDefaults(temperature=0.6, top_p=0.9)
    assert config.end_token_ids == (1, 8, 9)
    qwen = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "min_p": 0}
    config = read(tmp_path, do_sample=True, eos_token_id=5, pad_token_id=7, **qwen)
    assert config.defaults == GenerationDefaults(0.6, 0.95, 20, 0, 1.05)
    assert config.end_token_ids == (5,)


def test_what_is_null_or_off_or_greedy(tmp_path: Path) -> None:
    config = read(tmp_path, do_sample=False, top_k=None, temperature=None, max_new_tokens=2048)
    assert config.defaults == GenerationDefaults() and config.end_token_ids == (2,)
    assert read(tmp_path, top_k=-1).defaults.top_k == 0
    assert read(tmp_path, top_k=0, temperature=0).defaults == GenerationDefaults(0, top_k=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "warm"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 2.5),
        ("min_p", True),
        ("repetition_penalty", 0),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"generation_config\.json: {name} is "):
        read(tmp_path, **{name: value})
