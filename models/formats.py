"""How tensors are stored, and the floating-point numbers that stored bytes mean.

A *weight* is a tensor by the name a model asks for; one or more stored tensors make it up. Knows
names, shapes and arithmetic; reads nothing. Every element is the product of its code and its
scale, taken in fp32 and rounded once to the dtype that is asked for.

R rows (outputs), C columns (inputs), E experts, G blocks of 32 columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .fields import ModelError
from .quantization import Quantization

Shape = tuple[int, ...]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
}
FLOATING = ("F64", "F32", "F16", "BF16")  # what is a number without a scale
SCALES = ("F32", "F16", "BF16", "F8_E8M0")
FP4_BLOCK = 32  # columns of MXFP4 that share a scale
FP8_NAN = 0x7F


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor of a file lies."""

    file: Path
    dtype: str  # safetensors' name
    shape: Shape
    start: int  # bytes into the file
    stop: int


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor stored as it is."""

    stored: Stored

    @property
    def shape(self) -> Shape:
        return self.stored.shape

    @property
    def parts(self) -> tuple[Stored, ...]:
        return (self.stored,)


@dataclass(frozen=True, slots=True)
class Fp8:
    """e4m3 codes [.., R, C] and scales [.., rows, columns] of blocks of this size.

    The last blocks of a row or column may be cut short. A scale for the whole weight is a block of
    all its rows and columns, one per row a block of one row.
    """

    codes: Stored
    scales: Stored
    block: tuple[int, int]

    @property
    def shape(self) -> Shape:
        return self.codes.shape

    @property
    def parts(self) -> tuple[Stored, ...]:
        return self.codes, self.scales


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Experts' e2m1 codes [E, R, G, 16], two a byte, low bits first, and exponents [E, R, G].

    OCP Microscaling Formats (MX) 1.0. The weight is [E, C, R], as the tensor of this name is in a
    checkpoint that is not quantised (x times weight, not times its transpose).
    """

    codes: Stored
    scales: Stored

    @property
    def shape(self) -> Shape:
        experts, rows, groups, _ = self.codes.shape
        return experts, groups * FP4_BLOCK, rows

    @property
    def parts(self) -> tuple[Stored, ...]:
        return self.codes, self.scales


Weight = Plain | Fp8 | Mxfp4


def find_weights(
    tensors: Mapping[str, Stored], quantization: Quantization | None
) -> dict[str, Weight]:
    """The weights that these stored tensors make up. Raises ModelError where they do not fit."""
    found: dict[str, Weight] = {}
    owned: set[str] = set()
    kind = quantization.kind if quantization else ""
    for name, stored in tensors.items():
        if quantization and kind == "fp8" and stored.dtype == "F8_E4M3":
            scale = name + quantization.scale
            found[name] = _fp8(name, stored, tensors.get(scale), scale, quantization)
            # A static scale of activations, which are not quantised here.
            owned |= {scale, f"{name.removesuffix('weight')}input_scale"}
        elif kind == "mxfp4" and name.endswith("_blocks"):
            weight = name.removesuffix("_blocks")
            found[weight] = _mxfp4(weight, stored, tensors.get(f"{weight}_scales"))
            owned |= {name, f"{weight}_scales"}
    plain = {
        name: Plain(stored)
        for name, stored in tensors.items()
        if name not in found and name not in owned
    }
    return found | plain


def _fp8(
    name: str, codes: Stored, scales: Stored | None, scale: str, quantization: Quantization
) -> Fp8:
    if scales is None:
        raise ModelError(f"{codes.file}: {name} is FP8 and needs {scale}, which is missing")
    if len(codes.shape) < 2:
        raise ModelError(f"{codes.file}: {name} is FP8 but {list(codes.shape)}; a matrix is needed")
    rows, columns = codes.shape[-2:]
    block = quantization.block
    if block is None:
        per_row = scales.shape in ((*codes.shape[:-1], 1), codes.shape[:-1])
        block = (1, columns) if per_row and rows > 1 else (rows, columns)
    wanted = (*codes.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    count = 1
    for size in wanted:
        count *= size
    had = 1
    for size in scales.shape:
        had *= size
    fits = scales.shape == wanted if quantization.block else had == count
    if not fits or scales.dtype not in SCALES:
        raise ModelError(
            f"{scales.file}: {scale} is {scales.dtype} {list(scales.shape)}, but blocks of "
            f"{block[0]} x {block[1]} of {name} {list(codes.shape)} need {list(wanted)} in one of "
            f"{', '.join(SCALES)}"
        )
    return Fp8(codes, scales, block)


def _mxfp4(name: str, codes: Stored, scales: Stored | None) -> Mxfp4:
    if scales is None:
        raise ModelError(f"{codes.file}: {name}_blocks needs {name}_scales, which is missing")
    fits = len(codes.shape) == 4 and codes.shape[3] == FP4_BLOCK // 2 and codes.dtype == "U8"
    if not fits or scales.shape != codes.shape[:3] or scales.dtype not in ("U8", "F8_E8M0"):
        raise ModelError(
            f"{codes.file}: {name}_blocks is {codes.dtype} {list(codes.shape)} and {name}_scales "
            f"{scales.dtype} {list(scales.shape)}; U8 [experts, outputs, blocks, 16] and "
            "[experts, outputs, blocks] are needed"
        )
    return Mxfp4(codes, scales)


def fp8_numbers(codes_RC: Tensor) -> Tensor:
    """uint8 e4m3 codes as fp32, exactly."""
    if codes_RC.device.type != "cpu":
        return codes_RC.view(torch.float8_e4m3fn).float()
    # On a CPU torch goes code by code. Moved to fp16's places the bits mean 2**-8 of the number,
    # subnormals too; only NaN, which weights hardly have, would become a number.
    if bool(((codes_RC & FP8_NAN) == FP8_NAN).any()):
        return codes_RC.view(torch.float8_e4m3fn).float()
    bits = codes_RC.view(torch.int8).to(torch.int16)
    bits <<= 7
    bits &= ~0x4000  # the sign was spread over two places
    return bits.view(torch.float16).float().mul_(256.0)


def scale_fp8(numbers_RC: Tensor, scales: Tensor, block: tuple[int, int], at: Shape) -> Tensor:
    """Multiply fp32 numbers [R, C], in place, by their scales.

    `at` is the (row, column) of the weight where numbers begin; `scales` [rows, columns], fp32,
    begins with the scale of the block that holds it.
    """
    rows, columns = numbers_RC.shape
    if scales.shape[1] > 1:
        column = torch.arange(columns, device=scales.device)
        column = (column + at[1] % block[1]) // block[1]
        scales = scales.index_select(1, column)
    if block[0] == 1:
        return numbers_RC.mul_(scales)
    first = at[0] % block[0]
    for number in range(scales.shape[0]):
        start, stop = number * block[0] - first, (number + 1) * block[0] - first
        numbers_RC[max(0, start) : min(stop, rows)] *= scales[number]
    return numbers_RC


def exponents(codes: Tensor) -> Tensor:
    """uint8 E8M0 codes as fp32: 2 ** (code - 127); 255 is NaN."""
    return codes.view(torch.float8_e8m0fnu).float()


def fp4_numbers(codes: Tensor, scales: Tensor) -> Tensor:
    """uint8 [.., G, 16] and fp32 scales [.., G] as fp32 [.., G * 32].

    An e2m1 code at fp16's places means 2**-14 of its number, subnormals too.
    """
    bits = codes.to(torch.int16)
    low = ((bits & 0x08) << 12) | ((bits & 0x07) << 9)
    high = ((bits & 0x80) << 8) | ((bits & 0x70) << 5)
    numbers = torch.stack((low, high), -1).view(torch.float16).float().flatten(-2)
    numbers.mul_(2.0**14).mul_(scales.unsqueeze(-1))
    return numbers.flatten(-2)
