"""Mistral: Llama without biases; old ones let every layer see a window of positions only."""

from dataclasses import replace

from ..blueprint import Blueprint
from ..fields import Fields
from ..standard import dense, dense_blueprint, grouped_attention, refuse_unhonoured, window


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    fields.only("layer_types")
    attention = replace(grouped_attention(fields, kv_heads=8), window=window(fields, 4096))
    return dense_blueprint(fields, attention, dense(fields))
