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
- A holder holds a page once, and no call names one twice.

Each move is written twice: for few pages in plain Python, for many as one look at arrays. What may
follow what stands in one table for both.

Blocks are not de-duplicated: when two sequences compute the same block, the first one sealed is
the cached one and the other stays private, so that page tables are append-only.
"""

from array import array
from collections.abc import Hashable, Iterable, Sequence
from itertools import islice

import numpy
from numpy.typing import NDArray

from .blockhash import DIGEST_BYTES
from .findable import Findable
from .page_states import ALLOWED, CACHED, FREE, OPEN, QUARANTINED, SEALED, STATES, PageState

Holder = Hashable
Generations = memoryview | Sequence[int]
PageArray = NDArray[numpy.integer]
Pages = Sequence[int] | PageArray

FEW = 16  # pages for which plain Python beats numpy
NO_CONTENT = bytes(DIGEST_BYTES)
ALLOWED_ARRAY = numpy.array(ALLOWED)


class PagePool:
    """All pages of one worker. `generations` is the memory that remote readers look at: 64-bit
    unsigned numbers, written in place. (A list's numbers are copied: nobody else looks at them.)
    """

    def __init__(self, generations: Generations):
        if isinstance(generations, memoryview):
            self._generations_P = numpy.frombuffer(memoryview(generations), dtype=numpy.uint64)
        else:
            self._generations_P = numpy.array(generations, dtype=numpy.uint64)
        count = len(self._generations_P)
        self._generations = self._generations_P.data
        self._state = bytearray(count)
        self._state_P = numpy.frombuffer(self._state, dtype=numpy.uint8)
        self._holders_P = numpy.zeros(count, dtype=numpy.int32)  # how many hold each page
        self._holders = self._holders_P.data
        self._inbound_P = numpy.zeros(count, dtype=numpy.int32)  # open transfers that write it
        self._inbound = self._inbound_P.data
        # What each page was sealed with, findable or not; zeros while it is open.
        self._content_P = numpy.zeros(count, dtype=f"V{DIGEST_BYTES}")
        self._content = self._content_P.view(numpy.uint8).data if count else memoryview(b"")
        self._findable = bytearray(count)  # 1: `lookup` finds this page by its content
        self._findable_P = numpy.frombuffer(self._findable, dtype=numpy.uint8)
        self._held: dict[Holder, list[int]] = {}
        self._free_count = count
        self._lowest = 0  # no page below is free; low ids first, so that runs stay contiguous
        self._cached: dict[int, None] = {}  # pages without holder, oldest first
        self._blocks = Findable()
        self._arriving: dict[Hashable, Pages] = {}  # ticket -> pages it writes
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
        return self._free_count + len(self._cached)

    @property
    def held(self) -> int:
        return self.page_count - self.available - self.quarantined

    def generation(self, page: int) -> int:
        return self._generations[page]

    def state(self, page: int) -> PageState:
        return STATES[self._state[page]]

    def content(self, page: int) -> bytes:
        """What this page was sealed as: a block's hash or a tail's; b"" while it is open."""
        held = self._content_of(page)
        return held if held != NO_CONTENT else b""

    def columns(self, pages: Pages) -> tuple[bytes, bytes, bytes]:
        """Of each page its number (int32), its generation (uint64) and its content (zeros if it
        has none), one behind the other."""
        if len(pages) > FEW:
            pages_N = numpy.asarray(pages, dtype=numpy.int32)
            generations_N, content_N = self._generations_P[pages_N], self._content_P[pages_N]
            return pages_N.tobytes(), generations_N.tobytes(), content_N.tobytes()
        generations = array("Q", [self._generations[page] for page in pages])
        contents = b"".join(map(self._content_of, pages))
        return array("i", pages).tobytes(), generations.tobytes(), contents

    def pages_of(self, holder: Holder) -> list[int]:
        return list(self._held.get(holder, ()))

    def cached_hashes(self) -> list[bytes]:
        """Every block that `lookup` can find; forgets the changes reported so far."""
        return self._blocks.all()

    def changes(self) -> tuple[list[bytes], list[bytes]]:
        """Blocks that became findable, and blocks that ceased to be, since the last call."""
        return self._blocks.changes()

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Pages of the longest cached run from the first hash on. Holds nothing."""
        return self._blocks.lookup(hashes)

    # --- moves ---------------------------------------------------------------------------------

    def take(self, holder: Holder, count: int) -> list[int] | None:
        """Grant `count` open pages, evicting the longest unused cached ones; None = not enough."""
        if count > self.available:
            return None
        if count > self._free_count:
            for page in list(islice(self._cached, count - self._free_count)):
                self._evict(page)
        if count > FEW:
            pages = self._take_many(count)
        else:
            pages, page = [], self._lowest
            for _ in range(count):
                page = self._state.find(FREE, page)
                self._generations[page] += 1  # seen by readers before the first write
                self._put_content(page, NO_CONTENT)
                self._move(page, OPEN)
                self._holders[page] = 1
                pages.append(page)
            self._lowest = page
        self._free_count -= count
        self._held.setdefault(holder, []).extend(pages)
        return pages

    def can_take(self, count: int, keeping: Sequence[int]) -> bool:
        """Would `take(count)` work after `share(keeping)`? Changes nothing."""
        unheld = sum(self._state[page] == CACHED for page in keeping)
        return count <= self.available - unheld

    def share(self, holder: Holder, pages: Pages) -> None:
        """Another holder of sealed pages."""
        few = listed(pages)
        if len(few) > FEW:
            self._share_many(numpy.asarray(pages))
        else:
            for page in few:
                if self._state[page] == CACHED:
                    del self._cached[page]
                    self._move(page, SEALED)
                elif self._state[page] != SEALED:
                    raise ValueError(self._unsealed(page))
                self._holders[page] += 1
        self._held.setdefault(holder, []).extend(few)

    def seal(self, page: int, block_hash: bytes | None, tail: bytes = b"") -> None:
        """End of writing. With a hash (full blocks) the page can be found by later prompts; a
        partial block only says what it holds."""
        if self._inbound[page]:
            raise ValueError(f"{self._at(page)} cannot be sealed: a transfer still writes it")
        content = block_hash or tail or NO_CONTENT
        if len(content) != DIGEST_BYTES:
            raise ValueError(f"a block's hash has {DIGEST_BYTES} bytes, not {len(content)}")
        self._move(page, SEALED)
        self._put_content(page, content)
        if block_hash is not None and block_hash not in self._blocks:
            self._findable[page] = 1
            self._blocks.add(block_hash, page)

    def seal_blocks(self, pages: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Full blocks, each page with its hash."""
        if len(pages) > FEW:
            blocks = dict(zip(hashes, pages, strict=True))
            if len(blocks) == len(pages) and self._blocks.all_new(blocks):
                self._seal_many(blocks, numpy.array(pages))
                return
        for page, block_hash in zip(pages, hashes, strict=True):
            self.seal(page, block_hash)

    def rename(self, holder: Holder, to: Holder) -> None:
        """Everything `holder` holds is held by `to` from now on."""
        if to in self._held:
            raise ValueError(f"{to} holds pages already")
        self._held[to] = self._held.pop(holder)

    def release(self, holder: Holder) -> None:
        """This holder is gone. Later blocks become evictable before earlier ones."""
        pages = self._held.pop(holder, [])
        if len(pages) > FEW:
            pages_N = numpy.array(pages)[::-1]
            self._holders_P[pages_N] -= 1
            self._let_go_many(pages_N[self._holders_P[pages_N] == 0])
            return
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._let_go(page)

    def expect(self, ticket: Hashable, pages: Pages) -> None:
        """A transfer will write these open pages until `quiet(ticket)`."""
        if len(pages) > FEW:
            pages_N = numpy.array(pages)
            if (shut := self._state_P[pages_N] != OPEN).any():
                raise ValueError(self._shut(int(pages_N[shut][0])))
            self._inbound_P[pages_N] += 1
            self._arriving[ticket] = pages_N
            return
        few = listed(pages)
        for page in few:
            if self._state[page] != OPEN:
                raise ValueError(self._shut(page))
            self._inbound[page] += 1
        self._arriving[ticket] = few

    def quiet(self, ticket: Hashable) -> None:
        """No byte of this transfer can land any more."""
        pages = self._arriving.pop(ticket, ())
        if isinstance(pages, numpy.ndarray):
            self._inbound_P[pages] -= 1
            idle = (self._inbound_P[pages] == 0) & (self._state_P[pages] == QUARANTINED)
            if idle.any():
                self.quarantined -= int(idle.sum())
                self._to_free_many(pages[idle])
            return
        for page in pages:
            self._inbound[page] -= 1
            if self._inbound[page] == 0 and self._state[page] == QUARANTINED:
                self.quarantined -= 1
                self._to_free(page)

    # --- inside: one page ----------------------------------------------------------------------

    def _content_of(self, page: int) -> bytes:
        return bytes(self._content[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES])

    def _put_content(self, page: int, content: bytes) -> None:
        self._content[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES] = content

    def _let_go(self, page: int) -> None:
        if self._inbound[page]:
            self._move(page, QUARANTINED)
            self.quarantined += 1
        elif self._findable[page]:
            self._move(page, CACHED)
            self._cached[page] = None
        else:
            self._to_free(page)

    def _evict(self, page: int) -> None:
        block_hash = self._content_of(page)
        del self._cached[page]
        self._blocks.remove(block_hash)
        self._findable[page] = 0
        self.evictions += 1
        self._to_free(page)

    def _to_free(self, page: int) -> None:
        self._move(page, FREE)
        self._free_count += 1
        self._lowest = min(self._lowest, page)

    def _move(self, page: int, to: int) -> None:
        if not ALLOWED[to][self._state[page]]:
            raise ValueError(self._forbidden(page, to))
        self._state[page] = to
        self.revision += 1

    # --- inside: many pages, pages_N -----------------------------------------------------------

    def _take_many(self, count: int) -> list[int]:
        free = numpy.flatnonzero(self._state_P[self._lowest :] == FREE)
        pages_N = free[:count] + self._lowest
        self._generations_P[pages_N] += numpy.uint64(1)  # seen by readers before the first write
        self._content_P[pages_N] = numpy.zeros((), dtype=self._content_P.dtype)
        self._move_many(pages_N, OPEN)
        self._holders_P[pages_N] = 1
        self._lowest = int(pages_N[-1])
        return pages_N.tolist()

    def _seal_many(self, blocks: dict[bytes, int], pages_N: PageArray) -> None:
        if (arriving_N := self._inbound_P[pages_N] > 0).any():
            page = int(pages_N[arriving_N][0])
            raise ValueError(f"{self._at(page)} cannot be sealed: a transfer still writes it")
        if set(map(len, blocks)) != {DIGEST_BYTES}:
            raise ValueError(f"a block's hash has {DIGEST_BYTES} bytes")
        content = numpy.frombuffer(b"".join(blocks), dtype=self._content_P.dtype)
        self._move_many(pages_N, SEALED)
        self._content_P[pages_N] = content
        self._findable_P[pages_N] = 1
        self._blocks.add_new(blocks)

    def _share_many(self, pages_N: PageArray) -> None:
        state_N = self._state_P[pages_N]
        cached_N = state_N == CACHED
        if (other := ~cached_N & (state_N != SEALED)).any():
            raise ValueError(self._unsealed(int(pages_N[other][0])))
        if cached_N.any():
            for page in pages_N[cached_N].tolist():
                del self._cached[page]
            self._move_many(pages_N[cached_N], SEALED)
        self._holders_P[pages_N] += 1

    def _let_go_many(self, pages_N: PageArray) -> None:
        loud_N = self._inbound_P[pages_N] > 0
        kept_N = ~loud_N & (self._findable_P[pages_N] > 0)
        if (loud := pages_N[loud_N]).size:
            self._move_many(loud, QUARANTINED)
            self.quarantined += loud.size
        if (kept := pages_N[kept_N]).size:
            self._move_many(kept, CACHED)
            self._cached.update(dict.fromkeys(kept.tolist()))
        if (free := pages_N[~loud_N & ~kept_N]).size:
            self._to_free_many(free)

    def _to_free_many(self, pages_N: PageArray) -> None:
        self._move_many(pages_N, FREE)
        self._free_count += pages_N.size
        self._lowest = min(self._lowest, int(pages_N.min()))

    def _move_many(self, pages_N: PageArray, to: int) -> None:
        allowed_N = ALLOWED_ARRAY[to][self._state_P[pages_N]]
        if not allowed_N.all():
            raise ValueError(self._forbidden(int(pages_N[~allowed_N][0]), to))
        self._state_P[pages_N] = to
        self.revision += pages_N.size

    # --- checks --------------------------------------------------------------------------------

    def check(self) -> None:
        """Every invariant, for idle time and tests. Raises AssertionError naming the page."""
        counts = [0] * self.page_count
        for holder, pages in self._held.items():
            assert len(set(pages)) == len(pages), f"{holder} holds a page twice"
            for page in pages:
                counts[page] += 1
        for page in range(self.page_count):
            state = self.state(page)
            assert counts[page] == self._holders[page], f"{self._at(page)}: holders do not add up"
            cached = page in self._cached
            assert (state is PageState.CACHED) == cached, f"{self._at(page)}: cache list"
            held = state in (PageState.OPEN, PageState.SEALED)
            assert held == (counts[page] > 0), f"{self._at(page)}: {counts[page]} holders"
            if state is PageState.OPEN:
                assert counts[page] == 1, f"{self._at(page)}: {counts[page]} holders, and open"
            if state is PageState.FREE:
                assert page >= self._lowest, f"{self._at(page)}: below the lowest free page"
            if state is PageState.QUARANTINED:
                assert self._inbound[page] > 0, f"{self._at(page)}: nothing can arrive"
            if self._findable[page]:
                found = self._blocks.pages[self._content_of(page)]
                assert found == page, f"{self._at(page)}: hash index"
        assert self._state.count(FREE) == self._free_count, "count of free pages"
        assert self._state.count(QUARANTINED) == self.quarantined, "quarantine count"
        assert self._findable.count(1) == len(self._blocks.pages), "count of findable pages"

    def _at(self, page: int) -> str:
        return f"page {page} ({self.state(page).value})"

    def _unsealed(self, page: int) -> str:
        return f"page {page} is {self.state(page).value}; only sealed pages are shared"

    def _shut(self, page: int) -> str:
        return f"page {page} is {self.state(page).value}, not open for writing"

    def _forbidden(self, page: int, to: int) -> str:
        return f"page {page} cannot go from {self.state(page).value} to {STATES[to].value}"


def arranged(pages: list[int]) -> Pages:
    """As what many pages are dealt with fastest, for several calls with the same."""
    return numpy.array(pages, dtype=numpy.int32) if len(pages) > FEW else pages


def listed(pages: Pages) -> list[int]:
    """As a list of plain numbers."""
    return pages.tolist() if isinstance(pages, numpy.ndarray) else list(pages)
