"""Reads that do not end although nobody waits for them and their holder is alive. Pure.

A read that was given up goes on until the plane says that no byte of it can land any more; until
then its pages are lost. Where the holder hangs that is the holder's fault, and its reads end with
its return or its death. Where the holder speaks all the time and a read still does not end, the
transfer agent of this process is broken, and only a new incarnation helps.
"""

from collections.abc import Mapping

STRANDED_SECONDS = 120.0  # a large read that was cancelled may take its time
PAUSE_SECONDS = 5.0  # a holder that says nothing for longer may have been standing still


class StrandedReads:
    """Told of every word of a holder, and each turn of the reads that were given up."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}  # by ticket
        self._speaks: dict[str, tuple[float, float]] = {}  # by holder: without a pause since, last

    def heard(self, endpoint: str, now: float) -> None:
        """A holder said something."""
        since, last = self._speaks.get(endpoint, (now, now))
        self._speaks[endpoint] = (since if now - last <= PAUSE_SECONDS else now, now)

    def lost(self, endpoint: str) -> None:
        """A holder is gone."""
        self._speaks.pop(endpoint, None)

    def stuck(self, given_up: Mapping[int, str], now: float) -> str:
        """`given_up`: the holder's endpoint by ticket. "" or one sentence."""
        if not given_up and not self._since:
            return ""
        self._since = {ticket: self._since.get(ticket, now) for ticket in given_up}
        lasting = [
            seconds
            for ticket, endpoint in given_up.items()
            if (seconds := now - self._since[ticket]) > STRANDED_SECONDS
            and self._speaking(endpoint, now) > STRANDED_SECONDS
        ]
        if not lasting:
            return ""
        return f"transfer: {len(lasting)} reads have not ended for {max(lasting):.0f} s"

    def _speaking(self, endpoint: str, now: float) -> float:
        """For how many seconds this holder has been speaking without a pause, up to now."""
        since, last = self._speaks.get(endpoint, (now, now))
        return now - since if now - last <= PAUSE_SECONDS else 0.0
