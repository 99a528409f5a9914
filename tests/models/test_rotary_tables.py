"""Rotary tables equal transformers' for every kind of stretching, published values among them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from penstock.models.config import read_config
from penstock.models.rotary import rotary

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
    "llama 3.1": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "qwen yarn": YARN | {"original_max_position_embeddings": 32768},
    "yarn by default from the whole context": YARN,
    "yarn, given attention factor": YARN | {"attention_factor": 1.25, "beta_fast": 16},
    "deepseek yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "gpt-oss yarn": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_tables_equal_transformers(tmp_path: Path, kind: str) -> None:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=65536,
        rope_parameters=dict(KINDS[kind]),
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    positions = torch.tensor([0, 1, 17, 4095, 8192, 40000, 65535])
    cosine, sine = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    tables = rotary(read_config(tmp_path).blueprint.rope, 65536)
    # The angle is a product in fp32 of up to 65535 radians: its last place is 1/256.
    assert torch.allclose(tables.cosine_MX2[positions], cosine[0, :, :64], atol=0.02)
    assert torch.allclose(tables.sine_MX2[positions], sine[0, :, :64], atol=0.02)
    few = positions < 100
    assert torch.allclose(tables.cosine_MX2[positions][few], cosine[0, few, :64], atol=2e-6)
    assert torch.allclose(tables.sine_MX2[positions][few], sine[0, few, :64], atol=2e-6)


def test_yarn_may_stretch_beyond_the_stated_context(tmp_path: Path) -> None:
    """As Qwen tells its users to write it: max_position_embeddings stays what it was."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    values = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "rope_scaling": scaling,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path).context_length == 131072
