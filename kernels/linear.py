"""A linear layer whose weight is packed once and whose rows do not know each other.

    out = x weight^T + bias

On a CPU the weight is laid out once by oneDNN for its own matrix product (the layout of the
checkpoint may then be released). One row alone takes another path there, with another order of
sums, when it is fp32 or its rows are long: so one row is computed as two. From two rows on no
row's bits depended on the number of rows, at every width and shape tried (exactness.py asks again
at start). Where oneDNN has no bf16 (processors without AVX-512), linear.c takes its place among
the native kernels: an output is one chain of fused multiply-adds along I, whatever stands beside
it. Elsewhere this is torch's linear. `how` says which.

oneDNN makes code for every number of rows it meets, and keeps it: prompts of all lengths would cost
a worker hundreds of MB and a pause at each new one. So many rows are filled up to a multiple.

T tokens in the batch, I inputs, O outputs.
"""

import ctypes
from dataclasses import dataclass

import torch

from .native import Library, half, refuse
from .units import UNIT, fill_units, unit_shape

Tensor = torch.Tensor

FEW_ROWS = 64  # up to here, where decode steps are, each number of rows has its own code
MULTIPLE = 32  # beyond it only multiples have


@dataclass(frozen=True, slots=True)
class PackedLinear:
    weight: Tensor  # opaque where packed, [O, I] where not
    bias_O: Tensor | None  # "native": fp32, filled up to whole units
    outputs: int
    inputs: int
    how: str  # "onednn", "native" or "torch"
    library: Library | None = None  # of "native"

    def __call__(self, x_TI: Tensor) -> Tensor:
        if self.library is not None:
            return _native(self.library, self, x_TI)
        rows = x_TI.shape[0]
        if rows == 1 and x_TI.device.type == "cpu":
            return self._product(torch.cat((x_TI, x_TI)))[:1]
        if rows == 0:
            return x_TI.new_empty(0, self.outputs)
        return self._product(x_TI)

    def _product(self, x_TI: Tensor) -> Tensor:
        if self.how == "torch":
            return torch.nn.functional.linear(x_TI, self.weight, self.bias_O)
        rows = x_TI.shape[0]
        if more := filled_up(rows) - rows:
            x_TI = torch.nn.functional.pad(x_TI, (0, 0, 0, more))
        y_TO = torch.ops.mkldnn._linear_pointwise(
            x_TI.contiguous(), self.weight, self.bias_O, "none", [], ""
        )
        return y_TO[:rows]


def filled_up(rows: int) -> int:
    """How many rows are computed for so many."""
    return rows if rows <= FEW_ROWS else -(-rows // MULTIPLE) * MULTIPLE


def pack_linear(weight_OI: Tensor, bias_O: Tensor | None = None) -> PackedLinear:
    """The result holds its own copy where it packs; the caller may drop weight_OI."""
    outputs, inputs = weight_OI.shape
    if not _packs(weight_OI):
        return PackedLinear(weight_OI, bias_O, outputs, inputs, "torch")
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), 16)
    return PackedLinear(packed, bias_O, outputs, inputs, "onednn")


def pack_linear_native(
    library: Library, weight_OI: Tensor, bias_O: Tensor | None = None
) -> PackedLinear:
    """As pack_linear, with linear.c where oneDNN cannot pack bf16."""
    outputs, inputs = weight_OI.shape
    if weight_OI.dtype != torch.bfloat16 or _packs(weight_OI) or inputs % 2:
        return pack_linear(weight_OI, bias_O)
    packed = torch.empty(unit_shape(weight_OI), dtype=torch.int32)
    fill_units(packed, weight_OI)
    if bias_O is not None:
        bias_O = torch.nn.functional.pad(bias_O.float(), (0, -outputs % UNIT))
    return PackedLinear(packed, bias_O, outputs, inputs, "native", library)


class Shape(ctypes.Structure):
    """LinearShape of linear.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "inputs", "outputs")]


def _native(library: Library, linear: PackedLinear, x_TI: Tensor) -> Tensor:
    rows, inputs = x_TI.shape
    if half(x_TI) != 1 or inputs != linear.inputs:
        refuse(f"linear: x must be bf16 [T, {linear.inputs}]")
    x_TI = x_TI.contiguous()
    out_TO = x_TI.new_empty(rows, linear.outputs)
    wide_TI = torch.empty(rows + 6, inputs)
    library.call(
        "penstock_linear",
        x_TI.data_ptr(),
        linear.weight.data_ptr(),
        None if linear.bias_O is None else linear.bias_O.data_ptr(),
        out_TO.data_ptr(),
        wide_TI.data_ptr(),
        ctypes.byref(Shape(rows, inputs, linear.outputs)),
        torch.get_num_threads(),
    )
    return out_TO


def _packs(weight_OI: Tensor) -> bool:
    if weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight_OI.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight_OI.dtype == torch.float32
