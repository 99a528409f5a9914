"""From bytes of files to numbers: any box of a weight, written to where it shall stay.

Only the bytes of the box are read. Bytes that need no conversion go straight to their place on a
CPU; others pass through a buffer small enough for the processor's cache, or, for another device,
through pinned memory, and are converted there.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from .formats import (
    DTYPES,
    FP4_BLOCK,
    Fp8,
    Mxfp4,
    Plain,
    Shape,
    Stored,
    Weight,
    exponents,
    fp4_numbers,
    fp8_numbers,
    scale_fp8,
)
from .reading import Files, Rows

CONVERTED_AT_ONCE = 512 << 10  # stored bytes, on a CPU
COPIED_AT_ONCE = 32 << 20  # stored bytes, to another device

Span = tuple[int, int]  # from where to where
Box = tuple[Span, ...]  # per dimension; whole in all of them but one


def shape_of(box: Box) -> Shape:
    return tuple(stop - start for start, stop in box)


class Filler:
    """Fills tensors of one device from these files; safe between threads."""

    def __init__(self, files: Files, device: torch.device) -> None:
        self._files = files
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._at_once = CONVERTED_AT_ONCE if self._on_cpu else COPIED_AT_ONCE
        self._own = threading.local()

    def fill(self, weight: Weight, box: Box, out: Tensor, told: Callable[[int], None]) -> None:
        """Write what the box of this weight means into `out`, which has the box's shape.

        `told(bytes)` hears of every read. Raises ModelError.
        """
        if not out.numel():
            return
        self._own.told = told
        match weight:
            case Plain():
                self._plain(weight.stored, box, out)
            case Fp8():
                self._fp8(weight, box, out)
            case Mxfp4():
                self._mxfp4(weight, box, out)

    def _plain(self, stored: Stored, box: Box, out: Tensor) -> None:
        rows, dtype = _rows(stored, box), DTYPES[stored.dtype]
        if dtype == out.dtype and self._on_cpu:
            self._read(rows, out.view(-1).view(torch.uint8))
            return
        if rows.count == 1:  # one long run is as good as many short ones
            rows = replace(rows, stride=dtype.itemsize, length=dtype.itemsize, count=out.numel())
        out_RC = out.view(rows.count, -1)
        step = max(1, self._at_once // rows.length)
        for first in range(0, rows.count, step):
            some = rows.some(first, min(step, rows.count - first))
            numbers_RC = self._staged(some).view(dtype).view(some.count, -1)
            out_RC[first : first + some.count].copy_(numbers_RC, non_blocking=True)

    def _fp8(self, weight: Fp8, box: Box, out: Tensor) -> None:
        rows, columns = box[-2:]
        high, wide = weight.block
        grid = *weight.shape[:-2], -(-weight.shape[-2] // high), -(-weight.shape[-1] // wide)
        scales = replace(weight.scales, shape=grid)  # one for all may be stored as a scalar
        scale_columns = columns[0] // wide, -(-columns[1] // wide)
        out_MRC = out.view(-1, *out.shape[-2:])
        for at, matrix in enumerate(_matrices(weight.shape[:-2], box[:-2])):
            for span in _chunks(rows, max(1, self._at_once // (columns[1] - columns[0])), high):
                codes_RC = self._box(weight.codes, matrix, span, columns)
                scale_rows = span[0] // high, -(-span[1] // high)
                stored = self._box(scales, matrix, scale_rows, scale_columns)
                numbers_RC = scale_fp8(
                    fp8_numbers(codes_RC),
                    stored.view(DTYPES[scales.dtype]).float(),
                    weight.block,
                    (span[0], columns[0]),
                )
                out_MRC[at, span[0] - rows[0] : span[1] - rows[0]].copy_(numbers_RC)

    def _mxfp4(self, weight: Mxfp4, box: Box, out: Tensor) -> None:
        experts, columns, rows = box
        groups = columns[0] // FP4_BLOCK, -(-columns[1] // FP4_BLOCK)
        first = columns[0] - groups[0] * FP4_BLOCK
        size = FP4_BLOCK // 2
        flat = replace(weight.codes, shape=(*weight.codes.shape[:2], weight.codes.shape[2] * size))
        step = max(1, self._at_once // (size * (groups[1] - groups[0])))
        for expert in range(*experts):
            for span in _chunks(rows, step, 1):
                codes = self._box(flat, expert, span, (groups[0] * size, groups[1] * size))
                scales_RG = exponents(self._box(weight.scales, expert, span, groups))
                numbers_RC = fp4_numbers(codes.unflatten(1, (-1, size)), scales_RG)
                numbers_RC = numbers_RC[:, first : first + columns[1] - columns[0]]
                place = out[expert - experts[0], :, span[0] - rows[0] : span[1] - rows[0]]
                place.copy_(numbers_RC.T)

    def _box(self, stored: Stored, matrix: int, rows: Span, columns: Span) -> Tensor:
        """uint8 [rows, bytes] of one matrix of a stored stack, on the device."""
        itemsize = DTYPES[stored.dtype].itemsize
        stride = stored.shape[-1] * itemsize
        start = (matrix * stored.shape[-2] + rows[0]) * stride + columns[0] * itemsize
        length = (columns[1] - columns[0]) * itemsize
        count = rows[1] - rows[0]
        staged = self._staged(Rows(stored.file, stored.start + start, stride, length, count))
        return staged.view(count, -1).to(self._device, non_blocking=True)

    def _staged(self, rows: Rows) -> Tensor:
        """uint8 of these rows in host memory; on a CPU good until the next call but one."""
        if not self._on_cpu:
            staged = torch.empty(rows.size, dtype=torch.uint8, pin_memory=True)
        elif rows.size > 2 * CONVERTED_AT_ONCE:  # one row may be longer
            staged = torch.empty(rows.size, dtype=torch.uint8)
        else:
            staged = self._buffer()[: rows.size]
        self._read(rows, staged)
        return staged

    def _buffer(self) -> Tensor:
        """One of this thread's two, in turn: codes and their scales are in use together."""
        if not hasattr(self._own, "buffers"):
            size = 2 * CONVERTED_AT_ONCE
            self._own.buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(2)]
        self._own.buffers.reverse()
        return self._own.buffers[0]

    def _read(self, rows: Rows, into: Tensor) -> None:
        self._files.read(rows, into.numpy().data, self._own.told)


def _rows(stored: Stored, box: Box) -> Rows:
    """The bytes of a box."""
    itemsize = DTYPES[stored.dtype].itemsize
    cut = next((at for at, size in enumerate(shape_of(box)) if size < stored.shape[at]), 0)
    inner = prod(stored.shape[cut + 1 :]) * itemsize
    start, stop = box[cut] if box else (0, 1)
    stride = stored.shape[cut] * inner if box else inner
    length = (stop - start) * inner
    return Rows(stored.file, stored.start + start * inner, stride, length, prod(stored.shape[:cut]))


def _matrices(shape: Shape, box: Box) -> list[int]:
    """Numbers of the matrices of a stack that lie in the box."""
    numbers = [0]
    for size, (start, stop) in zip(shape, box, strict=True):
        numbers = [number * size + at for number in numbers for at in range(start, stop)]
    return numbers


def _chunks(rows: Span, step: int, block: int) -> list[Span]:
    """`rows` in pieces of about `step` that end, where they can, with a block."""
    step = max(step - step % block, min(step, block))
    bounds = list(range(rows[0] - rows[0] % step, rows[1], step))[1:]
    return list(zip([rows[0], *bounds], [*bounds, rows[1]], strict=True))
