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

Small pages that lie scattered are gathered: the holder packs them and we unpack them
(`nixl_serving`, `nixl_gather`). Where a holder cannot, or does not answer, they are read piece by
piece, and `path` says why.

Pages in device memory are registered as VRAM with their device's number. That was never run.
"""

import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from . import ucx
from .nixl_gather import Gather
from .nixl_generations import Landing
from .nixl_lists import LOCAL, Agents, Lists, memory_kind, strided
from .nixl_peers import Peers
from .nixl_reads import Phase, Read, Reading, breaks_of, split
from .nixl_serving import Serving
from .nixl_staging import no_gather_because, pieces_worth_gathering
from .nixl_transfers import Transfers
from .nixl_words import Ask, Done, Metadata, decode
from .plane import Completion, PlaneError, PlaneSettings
from .targets import Targets, pages_of_read

POSTING_SECONDS = 0.0005  # per call of progress; over CMA posting is the copying itself
POLL_SECONDS = 0.0005  # UCX completes some reads only when the holder makes progress
SERVING_SECONDS = 0.0005  # per call of progress
SERVING_POLL_SECONDS = 0.00005  # while a reader waits for pages to be packed


class NixlPlane:
    """Pages readable and read through one NIXL agent."""

    name = "nixl"
    wake = -1

    def __init__(self, settings: PlaneSettings) -> None:
        self._library = ucx.load()
        self._memory = memory = settings.memory
        self._bytes_per_post = settings.bytes_per_post
        self._agent: Any = self._library.agent(settings.name)
        self._log = self._library.log
        self._agent_name = settings.name
        self._token = secrets.token_bytes(8)
        self._lists = lists = Lists(self._agent)
        self._agents = agents = Agents(self._agent)
        self._peers = Peers(memory, agents, lists)
        self._transfers = Transfers(self._agent, self._library.disconnected)
        self._landing = Landing(lists)
        self._by_piece = no_gather_because(memory)
        self._serving: Serving | None = None
        self._gather: Gather | None = None
        try:
            self._open()
        except Exception as error:
            raise PlaneError(f"NIXL does not register our pages: {error!r}") from error
        self._targets = Targets(memory.page_count)
        self._reads: dict[int, Read] = {}  # until reported and settled
        self._tickets = 0
        self._garbage = 0

    def _open(self) -> None:
        """Register first what peers may read: metadata names all that is registered by then."""
        memory, lists = self._memory, self._lists
        kind, device = memory_kind(memory.device)
        lists.register(memory.pages_address, memory.total_bytes, kind, device)
        lists.register(memory.generations_address, memory.page_count * 8)
        pages = strided(memory.pages_address, memory.page_bytes, memory.page_count, device)
        self._reading = Reading(self._transfers, self._landing, lists.prepare(LOCAL, [pages], kind))
        if not self._by_piece:
            self._serving = Serving(
                self._agent, lists, self._agents, memory, self._token, self._peers.lose
            )
        nixl = self._agent.get_agent_metadata()
        words = Metadata(
            agent=self._agent_name,
            device=memory.device,
            pages_address=memory.pages_address,
            page_bytes=memory.page_bytes,
            page_count=memory.page_count,
            generations_address=memory.generations_address,
            token=self._token,
            staging=self._serving.staging if self._serving else None,
            nixl=nixl,
        )
        self._metadata = msgspec.msgpack.encode(words)
        if not self._by_piece:
            self._gather = Gather(
                self._agent, lists, self._transfers, memory, nixl, self._bytes_per_post
            )

    @property
    def path(self) -> str:
        lanes = self._log.lanes(self._agent_name)
        if not lanes:
            wanted = os.environ.get("UCX_TLS", "all")
            lanes = f"UCX_TLS={wanted}, no connection made yet"
        return f"nixl {self._library.version} UCX ({lanes}); {self._gather_path()}"

    def _gather_path(self) -> str:
        if self._by_piece:
            return f"pages read by piece: {self._by_piece}"
        reasons = {peer.by_piece for peer in self._peers.all() if peer.by_piece}
        found = f", by piece from some peers: {'; '.join(sorted(reasons))}" if reasons else ""
        pieces = pieces_worth_gathering(self._memory.page_bytes)
        return f"{pieces} or more scattered pages gathered by the holder{found}"

    @property
    def refused(self) -> int:
        """Notifications that were none of ours, or asked for what is not there."""
        parts = (self._serving, self._gather)
        return self._garbage + sum(part.refused for part in parts if part)

    @property
    def gathered(self) -> int:
        """Pages that came packed so far."""
        return self._gather.gathered if self._gather else 0

    def metadata(self) -> bytes:
        return self._metadata

    # Peers

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        known = self._peers.get(endpoint)
        try:
            self._peers.add(endpoint, incarnation, metadata)
        finally:
            if known is not self._peers.get(endpoint):
                self._fail_reads_of(known)

    def remove_peer(self, endpoint: str) -> None:
        self._fail_reads_of(self._peers.remove(endpoint))

    def _fail_reads_of(self, peer: object) -> None:
        for read in self._reads.values():
            if read.peer is peer:
                read.failed = read.failed or "the peer was removed"

    # Reads

    def read(
        self,
        endpoint: str,
        remote: Sequence[int],
        local: Sequence[int],
        expected: Sequence[int] | None = None,
    ) -> int:
        peer = self._peers.ready(endpoint)
        theirs, ours, wanted = pages_of_read(
            remote, local, expected, peer.words.page_count, self._memory.page_count
        )
        count, breaks = len(theirs), breaks_of(theirs, ours)
        if self._gather and self._gather.suits(peer, count, len(breaks) + 1):
            gathered, ends = True, self._gather.ends(count)
        else:
            most = self._bytes_per_post // self._memory.page_bytes
            gathered, ends = False, split(count, breaks, most)
        self._targets.take(ours)
        self._tickets += 1
        read = Read(self._tickets, peer, theirs, ours, wanted, ends, gathered)
        try:
            self._reading.begin(read, Phase.DATA if wanted is None else Phase.BEFORE)
        except Exception as error:
            self._targets.give_back(ours)
            raise PlaneError(f"NIXL has no room for the generations: {error!r}") from error
        self._reads[self._tickets] = read
        return self._tickets

    def abandon(self, ticket: int) -> None:
        if read := self._reads.get(ticket):
            read.failed = read.failed or "abandoned"

    def quiet(self, ticket: int) -> bool:
        return ticket not in self._reads or self._reads[ticket].quiet

    def progress(self) -> list[Completion]:
        self._serve()
        if self._gather and self._gather.busy:
            self._gather.poll()
        if not self._reads:
            return []
        for read in self._reads.values():
            if read.transfers:
                self._reading.poll(read)
        self._post()
        return self._completions()

    @property
    def holder_poll_seconds(self) -> float:
        asked = self._serving is not None and self._serving.busy
        return SERVING_POLL_SECONDS if asked else POLL_SECONDS

    @property
    def busy(self) -> bool:
        serving = self._serving is not None and self._serving.busy
        return bool(self._reads) or serving or (self._gather is not None and self._gather.busy)

    def close(self) -> None:
        if self._agent is None:
            return
        open_transfers = any(read.transfers for read in self._reads.values())
        if self._gather:
            open_transfers = open_transfers or self._gather.open_transfers
            self._gather.close()
        if self._serving:
            self._serving.close()
        self._reads.clear()
        self._peers.close(open_transfers)
        if not open_transfers:
            # UCX would use a registration after its end while a transfer still holds it.
            self._lists.deregister()
        for part in (self._reading, self._transfers, self._landing, self._agents, self._lists):
            part.close()
        self._agent = None

    def _serve(self) -> None:
        """Hear what others say. UCX answers those who read us meanwhile, so it is done again after
        each slotful that is packed."""
        until = 0.0
        while True:
            if notifications := self._agent.get_new_notifs():
                self._receive(notifications)
            if self._serving is None or not self._serving.busy:
                return
            now = time.monotonic()
            until = until or now + SERVING_SECONDS
            if now >= until or not self._serving.pack_next():
                return

    def _receive(self, notifications: dict[str, list[bytes]]) -> None:
        for sender, messages in notifications.items():
            for message in messages:
                words = decode(message)
                if words is None or self._serving is None or self._gather is None:
                    self._garbage += 1
                elif isinstance(words, Ask):
                    self._serving.ask(sender, words)
                elif isinstance(words, Done):
                    self._serving.done(sender, words)
                else:
                    self._gather.answered(sender, words)

    def _post(self) -> None:
        """One part of each read in turn, until there is nothing to post or the time is over."""
        until = time.perf_counter() + POSTING_SECONDS
        reads = list(self._reads.values())
        while True:
            first = None
            for read in reads:
                if self._post_next(read):
                    first = first or read
                    if time.perf_counter() >= until:
                        break
            if first is None:
                return
            if len(reads) > 1:  # whoever was served first is served last next time
                self._reads[first.ticket] = self._reads.pop(first.ticket)
            if time.perf_counter() >= until:
                return

    def _post_next(self, read: Read) -> bool:
        """Post the next part of a read if there is one; a phase begins when the last has ended."""
        if not self._reading.has_next(read):
            return False
        if read.gathered and read.phase is Phase.DATA and self._gather:
            if not self._gather.can_ask(read):
                return False
            self._gather.ask(read)
        else:
            self._reading.post(read)
        return True

    def _completions(self) -> list[Completion]:
        completions: list[Completion] = []
        for read in [read for read in self._reads.values() if read.done or read.failed]:
            if not read.reported:
                if self._gather and read.unchecked:
                    self._gather.drop(read)
                generations = () if read.failed else read.generations()
                read.reported = True
                completions.append(Completion(read.ticket, read.failed, generations, read.quiet))
            if read.quiet and not read.given_back:
                read.given_back = True
                self._targets.give_back(read.local)
            if read.settled:
                del self._reads[read.ticket]
                self._reading.forget(read)
            self._peers.tidy(read.peer)
        return completions
