"""Staging: slots of registered memory that scattered small pages travel in, packed.

The holder packs pages into a slot of its own and raises the slot's sequence before it writes a
slot anew. The reader reads the slot, then the sequence: the one it was told means that the bytes
are those it asked for, by the same rule as pages and generations.
"""

import numpy
from numpy.typing import NDArray

from ..protocol.memory import PageMemory
from .nixl_lists import Lists
from .nixl_words import MOST_PAGES_PER_ASK, Staging
from .plane import PlaneError
from .targets import page_bytes_view

UNIT = 4096  # bytes of a staging descriptor; those of one slot are merged to one
SLOT_BYTES = 512 << 10
GATHER_BELOW = 16 << 10  # bytes of a page; from there on pieces are as fast


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
    if staging is not None and not (0 < staging.slots <= 1024 and staging.slot_bytes == SLOT_BYTES):
        raise PlaneError(f"{endpoint} has no staging of our kind: {staging}")


class Slots:
    """Our staging slots, as memory. `sequences` has one word per slot."""

    def __init__(self, count: int, lists: Lists) -> None:
        self.count = count
        # numpy's zeros cost nothing until they are used.
        self._bytes = numpy.zeros(count * SLOT_BYTES, dtype=numpy.uint8)
        self.sequences = numpy.zeros(count, dtype=numpy.uint64)
        lists.register(self.address, self._bytes.nbytes)
        lists.register(self.sequences_address, self.sequences.nbytes)

    @property
    def address(self) -> int:
        return self._bytes.ctypes.data

    @property
    def sequences_address(self) -> int:
        return self.sequences.ctypes.data

    def rows(self, slot: int, page_bytes: int, pages: int) -> NDArray[numpy.void]:
        """A slot as so many pages."""
        start = slot * SLOT_BYTES
        return self._bytes[start : start + pages * page_bytes].view(f"V{page_bytes}")


def page_rows(memory: PageMemory) -> NDArray[numpy.void]:
    """The pool as rows of one page each. Its owner keeps it alive as long as the plane."""
    return numpy.frombuffer(page_bytes_view(memory), dtype=f"V{memory.page_bytes}")


def units(slot: int, length: int) -> NDArray[numpy.int32]:
    """The descriptors that cover the first `length` bytes of a slot."""
    first = slot * (SLOT_BYTES // UNIT)
    return numpy.arange(first, first - (-length // UNIT), dtype=numpy.int32)
