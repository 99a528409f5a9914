"""Memory for weights on the CPU: large tensors of their own, whose memory is used again.

Memory that the system gives for the first time must be found and zeroed page by page, which can
cost more than reading a file. A tensor that is packed and dropped leaves its memory for the next.
"""

import ctypes
import mmap
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes; smaller tensors are torch's own
MOST_KEPT = 1 << 30  # bytes of free memory that wait for another tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Some pages of a region."""

    region: mmap.mmap
    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size

    def release(self) -> None:
        """Give the pages back to the system; a region goes with its last span or tensor."""
        if hasattr(mmap, "MADV_DONTNEED") and self.size < len(self.region):
            self.region.madvise(mmap.MADV_DONTNEED, self.start, self.size)


class Arena:
    """Hands out tensors; takes their memory back when they are dropped. Safe between threads."""

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self._most_kept = most_kept
        self._lock = threading.Lock()
        self._free: list[Span] = []
        # A tensor may be dropped anywhere, within the lock too: its span waits here.
        self._returned: deque[Span] = deque()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU, not initialised."""
        size = prod(shape) * dtype.itemsize
        if size < LARGE:
            return torch.empty(shape, dtype=dtype)
        span = self._span(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        # The tensor holds the array, and the array the region: when the array goes, all is free.
        holder = (ctypes.c_char * span.size).from_buffer(span.region, span.start)
        weakref.finalize(holder, _give_back, weakref.ref(self), span).atexit = False
        return torch.frombuffer(holder, dtype=torch.uint8)[:size].view(dtype).view(shape)

    @property
    def kept(self) -> int:
        """Bytes that wait for another tensor."""
        with self._lock:
            self._collect()
            return sum(span.size for span in self._free)

    def _span(self, size: int) -> Span:
        with self._lock:
            self._collect()
            fitting = [span for span in self._free if span.size >= size]
            best = min(fitting, key=lambda span: span.size, default=None)
            if best is None:
                return Span(_mapped(size), 0, size)
            self._free.remove(best)
            if best.size > size:
                self._free.append(Span(best.region, best.start + size, best.size - size))
            return Span(best.region, best.start, size)

    def _collect(self) -> None:
        """Take in what was returned, joined with its neighbours; release what is too much."""
        while self._returned:
            span = self._returned.popleft()
            for other in [one for one in self._free if one.region is span.region]:
                if other.stop == span.start or span.stop == other.start:
                    self._free.remove(other)
                    start = min(span.start, other.start)
                    span = Span(span.region, start, span.size + other.size)
            self._free.append(span)
        self._free.sort(key=lambda span: span.size)
        while sum(span.size for span in self._free) > self._most_kept:
            self._free.pop(0).release()  # the largest serve any tensor

    def _returns(self, span: Span) -> None:
        self._returned.append(span)

    def __del__(self) -> None:
        for span in (*self._free, *self._returned):
            span.release()


def _mapped(size: int) -> mmap.mmap:
    region = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages
    return region


def _give_back(arena: "weakref.ref[Arena]", span: Span) -> None:
    owner = arena()
    if owner is None:
        span.release()
    else:
        owner._returns(span)
