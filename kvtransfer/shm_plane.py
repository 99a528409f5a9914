"""The shared-memory plane: the peer's memory file is mapped and its pages are copied by us.

For processes of one user on one host. Every byte is moved by this process inside `progress`, so a
read is quiet the moment it completes or is abandoned, whatever the peer does. A peer's death is
seen through its pidfd: its pages would still be readable, but a dead holder's words (lease,
generation) are worth nothing, so its reads fail here as on every other plane.

Order between the copy and the reading of the generations: x86 performs loads in program order.
Elsewhere (ARM) `_fence` puts a lock's release after the copy and its acquire before the
generations; that was never run.

A page of a peer is mapped when it is first read, which costs a tenth of a millisecond per MB, once.
Mapping all of it ahead would be no cheaper and would make the kernel give the peer every page.
"""

import fcntl
import mmap
import os
import platform
import select
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat
from operator import getitem, setitem
from time import perf_counter
from typing import Any

import msgspec
import numpy

from ..protocol.memory import PageMemory
from .known_peers import KnownPeer, KnownPeers
from .plane import STALE, Completion, Numbers, PlaneError, PlaneSettings
from .targets import (
    Counters,
    Indices,
    Targets,
    page_bytes_view,
    pages_of_read,
    require_host_memory,
)

SECONDS_PER_CALL = 0.0008  # of copying; what is left waits for the next call
BATCH_BYTES = 1 << 20  # copied between two looks at the clock
MOST_CUTS = 1 << 16  # pages whose slices are kept; 120 bytes each
ASSIGN: Any = setitem  # typed for sequences of one item type
ORDERED_LOADS = platform.machine() in ("x86_64", "AMD64")


class Metadata(msgspec.Struct, frozen=True, array_like=True, tag="shm-1"):
    """Where the memory file is found, and what shows that it is the one that was meant."""

    boot: str
    pid_namespace: str
    pid: int
    started: int  # in clock ticks after boot: tells a recycled pid
    file: int
    inode: int
    file_bytes: int
    generations_offset: int
    pages_offset: int
    page_bytes: int
    page_count: int


@dataclass(slots=True, eq=False)
class _Peer(KnownPeer[Metadata]):
    process: int  # pidfd
    mapping: mmap.mmap
    pages: memoryview = field(init=False)
    generations: Counters = field(init=False)
    end: select.poll = field(init=False)

    def __post_init__(self) -> None:
        words, start = self.words, self.words.pages_offset
        self.generations = numpy.frombuffer(
            self.mapping, numpy.uint64, words.page_count, words.generations_offset
        )
        with memoryview(self.mapping) as whole:
            self.pages = whole[start : start + words.page_count * words.page_bytes]
        self.end = select.poll()
        self.end.register(self.process, select.POLLIN)

    @property
    def alive(self) -> bool:
        return not self.end.poll(0)

    def close(self) -> None:
        del self.generations
        self.pages.release()
        self.mapping.close()
        os.close(self.process)


@dataclass(slots=True, eq=False)
class _Read:
    ticket: int
    peer: _Peer
    remote: Indices
    local: Indices
    expected: Counters | None
    left: int  # pieces: of a batch's size, or pages if those are smaller
    copying: Iterator[None]  # each step copies one
    begun: bool = False
    failed: str = ""

    @property
    def stale(self) -> bool:
        """Some page is at another generation already."""
        return self.expected is not None and bool(
            (self.peer.generations[self.remote] != self.expected).any()
        )


class ShmPlane:
    """Reads peers' pages out of their memory files."""

    name = "shm"
    wake = -1
    holder_poll_seconds = float("inf")
    path = "shm (memory file of the peer, copied by the reader)"

    def __init__(self, settings: PlaneSettings) -> None:
        memory = settings.memory
        require_host_memory(memory, self.name)
        if memory.file < 0:
            raise PlaneError("the shm plane needs pages in a memory file")
        if not _keeps_its_size(memory.file):
            raise PlaneError("the shm plane needs a memory file that is sealed against shrinking")
        self._memory = memory
        # Time is what bounds a call on a fast machine; each call costs a look at the peer.
        self._bytes_per_call = 4 * max(1, settings.bytes_per_post)
        self._batch_bytes = min(BATCH_BYTES, self._bytes_per_call)
        self._pieces_per_page = -(-memory.page_bytes // self._batch_bytes)
        self._pieces_per_batch = max(1, self._batch_bytes // memory.page_bytes)
        # Made once: at 64 KB they were a tenth of a read.
        self._cuts: list[slice] = []
        if self._pieces_per_page == 1 and memory.page_count <= MOST_CUTS:
            size = memory.page_bytes
            self._cuts = [slice(at * size, at * size + size) for at in range(memory.page_count)]
        self._metadata = msgspec.msgpack.encode(_describe(memory))
        self._pages = page_bytes_view(memory)
        self._targets = Targets(memory.page_count)
        self._peers: KnownPeers[Metadata, _Peer] = KnownPeers(
            self.name, Metadata, memory.page_bytes
        )
        self._reads: deque[_Read] = deque()
        self._ended: list[_Read] = []
        self._tickets = 0

    def metadata(self) -> bytes:
        return self._metadata

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        if (words := self._peers.news(endpoint, incarnation, metadata)) is None:
            return
        process, mapping = _open(endpoint, words)
        self.remove_peer(endpoint)
        self._peers.add(_Peer(endpoint, incarnation, metadata, words, process, mapping))

    def remove_peer(self, endpoint: str) -> None:
        peer = self._peers.remove(endpoint)
        if peer is None:
            return
        for read in [read for read in self._reads if read.peer is peer]:
            self._fail(read, "the peer was removed")
        peer.close()

    def read(
        self, endpoint: str, remote: Numbers, local: Numbers, expected: Numbers | None = None
    ) -> int:
        peer = self._peers.named(endpoint)
        theirs, ours, counters = pages_of_read(
            remote, local, expected, peer.words.page_count, self._memory.page_count
        )
        self._targets.take(ours)
        copying = map(
            ASSIGN,
            repeat(self._pages),
            self._slices(ours, self._memory.page_count),
            map(getitem, repeat(peer.pages), self._slices(theirs, peer.words.page_count)),
        )
        self._tickets += 1
        left = len(ours) * self._pieces_per_page
        self._reads.append(_Read(self._tickets, peer, theirs, ours, counters, left, copying))
        return self._tickets

    def _slices(self, pages: Indices, page_count: int) -> Iterator[slice]:
        """Where the pieces of pages lie; an iterator, so that no loop of ours runs per piece."""
        size = self._memory.page_bytes
        if len(self._cuts) >= page_count:
            return map(self._cuts.__getitem__, pages.tolist())
        starts = pages.astype(numpy.int64) * size
        if self._pieces_per_page == 1:
            return map(slice, starts.tolist(), (starts + size).tolist())
        within = numpy.arange(0, size, self._batch_bytes)
        firsts = (starts[:, None] + within).ravel().tolist()
        ends = (starts[:, None] + numpy.minimum(within + self._batch_bytes, size)).ravel().tolist()
        return map(slice, firsts, ends)

    def abandon(self, ticket: int) -> None:
        for read in self._reads:
            if read.ticket == ticket:
                self._fail(read, "abandoned")
                return

    def quiet(self, ticket: int) -> bool:
        return all(read.ticket != ticket for read in self._reads)

    def progress(self) -> list[Completion]:
        completions: list[Completion] = []
        left, until = self._bytes_per_call, perf_counter() + SECONDS_PER_CALL
        # Each open read gets its turn first in one call after another.
        for _ in range(len(self._reads)):
            if left <= 0:
                break
            read = self._reads[0]
            self._reads.rotate(-1)
            if not read.peer.alive:
                self._fail(read, f"{read.peer.endpoint} died while being read")
            elif not read.begun and read.stale:
                self._fail(read, STALE)
            else:
                left = self._copy(read, left, until)
                if not read.left:
                    completions.append(self._complete(read))
        completions += [Completion(read.ticket, read.failed, (), True) for read in self._ended]
        self._ended.clear()
        return completions

    def _copy(self, read: _Read, left: int, until: float) -> int:
        read.begun = True
        while read.left and left > 0:
            pieces = min(read.left, self._pieces_per_batch)
            deque(islice(read.copying, pieces), maxlen=0)
            read.left -= pieces
            left -= self._batch_bytes
            if perf_counter() > until:
                return 0
        return left

    def _complete(self, read: _Read) -> Completion:
        _fence()
        values = tuple(read.peer.generations[read.remote].tolist())
        self._reads.remove(read)
        self._targets.give_back(read.local)
        return Completion(read.ticket, "", values, True)

    def _fail(self, read: _Read, reason: str) -> None:
        read.failed = reason
        self._reads.remove(read)
        self._targets.give_back(read.local)
        self._ended.append(read)

    @property
    def busy(self) -> bool:
        return bool(self._reads or self._ended)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        self._reads.clear()
        self._ended.clear()
        self._pages.release()


def _describe(memory: PageMemory) -> Metadata:
    pid = os.getpid()
    state = os.fstat(memory.file)
    return Metadata(
        boot=_boot(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        started=_started(pid),
        file=memory.file,
        inode=state.st_ino,
        file_bytes=state.st_size,
        generations_offset=0,
        pages_offset=memory.pages_offset,
        page_bytes=memory.page_bytes,
        page_count=memory.page_count,
    )


def _open(endpoint: str, words: Metadata) -> tuple[int, mmap.mmap]:
    """The peer's pidfd and its pages, or the sentence why this plane cannot read that peer."""
    if words.boot != _boot():
        raise PlaneError(f"{endpoint} is on another host: shm serves one host, use nixl or zmq")
    if words.pid_namespace != _pid_namespace():
        raise PlaneError(f"{endpoint} is in another container: share the pid namespace, or use zmq")
    needed = words.pages_offset + words.page_count * words.page_bytes
    start, count = words.generations_offset, words.page_count
    if start < 0 or start % 8 or count < 0 or not start + count * 8 <= words.pages_offset:
        raise PlaneError(f"{endpoint}: its generations do not lie before its pages")
    if needed > words.file_bytes:
        raise PlaneError(f"{endpoint}: its metadata does not fit its memory file")
    process = -1
    try:
        process = os.pidfd_open(words.pid)
        if _started(words.pid) != words.started:
            raise PlaneError(f"{endpoint} is gone: its pid {words.pid} is another process now")
        return process, _map(endpoint, words)
    except (OSError, OverflowError, ValueError) as error:
        _close(process)
        raise PlaneError(f"{endpoint}: its memory file cannot be opened: {error}") from error
    except PlaneError:
        _close(process)
        raise


def _map(endpoint: str, words: Metadata) -> mmap.mmap:
    """The peer's memory file, to be read only. Raises PlaneError, OSError, ValueError."""
    name = f"/proc/{words.pid}/fd/{words.file}"
    # Non-blocking: opening what turns out to be a pipe would wait for its writer.
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        keeps_its_size = _keeps_its_size(file)  # asked before the size, which holds from then on
        state = os.fstat(file)
        if (state.st_ino, state.st_size) != (words.inode, words.file_bytes):
            raise PlaneError(f"{endpoint}: descriptor {words.file} is not its memory file")
        if not keeps_its_size:
            raise PlaneError(
                f"{endpoint}: its memory file is not sealed against shrinking (F_SEAL_SHRINK), "
                "and a look beyond a new end would kill us: seal it, or use tcp or zmq"
            )
        return mmap.mmap(file, words.file_bytes, prot=mmap.PROT_READ)
    finally:
        os.close(file)


def _keeps_its_size(file: int) -> bool:
    """It can never become shorter: no seal can be taken away again."""
    try:
        return bool(fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # no memory file
        return False


def _close(file: int) -> None:
    if file >= 0:
        os.close(file)


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def _fence(lock: threading.Lock = threading.Lock()) -> None:  # noqa: B008 (one lock is meant)
    if not ORDERED_LOADS:
        for _ in range(2):
            lock.acquire()
            lock.release()
