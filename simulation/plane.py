"""The orderly plane: a read is done when its reader looks, unless a test says otherwise. Pure.

It implements `kvtransfer/plane.Plane` over simulated memories. `faulty_plane.py` makes it as bad as
the real ones.
"""

from collections.abc import Sequence

from ..kvtransfer.plane import STALE, Completion, OutsidePool, PlaneError
from .memory import Memory


class SimulatedPlane:
    """Pull over `Memory`; `hold` keeps reads open, `break_next` fails one."""

    name = "simulated"
    path = "simulated"
    wake = -1
    holder_poll_seconds = 0.0005

    def __init__(self, memory: Memory, endpoint: str, everyone: "dict[str, SimulatedPlane]"):
        self.memory = memory
        self.endpoint = endpoint
        self.everyone = everyone
        self.key = f"{endpoint} {len(everyone)}"  # names this incarnation's memory
        everyone[self.key] = self
        self.peers: dict[str, SimulatedPlane] = {}
        self.open: dict[int, tuple[str, list[int], list[int]]] = {}
        self.expected: dict[int, list[int] | None] = {}
        self.tickets = 0
        self.hold = False
        self.break_next = False
        self.abandoned: set[int] = set()
        self.loud: set[int] = set()  # tickets whose bytes may still land

    def metadata(self) -> bytes:
        return self.key.encode()

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        peer = self.everyone.get(metadata.decode(errors="replace"))
        if peer is None:
            raise PlaneError(f"{endpoint} sent the metadata of no plane")
        self.peers[endpoint] = peer

    def remove_peer(self, endpoint: str) -> None:
        self.peers.pop(endpoint, None)

    def read(
        self,
        endpoint: str,
        remote: Sequence[int],
        local: Sequence[int],
        expected: Sequence[int] | None = None,
    ) -> int:
        if endpoint not in self.peers:
            raise PlaneError(f"unknown peer {endpoint}")
        if any(not 0 <= page < self.peers[endpoint].memory.page_count for page in remote):
            raise OutsidePool("a page out of range")
        self.tickets += 1
        self.open[self.tickets] = (endpoint, list(remote), list(local))
        self.expected[self.tickets] = None if expected is None else list(expected)
        return self.tickets

    def abandon(self, ticket: int) -> None:
        self.abandoned.add(ticket)

    def quiet(self, ticket: int) -> bool:
        return ticket not in self.open and ticket not in self.loud

    @property
    def busy(self) -> bool:
        return bool(self.open)

    def progress(self) -> list[Completion]:
        if self.hold:
            return []
        return [self._end(ticket) for ticket in list(self.open)]

    def close(self) -> None:
        self.open.clear()

    def _end(self, ticket: int) -> Completion:
        endpoint, remote, local = self.open.pop(ticket)
        expected = self.expected.pop(ticket)
        source = self.peers.get(endpoint)
        quiet = ticket not in self.loud
        if source is None or self.break_next or ticket in self.abandoned:
            self.break_next = False
            return Completion(ticket, "read failed", (), quiet)
        generations = [source.memory.generations[page] for page in remote]
        if expected is not None and expected != generations:
            return Completion(ticket, STALE, (), quiet)
        for theirs, ours in zip(remote, local, strict=True):
            self.memory.write(ours, 0, source.memory.page(theirs))
        return Completion(ticket, "", tuple(generations), quiet)
