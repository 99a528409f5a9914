"""Small random checkpoints of every family, made and saved by transformers, our reference.

A new family is one line of FAMILIES. Nothing is downloaded. transformers is imported when it is
needed, and only here and in the tests.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    # No token ends an answer, and none is padding (padding's embedding would be zero).
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Mixtures of experts: sizes of their own names, some experts more than are chosen.
DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
}
QWEN3_MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


@dataclass(frozen=True, slots=True)
class Family:
    """`model`: transformers' class, less ForCausalLM; `sizes`: what differs from SIZES."""

    model: str
    sizes: dict[str, Any]


def family(model: str, **sizes: Any) -> Family:
    return Family(model, sizes)


FAMILIES: dict[str, Family] = {
    "Llama 3": family("Llama", rope_parameters=LLAMA3),
    "Llama 3.2 (tied)": family("Llama", rope_parameters=LLAMA3, tie_word_embeddings=True),
    "Llama (linear rope, biases)": family(
        "Llama", rope_parameters=LINEAR, attention_bias=True, mlp_bias=True
    ),
    "Mistral": family("Mistral", sliding_window=None, head_dim=32),
    "Mistral (window)": family("Mistral", sliding_window=24),
    "Qwen2.5": family("Qwen2"),
    "Qwen2.5 (YaRN, window)": family(
        "Qwen2",
        rope_parameters=YARN,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
    ),
    "Qwen3": family("Qwen3", head_dim=32),
    "Mixtral": family("Mixtral", num_local_experts=4),
    "Qwen3-MoE": family("Qwen3Moe", **QWEN3_MOE, head_dim=32, norm_topk_prob=True),
    "Qwen3-MoE (some layers dense)": family(
        "Qwen3Moe", **QWEN3_MOE, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[1]
    ),
    "DeepSeek-V3 (YaRN)": family(
        "DeepseekV3", **DEEPSEEK, rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}
    ),
    "Kimi-K2 (one group, YaRN)": family(
        "DeepseekV3",
        **DEEPSEEK | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827},
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "DeepSeek (whole query, two shared)": family(
        "DeepseekV3", **DEEPSEEK | {"q_lora_rank": None, "n_shared_experts": 2}
    ),
    "gpt-oss (window)": family(
        "GptOss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=24,
        rope_parameters=YARN | {"truncate": False},
    ),
}


class NoReference(Exception):
    """transformers is not installed."""


def write(name: str, folder: Path) -> Any:
    """Save a random fp32 checkpoint of this family; return transformers' model of it."""
    made = FAMILIES[name]
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise NoReference(
            "parity is measured against transformers, which is not installed; "
            "install the project with its extra: dev"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, f"{made.model}Config")(**(SIZES | made.sizes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{made.model}ForCausalLM")(config).eval()
    _disturb(model)
    model.save_pretrained(folder)
    return model


def _disturb(model: Any) -> None:
    """Norms, biases and the like start as ones and zeros, where a mistake would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("bias"):
                parameter.normal_(0.5, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.normal_(0.0, 0.3)
