"""The peers of one plane: who is known under which incarnation, and what each said of itself. Pure.

Metadata of these planes is one msgspec struct, tagged with the plane's name and version, so that
another plane's never decodes as ours. It comes from the wire and is believed in nothing else here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from .plane import PlaneError
from .targets import check_page_bytes


class Words(Protocol):
    """What every plane's metadata says, among other things."""

    @property
    def page_bytes(self) -> int: ...

    @property
    def page_count(self) -> int: ...


W = TypeVar("W", bound=Words)


@dataclass(slots=True, eq=False)
class KnownPeer(Generic[W]):
    """One process that we may read. Planes add the way to it."""

    endpoint: str
    incarnation: int
    metadata: bytes
    words: W

    @property
    def alive(self) -> bool:
        """False where the plane knows that this process is gone: the way is to be made anew."""
        return True


P = TypeVar("P", bound=KnownPeer)


class KnownPeers(Generic[W, P]):
    """By endpoint, one incarnation each."""

    def __init__(self, plane: str, words: type[W], page_bytes: int) -> None:
        """`page_bytes` are ours, which theirs must equal."""
        self._plane = plane
        self._words = words
        self._page_bytes = page_bytes
        self._peers: dict[str, P] = {}

    def __iter__(self) -> Iterator[P]:
        return iter(self._peers.values())

    def news(self, endpoint: str, incarnation: int, metadata: bytes) -> W | None:
        """What a peer to be added says; None where we have a way to just that process.

        Raises PlaneError for a past incarnation and for metadata that this plane cannot use.
        """
        known = self._peers.get(endpoint)
        if known and known.incarnation > incarnation:
            raise PlaneError(f"{endpoint} is known under a newer incarnation")
        if known and known.metadata == metadata and known.alive:
            known.incarnation = incarnation
            return None
        try:
            words = msgspec.msgpack.decode(metadata, type=self._words)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise PlaneError(f"{endpoint} sent no {self._plane} metadata: {error}") from error
        check_page_bytes(endpoint, words.page_bytes, self._page_bytes)
        return words

    def add(self, peer: P) -> None:
        self._peers[peer.endpoint] = peer

    def remove(self, endpoint: str) -> P | None:
        """The peer that is none any more; None where there was none."""
        return self._peers.pop(endpoint, None)

    def named(self, endpoint: str) -> P:
        """Raises PlaneError where nobody was added under this name."""
        peer = self._peers.get(endpoint)
        if peer is None:
            raise PlaneError(f"{endpoint} is not a known peer")
        return peer

    def clear(self) -> None:
        self._peers.clear()
