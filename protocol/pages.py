"""The page pool: who holds which page, and when a page may be granted again. Pure.

    FREE ──take──> OPEN ──seal──> SEALED ──last holder gone──> CACHED ──share──> SEALED
      ^              │               │                            │
      │              └─ last holder ─┴─ gone, no hash ──> FREE    └── evicted ──> FREE
      └── quiet ── QUARANTINED <── last holder gone while bytes may still arrive (from OPEN)

- A page is OPEN for one writer (the holder that took it) until it is sealed; sealed pages are
  immutable and may be shared by any number of holders: sequences, prefix sharers, leases.
- `generations[page]` is raised by `take`, so before any write that follows a re-grant. A remote
  reader that compares it after its data is complete therefore sees every reuse.
- Pages a transfer writes into (`expect`) do not return to the free list before `quiet`.

Blocks are not de-duplicated: when two sequences compute the same block, the first one sealed is
the cached one and the other stays private, so that page tables are append-only.
"""

import heapq
from collections.abc import Hashable, Iterable, Sequence
from enum import Enum
from typing import Protocol

Holder = Hashable


class Generations(Protocol):
    """One counter per page, in memory that remote readers may look at."""

    def __len__(self) -> int: ...

    def __getitem__(self, page: int, /) -> int: ...

    def __setitem__(self, page: int, generation: int, /) -> None: ...


class PageState(Enum):
    FREE = "free"
    OPEN = "open"
    SEALED = "sealed"
    CACHED = "cached"
    QUARANTINED = "quarantined"


MOVES: dict[PageState, frozenset[PageState]] = {
    PageState.FREE: frozenset({PageState.OPEN}),
    PageState.OPEN: frozenset({PageState.SEALED, PageState.FREE, PageState.QUARANTINED}),
    PageState.SEALED: frozenset({PageState.CACHED, PageState.FREE}),
    PageState.CACHED: frozenset({PageState.SEALED, PageState.FREE}),
    PageState.QUARANTINED: frozenset({PageState.FREE}),
}


class PagePool:
    """All pages of one worker. `generations` is the memory that remote readers look at."""

    def __init__(self, generations: Generations):
        count = len(generations)
        self._generations = generations
        self._state = [PageState.FREE] * count
        self._holders = [0] * count  # how many hold each page
        self._hash: list[bytes | None] = [None] * count  # of findable pages
        self._content = [b""] * count  # hash each page was sealed with, findable or not
        self._held: dict[Holder, list[int]] = {}
        self._free = list(range(count))  # a heap: low ids first, so that runs stay contiguous
        self._cached: dict[int, None] = {}  # pages without holder, oldest first
        self._by_hash: dict[bytes, int] = {}
        self._arriving: dict[Hashable, list[int]] = {}  # ticket -> pages it writes
        self._inbound = [0] * count  # how many open transfers write each page
        self._added: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        self.quarantined = 0
        self.revision = 0  # raised by every move: what was refused at this revision still is
        self.evictions = 0

    # --- facts ---------------------------------------------------------------------------------

    @property
    def page_count(self) -> int:
        return len(self._state)

    @property
    def available(self) -> int:
        """Pages that `take` can give now: free, or cached without a holder."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        return self.page_count - self.available - self.quarantined

    def generation(self, page: int) -> int:
        return self._generations[page]

    def state(self, page: int) -> PageState:
        return self._state[page]

    def content(self, page: int) -> bytes:
        """What this page was sealed as: a block's hash or a tail's; b"" while it is open."""
        return self._content[page]

    def pages_of(self, holder: Holder) -> list[int]:
        return list(self._held.get(holder, ()))

    def cached_hashes(self) -> list[bytes]:
        """Every block that `lookup` can find; forgets the changes reported so far."""
        self._added.clear()
        self._removed.clear()
        return list(self._by_hash)

    def changes(self) -> tuple[list[bytes], list[bytes]]:
        """Blocks that became findable, and blocks that ceased to be, since the last call."""
        added, removed = list(self._added), list(self._removed)
        self._added.clear()
        self._removed.clear()
        return added, removed

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Pages of the longest cached run from the first hash on. Holds nothing."""
        pages: list[int] = []
        for block_hash in hashes:
            page = self._by_hash.get(block_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    # --- moves ---------------------------------------------------------------------------------

    def take(self, holder: Holder, count: int) -> list[int] | None:
        """Grant `count` open pages, evicting the longest unused cached ones; None = not enough."""
        if count > self.available:
            return None
        pages = []
        for _ in range(count):
            if not self._free:
                self._evict(next(iter(self._cached)))
            page = heapq.heappop(self._free)
            self._generations[page] += 1  # seen by readers before the first write
            self._content[page] = b""
            self._move(page, PageState.OPEN)
            self._holders[page] = 1
            pages.append(page)
        self._held.setdefault(holder, []).extend(pages)
        return pages

    def can_take(self, count: int, keeping: Sequence[int]) -> bool:
        """Would `take(count)` work after `share(keeping)`? Changes nothing."""
        unheld = sum(self._state[page] is PageState.CACHED for page in keeping)
        return count <= self.available - unheld

    def share(self, holder: Holder, pages: Sequence[int]) -> None:
        """Another holder of sealed pages."""
        for page in pages:
            if self._state[page] is PageState.CACHED:
                del self._cached[page]
                self._move(page, PageState.SEALED)
            elif self._state[page] is not PageState.SEALED:
                state = self._state[page].value
                raise ValueError(f"page {page} is {state}; only sealed pages are shared")
            self._holders[page] += 1
        self._held.setdefault(holder, []).extend(pages)

    def seal(self, page: int, block_hash: bytes | None, tail: bytes = b"") -> None:
        """End of writing. With a hash (full blocks) the page can be found by later prompts; a
        partial block only says what it holds."""
        if self._inbound[page]:
            raise ValueError(f"page {page} cannot be sealed: a transfer still writes it")
        self._move(page, PageState.SEALED)
        self._content[page] = block_hash or tail
        if block_hash is not None and block_hash not in self._by_hash:
            self._hash[page] = block_hash
            self._by_hash[block_hash] = page
            self._note(block_hash, self._added, self._removed)

    def rename(self, holder: Holder, to: Holder) -> None:
        """Everything `holder` holds is held by `to` from now on."""
        if to in self._held:
            raise ValueError(f"{to} holds pages already")
        self._held[to] = self._held.pop(holder)

    def release(self, holder: Holder) -> None:
        """This holder is gone. Later blocks become evictable before earlier ones."""
        for page in reversed(self._held.pop(holder, [])):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._let_go(page)

    def expect(self, ticket: Hashable, pages: Sequence[int]) -> None:
        """A transfer will write these open pages until `quiet(ticket)`."""
        for page in pages:
            if self._state[page] is not PageState.OPEN:
                raise ValueError(f"page {page} is {self._state[page].value}, not open for writing")
            self._inbound[page] += 1
        self._arriving[ticket] = list(pages)

    def quiet(self, ticket: Hashable) -> None:
        """No byte of this transfer can land any more."""
        for page in self._arriving.pop(ticket, ()):
            self._inbound[page] -= 1
            if self._inbound[page] == 0 and self._state[page] is PageState.QUARANTINED:
                self.quarantined -= 1
                self._to_free(page)

    # --- inside --------------------------------------------------------------------------------

    def _let_go(self, page: int) -> None:
        if self._inbound[page]:
            self._move(page, PageState.QUARANTINED)
            self.quarantined += 1
        elif self._hash[page] is not None:
            self._move(page, PageState.CACHED)
            self._cached[page] = None
        else:
            self._to_free(page)

    def _evict(self, page: int) -> None:
        block_hash = self._hash[page]
        assert block_hash is not None
        del self._cached[page]
        del self._by_hash[block_hash]
        self._hash[page] = None
        self._note(block_hash, self._removed, self._added)
        self.evictions += 1
        self._to_free(page)

    def _to_free(self, page: int) -> None:
        self._move(page, PageState.FREE)
        heapq.heappush(self._free, page)

    def _move(self, page: int, to: PageState) -> None:
        if to not in MOVES[self._state[page]]:
            raise ValueError(f"page {page} cannot go from {self._state[page].value} to {to.value}")
        self._state[page] = to
        self.revision += 1

    @staticmethod
    def _note(block_hash: bytes, into: dict[bytes, None], out_of: dict[bytes, None]) -> None:
        # A block that came and went between two reports is reported in neither list.
        if block_hash in out_of:
            del out_of[block_hash]
        else:
            into[block_hash] = None

    def check(self) -> None:
        """Every invariant, for idle time and tests. Raises AssertionError naming the page."""
        counts = [0] * self.page_count
        for pages in self._held.values():
            for page in pages:
                counts[page] += 1
        free = set(self._free)
        assert len(free) == len(self._free), "a page is twice on the free list"
        for page, state in enumerate(self._state):
            assert counts[page] == self._holders[page], f"{self._at(page)}: holders do not add up"
            assert (state is PageState.FREE) == (page in free), (
                f"{self._at(page)}: free list disagrees"
            )
            assert (state is PageState.CACHED) == (page in self._cached), (
                f"{self._at(page)}: cache list"
            )
            held = state in (PageState.OPEN, PageState.SEALED)
            assert held == (counts[page] > 0), f"{self._at(page)}: {counts[page]} holders"
            if state is PageState.OPEN:
                assert counts[page] == 1, (
                    f"{self._at(page)}: an open page has {counts[page]} holders"
                )
            if state is PageState.QUARANTINED:
                assert self._inbound[page] > 0, f"{self._at(page)}: nothing can arrive"
            if self._hash[page] is not None:
                assert self._by_hash[self._hash[page]] == page, f"{self._at(page)}: hash index"  # type: ignore[index]
        quarantined = sum(state is PageState.QUARANTINED for state in self._state)
        assert quarantined == self.quarantined, "quarantine count"

    def _at(self, page: int) -> str:
        return f"page {page} ({self._state[page].value})"
