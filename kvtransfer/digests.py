"""Checked mode: what a page's bytes are, as one number, and the pages that wait to be looked at.

The holder publishes a digest with each page, the reader compares it with what arrived. The seam is
`Digests`; holder and reader are given one. Work is done in the worker's loop, a bounded part of it
per turn, because the pages belong to that loop. Whoever ends a hand-over drops what waits for it.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar

import xxhash

from ..protocol.memory import PageMemory
from ..protocol.messages import Compatibility
from .plane import PlaneError
from .targets import page_bytes_view

BYTES_PER_TURN = 4 << 20  # read from memory well within a millisecond

Owner = TypeVar("Owner", bound=Hashable)


class Digests(Protocol):
    """Digest of a page as it lies in this process's memory."""

    @property
    def page_bytes(self) -> int: ...

    def of(self, page: int) -> int: ...


class HostDigests:
    """xxh3-64 over pages in host memory. The memory must outlive it."""

    def __init__(self, memory: PageMemory) -> None:
        if memory.device != "cpu":
            raise PlaneError(
                f"checked mode digests host memory only, and the pages lie on {memory.device}: "
                "set [worker] kv_checked = false"
            )
        self.page_bytes = memory.page_bytes
        self._pages = page_bytes_view(memory)

    def of(self, page: int) -> int:
        size = self.page_bytes
        with self._pages[page * size : (page + 1) * size] as body:
            return xxhash.xxh3_64_intdigest(body)


class DigestQueue(Generic[Owner]):
    """Blocks to be digested, first come first served; `turn` digests so many bytes of them."""

    def __init__(self, digests: Digests, bytes_per_turn: int = BYTES_PER_TURN) -> None:
        self._digests = digests
        self._pages_per_turn = max(1, bytes_per_turn // digests.page_bytes)
        self._waiting: dict[Owner, deque[tuple[int, int]]] = {}  # block, page

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def waits(self, owner: Owner) -> bool:
        return owner in self._waiting

    def add(self, owner: Owner, first_block: int, pages: Iterable[int]) -> None:
        """These pages are the owner's blocks first_block, first_block+1, ..."""
        blocks = list(enumerate(pages, first_block))
        if blocks:
            self._waiting.setdefault(owner, deque()).extend(blocks)

    def drop(self, owner: Owner) -> None:
        """Its pages are let go."""
        self._waiting.pop(owner, None)

    def turn(self) -> list[tuple[Owner, int, int]]:
        """(owner, block, digest) of the next blocks, each owner's in the order added."""
        done: list[tuple[Owner, int, int]] = []
        while self._waiting and len(done) < self._pages_per_turn:
            owner, blocks = next(iter(self._waiting.items()))
            block, page = blocks.popleft()
            if not blocks:
                del self._waiting[owner]
            done.append((owner, block, self._digests.of(page)))
        return done


def digests_for(compatibility: Compatibility, memory: PageMemory) -> HostDigests | None:
    """What checked mode needs; None where it is not asked for. Raises PlaneError."""
    return HostDigests(memory) if compatibility.checked else None


def digest_queue(compatibility: Compatibility, digests: Digests | None) -> DigestQueue | None:
    """The queue of one end of hand-overs, in checked mode; None in the other."""
    if compatibility.checked != (digests is not None):
        raise ValueError("checked mode needs digests, and only checked mode does")
    return DigestQueue(digests) if digests is not None else None
