"""The line of requests whose workers were lost, oldest first. Pure.

When a worker dies, thousands of requests may have to go on elsewhere. Nothing is done about them
at that moment but to put all that are in flight into this line; the loop takes them out a few at a
time. What was lost is told by two numbers, whoever is looked at later: the worker's endpoint and
how many placements this router had made by then. A placement with a higher number went to the
process that answers there now.
"""

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

from .placement import Placement


class Line:
    """Ids of requests to be looked at; ids grow with time. One may stand in it twice."""

    def __init__(self) -> None:
        self._ids: list[int] = []  # a heap
        self._losses: dict[str, int] = {}  # endpoint -> the last placement before its loss

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, request: int) -> None:
        heappush(self._ids, request)

    def add_all(self, requests: Iterable[int]) -> None:
        self._ids = sorted([*self._ids, *requests])  # a sorted list is a heap

    def lose(self, endpoint: str, last: int, requests: Iterable[int]) -> None:
        """A worker is gone with all placements up to number `last`; look at all requests."""
        self._losses[endpoint] = last
        self._ids = sorted(requests)

    def oldest(self) -> int | None:
        """Take the oldest out; None: nothing is left, and every loss was attended to."""
        if self._ids:
            return heappop(self._ids)
        self._losses.clear()
        return None

    def lost_under(self, placement: Placement) -> Iterator[str]:
        """The workers of its route that were lost since it was made."""
        if not self._losses:
            return
        for endpoint in dict.fromkeys((placement.route.prefill, placement.route.decode)):
            if placement.number <= self._losses.get(endpoint, -1):
                yield endpoint
