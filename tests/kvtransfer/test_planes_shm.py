"""What a reader asks of a peer's memory file before it maps it: a mapped file can kill."""

import mmap
import os
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.plane import PlaneError, PlaneSettings
from penstock.kvtransfer.shm_plane import Metadata, ShmPlane
from support.plane_world import until

PEER = "tcp://peer:1"


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    memory = HostMemory(4096, 8)
    memory.pages[:] = os.urandom(len(memory.pages))
    yield memory
    memory.close()


@pytest.fixture
def plane(memory: HostMemory) -> Iterator[ShmPlane]:
    plane = ShmPlane(PlaneSettings(memory.memory, f"shm-{os.getpid()}"))
    yield plane
    plane.close()


def words_of(plane: ShmPlane) -> Metadata:
    return msgspec.msgpack.decode(plane.metadata(), type=Metadata)


def refusal(plane: ShmPlane, words: Metadata) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PlaneError) as refused:
        plane.add_peer(PEER, 1, msgspec.msgpack.encode(words))
    assert len(os.listdir("/proc/self/fd")) == before, "what was opened is closed"
    with pytest.raises(PlaneError, match="not a known peer"):
        plane.read(PEER, [0], [0])
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"boot": "another"}, "another host"),
        ({"pid_namespace": "pid:[1]"}, "another container"),
        ({"started": 1}, "another process"),
        ({"inode": 1}, "not its memory file"),
        ({"file": 10_000}, "cannot be opened"),
        ({"pid": 2**31}, "cannot be opened"),
        ({"page_count": 10**9}, "do not lie before its pages"),
        ({"pages_offset": 0}, "do not lie before its pages"),
        ({"file_bytes": 4096}, "does not fit its memory file"),
    ],
)
def test_a_peer_that_is_not_here_or_not_what_it_says_is_refused(
    plane: ShmPlane, change: dict[str, object], sentence: str
) -> None:
    said = refusal(plane, msgspec.structs.replace(words_of(plane), **change))
    assert PEER in said and sentence in said


@pytest.fixture
def unsealed(plane: ShmPlane) -> Iterator[tuple[int, Metadata]]:
    """A memory file that its owner can shorten, and what that owner says of it."""
    words = words_of(plane)
    file = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, words.file_bytes)
    inode = os.fstat(file).st_ino
    yield file, msgspec.structs.replace(words, file=file, inode=inode)
    os.close(file)


def test_a_memory_file_that_could_be_shortened_is_refused(
    plane: ShmPlane, unsealed: tuple[int, Metadata]
) -> None:
    said = refusal(plane, unsealed[1])
    assert said.startswith(f"{PEER}: its memory file is not sealed against shrinking")
    assert "use tcp or zmq" in said


def test_a_memory_file_that_was_shortened_is_refused(
    plane: ShmPlane, unsealed: tuple[int, Metadata]
) -> None:
    file, words = unsealed
    os.ftruncate(file, mmap.PAGESIZE)
    assert "not its memory file" in refusal(plane, words)


def test_a_file_of_another_kind_is_refused_and_nobody_waits_for_it(plane: ShmPlane) -> None:
    """Opening the reading end of a pipe nobody writes to would wait for a writer."""
    readable, writable = os.pipe()
    os.close(writable)
    words = words_of(plane)
    state = os.fstat(readable)
    pipe = msgspec.structs.replace(words, file=readable, inode=state.st_ino)
    assert "not its memory file" in refusal(plane, pipe)
    os.close(readable)


def test_pages_that_peers_could_not_map_safely_are_refused_at_start(
    memory: HostMemory, unsealed: tuple[int, Metadata]
) -> None:
    pages = replace(memory.memory, file=unsealed[0])
    with pytest.raises(PlaneError, match="sealed against shrinking"):
        ShmPlane(PlaneSettings(pages, "unsealed"))


def test_a_file_that_was_mapped_cannot_be_shortened_any_more(
    memory: HostMemory, plane: ShmPlane
) -> None:
    plane.add_peer(PEER, 1, plane.metadata())
    with pytest.raises(PermissionError):
        os.ftruncate(memory.memory.file, mmap.PAGESIZE)
    expected = bytes(memory.page(7))
    plane.read(PEER, [7], [0])
    ended: list[str] = []
    until(
        lambda: bool(ended),
        lambda: ended.extend(one.failed for one in plane.progress()),
        "the end of the read",
    )
    assert ended == [""] and bytes(memory.page(0)) == expected
