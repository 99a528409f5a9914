"""One small product per head: the two halves of latent attention's up-projection, absorbed.

    out[t, n] = weight[n] x[t, n]

Native: one call (heads.c), a chain along I per output, so that a row's bits do not depend on the
others. Torch: a packed linear per head.

T tokens in the batch, N heads, I inputs, O outputs of a head.
"""

import ctypes

import torch

from .linear import pack_linear
from .native import Library, half, require
from .units import fill_units, unit_shape

Tensor = torch.Tensor


class Shape(ctypes.Structure):
    """HeadsShape of heads.c."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("tokens", "heads", "inputs", "outputs"),
            *("token_stride", "head_stride", "half"),
        )
    ]


class Heads:
    def __init__(self, weight_NOI: Tensor) -> None:
        self.packed = [pack_linear(weight_OI.contiguous()) for weight_OI in weight_NOI]

    def __call__(self, x_TNI: Tensor) -> Tensor:
        return torch.stack(
            [linear(x_TNI[:, head].contiguous()) for head, linear in enumerate(self.packed)], dim=1
        )


class NativeHeads:
    def __init__(self, library: Library, weight_NOI: Tensor) -> None:
        self.library = library
        self.heads, self.outputs, self.inputs = weight_NOI.shape
        self.half = half(weight_NOI)
        require(self.inputs % 2 == 0, f"native heads take even sizes, not {self.inputs}")
        self.weight = torch.empty(self.heads, *unit_shape(weight_NOI[0]), dtype=torch.int32)
        for out, weight_OI in zip(self.weight, weight_NOI, strict=True):
            fill_units(out, weight_OI)

    def __call__(self, x_TNI: Tensor) -> Tensor:
        tokens = x_TNI.shape[0]
        require(
            x_TNI.shape == (tokens, self.heads, self.inputs) and half(x_TNI) == self.half,
            f"heads: x must be [T, {self.heads}, {self.inputs}] in the weight's dtype",
        )
        if x_TNI.stride(2) != 1:
            x_TNI = x_TNI.contiguous()
        out_TNO = x_TNI.new_empty(tokens, self.heads, self.outputs)
        shape = Shape(
            *(tokens, self.heads, self.inputs, self.outputs),
            *(x_TNI.stride(0), x_TNI.stride(1), self.half),
        )
        self.library.call(
            "penstock_heads",
            x_TNI.data_ptr(),
            self.weight.data_ptr(),
            out_TNO.data_ptr(),
            ctypes.byref(shape),
            torch.get_num_threads(),
        )
        return out_TNO


def pack_heads(weight_NOI: Tensor) -> Heads:
    return Heads(weight_NOI)


def pack_heads_native(library: Library, weight_NOI: Tensor) -> NativeHeads:
    return NativeHeads(library, weight_NOI)
