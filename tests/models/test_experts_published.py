"""The config.json of published mixtures of experts, as they are: read, and parameters counted."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from penstock.models.blueprint import Experts, GroupedAttention, LatentAttention
from penstock.models.config import ModelConfig, read_config
from penstock.models.decoder import Decoder
from penstock.models.fields import ModelError
from penstock.models.mtp import AheadLayer

COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
MIXTRAL_8X7B = COMMON | {
    "architectures": ["MixtralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32000,
}
QWEN3_30B_A3B = COMMON | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
YARN_40: dict[str, Any] = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
DEEPSEEK_V3 = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        **{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"},
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN_40,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
KIMI_K2 = DEEPSEEK_V3 | {
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": YARN_40 | {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}
GPT_OSS_20B = COMMON | {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        **{"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn"},
        **{"original_max_position_embeddings": 4096, "truncate": False},
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}
# To the last one where the authors (or the hub's count of the tensors) say so.
PARAMETERS = {
    "Mixtral-8x7B": (MIXTRAL_8X7B, 46_702_792_704),
    "Qwen3-30B-A3B": (QWEN3_30B_A3B, 30_532_122_624),
    "DeepSeek-V3": (DEEPSEEK_V3, 671_026_419_200),
    "Kimi-K2": (KIMI_K2, 1_026_408_232_448),
    "gpt-oss-20b": (GPT_OSS_20B, 20_914_757_184),
}


def read(folder: Path, values: dict[str, Any], **changes: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values | changes))
    return read_config(folder)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_checkpoints_have_their_parameters(tmp_path: Path, name: str) -> None:
    values, parameters = PARAMETERS[name]
    config = read(tmp_path, values)
    assert sum(map(prod, Decoder.shapes(config).values())) == parameters
    assert config.context_length == values["max_position_embeddings"]


def test_deepseek_whole(tmp_path: Path) -> None:
    config = read(tmp_path, DEEPSEEK_V3)
    blueprint = config.blueprint
    dense, experts = blueprint.layers[2], blueprint.layers[3]
    assert {type(layer.feed_forward).__name__ for layer in blueprint.layers[:3]} == {"Dense"}
    assert set(blueprint.layers[3:]) == {experts} and dense.attention == experts.attention
    magnitude = 1.3688879454113936  # 0.1 ln 40 + 1
    assert isinstance(experts.attention, LatentAttention)
    assert experts.attention.scale == pytest.approx(192**-0.5 * magnitude**2)
    assert experts.attention == LatentAttention(
        query_heads=128,
        query_rank=1536,
        kv_rank=512,
        plain_size=128,
        rotary_size=64,
        value_size=128,
        scale=experts.attention.scale,
    )
    assert experts.feed_forward == Experts(
        **{"count": 256, "chosen": 8, "size": 2048, "shared_size": 2048, "scoring": "sigmoid"},
        **{"normalised": True, "scale": 2.5, "groups": 8, "chosen_groups": 4},
        correction=True,
    )
    assert (blueprint.page.sides, blueprint.page.groups, blueprint.page.head) == (1, 1, 576)
    assert blueprint.rope.interleaved and blueprint.rope.attention_factor == 1.0


def test_the_module_behind_the_last_layer_is_planned_and_not_unexpected(tmp_path: Path) -> None:
    config = read(tmp_path, DEEPSEEK_V3)
    assert config.blueprint.ahead == (config.blueprint.layers[-1],)
    assert config.blueprint.ignored == ("model.layers.61.",)
    # Section 2.2 and 4.2 of the report: 14B, embedding and head of the main model among them.
    shared = 2 * config.vocabulary * config.hidden
    own = sum(map(prod, AheadLayer.shapes(config).values()))
    assert 13.0e9 < own + shared < 14.5e9
    assert read(tmp_path, KIMI_K2).blueprint.ahead == ()


def test_gpt_oss_windows_alternate(tmp_path: Path) -> None:
    for changes in ({}, {"layer_types": None}):
        plans = [
            layer.attention for layer in read(tmp_path, GPT_OSS_20B, **changes).blueprint.layers
        ]
        assert all(isinstance(plan, GroupedAttention) and plan.sinks for plan in plans)
        windows = [plan.window for plan in plans if isinstance(plan, GroupedAttention)]
        assert windows == [128, 0] * 12


@pytest.mark.parametrize(
    ("values", "changes", "sentence"),
    [
        (DEEPSEEK_V3, {"scoring_func": "softmax"}, "scoring_func"),
        (DEEPSEEK_V3, {"topk_method": "greedy"}, "topk_method"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK_V3, {"n_group": 7}, "n_group is 7"),
        (DEEPSEEK_V3, {"topk_group": 9}, "topk_group is 9"),
        (DEEPSEEK_V3, {"topk_group": 1, "num_experts_per_tok": 33}, "num_experts_per_tok is 33"),
        (DEEPSEEK_V3, {"q_lora_rank": None, "attention_bias": True}, "attention_bias"),
        (QWEN3_30B_A3B, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN3_30B_A3B, {"mlp_only_layers": "all"}, "mlp_only_layers"),
        (QWEN3_30B_A3B, {"num_experts_per_tok": 129}, "num_experts_per_tok is 129"),
        (MIXTRAL_8X7B, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        (GPT_OSS_20B, {"layer_types": ["full_attention"]}, "layer_types"),
        (GPT_OSS_20B, {"layer_types": ["chunked_attention"] * 24}, "layer_types"),
        (GPT_OSS_20B, {"num_experts_per_tok": 33}, "num_experts_per_tok is 33"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        read(tmp_path, values, **changes)
