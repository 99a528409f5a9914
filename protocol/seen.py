"""Remembers what was taken already, so that a word said twice changes nothing. Pure."""

from collections.abc import Hashable


class Seen:
    """The newest keys, bounded; older ones are forgotten."""

    def __init__(self, limit: int = 65536):
        self._limit = limit
        self._keys: dict[Hashable, None] = {}

    def first(self, key: Hashable) -> bool:
        """True the first time a key is asked about."""
        if key in self._keys:
            return False
        self._keys[key] = None
        while len(self._keys) > self._limit:
            del self._keys[next(iter(self._keys))]
        return True
