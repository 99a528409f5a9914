"""The two seams every loop is written against: a clock and a transport.

For real they are `SystemClock` (below) and `sockets.Mailbox`; the fault simulator and the tests
give virtual ones. The third seam, the engine, is `engine/step.py`.
"""

import time
from typing import Protocol

from msgspec import Struct

from .messages import Message, Peer


class Clock(Protocol):
    """Seconds since an arbitrary start, never going back."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class Received(Struct, frozen=True):
    """A message arrived."""

    sender: Peer
    message: Message


class Connected(Struct, frozen=True):
    """The link to this endpoint is up (again)."""

    endpoint: str


class Disconnected(Struct, frozen=True):
    """The link to this endpoint broke: what was sent last may be lost."""

    endpoint: str


Arrival = Received | Connected | Disconnected


class Transport(Protocol):
    """Typed messages to endpoints. Sending never blocks; order holds per endpoint while connected.

    Messages to an endpoint given to `connect` wait until its link is up. One that was only sent to
    and cannot be reached is a Disconnected, and what was queued is gone. Delivery is at most once.
    """

    @property
    def me(self) -> Peer: ...

    def connect(self, endpoint: str) -> None: ...

    def send(self, endpoint: str, message: Message) -> None: ...

    def receive(self) -> list[Arrival]: ...

    def forget(self, endpoint: str) -> None: ...
