"""A holder and a reader of hand-overs over two real planes, both in this process."""

import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from penstock.kvtransfer.digests import digests_for
from penstock.kvtransfer.holder import Holder
from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.incoming import Allowance, ReaderSettings
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import Plane, PlaneSettings
from penstock.kvtransfer.reader import Reader
from penstock.protocol import blockhash
from penstock.protocol.messages import Prefill, Sampling
from penstock.protocol.pages import PagePool
from support.handover_ends import COMPATIBILITY, FIRST, ROUTER, Wire
from support.plane_world import until

SLOTS = 16
LEASE_SECONDS = 3600.0


@dataclass
class End:
    """One process's pages, pool and plane."""

    memory: HostMemory
    pool: PagePool
    plane: Plane
    wire: Wire

    def pages(self, numbers: list[int]) -> list[bytes]:
        return [bytes(self.memory.page(number)) for number in numbers]


class PlaneEnds:
    """`now` is turned by hand; bytes move as fast as they do."""

    def __init__(
        self,
        plane: str,
        page_bytes: int,
        pages: int,
        checked: bool = False,
        read_seconds: float = 30.0,
        bytes_per_post: int = 4 << 20,
    ) -> None:
        self.now = 0.0
        self.page_bytes = page_bytes
        self._bytes_per_post = bytes_per_post
        self.source = self._end(plane, "prefill", pages)
        self.target = self._end(plane, "decode", pages)
        terms = structs.replace(COMPATIBILITY, checked=checked, page_bytes=page_bytes)
        self.holder = Holder(
            *(self.source.pool, self.source.wire, self.source.plane, terms, LEASE_SECONDS),
            digests=digests_for(terms, self.source.memory.memory),
        )
        self.reader = Reader(
            *(self.target.pool, self.target.wire, self.target.plane, terms),
            ReaderSettings(SLOTS, page_bytes, read_seconds=read_seconds),
            digests=digests_for(terms, self.target.memory.memory),
        )

    def _end(self, plane: str, name: str, pages: int) -> End:
        memory = HostMemory(self.page_bytes, pages)
        unique = f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
        settings = PlaneSettings(memory.memory, unique, bytes_per_post=self._bytes_per_post)
        return End(memory, PagePool(memory.generations), open_plane(plane, settings), Wire(name))

    def compute(self, request: int, blocks: int, chance: random.Random) -> list[int]:
        """A prompt of random bytes, published; its pages."""
        tokens = [chance.randrange(1000) for _ in range(blocks * SLOTS - 3)]
        prefill = Prefill(
            *(request, 1, ROUTER, "m", "", tokens, len(tokens), [0], Sampling(1), "fake://decode")
        )
        root = blockhash.root(COMPATIBILITY.model, COMPATIBILITY.numeric_class, "")
        hashes = blockhash.extend(root, tokens, SLOTS)
        tail = blockhash.tail(root, hashes, tokens, SLOTS)
        pool = self.source.pool
        pages = pool.take(("sequence", request), blocks)
        assert pages is not None
        for block, page in enumerate(pages):
            self.source.memory.page(page)[:] = chance.randbytes(self.page_bytes)
            pool.seal(page, hashes[block] if block < len(hashes) else None, tail)
        self.holder.publish(self.holder.open(prefill, 0, self.now), pages, FIRST)
        pool.release(("sequence", request))
        return pages

    def carry(self) -> None:
        for message in self.source.wire.take():
            self.reader.take(self.source.wire.me, message, self.now)  # type: ignore[arg-type]
        for message in self.target.wire.take():
            self.holder.take(self.target.wire.me, message, self.now)  # type: ignore[arg-type]

    def hold(self) -> None:
        """The holder's turn."""
        self.holder.turn(self.now)
        self.carry()
        self.source.plane.progress()
        time.sleep(0)  # what moves bytes behind our back may share this processor

    def look(self, seconds: float = 0.0) -> None:
        """The reader's."""
        self.now += seconds
        self.reader.turn(Allowance(8), self.now)
        self.carry()

    def both(self) -> None:
        self.hold()
        self.look()

    def settle(self, ended: int, turn: Callable[[], object] | None = None) -> None:
        """Until so many hand-overs have ended, one way or the other, and the holder knows."""
        until(
            lambda: (
                len(self.reader.complete) + len(self.reader.lost) >= ended
                and not self.holder.leases
            ),
            turn or self.both,
            "the end of the hand-overs",
        )

    def close(self) -> None:
        for end in (self.target, self.source):
            end.plane.close()
        for end in (self.target, self.source):
            end.memory.close()
