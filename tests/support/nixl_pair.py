"""NIXL planes in this process, driven turn by turn: every order of events can be had."""

import itertools
import os
import time
from collections.abc import Callable

import numpy

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.nixl_plane import NixlPlane
from penstock.kvtransfer.plane import Completion, PlaneSettings

DEADLINE = 20.0
NUMBERS = itertools.count()


class End:
    """One plane over pages of its own, filled with bytes that tell page and offset."""

    def __init__(self, page_bytes: int, page_count: int, bytes_per_post: int = 4 << 20) -> None:
        self.memory = HostMemory(page_bytes, page_count)
        self.name = f"end-{os.getpid()}-{next(NUMBERS)}"
        settings = PlaneSettings(self.memory.memory, self.name, bytes_per_post=bytes_per_post)
        self.plane = NixlPlane(settings)
        self.bytes = numpy.frombuffer(self.memory.pages, numpy.uint8).reshape(page_count, -1)
        self.completions: list[Completion] = []

    def fill(self, seed: int) -> None:
        self.bytes[:] = numpy.random.default_rng(seed).integers(
            0, 255, self.bytes.shape, dtype=numpy.uint8
        )

    def poison(self) -> None:
        self.bytes[:] = 0xEE

    @property
    def poisoned(self) -> bool:
        return bool((self.bytes == 0xEE).all())

    def step(self) -> None:
        self.completions += self.plane.progress()

    def of(self, ticket: int) -> list[Completion]:
        return [completion for completion in self.completions if completion.ticket == ticket]

    def close(self) -> None:
        self.plane.close()
        del self.bytes
        self.memory.close()


class Pair:
    """A holder and readers of it."""

    def __init__(self, page_bytes: int, page_count: int, readers: int = 1) -> None:
        self.holder = End(page_bytes, page_count)
        self.holder.fill(page_bytes)
        self.readers = [End(page_bytes, page_count) for _ in range(readers)]
        self.reader = self.readers[0]
        for reader in self.readers:
            reader.poison()
            reader.plane.add_peer("holder", 1, self.holder.plane.metadata())

    def step(self) -> None:
        for end in (self.holder, *self.readers):
            end.step()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            self.step()
            assert time.monotonic() < end, f"{what} did not happen in {DEADLINE} s"

    def settle(self, ticket: int, reader: End | None = None) -> Completion:
        reader = reader or self.reader
        self.until(lambda: bool(reader.of(ticket)), f"the end of read {ticket}")
        return reader.of(ticket)[0]

    def read(
        self, remote: list[int], local: list[int], expected: list[int] | None = None
    ) -> Completion:
        return self.settle(self.reader.plane.read("holder", remote, local, expected))

    def same(self, remote: list[int], local: list[int], reader: End | None = None) -> bool:
        """The pages named have arrived, and no other page was touched."""
        ours = (reader or self.reader).bytes
        others = numpy.setdiff1d(numpy.arange(len(ours)), local)
        arrived = (ours[local] == self.holder.bytes[remote]).all()
        return bool(arrived and (ours[others] == 0xEE).all())

    def close(self) -> None:
        for end in (*self.readers, self.holder):
            end.close()
