"""Checkpoints to measure with: the demo model, and random weights in a published shape."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...models.config import read_config
from ...models.decoder import Decoder
from ...protocol.config import DEMO_MODEL

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
SHAPES: dict[str, dict[str, Any] | None] = {"demo": None, "qwen3-0.6b": QWEN3_06B}


def checkpoint(name: str, folder: Path) -> tuple[Path, int]:
    """The folder to serve from, and the vocabulary; random weights are written into `folder`."""
    config = SHAPES[name]
    if config is None:
        return DEMO_MODEL, read_config(DEMO_MODEL).vocabulary
    return write_random(folder, config), config["vocab_size"]


def write_random(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint of this config.json whose bf16 weights depend on nothing but their shapes."""
    (folder / "config.json").write_text(json.dumps(config))
    chance = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in Decoder.shapes(read_config(folder)).items():
        tensor = torch.randn(shape, generator=chance) * 0.02
        tensors[name] = (1 + tensor if len(shape) == 1 else tensor).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
