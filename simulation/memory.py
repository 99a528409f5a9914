"""A worker's simulated pages: real bytes, and one generation per page. Pure.

A slot of a page keeps the token whose K and V would be there, as a 32-bit integer, so that a wrong,
stale, missing or damaged block is seen by whoever looks at it.
"""

from array import array
from hashlib import blake2b

SLOTS = 4  # tokens per page
EMPTY = -1
ITEM_BYTES = array("i").itemsize
PAGE_BYTES = SLOTS * ITEM_BYTES


class Memory:
    """`tokens[page * SLOTS + slot]`; `generations[page]` counts re-grants."""

    def __init__(self, pages: int):
        self.generations = memoryview(bytearray(8 * pages)).cast("Q")
        self.tokens = array("i", [EMPTY]) * (pages * SLOTS)

    @property
    def page_count(self) -> int:
        return len(self.generations)

    def page(self, page: int) -> array:
        return self.tokens[page * SLOTS : (page + 1) * SLOTS]

    def page_bytes(self, page: int) -> bytes:
        """What a digest is taken of."""
        return self.page(page).tobytes()

    def write(self, page: int, slot: int, tokens: array) -> None:
        """Some slots of one page, from `slot` on."""
        start = page * SLOTS + slot
        self.tokens[start : start + len(tokens)] = tokens

    def prefix(self, pages: list[int], count: int) -> list[int]:
        """The first `count` tokens of a sequence that lies in these pages."""
        held: list[int] = []
        for page in pages[: -(-count // SLOTS)]:
            held += self.tokens[page * SLOTS : (page + 1) * SLOTS]
        return held[:count]


class MemoryDigests:
    """Checked mode's digests (`kvtransfer/digests.Digests`): 64 bits of each page's bytes."""

    page_bytes = PAGE_BYTES

    def __init__(self, memory: Memory):
        self._memory = memory

    def of(self, page: int) -> int:
        digest = blake2b(self._memory.page_bytes(page), digest_size=8).digest()
        return int.from_bytes(digest, "big")
