"""Bytes of a checkpoint's files, read into memory that the caller gives.

Files are read, not mapped: a read goes straight to where the bytes shall be, pages of the file are
never this process's memory, and a file that is cut short is an error instead of a signal. What was
read stays in the system's cache for the other workers of the host, which gives it up when memory
runs short.
"""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy

from .fields import ModelError

CHUNK = 8 << 20  # bytes per call
AHEAD = 64 << 20  # bytes that the system is asked to have ready
LONGEST_GAP = 16 << 10  # bytes between rows up to which gaps are read too: fewer calls
SCRATCH = 1 << 20  # bytes of rows with gaps at once


Told = Callable[[int], None]


def _nobody(size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` runs of `length` bytes of a file, their beginnings `stride` bytes apart."""

    file: Path
    start: int
    stride: int
    length: int
    count: int

    @property
    def size(self) -> int:
        return self.length * self.count

    def some(self, first: int, count: int) -> "Rows":
        """These rows from `first` on."""
        start = self.start + first * self.stride
        return Rows(self.file, start, self.stride, self.length, count)


class Files:
    """Open files of one folder; safe between threads. They stay the files that they were."""

    def __init__(self) -> None:
        self._opened: dict[Path, int] = {}
        weakref.finalize(self, _close, self._opened)

    def open(self, file: Path) -> None:
        """Raises OSError."""
        self._opened[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, rows: Rows, into: memoryview, told: Told = _nobody) -> None:
        """Fill `into`, of rows.size bytes; `told(bytes)` hears of it. Raises ModelError."""
        if rows.stride == rows.length or rows.count == 1:
            self._run(rows.file, rows.start, into, told)
        elif rows.stride - rows.length > LONGEST_GAP:
            for at in range(rows.count):
                row = into[at * rows.length : (at + 1) * rows.length]
                self._run(rows.file, rows.start + at * rows.stride, row)
            told(rows.size)
        else:
            self._with_gaps(rows, into)
            told(rows.size)

    def bytes(self, file: Path, start: int, length: int) -> bytearray:
        into = bytearray(length)
        self._run(file, start, memoryview(into))
        return into

    def _with_gaps(self, rows: Rows, into: memoryview) -> None:
        """Read rows and gaps, keep the rows."""
        taken = numpy.frombuffer(into, numpy.uint8).reshape(rows.count, rows.length)
        at_once = max(1, SCRATCH // rows.stride)
        scratch = numpy.empty(at_once * rows.stride, numpy.uint8)
        for first in range(0, rows.count, at_once):
            some = rows.some(first, min(at_once, rows.count - first))
            size = (some.count - 1) * some.stride + some.length  # no gap after the last row
            self._run(some.file, some.start, scratch[:size].data)
            whole = scratch[: some.count * some.stride].reshape(some.count, some.stride)
            taken[first : first + some.count] = whole[:, : some.length]

    def _run(self, file: Path, start: int, into: memoryview, told: Told = _nobody) -> None:
        descriptor, done, asked = self._opened[file], 0, 0
        while done < len(into):
            if done >= asked and len(into) - done > CHUNK and hasattr(os, "posix_fadvise"):
                asked = done + AHEAD
                length = min(AHEAD, len(into) - done)
                os.posix_fadvise(descriptor, start + done, length, os.POSIX_FADV_WILLNEED)
            try:
                count = os.preadv(descriptor, [into[done : done + CHUNK]], start + done)
            except OSError as error:
                raise ModelError(f"{file} cannot be read: {error}") from None
            if not count:
                raise ModelError(f"{file} is shorter than its header says")
            done += count
            told(count)


def _close(opened: dict[Path, int]) -> None:
    for descriptor in opened.values():
        os.close(descriptor)
