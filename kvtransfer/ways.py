"""The way from a reader to each holder: introduced, open, or refused. Pure.

A reader introduces itself once per incarnation of a holder; the holder answers with what its plane
needs (Agent) or with the field in which the two differ (Refused). Answers that were not asked for
change nothing: metadata decides which memory is read.
"""

from enum import Enum

from ..protocol.messages import Compatibility, Introduce, Peer
from ..protocol.seams import Transport
from .plane import Plane, PlaneError
from .words import Fault, Offence, mismatch


class State(Enum):
    """What is known of the way to a holder."""

    INTRODUCED = "introduced"
    OPEN = "open"
    REFUSED = "refused"


class Ways:
    """All of one reader, by the holder's endpoint."""

    def __init__(self, transport: Transport, plane: Plane, compatibility: Compatibility):
        self._transport = transport
        self._plane = plane
        self._compatibility = compatibility
        self._ways: dict[str, tuple[int, State]] = {}  # incarnation, state

    def is_open(self, endpoint: str) -> bool:
        return self._state(endpoint) is State.OPEN

    def restarted(self, holder: Peer) -> bool:
        """We know an earlier incarnation at this endpoint: it is gone, since this one speaks."""
        known = self._ways.get(holder.endpoint)
        return known is not None and known[0] < holder.incarnation

    def past(self, holder: Peer) -> Fault | None:
        """Its process is gone: a later incarnation (they grow) is known at its endpoint."""
        known = self._ways.get(holder.endpoint)
        if known is None or known[0] <= holder.incarnation:
            return None
        return Offence.PAST_INCARNATION, "a later incarnation of this holder is known"

    def make(self, holder: Peer) -> None:
        """See to a way to this holder.

        One that refused us is asked again: its word may have been meant for the process that was at
        our endpoint before, and what failed once may work now.
        """
        known = self._ways.get(holder.endpoint)
        if known is None or known[0] != holder.incarnation or known[1] is State.REFUSED:
            self._ways[holder.endpoint] = (holder.incarnation, State.INTRODUCED)
            self._transport.send(holder.endpoint, Introduce(self._compatibility))

    def repeat(self, endpoint: str) -> None:
        """Introduce us again where no answer came: a word was lost."""
        if self._state(endpoint) is State.INTRODUCED:
            self._transport.send(endpoint, Introduce(self._compatibility))

    def answered(self, sender: Peer, theirs: Compatibility, metadata: bytes) -> str:
        """The holder says how to reach its pages; the reason where that cannot be, else ""."""
        reason = mismatch(theirs, self._compatibility)
        if not reason:
            try:
                self._plane.add_peer(sender.endpoint, sender.incarnation, metadata)
            except PlaneError as error:
                reason = str(error)
        state = State.REFUSED if reason else State.OPEN
        self._ways[sender.endpoint] = (sender.incarnation, state)
        return reason

    def refuse(self, sender: Peer) -> None:
        """The holder does not fit us, it says."""
        self._ways[sender.endpoint] = (sender.incarnation, State.REFUSED)

    def objection(self, sender: Peer) -> Fault | None:
        """Why an answer of this sender is none to us. A repeated one is not, but changes nothing:
        ask `waits` too."""
        known = self._ways.get(sender.endpoint)
        if known is None:
            return Offence.NOT_ASKED, "it answers an introduction that was not made"
        if known[0] != sender.incarnation:
            return Offence.PAST_INCARNATION, "another incarnation was asked"
        return None

    def waits(self, endpoint: str) -> bool:
        """An answer is due."""
        return self._state(endpoint) is State.INTRODUCED

    def lose(self, endpoint: str) -> None:
        """The holder's process or link is gone."""
        if self._ways.pop(endpoint, None) is not None:
            self._plane.remove_peer(endpoint)

    def _state(self, endpoint: str) -> State | None:
        known = self._ways.get(endpoint)
        return known[1] if known is not None else None
