"""Qwen3-MoE: Qwen3's decoder with experts in all layers but those that config.json leaves dense."""

from ..blueprint import Blueprint, Experts, Layer
from ..fields import Fields
from ..standard import (
    chosen_experts,
    dense,
    grouped_attention,
    grouped_pages,
    refuse_unhonoured,
    rope,
)


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    fields.only("use_sliding_window", False)
    bias = fields.flag("attention_bias")
    attention = grouped_attention(fields, kv_heads=4, bias=bias, output_bias=bias, head_norm=True)
    # Published as num_experts; transformers 5 writes num_local_experts.
    name = "num_experts" if fields.get("num_experts") is not None else "num_local_experts"
    count = fields.integer(name, 128)
    experts = Experts(
        count=count,
        chosen=chosen_experts(fields, 8, count),
        size=fields.integer("moe_intermediate_size", 768),
        normalised=fields.flag("norm_topk_prob"),
    )
    plain = dense(fields)
    step = fields.integer("decoder_sparse_step", 1)
    only_dense = _layer_numbers(fields, "mlp_only_layers")
    return Blueprint(
        layers=tuple(
            Layer(attention, plain if at in only_dense or (at + 1) % step else experts)
            for at in range(fields.integer("num_hidden_layers"))
        ),
        rope=rope(fields, attention.head_size),
        page=grouped_pages(attention),
    )


def _layer_numbers(fields: Fields, name: str) -> frozenset[int]:
    value = fields.get(name) or []
    if not isinstance(value, list) or any(not isinstance(one, int) for one in value):
        raise fields.fail(name, "a list of layer numbers is needed")
    return frozenset(value)
