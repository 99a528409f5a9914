"""Staging: slots of registered memory that scattered small pages travel in, packed.

The holder packs pages into a slot of its own and raises the slot's sequence before it writes a
slot anew. The reader reads the slot, then the sequence: the one it was told means that the bytes
are those it asked for, by the same rule as pages and generations.
"""

import math
import mmap
import sys

import numpy
from numpy.typing import NDArray

from ..protocol.memory import PageMemory
from .nixl_lists import Lists
from .nixl_words import MOST_PAGES_PER_ASK, Staging
from .plane import PlaneError
from .targets import page_bytes_view

UNIT = 4096  # bytes of a staging descriptor; those of one slot are merged to one
SLOTS = 32  # of each side
SLOT_BYTES = 512 << 10
SEQUENCES_BYTES = SLOTS * 8  # read as one descriptor
GATHER_BELOW = 16 << 10  # bytes of a page; from there on pieces are as fast
# Processor time of a reader, over CMA on one host.
ROUND_TRIPS_SECONDS = 250e-6  # to ask, to hear that the first slot is packed, and to check
PIECE_SECONDS = 2.0e-6  # a descriptor more, whatever its size
BYTE_SECONDS = 0.11e-9  # to copy out of staging


def pieces_worth_gathering(piece_bytes: float) -> int:
    """So many pieces or more, of this size on average, are read sooner packed than one by one."""
    saved = PIECE_SECONDS - piece_bytes * BYTE_SECONDS
    return math.ceil(ROUND_TRIPS_SECONDS / saved) if saved > 0 else sys.maxsize


def pages_per_slot(page_bytes: int) -> int:
    return min(SLOT_BYTES // page_bytes, MOST_PAGES_PER_ASK)


def no_gather_because(memory: PageMemory) -> str:
    """Why these pages are read piece by piece; "" where they can be gathered."""
    if memory.page_bytes >= GATHER_BELOW:
        return f"pages of {GATHER_BELOW >> 10} KB or more"
    if memory.device != "cpu":
        return "device memory"
    return ""


def check_staging(endpoint: str, staging: Staging | None) -> None:
    if staging is not None and (staging.slots, staging.slot_bytes) != (SLOTS, SLOT_BYTES):
        raise PlaneError(f"{endpoint} has no staging of our kind: {staging}")


def aligned_zeros(length: int) -> NDArray[numpy.uint8]:
    """Bytes from a page boundary on; they cost nothing until they are used.

    Where numpy puts large arrays, 16 bytes behind a boundary, copying 4 KB pages into one is five
    times slower: each load waits for a store that has the same place in another memory page.
    """
    room = numpy.zeros(length + mmap.PAGESIZE, dtype=numpy.uint8)
    start = -room.ctypes.data % mmap.PAGESIZE
    return room[start : start + length]


class Slots:
    """Our staging slots, as memory."""

    def __init__(self, lists: Lists) -> None:
        self._bytes = aligned_zeros(SLOTS * SLOT_BYTES)
        lists.register(self.address, self._bytes.nbytes)

    @property
    def address(self) -> int:
        return self._bytes.ctypes.data

    def rows(self, slot: int, page_bytes: int, pages: int) -> NDArray[numpy.void]:
        """A slot as so many pages."""
        start = slot * SLOT_BYTES
        return self._bytes[start : start + pages * page_bytes].view(f"V{page_bytes}")


class Sequences:
    """`rows` rows of one word per slot, [rows, SLOTS] u64: the holder's own, or what we read."""

    def __init__(self, rows: int, lists: Lists) -> None:
        self.words = numpy.zeros((rows, SLOTS), dtype=numpy.uint64)
        lists.register(self.address, self.words.nbytes)

    @property
    def address(self) -> int:
        return self.words.ctypes.data


def page_rows(memory: PageMemory) -> NDArray[numpy.void]:
    """The pool as rows of one page each. Its owner keeps it alive as long as the plane."""
    return numpy.frombuffer(page_bytes_view(memory), dtype=f"V{memory.page_bytes}")


_UNITS = numpy.arange(SLOTS * SLOT_BYTES // UNIT, dtype=numpy.int32)


def units(slot: int, length: int) -> NDArray[numpy.int32]:
    """The descriptors that cover the first `length` bytes of a slot."""
    first = slot * (SLOT_BYTES // UNIT)
    return _UNITS[first : first - (-length // UNIT)]
