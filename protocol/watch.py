"""A Mailbox inside an asyncio (or uvloop) program: arrivals come as calls, nothing polls."""

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from .seams import Arrival
from .sockets import Mailbox


class Watch:
    """Calls `deliver` with what a mailbox received, on the loop's thread, until closed."""

    def __init__(
        self, mailbox: Mailbox, loop: AbstractEventLoop, deliver: Callable[[list[Arrival]], None]
    ) -> None:
        self._mailbox = mailbox
        self._loop = loop
        self._deliver = deliver
        self._timer: TimerHandle | None = None
        self._summoned = False
        self._closed = False
        mailbox.on_urgent = self._summon
        loop.add_reader(mailbox.fileno(), self._turn)
        self._summon()  # what arrived before we watched is not signalled again

    def close(self) -> None:
        """Stop watching; the mailbox stays open."""
        self._closed = True
        self._mailbox.on_urgent = None
        self._loop.remove_reader(self._mailbox.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _summon(self) -> None:
        if not self._summoned:
            self._summoned = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._closed:
            return
        self._summoned = False
        arrivals = self._mailbox.receive()
        if self._timer is not None:
            self._timer.cancel()
        due = self._mailbox.seconds_until_due()
        self._timer = None if due is None else self._loop.call_later(due, self._turn)
        if arrivals:
            self._deliver(arrivals)
