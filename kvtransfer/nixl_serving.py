"""The holder's side of the gather path: pages that readers ask for are packed into slots.

A slot is its asker's until Done comes, or for SLOT_SECONDS: its sequence, raised before it is
written anew, tells a reader that was slower. So nothing a reader does or fails to do can keep a
slot, and a dead reader's are back in that time. Readers are answered over their own agent, which
each ask brings along; how many stay loaded is bounded.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

from ..protocol.memory import PageMemory
from .nixl_lists import Agents, Lists
from .nixl_staging import SLOT_BYTES, SLOTS, Sequences, Slots, page_rows, pages_per_slot
from .nixl_words import MOST_PAGES_PER_ASK, Ask, Done, Ready, Refused, Staging, encode
from .targets import Indices

SLOT_SECONDS = 2.0
SLOTS_PER_READER = 8  # a stopped reader cannot take the others' share
ASKED_PER_READER = 32  # slotfuls
ASKED = 512
READERS_KEPT = 128


@dataclass(frozen=True, slots=True)
class _Asked:
    """A slotful that waits."""

    reader: str
    number: int
    pages: Indices


@dataclass(frozen=True, slots=True)
class _Grant:
    slot: int
    since: float


class Serving:
    """Packs our pages for readers. `refused` counts notifications that were none of ours."""

    def __init__(
        self,
        agent: Any,
        lists: Lists,
        agents: Agents,
        memory: PageMemory,
        token: bytes,
        lose: Callable[[str], None],
    ) -> None:
        self.refused = 0
        self._agent: Any = agent
        self._agents = agents
        self._memory = memory
        self._token = token
        self._lose = lose
        self._pages = page_rows(memory)
        self._slots = Slots(lists)
        self._sequences = Sequences(1, lists)
        self._free = list(range(SLOTS))
        self._granted: dict[tuple[str, int], _Grant] = {}  # oldest first
        self._held: dict[str, int] = {}  # slots by reader
        self._asked: deque[_Asked] = deque()
        self._readers: dict[str, None] = {}  # loaded for us, the latest last

    @property
    def staging(self) -> Staging:
        return Staging(self._slots.address, SLOT_BYTES, SLOTS, self._sequences.address)

    @property
    def busy(self) -> bool:
        return bool(self._asked or self._granted)

    def ask(self, sender: str, ask: Ask) -> None:
        if ask.token != self._token or not self._know(sender, ask.nixl):
            self.refused += 1
            return
        parts = self._parts_of(ask)
        waiting = [asked.number for asked in self._asked if asked.reader == sender]
        if isinstance(parts, str):
            self.refused += 1
            self._answer(sender, Refused(ask.number, parts))
        elif len(waiting) + len(parts) > ASKED_PER_READER or len(self._asked) >= ASKED:
            self._answer(sender, Refused(ask.number, "too many asks are waiting"))
        elif not {*waiting, *self._granted_to(sender)}.isdisjoint(
            numbers := range(ask.number, ask.number + len(parts))
        ):
            self.refused += 1
        else:
            for number, pages in zip(numbers, parts, strict=True):
                self._asked.append(_Asked(sender, number, pages))

    def done(self, sender: str, done: Done) -> None:
        if done.token != self._token:
            self.refused += 1
            return
        numbers = set(done.numbers)
        for number in numbers:
            if grant := self._granted.pop((sender, number), None):
                self._take_back(sender, grant)
        for asked in [asked for asked in self._asked if asked.reader == sender]:
            if asked.number in numbers:
                self._asked.remove(asked)

    def pack_next(self) -> bool:
        """Pack what waits longest; False where nothing waits or no slot is free."""
        now = time.monotonic()
        while self._granted:
            (reader, number), grant = next(iter(self._granted.items()))
            if now - grant.since < SLOT_SECONDS:
                break
            del self._granted[reader, number]
            self._take_back(reader, grant)
        asked = self._next() if self._free else None
        if asked is None:
            return False
        self._pack(asked, now)
        return True

    def close(self) -> None:
        self._agent = None
        self._pages = self._pages[:0]
        self._asked.clear()
        self._granted.clear()

    def _next(self) -> _Asked | None:
        for asked in self._asked:
            if self._held.get(asked.reader, 0) < SLOTS_PER_READER:
                self._asked.remove(asked)
                return asked
        return None

    def _pack(self, asked: _Asked, now: float) -> None:
        slot = self._free.pop()
        sequences = self._sequences.words[0]
        sequences[slot] += 1  # before a byte of it changes
        rows = self._slots.rows(slot, self._memory.page_bytes, len(asked.pages))
        numpy.take(self._pages, asked.pages, out=rows, mode="clip")  # "raise" would copy twice
        grant = _Grant(slot, now)
        self._held[asked.reader] = self._held.get(asked.reader, 0) + 1
        ready = Ready(asked.number, slot, int(sequences[slot]))
        if self._answer(asked.reader, ready):
            self._granted[asked.reader, asked.number] = grant
        else:
            self._take_back(asked.reader, grant)

    def _take_back(self, reader: str, grant: _Grant) -> None:
        self._free.append(grant.slot)
        self._held[reader] -= 1
        if not self._held[reader]:
            del self._held[reader]

    def _granted_to(self, reader: str) -> list[int]:
        return [number for other, number in self._granted if other == reader]

    def _parts_of(self, ask: Ask) -> list[Indices] | str:
        """The pages asked for by slotfuls, or what is wrong with them."""
        length = len(ask.pages)
        if length % 4 or not 0 < length // 4 <= MOST_PAGES_PER_ASK:
            return f"{length} bytes name no pages, or more than {MOST_PAGES_PER_ASK}"
        pages = numpy.frombuffer(ask.pages, dtype="<i4")
        if pages.min() < 0 or pages.max() >= self._memory.page_count:
            return f"a page is outside the pool of {self._memory.page_count} pages"
        step = pages_per_slot(self._memory.page_bytes)
        return [pages[start : start + step] for start in range(0, len(pages), step)]

    def _know(self, sender: str, metadata: bytes) -> bool:
        """Have the sender's agent loaded, so that it can be answered."""
        try:
            name = self._agents.hold(metadata, "reader")
        except Exception:  # garbage, or an agent that cannot be reached: NIXL raises many kinds
            return False
        if name != sender:
            self._agents.drop(name, "reader")
            self._readers.pop(name, None)
            return False
        self._readers.pop(name, None)
        self._readers[name] = None
        if len(self._readers) > READERS_KEPT:
            self._drop(next(iter(self._readers)))
        return True

    def _drop(self, reader: str) -> None:
        self._readers.pop(reader, None)
        self._agents.drop(reader, "reader")

    def _answer(self, reader: str, words: Ready | Refused) -> bool:
        try:
            self._agent.send_notif(reader, encode(words))
        except Exception:  # it is gone; its own side hears of that by itself
            self._lose(reader)
            self._drop(reader)
            return False
        return True
