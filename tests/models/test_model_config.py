"""Reading config.json: both layouts of rope fields, refusals that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.models.blueprint import GroupedAttention, Rope
from penstock.models.config import GenerationDefaults, ModelConfig, read_config
from penstock.models.fields import ModelError

SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def write(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(SMALL | changes))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def attention_of(config: ModelConfig) -> GroupedAttention:
    attention = config.blueprint.layers[0].attention
    assert isinstance(attention, GroupedAttention)
    return attention


def test_plain_values(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    attention = attention_of(config)
    assert (config.hidden, attention.head_size, attention.kv_heads) == (64, 16, 2)
    assert len(config.blueprint.layers) == 2
    assert config.dtype == "bfloat16" and config.end_token_ids == (2,)
    assert config.begin_token_id == 1 and not config.tied
    assert config.blueprint.rope == Rope(size=16)
    assert config.defaults == GenerationDefaults()


def test_defaults_of_absent_fields(tmp_path: Path) -> None:
    write(tmp_path, num_key_value_heads=None, torch_dtype=None, dtype="float32", head_dim=32)
    config = read_config(tmp_path)
    attention = attention_of(config)
    assert attention.kv_heads == 4 and attention.head_size == 32 and config.dtype == "float32"


LINEAR = Rope(size=16, kind="linear", factor=2.0)
STRETCHED = Rope(
    size=16, kind="llama3", theta=9.0, factor=8.0, high_frequency_factor=4.0, original_positions=128
)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(size=16, theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(size=16, theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, LINEAR),
        ({"rope_theta": 9.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, STRETCHED),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 9.0, **LLAMA3}}, STRETCHED),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7}}, Rope(size=16, theta=7.0)),
    ],
)
def test_rope_layouts(tmp_path: Path, changes: dict[str, Any], rope: Rope) -> None:
    assert read_config(write(tmp_path, **changes)).blueprint.rope == rope


def test_generation_config_wins(tmp_path: Path) -> None:
    write(tmp_path, {"eos_token_id": [5, 6], "temperature": 0.6, "top_p": 0.9, "top_k": 50})
    config = read_config(tmp_path)
    assert config.end_token_ids == (5, 6)
    assert config.defaults == GenerationDefaults(temperature=0.6, top_p=0.9, top_k=50)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["architectures", "Mamba", "LlamaForCausalLM"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, ["rope_scaling.type", "dynamic"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["rope_parameters.rope_type", "longrope"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps", "positive number"]),
        ({"sliding_window": 64}, ["sliding_window", "64", "null"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3"]),
        ({"hidden_size": "64"}, ["hidden_size", "positive integer"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"torch_dtype": "float8"}, ["torch_dtype", "float8", "bfloat16"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, changes: dict, words: list[str]) -> None:
    with pytest.raises(ModelError) as refused:
        read_config(write(tmp_path, **changes))
    assert all(word in str(refused.value) for word in [*words, "config.json"])


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_config(tmp_path)
