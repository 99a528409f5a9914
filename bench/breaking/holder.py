"""A holder of hand-overs as a process: everything of a prefill worker but its model.

Prompts are "computed" by writing their known bytes; leases, pages, mailbox and plane are the real
ones. It is told what to do through a channel (`breaking/process.py`).
"""

from dataclasses import dataclass, field
from typing import Any

import zmq

from ...kvtransfer.holder import Holder, Lease
from ...protocol.messages import FirstTokens, Introduce, Prefill, Release, Renew
from ...protocol.seams import Disconnected, Received
from .parts import EndSettings, hashes_of, open_parts, prompt, write_block

LONGEST_WAIT = 1.0  # seconds
OVERWRITTEN = 0xDD


@dataclass(slots=True)
class _Prompt:
    """One prompt under way: its pages are held until the last of them is published."""

    prefill: Prefill
    lease: Lease
    pages: list[int]
    published: int = 0
    held: bool = True

    @property
    def pool_holder(self) -> tuple[str, int]:
        return ("prompt", self.lease.id)


@dataclass(slots=True)
class Ends:
    """How leases ended, by their event's word."""

    counts: dict[str, int] = field(default_factory=dict)

    def note(self, word: str) -> None:
        self.counts[word] = self.counts.get(word, 0) + 1


class HolderEnd:
    """Turns like a worker; `command` is what the test says."""

    def __init__(self, settings: EndSettings) -> None:
        self.parts = parts = open_parts(settings)
        self._holder = Holder(
            parts.pool, parts.mailbox, parts.plane, parts.compatibility, settings.lease_seconds
        )
        self._prompts: dict[tuple[int, int], _Prompt] = {}
        self._ends = Ends()

    def turn(self, now: float) -> float:
        """Everything that is due; returns when to come back."""
        for arrival in self.parts.mailbox.receive():
            match arrival:
                case Received(sender, Introduce() | Renew() | Release() as message):
                    self._holder.take(sender, message, now)
                case Disconnected(endpoint):
                    self._holder.reader_lost(endpoint)
        self.parts.plane.progress()
        due = min(now + LONGEST_WAIT, self._holder.turn(now))
        self._let_go()
        if self._holder.has_published:
            due = min(due, now + self.parts.plane.holder_poll_seconds)
        return due

    def _let_go(self) -> None:
        for lease in self._holder.ended:
            key = (lease.prefill.request, lease.prefill.attempt)
            if lease.ended_by is not None:
                self._ends.note(lease.ended_by.name)
            if (one := self._prompts.pop(key, None)) is not None and one.held:
                self.parts.pool.release(one.pool_holder)
        self._holder.ended.clear()

    def command(self, do: str, words: dict[str, Any], now: float) -> dict[str, Any]:
        match do:
            case "begin":
                return self._begin(now=now, **words)
            case "publish":
                return self._publish(**words)
            case "hand":
                begun = self._begin(now=now, **words)
                self._publish(words["request"], words["attempt"])
                return begun
            case "cancel":
                self._holder.cancel(words["request"], words["attempt"])
                self._let_go()
            case "overwrite":
                return self._overwrite()
            case "garbage":
                return self._garbage(**words)
            case "state":
                return self._state()
            case _:
                raise ValueError(f"no command {do!r}")
        return {}

    def _begin(
        self, request: int, attempt: int, blocks: int, reader: str, now: float
    ) -> dict[str, Any]:
        prefill = prompt(request, attempt, blocks, reader)
        lease = self._holder.open(prefill, 0, now)
        one = _Prompt(prefill, lease, [])
        pages = self.parts.pool.take(one.pool_holder, blocks)
        if pages is None:
            raise ValueError(f"{blocks} pages are wanted, {self.parts.pool.available} are there")
        # No two neighbours follow each other, as in a worker that has served for long.
        one.pages = pages = pages[::2] + pages[1::2]
        hashes, tail = hashes_of(prefill)
        for block, page in enumerate(pages):
            write_block(self.parts.memory, page, request, block)
            self.parts.pool.seal(page, hashes[block] if block < len(hashes) else None, tail)
        self._prompts[request, attempt] = one
        return {"lease": lease.id, "pages": pages}

    def _publish(self, request: int, attempt: int, count: int = -1) -> dict[str, Any]:
        """So many more blocks; -1 means all that are left, and with them the first tokens."""
        one = self._prompts.get((request, attempt))
        if one is None:
            return {"ended": True}
        start, end = one.published, len(one.pages) if count < 0 else one.published + count
        one.published = end
        first = FirstTokens([0], [request % 1000], [""], [None]) if end == len(one.pages) else None
        self._holder.publish(one.lease, one.pages[start:end], first)
        if first is not None:
            one.held = False
            self.parts.pool.release(one.pool_holder)
        return {}

    def _overwrite(self) -> dict[str, Any]:
        """Grant every page that may be granted, and write to it."""
        pool = self.parts.pool
        pages = pool.take("overwrite", pool.available) or []
        for page in pages:
            self.parts.memory.page(page)[:] = bytes([OVERWRITTEN]) * len(self.parts.memory.page(0))
        pool.release("overwrite")
        return {"pages": len(pages)}

    def _garbage(self, reader: str, frames: int) -> dict[str, Any]:
        """What no Penstock process would say, to a reader's mailbox."""
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.reconnect_ivl = -1  # who speaks garbage is thrown out, and stays out
        socket.connect(reader)
        for number in range(frames):
            parts = [b"PSTK\x00\x02", bytes([number % 256]) * 100][: 1 + number % 2]
            try:
                socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:  # thrown out already
                break
        socket.close(20)
        context.term()
        return {}

    def _state(self) -> dict[str, Any]:
        pool = self.parts.pool
        pool.check()
        return {
            "held": pool.held,
            "available": pool.available,
            "quarantined": pool.quarantined,
            "leases": len(self._holder.leases),
            "ends": self._ends.counts,
            "path": self.parts.plane.path,
        }

    def facts(self) -> dict[str, Any]:
        """Said once, when ready."""
        memory = self.parts.memory.memory
        me = self.parts.mailbox.me
        return {
            "endpoint": me.endpoint,
            "incarnation": me.incarnation,
            "metadata": self.parts.plane.metadata().hex(),
            "file": memory.file,
            "pages_offset": memory.pages_offset,
        }

    def wait(self, seconds: float, also: int) -> None:
        self.parts.mailbox.wait(seconds, (also,))
