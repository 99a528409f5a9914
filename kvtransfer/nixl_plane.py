"""The NIXL plane: READ over UCX, with one agent per process that the loop owns.

When a read is quiet here. NIXL 1.5.1 has no way to stop a transfer: `release` returns at once and
`remove_remote_agent` closes the connection gracefully, which lets reads in flight go on. Measured
with the peer stopped (SIGSTOP), 128 MB posted over TCP, the agent removed, the transfer and the
prepared lists released, our pages overwritten, the peer continued: every byte still outstanding
landed in the overwritten pages, in each of three situations (before first contact, idle
connection, mid-read). So neither is used as a fence. A transfer is kept and polled until NIXL says
DONE or reports the endpoint as lost (UCX then has purged the connection's requests, and moves
bytes nowhere but inside our own calls on TCP and CMA); a removed peer's agent stays loaded until
its last transfer has ended; any other error leaves the read's pages not quiet for good.
Over RDMA and NVLink the same rule is used but was never tested.

Pages in device memory are registered as VRAM with their device's number. That was never run.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy

from . import ucx
from .plane import Completion, PlaneError, PlaneSettings
from .targets import Indices, Targets, check_page_bytes, check_same_length, page_indices

LOCAL = "NIXL_INIT_AGENT"  # NIXL's word for our own side of a transfer
PAGES_PER_POST = 256  # a descriptor costs 2.4 us to post, so this many stay under a millisecond
POSTS_IN_FLIGHT = 8  # per read: keeps a fast link full between two calls of progress
# UCX never gives back the socket of a connection closed while the peer lives (one descriptor per
# add and remove, measured), so removed peers stay loaded, ready to be added again.
RETIRED_KEPT = 64
POSTING_SECONDS = 0.0005  # per call of progress; over CMA posting is the copying itself


class Metadata(msgspec.Struct, frozen=True, array_like=True, tag="nixl-1"):
    agent: str
    device: str
    pages_address: int
    page_bytes: int
    page_count: int
    generations_address: int
    nixl: bytes


@dataclass(slots=True, eq=False)
class _Peer:
    endpoint: str
    incarnation: int
    metadata: bytes
    words: Metadata
    pages: Any = None  # prepared lists, one descriptor per page and per generation
    generations: Any = None
    open_transfers: int = 0
    lost: bool = False  # UCX gave the connection up; it is made anew before the next read
    retired: bool = False  # nobody wants it; never unloaded before its last transfer has ended


@dataclass(slots=True, eq=False)
class _Read:
    ticket: int
    peer: _Peer
    remote: Indices
    local: Indices
    posted: int = 0  # pages (or generations) posted so far in this phase
    reading_generations: bool = False  # posted only when every page is DONE
    transfers: list[Any] = field(default_factory=list)  # posted, end not yet known
    failed: str = ""
    reported: bool = False
    stuck: bool = False  # an error that does not prove the end: never quiet

    @property
    def quiet(self) -> bool:
        return not self.transfers and not self.stuck

    @property
    def wants_post(self) -> bool:
        left = self.posted < len(self.remote)
        return left and not self.failed and len(self.transfers) < POSTS_IN_FLIGHT

    @property
    def done(self) -> bool:
        ended = self.posted == len(self.remote) and not self.transfers
        return ended and self.reading_generations and not self.failed


class NixlPlane:
    """Pages readable and read through one NIXL agent."""

    name = "nixl"
    holder_poll_seconds = 0.0005  # UCX completes some reads only when the holder makes progress

    def __init__(self, settings: PlaneSettings) -> None:
        self._library = ucx.load()
        self._memory = memory = settings.memory
        self._agent: Any = self._library.agent(settings.name)
        self._log = self._library.log
        self._agent_name = settings.name
        self._pages_per_post = max(
            1, min(settings.bytes_per_post // memory.page_bytes, PAGES_PER_POST)
        )
        # Generations land beside the pages they belong to, in host memory of our own. Peers could
        # write it, as they could write the pages: registered memory has no other protection.
        self._landing = numpy.zeros(memory.page_count, dtype=numpy.uint64)
        self._registered: list[Any] = []
        self._kind, self._device = _memory_kind(memory.device)
        try:
            self._register(memory.pages_address, memory.total_bytes, self._kind, self._device)
            self._register(memory.generations_address, memory.page_count * 8, "DRAM", 0)
            self._register(self._landing.ctypes.data, self._landing.nbytes, "DRAM", 0)
            self._pages = self._prepare(
                LOCAL, memory.pages_address, memory.page_bytes, memory.page_count, self._kind
            )
            self._generations = self._prepare(
                LOCAL, self._landing.ctypes.data, 8, memory.page_count, "DRAM"
            )
        except Exception as error:
            raise PlaneError(f"NIXL does not register our pages: {error!r}") from error
        self._targets = Targets(memory.page_count)
        self._peers: dict[str, _Peer] = {}  # by endpoint
        self._loaded: dict[str, _Peer] = {}  # by agent, retired ones too
        self._reads: dict[int, _Read] = {}  # until reported and quiet
        self._tickets = 0

    @property
    def path(self) -> str:
        lanes = self._log.lanes(self._agent_name)
        if not lanes:
            wanted = os.environ.get("UCX_TLS", "all")
            lanes = f"UCX_TLS={wanted}, no connection made yet"
        return f"nixl {self._library.version} UCX ({lanes})"

    def metadata(self) -> bytes:
        memory = self._memory
        words = Metadata(
            agent=self._agent_name,
            device=memory.device,
            pages_address=memory.pages_address,
            page_bytes=memory.page_bytes,
            page_count=memory.page_count,
            generations_address=memory.generations_address,
            nixl=self._agent.get_agent_metadata(),
        )
        return msgspec.msgpack.encode(words)

    # Peers

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        try:
            words = msgspec.msgpack.decode(metadata, type=Metadata)
        except msgspec.MsgspecError as error:
            raise PlaneError(f"{endpoint} sent no nixl metadata: {error}") from error
        check_page_bytes(endpoint, words.page_bytes, self._memory.page_bytes)
        if known := self._peers.get(endpoint):
            if known.incarnation > incarnation:
                raise PlaneError(f"{endpoint} is known under a newer incarnation")
            if known.metadata == metadata and not known.lost:
                known.incarnation = incarnation
                return
            self.remove_peer(endpoint)
        if draining := self._loaded.get(words.agent):
            if draining.metadata == metadata and not draining.lost:
                draining.retired = False
                draining.endpoint, draining.incarnation = endpoint, incarnation
                self._peers[endpoint] = draining
                return
            raise PlaneError(f"{endpoint}: its old connection has not ended yet")
        for old in [peer for peer in self._loaded.values() if peer.retired]:
            if old.endpoint == endpoint:  # an earlier incarnation: it will not come back
                old.lost = True
                self._tidy(old)
        peer = _Peer(endpoint, incarnation, metadata, words)
        self._load(peer)
        self._peers[endpoint] = peer

    def remove_peer(self, endpoint: str) -> None:
        peer = self._peers.pop(endpoint, None)
        if peer is None:
            return
        for read in self._reads.values():
            if read.peer is peer:
                read.failed = read.failed or "the peer was removed"
        peer.retired = True
        self._tidy(peer)
        retired = [peer for peer in self._loaded.values() if peer.retired]
        for oldest in retired[: max(0, len(retired) - RETIRED_KEPT)]:
            self._unload_if_ended(oldest)

    def _tidy(self, peer: _Peer) -> None:
        if peer.retired and peer.lost:
            self._unload_if_ended(peer)

    def _load(self, peer: _Peer) -> None:
        words = peer.words
        try:
            named = self._agent.add_remote_agent(words.nixl)
        except Exception as error:
            raise PlaneError(f"NIXL cannot reach {peer.endpoint}: {error!r}") from error
        agent = named.decode() if isinstance(named, bytes) else named
        try:
            if agent != words.agent:
                raise PlaneError(f"{peer.endpoint} says {words.agent!r}, its agent is {agent!r}")
            kind, _ = _memory_kind(words.device)
            peer.pages = self._prepare(
                agent, words.pages_address, words.page_bytes, words.page_count, kind, words.device
            )
            peer.generations = self._prepare(
                agent, words.generations_address, 8, words.page_count, "DRAM"
            )
        except Exception as error:
            self._agent.remove_remote_agent(agent)
            raise PlaneError(f"{peer.endpoint}: its pages are not readable: {error!r}") from error
        peer.lost = False
        self._loaded[agent] = peer

    def _unload_if_ended(self, peer: _Peer) -> bool:
        if peer.open_transfers > 0:
            return False
        if self._loaded.pop(peer.words.agent, None) is not None:
            peer.pages.release()
            peer.generations.release()
            peer.pages = peer.generations = None
            self._agent.remove_remote_agent(peer.words.agent)
        return True

    # Reads

    def read(
        self,
        endpoint: str,
        remote: Sequence[int],
        local: Sequence[int],
        expected: Sequence[int] | None = None,
    ) -> int:
        peer = self._peers.get(endpoint)
        if peer is None:
            raise PlaneError(f"{endpoint} is not a known peer")
        check_same_length(remote, local)
        theirs = page_indices(remote, peer.words.page_count, "remote")
        ours = page_indices(local, self._memory.page_count, "local")
        if peer.lost or peer.pages is None:
            # A broken UCX connection never heals by itself.
            if not self._unload_if_ended(peer):
                raise PlaneError(f"{endpoint}: its lost connection has not ended yet")
            self._load(peer)
        self._targets.take(ours)
        self._tickets += 1
        self._reads[self._tickets] = _Read(self._tickets, peer, theirs, ours)
        return self._tickets

    def abandon(self, ticket: int) -> None:
        if read := self._reads.get(ticket):
            read.failed = read.failed or "abandoned"

    def quiet(self, ticket: int) -> bool:
        return ticket not in self._reads or self._reads[ticket].quiet

    def progress(self) -> list[Completion]:
        self._agent.get_new_notifs()  # serves those who read us; nobody sends notifications
        if not self._reads:
            return []
        for read in self._reads.values():
            self._poll(read)
        self._post()
        return self._completions()

    @property
    def busy(self) -> bool:
        return bool(self._reads)

    def close(self) -> None:
        if self._agent is None:
            return
        open_transfers = any(read.transfers for read in self._reads.values())
        self._reads.clear()
        for peer in list(self._loaded.values()):
            if not open_transfers:
                peer.open_transfers = 0
                self._unload_if_ended(peer)
            peer.pages = peer.generations = None
        self._loaded.clear()
        self._peers.clear()
        self._pages = self._generations = None
        if not open_transfers:
            # UCX would use a registration after its end while a transfer still holds it.
            for registered in self._registered:
                self._agent.deregister_memory(registered)
        self._registered.clear()
        self._agent = None

    # Transfers

    def _poll(self, read: _Read) -> None:
        for transfer in list(read.transfers):
            try:
                if self._agent.check_xfer_state(transfer) == "DONE":
                    self._end(read, transfer)
            except self._library.disconnected:
                read.peer.lost = True
                read.failed = read.failed or f"{read.peer.endpoint} was lost while reading"
                self._end(read, transfer)
            except Exception as error:
                read.failed = read.failed or f"NIXL failed: {error!r}"
                read.stuck = True
                self._end(read, transfer)

    def _post(self) -> None:
        until = time.perf_counter() + POSTING_SECONDS
        waiting = list(self._reads.values())
        while waiting and time.perf_counter() < until:
            for read in waiting:
                self._next_phase(read)
                if read.wants_post:
                    self._post_one(read)
                if time.perf_counter() >= until:
                    break
            waiting = [read for read in waiting if read.wants_post]
            for read in waiting[:1]:  # whoever was served first is served last next time
                if read.ticket in self._reads:
                    self._reads[read.ticket] = self._reads.pop(read.ticket)

    def _next_phase(self, read: _Read) -> None:
        ended = read.posted == len(read.remote) and not read.transfers and not read.failed
        if ended and not read.reading_generations:
            read.reading_generations = True
            read.posted = 0

    def _post_one(self, read: _Read) -> None:
        generations = read.reading_generations
        count = PAGES_PER_POST if generations else self._pages_per_post
        part = slice(read.posted, min(read.posted + count, len(read.remote)))
        ours = self._generations if generations else self._pages
        theirs = read.peer.generations if generations else read.peer.pages
        try:
            transfer = self._agent.make_prepped_xfer(
                "READ", ours, read.local[part], theirs, read.remote[part]
            )
        except Exception as error:
            read.failed = f"NIXL refused the read: {error!r}"
            return
        read.posted = part.stop
        read.transfers.append(transfer)
        read.peer.open_transfers += 1
        try:
            if self._agent.transfer(transfer) == "DONE":
                self._end(read, transfer)
        except self._library.disconnected:
            read.peer.lost = True
            read.failed = f"{read.peer.endpoint} was lost before reading"
            self._end(read, transfer)
        except Exception as error:
            # Part of it may have been posted, and NIXL keeps no hold on that part.
            read.failed = f"NIXL failed: {error!r}"
            read.stuck = True
            self._end(read, transfer)

    def _end(self, read: _Read, transfer: Any) -> None:
        read.transfers.remove(transfer)
        transfer.release()
        read.peer.open_transfers -= 1

    def _completions(self) -> list[Completion]:
        completions: list[Completion] = []
        for read in list(self._reads.values()):
            if not read.reported and (read.done or read.failed):
                generations: tuple[int, ...] = ()
                if not read.failed:
                    generations = tuple(self._landing[read.local].tolist())
                read.reported = True
                completions.append(Completion(read.ticket, read.failed, generations, read.quiet))
            if read.reported and read.quiet:
                del self._reads[read.ticket]
                self._targets.give_back(read.local)
            self._tidy(read.peer)
        return completions

    # NIXL's lists

    def _register(self, address: int, length: int, kind: str, device: int) -> None:
        region = numpy.array([[address, length, device]], dtype=numpy.uint64)
        self._registered.append(self._agent.register_memory(region, kind))

    def _prepare(
        self, agent: str, address: int, size: int, count: int, kind: str, device: str = ""
    ) -> Any:
        """A whole pool as one strided row: 2 us for any number of pages."""
        number = _memory_kind(device)[1] if device else (self._device if kind == "VRAM" else 0)
        row = numpy.array([[address, size, number, size, count]], dtype=numpy.uint64)
        return self._agent.prep_xfer_dlist(agent, row, kind)


def _memory_kind(device: str) -> tuple[str, int]:
    if device == "cpu":
        return "DRAM", 0
    if device.startswith("cuda:") and device[5:].isdecimal():
        return "VRAM", int(device[5:])
    raise PlaneError(f"{device!r} is no memory NIXL knows: cpu or cuda:<number>")
