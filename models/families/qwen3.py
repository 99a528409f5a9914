"""Qwen3: q and k are normed per head, biases only where config.json asks for them."""

from ..blueprint import Blueprint
from ..fields import Fields
from ..standard import dense, grouped_attention, refuse_unhonoured, windowed_blueprint


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    bias = fields.flag("attention_bias")
    attention = grouped_attention(
        fields, kv_heads=32, head_size=128, bias=bias, output_bias=bias, head_norm=True
    )
    return windowed_blueprint(fields, attention, dense(fields))
