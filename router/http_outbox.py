"""What connections send in one turn of the loop, written together at its end.

The kernel's send is what a streamed token costs. So what one connection sends in a turn becomes
one write: the first events of a stream, its last ones, and all tokens that a speculating worker
brings for it in one frame (bench/router.py, the rows with several tokens per step).
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable


class Turn:
    """The connections with something to send."""

    def __init__(self, loop: AbstractEventLoop):
        self._loop = loop
        self._waiting: list[Outgoing] = []

    def add(self, outgoing: "Outgoing") -> None:
        if not self._waiting:
            self._loop.call_soon(self._end)
        self._waiting.append(outgoing)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outgoing in waiting:
            outgoing.flush()


class Outgoing:
    """One connection's bytes on their way to its transport."""

    __slots__ = ("_turn", "_write", "_pieces")

    def __init__(self, turn: Turn, write: Callable[[bytes], None]):
        self._turn = turn
        self._write = write
        self._pieces: list[bytes] = []

    def send(self, data: bytes) -> None:
        if not self._pieces:
            self._turn.add(self)
        self._pieces.append(data)

    def flush(self) -> None:
        """Write now: before a close, or at the end of the turn."""
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._write(data)

    def drop(self) -> None:
        """The connection is lost: a write would raise, and cost the others of this turn theirs."""
        self._pieces.clear()
