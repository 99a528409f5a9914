"""Small random Llamas written as ordinary checkpoints, and sequences to run on them."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from penstock.engine.sequence import Sequence
from penstock.models.config import read_config
from penstock.models.decoder import Decoder
from penstock.protocol.messages import Peer, Prefill, Sampling

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}

_requests = count(1)


def write_model(folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """A checkpoint whose weights depend on nothing but the sizes."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"dtype": dtype} | changes))
    chance = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in Decoder.shapes(read_config(folder)).items():
        normal = 0.2 * torch.randn(shape, generator=chance)
        tensor = 1 + normal if "norm" in name else normal
        tensors[name] = tensor.to(getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors")
    return folder


def make_sequence(
    token_ids: list[int],
    prompt_length: int | None = None,
    pages: list[int] | None = None,
    **sampling: Any,
) -> Sequence:
    """A sequence of a request of its own."""
    settings: dict[str, Any] = {"seed": 1} | sampling
    boundary = len(token_ids) if prompt_length is None else prompt_length
    prefill = Prefill(
        request=next(_requests),
        attempt=1,
        router=Peer("router", 1, "inproc://router"),
        model="small",
        cache_salt="",
        token_ids=list(token_ids),
        prompt_length=boundary,
        choices=[0],
        sampling=Sampling(**settings),
    )
    return Sequence(prefill, [0], list(token_ids), pages=list(pages or []))
