"""F10 over real planes: bytes that differ from what was published never reach a cache."""

import os
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from msgspec import structs

from penstock.kvtransfer.digests import HostDigests
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

PAGE_BYTES = 4096
SLOTS = 16
PAGES = 64
BLOCKS = 6
DEADLINE = 30.0
FLIPS = 40
CHECKED = structs.replace(COMPATIBILITY, checked=True, page_bytes=PAGE_BYTES)


@dataclass
class End:
    """One process's pages, pool and plane; both ends live in this process."""

    memory: HostMemory
    pool: PagePool
    plane: Plane
    wire: Wire


def open_end(plane: str, name: str) -> End:
    memory = HostMemory(PAGE_BYTES, PAGES)
    settings = PlaneSettings(memory.memory, f"{name}-{os.getpid()}-{secrets.token_hex(4)}")
    return End(memory, PagePool(memory.generations), open_plane(plane, settings), Wire(name))


class Pair:
    def __init__(self, plane: str) -> None:
        self.source, self.target = open_end(plane, "prefill"), open_end(plane, "decode")
        self.holder = Holder(
            self.source.pool,
            self.source.wire,
            self.source.plane,
            CHECKED,
            60.0,
            digests=HostDigests(self.source.memory.memory),
        )
        self.reader = Reader(
            self.target.pool,
            self.target.wire,
            self.target.plane,
            CHECKED,
            ReaderSettings(SLOTS, PAGE_BYTES, read_seconds=DEADLINE),
            digests=HostDigests(self.target.memory.memory),
        )

    def compute(self, request: int, chance: random.Random) -> list[int]:
        """A prompt of random bytes, published; its pages."""
        tokens = [chance.randrange(1000) for _ in range(BLOCKS * SLOTS - 3)]
        prefill = Prefill(
            *(request, 1, ROUTER, "m", "", tokens, len(tokens), [0], Sampling(1), "fake://decode")
        )
        root = blockhash.root(CHECKED.model, CHECKED.numeric_class, "")
        hashes = blockhash.extend(root, tokens, SLOTS)
        tail = blockhash.tail(root, hashes, tokens, SLOTS)
        pool = self.source.pool
        pages = pool.take(("sequence", request), BLOCKS)
        assert pages is not None
        for block, page in enumerate(pages):
            self.source.memory.page(page)[:] = chance.randbytes(PAGE_BYTES)
            pool.seal(page, hashes[block] if block < len(hashes) else None, tail)
        self.holder.publish(self.holder.open(prefill, 0, 0.0), pages, FIRST)
        pool.release(("sequence", request))
        return pages

    def carry(self) -> None:
        for message in self.source.wire.take():
            self.reader.take(self.source.wire.me, message, 0.0)  # type: ignore[arg-type]
        for message in self.target.wire.take():
            self.holder.take(self.target.wire.me, message, 0.0)  # type: ignore[arg-type]

    def settle(self, ended: int) -> None:
        """Until so many hand-overs have ended, one way or the other."""
        give_up = time.monotonic() + DEADLINE
        while len(self.reader.complete) + len(self.reader.lost) < ended or self.holder.leases:
            self.holder.turn(0.0)
            self.carry()
            self.source.plane.progress()
            self.reader.turn(Allowance(8), 0.0)
            self.carry()
            assert time.monotonic() < give_up, "the hand-overs did not end"

    def close(self) -> None:
        for end in (self.target, self.source):
            end.plane.close()
        for end in (self.target, self.source):
            end.memory.close()


@pytest.fixture(params=["shm", "zmq", "nixl"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    opened = Pair(request.param)
    yield opened
    opened.close()


def test_every_flipped_bit_is_caught_and_ends_its_request_alone(pair: Pair) -> None:
    chance = random.Random(11)
    for flip in range(FLIPS):
        victim, other = pair.compute(2 * flip, chance), pair.compute(2 * flip + 1, chance)
        pair.holder.turn(0.0)  # digested
        block = chance.randrange(BLOCKS)
        # The page as it is now, after its digest was taken: as if the wire had changed it.
        pair.source.memory.page(victim[block])[chance.randrange(PAGE_BYTES)] ^= (
            1 << chance.randrange(8)
        )
        sent = [bytes(pair.source.memory.page(page)) for page in other]
        pair.settle(2)
        (lost,), (whole,) = pair.reader.lost, pair.reader.complete
        assert lost.handoff.prefill.request == 2 * flip
        assert lost.reason.startswith(f"block {block} is corrupt")
        assert whole.handoff.prefill.request == 2 * flip + 1
        assert [bytes(pair.target.memory.page(page)) for page in whole.pages] == sent
        pair.target.pool.release(whole.pool_holder)
        pair.reader.lost.clear()
        pair.reader.complete.clear()
        pair.target.pool.check()
        assert pair.target.pool.held == pair.source.pool.held == 0
