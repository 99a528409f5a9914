"""Pages of all sizes: smaller than any part of a read, and larger than any."""

import random
from collections.abc import Iterator

import numpy
import pytest

from penstock.kvtransfer import shm_plane
from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import Plane, PlaneSettings
from support.plane_world import until


class Both:
    """Holder and reader in one process."""

    def __init__(self, choice: str, page_bytes: int, page_count: int) -> None:
        self.theirs, self.ours = (HostMemory(page_bytes, page_count) for _ in range(2))
        noise = numpy.random.default_rng(page_bytes).integers(0, 256, 1 << 20, numpy.uint8)
        whole = numpy.frombuffer(self.theirs.pages, numpy.uint8)
        whole[:] = numpy.resize(noise, len(whole))
        self.holder: Plane = open_plane(choice, PlaneSettings(self.theirs.memory, "holder"))
        self.reader: Plane = open_plane(choice, PlaneSettings(self.ours.memory, "reader"))
        self.reader.add_peer("tcp://peer:1", 1, self.holder.metadata())
        self.calls = 0

    def read(self, remote: list[int], local: list[int]) -> str:
        self.reader.read("tcp://peer:1", remote, local, [0] * len(remote))
        ended: list[str] = []

        def turn() -> None:
            self.calls += 1
            self.holder.progress()
            ended.extend(completion.failed for completion in self.reader.progress())

        until(lambda: bool(ended), turn, "the end of the read")
        return ended[0]

    def close(self) -> None:
        self.reader.close()
        self.holder.close()
        self.theirs.close()
        self.ours.close()


@pytest.fixture(params=["shm", "tcp", "zmq"])
def choice(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize(
    ("page_bytes", "page_count"),
    [(24, 5000), (4096, 3000), (300_000, 60), ((5 << 20) + 8, 9)],
    ids=["24B", "4K", "300K", "5M"],
)
def test_pages_of_any_size(choice: str, page_bytes: int, page_count: int) -> None:
    both = Both(choice, page_bytes, page_count)
    draw = random.Random(page_bytes)
    count = page_count * 2 // 3
    remote, local = (draw.sample(range(page_count), count) for _ in range(2))
    assert both.read(remote, local) == ""
    for theirs, ours in zip(remote, local, strict=True):
        assert both.ours.page(ours) == both.theirs.page(theirs)
    untouched = b"\0" * page_bytes
    for page in set(range(page_count)) - set(local):
        assert both.ours.page(page) == untouched
    both.close()


def test_shm_with_more_pages_than_it_keeps_slices_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_plane, "MOST_CUTS", 99)
    both = Both("shm", 4096, 100)
    assert both.read(list(range(60)), list(range(99, 39, -1))) == ""
    for page in range(60):
        assert both.ours.page(99 - page) == both.theirs.page(page)
    both.close()


def test_shm_leaves_the_loop_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the memory is: one batch per call when the time is over at once."""
    monkeypatch.setattr(shm_plane, "SECONDS_PER_CALL", 0.0)
    both = Both("shm", 400 << 10, 32)
    assert both.read(list(range(32)), list(range(32))) == ""
    assert both.calls >= (32 * 400 << 10) // shm_plane.BATCH_BYTES
    assert both.ours.pages == both.theirs.pages
    both.close()
