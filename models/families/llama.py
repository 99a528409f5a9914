"""Llama 2 and 3: the plain decoder, with biases where config.json asks for them."""

from ..blueprint import Blueprint
from ..fields import Fields
from ..standard import dense, dense_blueprint, grouped_attention, refuse_unhonoured


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    fields.only("sliding_window")
    bias = fields.flag("attention_bias")
    attention = grouped_attention(fields, bias=bias, output_bias=bias)
    return dense_blueprint(fields, attention, dense(fields, fields.flag("mlp_bias")))
