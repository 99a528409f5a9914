"""What every plane checks before a byte moves, and where local pages lie as Python sees them."""

import ctypes
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from ..protocol.memory import PageMemory
from .plane import PlaneError

Indices = NDArray[numpy.int32]


class Targets:
    """Local pages that reads may still write into. A page is the target of one read at a time.

    A read keeps its pages until it is quiet, so a plane refuses to read into a page on which an
    older, abandoned read could still land: the page's owner made a mistake, and hears of it.
    """

    def __init__(self, page_count: int) -> None:
        self._taken = numpy.zeros(page_count, dtype=numpy.bool_)

    def take(self, local: Indices) -> None:
        if len(numpy.unique(local)) != len(local):
            raise PlaneError("a local page is named twice in one read")
        if self._taken[local].any():
            page = int(local[self._taken[local]][0])
            raise PlaneError(f"local page {page} is still the target of another read")
        self._taken[local] = True

    def give_back(self, local: Indices) -> None:
        self._taken[local] = False


def page_indices(pages: Sequence[int], page_count: int, whose: str) -> Indices:
    """Page ids as the int32 array that NIXL is fast with; refused unless all lie in the pool."""
    if len(pages) == 0:
        raise PlaneError("a read of no pages")
    try:
        wide = numpy.asarray(pages, dtype=numpy.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise PlaneError(f"{whose} page ids are not numbers: {error}") from error
    outside = (wide < 0) | (wide >= page_count)
    if outside.any():
        page = int(wide[outside][0])
        raise PlaneError(f"{whose} page {page} is outside the pool of {page_count} pages")
    return wide.astype(numpy.int32)


def check_same_length(remote: Sequence[int], local: Sequence[int]) -> None:
    if len(remote) != len(local):
        raise PlaneError(f"{len(remote)} remote pages cannot go into {len(local)} local ones")


def check_page_bytes(peer: str, theirs: int, ours: int) -> None:
    if theirs != ours:
        raise PlaneError(f"{peer} has pages of {theirs} bytes, we have {ours}: no plane repacks")


def require_host_memory(memory: PageMemory, plane: str) -> None:
    if memory.device != "cpu":
        raise PlaneError(f"the {plane} plane moves host memory only; {memory.device} needs nixl")


def page_bytes_view(memory: PageMemory) -> memoryview:
    """All pages as writable bytes. The memory's owner keeps it alive as long as the plane."""
    return _view(memory.pages_address, memory.total_bytes)


def generations_view(memory: PageMemory) -> memoryview:
    """All generations, read in place: each access is one aligned eight-byte load."""
    return _view(memory.generations_address, memory.page_count * 8).cast("Q")


def _view(address: int, length: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")


def runs(remote: Indices, local: Indices) -> list[tuple[int, int, int]]:
    """(first remote, first local, count) of stretches contiguous on both sides, in order."""
    breaks = numpy.flatnonzero((numpy.diff(remote) != 1) | (numpy.diff(local) != 1)) + 1
    starts = [0, *breaks.tolist(), len(remote)]
    return [
        (int(remote[start]), int(local[start]), end - start)
        for start, end in zip(starts, starts[1:], strict=False)
    ]
