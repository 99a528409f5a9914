"""Peers whose pages we read over NIXL: loading them, replacing them, letting them go.

A removed peer's agent stays loaded until its last transfer has ended, and longer: UCX never gives
back the socket of a connection closed while the peer lives (one descriptor per add and remove,
measured), so removed peers stay ready to be added again, up to a bound.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from ..protocol.memory import PageMemory
from .nixl_generations import generation_rows, group_words
from .nixl_lists import Agents, Lists, memory_kind, strided
from .nixl_staging import SEQUENCES_BYTES, UNIT, check_staging
from .nixl_words import Metadata
from .plane import PlaneError
from .targets import check_page_bytes

RETIRED_KEPT = 64


@dataclass(slots=True, eq=False)
class Peer:
    endpoint: str
    incarnation: int
    metadata: bytes
    words: Metadata
    pages: Any = None  # prepared lists: one descriptor per page, per group of generations,
    generations: Any = None
    all_generations: Any = None  # one descriptor for all of them
    units: Any = None  # per unit of staging, all sequences; None where it has no staging
    sequences: Any = None
    group_words: int = 0
    by_piece: str = "it offers no gather"  # why its pages are not gathered; "" where they are
    by_piece_since: float = 0.0  # 0: for good
    asks: int = 0  # open ones, each with a staging slot of ours
    open_transfers: int = 0
    lost: bool = False  # UCX gave the connection up; it is made anew before the next read
    retired: bool = False  # nobody wants it; never unloaded before its last transfer has ended


class Peers:
    """By endpoint those that may be read, by agent all that are loaded."""

    def __init__(self, memory: PageMemory, agents: Agents, lists: Lists) -> None:
        self._memory = memory
        self._agents = agents
        self._lists = lists
        self._peers: dict[str, Peer] = {}
        self._loaded: dict[str, Peer] = {}  # retired ones too

    def get(self, endpoint: str) -> Peer | None:
        return self._peers.get(endpoint)

    def all(self) -> list[Peer]:
        return list(self._peers.values())

    def add(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        """As `Plane.add_peer`."""
        words = _decode(endpoint, metadata)
        check_page_bytes(endpoint, words.page_bytes, self._memory.page_bytes)
        if known := self._peers.get(endpoint):
            if known.incarnation > incarnation:
                raise PlaneError(f"{endpoint} is known under a newer incarnation")
            if known.metadata == metadata and not known.lost:
                known.incarnation = incarnation
                return
            self.remove(endpoint)
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
                self.tidy(old)
        peer = Peer(endpoint, incarnation, metadata, words)
        self._load(peer)
        self._peers[endpoint] = peer

    def remove(self, endpoint: str) -> Peer | None:
        """The peer that is no longer one; None where there was none."""
        peer = self._peers.pop(endpoint, None)
        if peer is None:
            return None
        peer.retired = True
        self.tidy(peer)
        retired = [peer for peer in self._loaded.values() if peer.retired]
        for oldest in retired[: max(0, len(retired) - RETIRED_KEPT)]:
            self._unload_if_ended(oldest)
        return peer

    def ready(self, endpoint: str) -> Peer:
        """The peer, loaded: a broken UCX connection never heals by itself. Raises PlaneError."""
        peer = self._peers.get(endpoint)
        if peer is None:
            raise PlaneError(f"{endpoint} is not a known peer")
        if peer.lost or peer.pages is None:
            if not self._unload_if_ended(peer):
                raise PlaneError(f"{endpoint}: its lost connection has not ended yet")
            self._load(peer)
        return peer

    def lose(self, agent: str) -> None:
        """A connection turned out to be broken elsewhere than in a read."""
        if peer := self._loaded.get(agent):
            peer.lost = True
            self.tidy(peer)

    def tidy(self, peer: Peer) -> None:
        if peer.retired and peer.lost:
            self._unload_if_ended(peer)

    def _load(self, peer: Peer) -> None:
        words = peer.words
        try:
            agent = self._agents.hold(words.nixl, "peer")
        except Exception as error:
            raise PlaneError(f"NIXL cannot reach {peer.endpoint}: {error!r}") from error
        try:
            if agent != words.agent:
                raise PlaneError(f"{peer.endpoint} says {words.agent!r}, its agent is {agent!r}")
            self._prepare(peer, agent)
        except Exception as error:
            self._agents.drop(agent, "peer")
            raise PlaneError(f"{peer.endpoint}: its pages are not readable: {error!r}") from error
        peer.lost = False
        self._loaded[agent] = peer

    def _prepare(self, peer: Peer, agent: str) -> None:
        words, lists = peer.words, self._lists
        kind, device = memory_kind(words.device)
        pages = strided(words.pages_address, words.page_bytes, words.page_count, device)
        peer.pages = lists.prepare(agent, [pages], kind)
        rows = generation_rows(words.generations_address, words.page_count)
        peer.generations = lists.prepare(agent, rows)
        whole = strided(words.generations_address, words.page_count * 8, 1)
        peer.all_generations = lists.prepare(agent, [whole])
        peer.group_words = group_words(words.page_count)
        if (staging := words.staging) is not None:
            units = staging.slots * staging.slot_bytes // UNIT
            peer.units = lists.prepare(agent, [strided(staging.address, UNIT, units)])
            sequences = strided(staging.sequences_address, SEQUENCES_BYTES, 1)
            peer.sequences = lists.prepare(agent, [sequences])
            peer.by_piece = ""

    def _unload_if_ended(self, peer: Peer) -> bool:
        if peer.open_transfers > 0:
            return False
        if self._loaded.pop(peer.words.agent, None) is not None:
            _release(peer)
            if peer.lost:
                self._agents.remove(peer.words.agent)
            else:
                self._agents.drop(peer.words.agent, "peer")
        return True

    def close(self, open_transfers: bool) -> None:
        for peer in list(self._loaded.values()):
            if not open_transfers:
                peer.open_transfers = 0
                self._unload_if_ended(peer)
            _forget(peer)
        self._loaded.clear()
        self._peers.clear()


def _decode(endpoint: str, metadata: bytes) -> Metadata:
    try:
        words = msgspec.msgpack.decode(metadata, type=Metadata)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise PlaneError(f"{endpoint} sent no nixl metadata: {error}") from error
    if words.page_count < 1 or words.page_bytes < 1:
        raise PlaneError(f"{endpoint} sent nixl metadata of no pages")
    check_staging(endpoint, words.staging)
    return words


def _release(peer: Peer) -> None:
    for prepared in _prepared(peer):
        if prepared is not None:
            prepared.release()
    _forget(peer)


def _prepared(peer: Peer) -> tuple[Any, ...]:
    return peer.pages, peer.generations, peer.all_generations, peer.units, peer.sequences


def _forget(peer: Peer) -> None:
    peer.pages = peer.generations = peer.all_generations = None
    peer.units = peer.sequences = None
