"""The config.json of published checkpoints, as they are: read, and the parameters counted."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from penstock.models.blueprint import Dense, GroupedAttention, Rope
from penstock.models.config import ModelConfig, read_config
from penstock.models.decoder import Decoder

LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_3_2_1B = LLAMA_3_1_8B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": LLAMA_3_1_8B["rope_scaling"] | {"factor": 32.0},
    "tie_word_embeddings": True,
    "transformers_version": "4.45.0.dev0",
}
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}
QWEN2_5_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_8B = QWEN3_0_6B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_window_layers": 36,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "tie_word_embeddings": False,
}
# What the authors say of a checkpoint's parameters, to the last one.
PARAMETERS = {
    "Llama-3.1-8B": (LLAMA_3_1_8B, 8_030_261_248),
    "Llama-3.2-1B": (LLAMA_3_2_1B, 1_235_814_400),
    "Mistral-7B-v0.3": (MISTRAL_7B, 7_248_023_552),
    "Qwen2.5-7B": (QWEN2_5_7B, 7_615_616_512),
    "Qwen3-0.6B": (QWEN3_0_6B, 596_049_920),
    "Qwen3-8B": (QWEN3_8B, 8_190_735_360),
}


def read(folder: Path, values: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)


def newer(values: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 5 saves it: dtype, and rope_parameters with theta inside."""
    moved = dict(values)
    theta, scaling = moved.pop("rope_theta"), moved.pop("rope_scaling", None)
    moved["rope_parameters"] = {"rope_type": "default", "rope_theta": theta} | (scaling or {})
    moved["dtype"] = moved.pop("torch_dtype")
    if values["model_type"].startswith("qwen"):
        moved["sliding_window"] = None
        moved["layer_types"] = ["full_attention"] * moved["num_hidden_layers"]
    return moved


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_checkpoints_have_their_parameters(tmp_path: Path, name: str) -> None:
    values, parameters = PARAMETERS[name]
    config = read(tmp_path, values)
    assert sum(map(prod, Decoder.shapes(config).values())) == parameters
    assert config.dtype == "bfloat16" and config.norm_epsilon == values["rms_norm_eps"]
    assert config.context_length == values["max_position_embeddings"]
    assert config.end_token_ids == (values["eos_token_id"],)
    assert read(tmp_path, newer(values)) == config


def test_llama_3_1_whole(tmp_path: Path) -> None:
    blueprint = read(tmp_path, LLAMA_3_1_8B).blueprint
    assert len(blueprint.layers) == 32 and len(set(blueprint.layers)) == 1
    assert blueprint.layers[0].feed_forward == Dense(size=14336)
    assert blueprint.layers[0].attention == GroupedAttention(
        query_heads=32, kv_heads=8, head_size=128, scale=128**-0.5
    )
    assert blueprint.rope == Rope(
        size=128,
        kind="llama3",
        theta=500000.0,
        factor=8.0,
        low_frequency_factor=1.0,
        high_frequency_factor=4.0,
        original_positions=8192,
    )
    assert (blueprint.page.sides, blueprint.page.groups, blueprint.page.head) == (2, 8, 128)


def test_what_tells_the_families_apart(tmp_path: Path) -> None:
    def attention(values: dict[str, Any]) -> GroupedAttention:
        (found,) = {layer.attention for layer in read(tmp_path, values).blueprint.layers}
        assert isinstance(found, GroupedAttention)
        return found

    mistral, qwen2, qwen3 = map(attention, (MISTRAL_7B, QWEN2_5_7B, QWEN3_0_6B))
    assert not mistral.bias and not mistral.head_norm and mistral.window == 0
    assert qwen2.bias and not qwen2.output_bias and not qwen2.head_norm and qwen2.window == 0
    assert qwen3.head_norm and not qwen3.bias and not qwen3.output_bias
    assert qwen3.head_size == 128 and qwen3.query_heads * qwen3.head_size == 2048


def test_defaults_of_the_families_own_code(tmp_path: Path) -> None:
    """transformers leaves a field out of config.json where it has the class's default."""

    def without(values: dict[str, Any], *names: str) -> ModelConfig:
        return read(tmp_path, {key: one for key, one in values.items() if key not in names})

    assert without(MISTRAL_7B, "sliding_window").blueprint.layers[0].attention == GroupedAttention(
        query_heads=32, kv_heads=8, head_size=128, scale=128**-0.5, window=4096
    )
    assert without(MISTRAL_7B, "num_key_value_heads").blueprint.page.groups == 8
    assert without(QWEN3_0_6B, "head_dim").blueprint.page.head == 128
    assert read(tmp_path, MISTRAL_7B | {"num_key_value_heads": None}).blueprint.page.groups == 32
