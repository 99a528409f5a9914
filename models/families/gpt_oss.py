"""gpt-oss: sinks, windows in some layers, biases everywhere, experts of a clamped SwiGLU.

The published checkpoints hold the experts in MXFP4; transformers' own hold them in bf16 by the same
names (without `_blocks` and `_scales`).
"""

from dataclasses import replace

from ..blueprint import Blueprint, ExpertNames, Experts, GroupedAttention, Layer
from ..fields import Fields
from ..standard import (
    chosen_experts,
    grouped_attention,
    grouped_pages,
    refuse_unhonoured,
    rope,
    window,
)

EXPERT_NAMES = ExpertNames(
    router="router", gate="experts.gate_up_proj", up="", down="experts.down_proj"
)
WINDOWED, WHOLE = "sliding_attention", "full_attention"


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    bias = fields.flag("attention_bias", True)
    attention = grouped_attention(fields, kv_heads=8, head_size=64, bias=bias, output_bias=bias)
    attention = replace(attention, sinks=True)
    count = fields.integer("num_local_experts", 128)
    experts = Experts(
        count=count,
        chosen=chosen_experts(fields, 4, count),
        size=fields.integer("intermediate_size"),
        normalised=True,
        bias=True,
        activation="clamped",
        alpha=fields.number("swiglu_alpha", 1.702),
        limit=fields.number("swiglu_limit", 7.0),
        stacked=True,
        names=EXPERT_NAMES,
    )
    return Blueprint(
        layers=tuple(Layer(one, experts) for one in _windowed(fields, attention)),
        rope=rope(fields, attention.head_size, theta=150000.0),
        page=grouped_pages(attention),
    )


def _windowed(fields: Fields, attention: GroupedAttention) -> list[GroupedAttention]:
    """Per layer; where config.json does not say, every other one from the first has a window."""
    count = fields.integer("num_hidden_layers")
    kinds = fields.get("layer_types") or ([WINDOWED, WHOLE] * count)[:count]
    if len(kinds) != count or not set(kinds) <= {WINDOWED, WHOLE}:
        raise fields.fail("layer_types", f'"{WINDOWED}" or "{WHOLE}" for each layer is needed')
    narrow = replace(attention, window=window(fields, 128))
    return [narrow if kind == WINDOWED else attention for kind in kinds]
