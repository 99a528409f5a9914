"""What is said of a hand-over's blocks, column by column, packed as it travels. Pure.

One block is four bytes of page, eight of generation, sixteen of content and, in checked mode, eight
of digest. Packed columns cost next to nothing to send, to compare and to hand to a plane, however
long the prompt is. They are little endian as every machine we run on, so no byte is turned.
"""

import sys
from array import array
from collections.abc import Sequence

from ..protocol.blockhash import DIGEST_BYTES
from ..protocol.messages import Published

PAGE_BYTES, GENERATION_BYTES, CHECK_BYTES = 4, 8, 8
WIDTHS = (PAGE_BYTES, GENERATION_BYTES, DIGEST_BYTES, CHECK_BYTES)
Packed = tuple[bytes, bytes, bytes, bytes]  # pages, generations, hashes, digests

assert sys.byteorder == "little", "columns would have to be turned here"


class Columns:
    """Those of the blocks said so far, from block 0 on."""

    __slots__ = ("_pages", "_generations", "_hashes", "_digests", "count")

    def __init__(self) -> None:
        self._pages, self._generations = bytearray(), bytearray()
        self._hashes, self._digests = bytearray(), bytearray()
        self.count = 0  # blocks whose page was said

    @property
    def digests(self) -> int:
        """Blocks whose digest was said."""
        return len(self._digests) // CHECK_BYTES

    def add(self, packed: Packed, first: int = 0) -> None:
        """Of these blocks those from the one at place `first` on."""
        pages, generations, hashes, digests = packed if first == 0 else cut(packed, first)
        self._pages += pages
        self._generations += generations
        self._hashes += hashes
        self._digests += digests
        self.count += len(pages) // PAGE_BYTES

    def part(self, start: int, end: int) -> Packed:
        """What was said of blocks start..end."""
        if start == 0 and end == self.count:
            pages, generations = bytes(self._pages), bytes(self._generations)
            return pages, generations, bytes(self._hashes), bytes(self._digests)
        return (
            bytes(self._pages[start * PAGE_BYTES : end * PAGE_BYTES]),
            bytes(self._generations[start * GENERATION_BYTES : end * GENERATION_BYTES]),
            bytes(self._hashes[start * DIGEST_BYTES : end * DIGEST_BYTES]),
            bytes(self._digests[start * CHECK_BYTES : end * CHECK_BYTES]),
        )

    def pages(self, start: int, end: int) -> memoryview:
        """Pages of blocks start..end as int32."""
        return memoryview(self._pages[start * PAGE_BYTES : end * PAGE_BYTES]).cast("i")

    def generations(self, start: int, end: int) -> memoryview:
        """Generations of blocks start..end as uint64."""
        part = self._generations[start * GENERATION_BYTES : end * GENERATION_BYTES]
        return memoryview(part).cast("Q")

    def hashes(self, start: int, end: int) -> bytearray:
        return self._hashes[start * DIGEST_BYTES : end * DIGEST_BYTES]

    def digest(self, block: int) -> int:
        at = block * CHECK_BYTES
        return int.from_bytes(self._digests[at : at + CHECK_BYTES], "little")

    def are_at(self, generations: Sequence[int], start: int, end: int) -> bool:
        """Blocks start..end were said to be at these generations."""
        part = self._generations[start * GENERATION_BYTES : end * GENERATION_BYTES]
        return array("Q", generations).tobytes() == part


def cut(packed: Packed, start: int, end: int | None = None) -> Packed:
    """Of these blocks those from place `start` to `end`."""
    pages, generations, hashes, digests = (
        column[start * width : None if end is None else end * width]
        for column, width in zip(packed, WIDTHS, strict=True)
    )
    return pages, generations, hashes, digests


def pack(
    pages: Sequence[int],
    generations: Sequence[int],
    hashes: Sequence[bytes],
    digests: Sequence[int] = (),
) -> Packed:
    """Columns of numbers and hashes as they travel; a missing hash (b"") is zeros."""
    return (
        array("i", pages).tobytes(),
        array("Q", generations).tobytes(),
        b"".join(one or bytes(DIGEST_BYTES) for one in hashes),
        array("Q", digests).tobytes(),
    )


def packed(message: Published) -> Packed:
    return message.pages, message.generations, message.hashes, message.digests
