"""The seam between the hand-over and what moves the bytes. A plane knows pages, no request.

Every plane is pull: the reader reads a peer's pages into its own. One loop owns a plane; nothing
here blocks for longer than about a millisecond, so `progress` moves bounded work and is called
often while anything is open, on the holder's side too (some planes complete only when the holder
makes progress).

A read's contract, the same on every plane (DESIGN.md, rule 3):
- data first, then the generations: `Completion.generations` were read after the last byte arrived;
- a completion is reported exactly once per ticket, failed or not;
- a good completion is quiet; a failed one need not be;
- `quiet` is true once no byte of that ticket can land in local pages any more. A completion,
  good or failed, need not mean quiet; `abandon` never does by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..protocol.memory import PageMemory

Numbers = Sequence[int]  # of pages, or their generations in the same order
STALE = "a page was granted again before it was read"  # Completion.failed of such a read


class PlaneError(Exception):
    """A plane could not do what was asked; the text says what and what would work."""


class OutsidePool(PlaneError):
    """A remote page that the peer does not have: whoever named it is wrong or lies."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one read. `failed` is "" or the reason; generations are in the order asked."""

    ticket: int
    failed: str
    generations: tuple[int, ...]
    quiet: bool  # False: local pages must be quarantined until `Plane.quiet(ticket)`


class Plane(Protocol):
    """One process's end of a transfer plane. Endpoints are the peers' control endpoints."""

    @property
    def name(self) -> str:
        """nixl, tcp, zmq or shm: what --kv-transport names."""
        ...

    @property
    def path(self) -> str:
        """What is really in use, for people: e.g. "nixl 1.5.1 UCX (cma, tcp)"."""
        ...

    def metadata(self) -> bytes:
        """What a peer needs to read our pages. Opaque; at most some hundred bytes."""
        ...

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        """Make `endpoint` readable. A new incarnation replaces the old one. Raises PlaneError."""
        ...

    def remove_peer(self, endpoint: str) -> None:
        """Destroy the way to a peer; its open reads complete as failed."""
        ...

    def read(
        self, endpoint: str, remote: Numbers, local: Numbers, expected: Numbers | None = None
    ) -> int:
        """Read remote pages into local ones (same length); returns a ticket. Raises PlaneError.

        With `expected` generations a read whose pages already have others ends as failed (`STALE`)
        before a byte of them moves. Those of the completion are compared by the caller.
        """
        ...

    def abandon(self, ticket: int) -> None:
        """Nobody wants this read any more; it still completes once (as failed)."""
        ...

    def quiet(self, ticket: int) -> bool:
        """No byte of this read can land any more."""
        ...

    def progress(self) -> list[Completion]:
        """Move work on, on both sides; called often while `busy` or while others may read us."""
        ...

    @property
    def holder_poll_seconds(self) -> float:
        """How often a holder must call `progress` while a peer may read it; infinity = never."""
        ...

    @property
    def wake(self) -> int:
        """A descriptor that is readable when `progress` has something to do; -1: there is none."""
        ...

    @property
    def busy(self) -> bool:
        """Reads are open here, or (where the plane knows) a peer is being served."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PlaneSettings:
    """What a plane is opened with. `host` is the address peers on other hosts reach us at."""

    memory: PageMemory
    name: str  # unique per process start, e.g. "decode-0.7f3a"
    host: str = "127.0.0.1"
    bytes_per_post: int = 4 << 20  # larger reads go in parts, so that the loop is never held long
    curve: tuple[bytes, bytes] | None = None  # our public and secret key; None sends in the clear
