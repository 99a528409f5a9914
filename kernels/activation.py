"""SiLU of the gate times up, the middle of a gated feed-forward layer.

    out = round(gate / (1 + exp(-gate))) * up

gate_up holds gate first, then up. SiLU is computed in fp32 and rounded to the model's dtype before
the product, as Hugging Face's LlamaMLP does it. Source: Shazeer, "GLU Variants Improve
Transformer", arXiv 2002.05202.

T tokens in the batch, F size of the hidden layer.
"""

import torch

from .elementary import exponential
from .native import Library, half, require

Tensor = torch.Tensor


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    gate = gate_TF.float()
    return (gate / (1.0 + exponential(-gate))).to(gate_up_T2F.dtype) * up_TF


def silu_mul_native(library: Library, gate_up_T2F: Tensor) -> Tensor:
    gate_up_T2F = gate_up_T2F.contiguous()
    rows, width = gate_up_T2F.shape
    require(width % 2 == 0, "silu_mul: gate and up must have the same size")
    out_TF = gate_up_T2F.new_empty(rows, width // 2)
    library.call(
        "penstock_silu_mul",
        gate_up_T2F.data_ptr(),
        out_TF.data_ptr(),
        rows,
        width // 2,
        half(gate_up_T2F),
        torch.get_num_threads(),
    )
    return out_TF
