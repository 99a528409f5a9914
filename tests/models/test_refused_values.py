"""Values of config.json that would change the numbers: honoured, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.models.blueprint import GroupedAttention
from penstock.models.config import FAMILIES, read_config
from penstock.models.fields import ModelError
from penstock.models.standard import NEUTRAL

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
QWEN = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


def write(folder: Path, architecture: str, **changes: Any) -> Path:
    values = SMALL | {"architectures": [architecture]} | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def windows(folder: Path, architecture: str, **changes: Any) -> list[int]:
    config = read_config(write(folder, architecture, **changes))
    plans = [layer.attention for layer in config.blueprint.layers]
    return [plan.window for plan in plans if isinstance(plan, GroupedAttention)]


def refusal(folder: Path, architecture: str, **changes: Any) -> str:
    with pytest.raises(ModelError) as refused:
        read_config(write(folder, architecture, **changes))
    return str(refused.value)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_refuses_what_changes_numbers(tmp_path: Path, architecture: str) -> None:
    for name in NEUTRAL:
        text = refusal(tmp_path, architecture, **{name: 0.37})
        assert f"config.json: {name} is 0.37" in text and "null can be served" in text


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_reads_what_leaves_numbers_alone(tmp_path: Path, architecture: str) -> None:
    for name, neutral in NEUTRAL.items():
        for value in (None, *neutral):
            read_config(write(tmp_path, architecture, **{name: value}))


def test_mistral_sees_a_window_everywhere(tmp_path: Path) -> None:
    def of(**changes: Any) -> list[int]:
        return windows(tmp_path, "MistralForCausalLM", **changes)

    assert of(sliding_window=64) == [64] * 4
    assert of(sliding_window=None) == [0] * 4
    assert of(sliding_window=512) == [0] * 4  # the whole context
    assert of(max_position_embeddings=8192) == [4096] * 4  # absent: the default of its code
    text = refusal(tmp_path, "MistralForCausalLM", layer_types=["full_attention"] * 4)
    assert "layer_types" in text


@pytest.mark.parametrize("architecture", QWEN)
def test_qwen_sees_a_window_in_the_upper_layers(tmp_path: Path, architecture: str) -> None:
    def of(**changes: Any) -> list[int]:
        return windows(tmp_path, architecture, **changes)

    used = {"use_sliding_window": True, "sliding_window": 64}
    assert of(sliding_window=64) == [0] * 4  # not used
    assert of(**used) == [0] * 4  # max_window_layers: 28
    assert of(**used, max_window_layers=1) == [0, 64, 64, 64]
    assert of(**used, max_window_layers=0) == [64] * 4
    kinds = ["sliding_attention", "full_attention"] * 2
    assert of(**used, layer_types=kinds) == [64, 0, 64, 0]
    assert of(use_sliding_window=True, sliding_window=None, layer_types=kinds) == [0] * 4
    for wrong in ({"layer_types": kinds}, {**used, "layer_types": kinds[:2]}):
        assert "layer_types" in refusal(tmp_path, architecture, **wrong)
    text = refusal(tmp_path, architecture, **used, layer_types=["chunked_attention"] * 4)
    assert "chunked_attention" in text and "full_attention or sliding_attention" in text


def test_llama_has_no_window(tmp_path: Path) -> None:
    text = refusal(tmp_path, "LlamaForCausalLM", sliding_window=64)
    assert "sliding_window is 64" in text


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e6}}, "full_attention"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"rope_type": "dynamic", "factor": 8.0}, "rope_type"),
    ],
)
def test_rotary_embeddings_that_are_refused(tmp_path: Path, values: Any, name: str) -> None:
    text = refusal(tmp_path, "LlamaForCausalLM", rope_parameters=values)
    assert f"rope_parameters.{name}" in text


@pytest.mark.parametrize("architecture", FAMILIES)
def test_part_of_a_head_is_not_rotated(tmp_path: Path, architecture: str) -> None:
    values = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    text = refusal(tmp_path, architecture, rope_parameters=values)
    assert "rope_parameters.partial_rotary_factor" in text
