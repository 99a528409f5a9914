"""How long a read from each peer should take, learnt from those before it. Pure.

A plane has no timeouts of its own, so each read gets a deadline: a floor, and twice what is
predicted. A peer of whom nothing is known yet is expected to be slow. A read that passed its
deadline teaches too: the next one gets longer.
"""

from dataclasses import dataclass

UNKNOWN_BYTES_PER_SECOND = 50e6
SLOWEST_BYTES_PER_SECOND = 1e6  # slower is not waited for
TEACHING_BYTES = 1 << 20  # of smaller reads the time is latency, and says nothing about the rate
MARGIN = 2.0  # of what is predicted
WEIGHT = 0.2  # of the newest read


@dataclass(slots=True)
class _Pace:
    rate: float = UNKNOWN_BYTES_PER_SECOND  # exponential mean
    outstanding: int = 0  # bytes asked for that have not come


class Paces:
    """The rate of each peer, by endpoint."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}

    def begun(self, endpoint: str, size: int) -> float:
        """A read of `size` bytes begins; how many seconds to give it, behind those under way."""
        pace = self._paces.setdefault(endpoint, _Pace())
        pace.outstanding += size
        return MARGIN * pace.outstanding / pace.rate

    def ended(self, endpoint: str, size: int, seconds: float = 0.0) -> None:
        """It came after so many seconds; 0: it did not come."""
        pace = self._paces.get(endpoint)
        if pace is None:
            return
        if size >= TEACHING_BYTES and seconds > 0.0:
            observed = max(SLOWEST_BYTES_PER_SECOND, size / seconds)
            pace.rate += WEIGHT * (observed - pace.rate)
        pace.outstanding -= size

    def late(self, endpoint: str) -> None:
        """A read passed its deadline: the peer is slower than thought."""
        pace = self._paces.get(endpoint)
        if pace is not None:
            pace.rate = max(SLOWEST_BYTES_PER_SECOND, pace.rate / 2)

    def forget(self, endpoint: str) -> None:
        """The peer is gone; who answers there next is another."""
        self._paces.pop(endpoint, None)
