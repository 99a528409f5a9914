"""Qwen2 and Qwen2.5: Llama with biases on q, k and v; a window in the upper layers if asked for."""

from ..blueprint import Blueprint
from ..fields import Fields
from ..standard import dense, grouped_attention, refuse_unhonoured, windowed_blueprint


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    attention = grouped_attention(fields, kv_heads=32, bias=True)
    return windowed_blueprint(fields, attention, dense(fields))
