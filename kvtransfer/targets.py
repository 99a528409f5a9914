"""What every plane checks before a byte moves, and where local pages lie as Python sees them."""

import ctypes
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from ..protocol.memory import PageMemory
from .plane import OutsidePool, PlaneError

MOST_PAGES = 1 << 18  # in one read, where pages are asked for by a frame
Indices = NDArray[numpy.int32]
Counters = NDArray[numpy.uint64]
FEW = 64  # pages for which plain Python beats numpy


class Targets:
    """Local pages that reads may still write into. A page is the target of one read at a time.

    A read keeps its pages until it is quiet, so a plane refuses to read into a page on which an
    older, abandoned read could still land: the page's owner made a mistake, and hears of it.
    """

    def __init__(self, page_count: int) -> None:
        self._places = numpy.zeros(page_count, dtype=numpy.int32)  # in its read, from 1; 0: free
        self._cells = self._places.data

    def take(self, local: Indices) -> None:
        if len(local) <= FEW:
            few = local.tolist()
            if not any(map(self._cells.__getitem__, few)) and len(set(few)) == len(few):
                for page in few:
                    self._cells[page] = 1
                return
        if (taken := self._places[local]).any():
            page = int(local[taken != 0][0])
            raise PlaneError(f"local page {page} is still the target of another read")
        # A page named twice keeps the later place only; sorting to see it would cost far more.
        places = numpy.arange(1, len(local) + 1, dtype=numpy.int32)
        self._places[local] = places
        if (self._places[local] != places).any():
            self._places[local] = 0
            raise PlaneError("a local page is named twice in one read")

    def give_back(self, local: Indices) -> None:
        if len(local) > FEW:
            self._places[local] = 0
        else:
            for page in local.tolist():
                self._cells[page] = 0


def page_indices(pages: Sequence[int] | Indices, page_count: int, whose: str) -> Indices:
    """Page ids as the int32 array that NIXL is fast with; refused unless all lie in the pool."""
    if len(pages) == 0:
        raise PlaneError("a read of no pages")
    try:
        if len(pages) <= FEW and 0 <= min(pages) and max(pages) < page_count:
            return numpy.array(pages, dtype=numpy.int32)
        wide = numpy.asarray(pages, dtype=numpy.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise PlaneError(f"{whose} page ids are not numbers: {error}") from error
    if wide.min() < 0 or wide.max() >= page_count:
        page = int(wide[(wide < 0) | (wide >= page_count)][0])
        sentence = f"{whose} page {page} is outside the pool of {page_count} pages"
        raise OutsidePool(sentence) if whose == "remote" else PlaneError(sentence)
    return wide.astype(numpy.int32)


def pages_of_read(
    remote: Sequence[int],
    local: Sequence[int],
    expected: Sequence[int] | None,
    their_pages: int,
    our_pages: int,
    most: int = 0,
) -> tuple[Indices, Indices, Counters | None]:
    """What a read names, checked against both pools; `most` pages where asks are frames (0: any).

    Raises OutsidePool and PlaneError.
    """
    check_same_length(remote, local)
    if most and len(remote) > most:
        raise PlaneError(f"{len(remote)} pages in one read: at most {most}, or larger pages")
    theirs = page_indices(remote, their_pages, "remote")
    ours = page_indices(local, our_pages, "local")
    return theirs, ours, expected_generations(expected, len(theirs))


def expected_generations(expected: Sequence[int] | None, pages: int) -> Counters | None:
    """What a read's pages must still be at, as [pages] u64; None where nobody asks."""
    if expected is None:
        return None
    if len(expected) != pages:
        raise PlaneError(f"{len(expected)} expected generations for {pages} pages")
    try:
        return numpy.asarray(expected, dtype=numpy.uint64)
    except (OverflowError, TypeError, ValueError) as error:
        raise PlaneError(f"expected generations are no counters: {error}") from error


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


def generations_array(memory: PageMemory) -> Counters:
    """The same as [pages] u64, for many of them at once."""
    return numpy.frombuffer(generations_view(memory), dtype=numpy.uint64)


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
