"""Generations as NIXL reads them: whole groups, into landing areas of our own.

A descriptor costs microseconds whatever its size, so 64 generations (512 bytes) are read at once,
and near groups as one stretch. The last group ends with the array: where the number of pages is
no multiple of 64 it overlaps the one before, and no descriptor leaves the registered region.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy
from numpy.typing import NDArray

from .nixl_lists import LOCAL, ONE, Lists, Row
from .targets import Counters, Indices

GROUP = 64  # generations
GROUP_BYTES = GROUP * 8
NEAR = 32  # groups between two that are read too: 16 KB cost less than a second descriptor
FEW = 8  # pages for which Python beats numpy
LITTLE = 32 << 10  # bytes: so many generations are read whole, or less than 1/128 of the pages
AREA_GROUPS = 1024


def generation_rows(address: int, page_count: int) -> list[Row]:
    """A peer's generations as descriptors of one group each."""
    size = group_words(page_count) * 8
    ascending = group_count(page_count) - 1
    last = (address + page_count * 8 - size, size, 0, size, 1)
    return [(address, size, 0, size, ascending), last] if ascending else [last]


def group_words(page_count: int) -> int:
    return min(page_count, GROUP)


def group_count(page_count: int) -> int:
    return -(-page_count // GROUP)


@dataclass(slots=True, eq=False)
class Groups:
    """Which groups some pages lie in, ascending, and each page's word among them."""

    numbers: Indices
    places: list[int] | NDArray[numpy.signedinteger]
    room: int  # in groups, where they land
    whole: bool = False  # of the list that has all generations as one descriptor


def groups_of(pages: Indices, page_count: int, page_bytes: int) -> Groups:
    count = group_count(page_count)
    if len(pages) > FEW and page_count * 8 <= max(LITTLE, len(pages) * page_bytes // 128):
        return Groups(ONE, pages, count, whole=True)
    last = count - 1
    last_start = page_count - group_words(page_count)
    if len(pages) == 1:
        page = int(pages[0])
        number = page // GROUP
        start = last_start if number == last else number * GROUP
        return Groups(numpy.array([number], dtype=numpy.int32), [page - start], 1)
    if len(pages) <= FEW:
        listed = pages.tolist()
        numbers = sorted({page // GROUP for page in listed})
        ranks = {number: rank for rank, number in enumerate(numbers)}
        places = [
            ranks[number] * GROUP + page - (last_start if number == last else number * GROUP)
            for page in listed
            for number in (page // GROUP,)
        ]
        return Groups(numpy.array(numbers, dtype=numpy.int32), places, len(numbers))
    of_page = pages // GROUP
    touched = numpy.zeros(last + 1, dtype=numpy.bool_)
    touched[of_page] = True
    found = numpy.flatnonzero(touched)
    steps = numpy.diff(found)
    for at in numpy.flatnonzero((steps > 1) & (steps <= NEAR)).tolist():
        touched[found[at] : found[at + 1]] = True
    ranks = numpy.cumsum(touched) - 1
    starts = of_page * GROUP
    starts[of_page == last] = last_start
    numbers = numpy.flatnonzero(touched).astype(numpy.int32)
    return Groups(numbers, ranks[of_page] * GROUP + (pages - starts), len(numbers))


@dataclass(slots=True, eq=False)
class _Area:
    words: Counters
    cells: memoryview  # the same, for single words
    free: list[tuple[int, int]]  # stretches of groups: first and how many; ascending
    # Lists by where they begin, in bytes (-1: every group), and words per descriptor.
    prepared: dict[tuple[int, int], Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Room:
    """A stretch of groups that one read lands its generations in, until it is quiet."""

    area: _Area
    first: int
    count: int

    def values(self, groups: Groups) -> tuple[int, ...]:
        """The generations that landed, in the order of the pages."""
        start = self.first * GROUP
        if isinstance(groups.places, list):
            cells = self.area.cells
            return tuple([cells[start + place] for place in groups.places])
        return tuple(self._words[groups.places].tolist())

    def differ(self, groups: Groups, expected: Counters) -> bool:
        if isinstance(groups.places, list):
            return self.values(groups) != tuple(expected.tolist())
        return bool((self._words[groups.places] != expected).any())

    @property
    def _words(self) -> Counters:
        return self.area.words[self.first * GROUP : (self.first + self.count) * GROUP]


class Landing:
    """Host memory of our own that generations are read into; it grows with the reads in flight.

    Peers could write it, as they could write the pages: registered memory has no other protection.
    """

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._areas: list[_Area] = []
        self._numbers = numpy.arange(AREA_GROUPS, dtype=numpy.int32)

    def take(self, count: int) -> Room:
        for area in self._areas:
            for at, (first, length) in enumerate(area.free):
                if length >= count:
                    area.free[at : at + 1] = (
                        [(first + count, length - count)] if length > count else []
                    )
                    return Room(area, first, count)
        size = max(count, AREA_GROUPS)
        words = numpy.zeros(size * GROUP, dtype=numpy.uint64)
        area = _Area(words, words.data, [(0, size)])
        self._lists.register(area.words.ctypes.data, area.words.nbytes)
        self._areas.append(area)
        if size > len(self._numbers):
            self._numbers = numpy.arange(size, dtype=numpy.int32)
        return self.take(count)

    def give_back(self, room: Room) -> None:
        if room.area.free and room.area.free[0][0] == room.first + room.count:
            _, length = room.area.free[0]  # the usual case: nothing is free before it
            room.area.free[0] = (room.first, room.count + length)
            return
        merged: list[tuple[int, int]] = []
        for first, length in sorted([*room.area.free, (room.first, room.count)]):
            if merged and merged[-1][0] + merged[-1][1] == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((first, length))
        room.area.free = merged

    def groups(self, room: Room, part: slice, words: int) -> tuple[Any, Indices]:
        """A list of ours, and part of a room's groups in it, of `words` generations each."""
        area = room.area
        if (-1, words) not in area.prepared:
            rows = [(area.words.ctypes.data, words * 8, 0, GROUP_BYTES, len(area.words) // GROUP)]
            area.prepared[-1, words] = self._lists.prepare(LOCAL, rows)
        numbers = self._numbers[room.first + part.start : room.first + part.stop]
        return area.prepared[-1, words], numbers

    def whole(self, room: Room, words: int) -> tuple[Any, Indices]:
        """The same for a room as one descriptor; rooms begin at the same few places again."""
        area, at = room.area, room.first * GROUP_BYTES
        if (at, words) not in area.prepared:
            rows = [(area.words.ctypes.data + at, words * 8, 0, words * 8, 1)]
            area.prepared[at, words] = self._lists.prepare(LOCAL, rows)
        return area.prepared[at, words], self._numbers[:1]

    def close(self) -> None:
        self._areas.clear()
