"""Which block lies in which page, and what changed of that since somebody last asked. Pure."""

from collections.abc import Iterable


class Findable:
    """Blocks by their hash, each in one page."""

    def __init__(self) -> None:
        self.pages: dict[bytes, int] = {}
        self._added: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self.pages

    def all(self) -> list[bytes]:
        """Every block; forgets the changes reported so far."""
        self._added.clear()
        self._removed.clear()
        return list(self.pages)

    def changes(self) -> tuple[list[bytes], list[bytes]]:
        """Blocks that were added, and blocks that were removed, since the last call."""
        added, removed = list(self._added), list(self._removed)
        self._added.clear()
        self._removed.clear()
        return added, removed

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Pages of the longest known run from the first hash on."""
        pages: list[int] = []
        for block_hash in hashes:
            page = self.pages.get(block_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def add(self, block_hash: bytes, page: int) -> None:
        self.pages[block_hash] = page
        _note(block_hash, self._added, self._removed)

    def all_new(self, blocks: dict[bytes, int]) -> bool:
        """None of these is known, or was since the last report."""
        known = (self.pages, self._added, self._removed)
        return all(one.keys().isdisjoint(blocks) for one in known)

    def add_new(self, blocks: dict[bytes, int]) -> None:
        """Blocks that are `all_new`."""
        self.pages.update(blocks)
        self._added.update(dict.fromkeys(blocks))

    def remove(self, block_hash: bytes) -> None:
        del self.pages[block_hash]
        _note(block_hash, self._removed, self._added)


def _note(block_hash: bytes, into: dict[bytes, None], out_of: dict[bytes, None]) -> None:
    # A block that came and went between two reports is reported in neither list.
    if block_hash in out_of:
        del out_of[block_hash]
    else:
        into[block_hash] = None
