"""Mixtral: Mistral's decoder with a mixture of experts in every layer."""

from dataclasses import replace

from ..blueprint import Blueprint, ExpertNames, Experts, Layer, Names
from ..fields import Fields
from ..standard import (
    chosen_experts,
    grouped_attention,
    grouped_pages,
    refuse_unhonoured,
    rope,
    uniform,
    window,
)

NAMES = Names(feed_forward="block_sparse_moe")
EXPERT_NAMES = ExpertNames(gate="experts.{}.w1", up="experts.{}.w3", down="experts.{}.w2")


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    attention = replace(grouped_attention(fields, kv_heads=8), window=window(fields, 0))
    count = fields.integer("num_local_experts", 8)
    experts = Experts(
        count=count,
        chosen=chosen_experts(fields, 2, count),
        size=fields.integer("intermediate_size"),
        normalised=True,
        names=EXPERT_NAMES,
    )
    return Blueprint(
        layers=uniform(fields, Layer(attention, experts)),
        rope=rope(fields, attention.head_size, theta=1e6),
        page=grouped_pages(attention),
        names=NAMES,
    )
