"""A small random checkpoint in the shape of DeepSeek-V3, with the demo model's tokenizer."""

import shutil
from pathlib import Path
from typing import Any

from .small_model import write_model

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "checkpoint"

SIZES: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 8192,
    "rope_scaling": {
        **{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        **{"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 5,
}


def write_latent_model(folder: Path, dtype: str = "bfloat16", **changes: Any) -> Path:
    write_model(folder, dtype, **(SIZES | changes))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder
