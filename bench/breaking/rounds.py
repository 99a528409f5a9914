"""One round of each fault between real processes, with what it cost: for tests and for the bench.

A Scene is a reader in this process, one holder in another, and the plane between them. Every
function plays one fault through to its end and returns what was seen; it judges nothing but that
a hand-over ended once.
"""

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

from ...kvtransfer.incoming import Incoming
from ...kvtransfer.moves import ReadState
from .parts import SMALL_PAGE_BYTES, EndSettings
from .process import Child, Nursery
from .reader import COMPLETE, PATIENCE, Outcome, ReaderEnd

SOURCE_OVERWRITTEN = 0xDD
ASK_SECONDS = 0.2
UNHEARD = "UNHEARD"
QUIET_TURNS = 20  # turns in which a late byte would show
WHEN = ("unmet", "idle", "0 ms", "2 ms", "20 ms")  # from the post, or before there was one


class Scene:
    """A reader here, a holder there; the holder may die and come again at the same endpoint."""

    def __init__(
        self, nursery: Nursery, plane: str, holder: dict[str, Any] | None = None, **both: Any
    ) -> None:
        """`both` are EndSettings of either end, `holder` those of the holder alone."""
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if plane.endswith("-small"):
            both = {"page_bytes": SMALL_PAGE_BYTES} | both
        settings = EndSettings(plane=plane, name="reader", page_key=(public, secret), **both)
        self.nursery = nursery
        self.plane = plane
        self.reader = ReaderEnd(settings)
        self._holder_settings = msgspec.structs.replace(settings, name="holder", **(holder or {}))
        self.holders: list[Child] = []
        self.add_holder()

    @property
    def holder(self) -> Child:
        return self.holders[0]

    def add_holder(self, port: int = 0) -> Child:
        settings = msgspec.structs.replace(self._holder_settings, port=port)
        self.holders.append(self.nursery.start("holder", settings))
        return self.holders[-1]

    def respawn(self, holder: Child | None = None) -> Child:
        """A new incarnation with the name and the port of the old one, which is dead."""
        old = holder or self.holder
        old.kill()
        place = self.holders.index(old)
        new = self.add_holder(old.port)
        self.holders.remove(new)
        self.holders[place] = new
        return new

    def introduce(self, holder: Child | None = None) -> Outcome:
        """One small hand-over, so that the ways between both are open.

        The link of a dead incarnation may be noticed after the first word of the new one; what was
        begun by then is lost with it and placed again, as a router would.
        """
        limit = time.monotonic() + PATIENCE
        while (outcome := self.hand_over(2, holder)).word != COMPLETE:
            if time.monotonic() > limit:
                raise TimeoutError(f"no first hand-over: {outcome}")
        return outcome

    def hand_over(self, blocks: int, holder: Child | None = None) -> Outcome:
        """One hand-over to its end; UNHEARD where the offer itself was lost with a broken link, of
        which the holder tells the router."""
        reader, holder = self.reader, holder or self.holder
        request = reader.next_request()
        holder.hand(request, blocks, reader.endpoint)
        ask_again = time.monotonic() + ASK_SECONDS
        limit = time.monotonic() + PATIENCE
        while not reader.ended(request):
            reader.pump()
            now = time.monotonic()
            if now > ask_again and reader.incoming(request) is None and not reader.ended(request):
                ask_again = now + ASK_SECONDS
                if holder.state()["leases"] == 0:
                    return Outcome(UNHEARD, "the holder lost the link", now, 0)
            if now > limit:
                raise TimeoutError(f"never came about: the end of request {request}")
        return reader.outcome(request)

    def announce(self, blocks: int, holder: Child | None = None) -> int:
        """A hand-over whose pages are reserved here and of which nothing is published yet."""
        request = self.reader.next_request()
        (holder or self.holder).begin(request, blocks, self.reader.endpoint)
        self.reader.until(lambda: self._state(request) is ReadState.PULLING, "pages reserved")
        return request

    def offer(self, blocks: int) -> int:
        """A hand-over of which everything is known here and nothing was posted."""
        request = self.announce(blocks)
        self.holder.publish(request)
        limit = time.monotonic() + PATIENCE
        while not self._known(request):
            assert time.monotonic() < limit, "the publication did not come"
            self.reader.wait(0.01)
            self.reader.listen(time.monotonic())
        return request

    def _known(self, request: int) -> bool:
        incoming = self.reader.incoming(request)
        return incoming is not None and incoming.said.count == incoming.total

    def _state(self, request: int) -> ReadState | None:
        incoming = self.reader.incoming(request)
        return None if incoming is None else incoming.state

    def quiet_down(self) -> None:
        """Until nothing is held or quarantined here; then the pool must add up."""
        self.reader.until(lambda: self.reader.whole, "every page is back")
        self.reader.parts.pool.check()

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
        self.reader.close()


# --- F1: death ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """How a hand-over ended whose holder was killed, and how long after."""

    outcome: Outcome
    seconds: float  # from SIGKILL to the end of the hand-over


def death(scene: Scene, when: str, blocks: int) -> Death:
    """Kill the holder at one of WHEN. Afterwards the scene has no living holder."""
    reader = scene.reader
    if when == "unmet":
        request = reader.next_request()
        scene.holder.hand(request, blocks, reader.endpoint)
        limit = time.monotonic() + PATIENCE
        while reader.incoming(request) is None and time.monotonic() < limit:
            reader.wait(0.01)
            reader.listen(time.monotonic())
        # It has heard of the prompt; its answer is on the way to a process that is killed now.
        at = scene.holder.strike()
    elif when == "idle":
        request = scene.announce(blocks)
        at = scene.holder.strike()
    else:
        request = scene.offer(blocks)
        reader.turn(time.monotonic())  # posts
        until = time.monotonic() + float(when.removesuffix(" ms")) / 1e3
        while time.monotonic() < until:
            reader.pump()
        at = scene.holder.strike()
    outcome = reader.settle(request)
    scene.holder.bury()
    scene.quiet_down()
    return Death(outcome, outcome.at - at)


# --- F2 and F4: a holder that stands still --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standstill:
    """A hand-over that was given up while its holder stood still."""

    outcome: Outcome | None  # None: cancelled, of which nothing is told
    seconds: float  # the caller's wait (cancel), or from the post to the end (deadline)
    late: float  # after the deadline, for a deadline
    quarantined: int  # pages kept back until the plane was quiet
    granted: int  # pages granted again and written while the holder still stood
    hit: int  # of all pages granted again, those that a byte of the old read reached
    after: Outcome  # of the next hand-over, when the holder went on


def aborted(scene: Scene, blocks: int, turns: int) -> Standstill:
    """Post, cancel, grant the pages again, change the source, let the holder go on.

    The holder stands still from before the post, or after so many turns from the post on.
    """
    reader, holder = scene.reader, scene.holder
    request = scene.offer(blocks)
    source = _source_of(scene, request)
    if turns:
        reader.until(lambda: reader.posted(request), "the post")
    for _ in range(turns - 1):
        reader.pump()
    holder.stop()
    try:
        reader.turn(time.monotonic())
        seconds = reader.give_up(request)
        outcome = reader.outcome(request) if reader.ended(request) else None
        for _ in range(2):  # a plane that moves every byte itself is quiet by now
            reader.turn(time.monotonic())
        quarantined, pages = reader.parts.pool.quarantined, reader.grant_again()
        overwrite(holder, source, reader.settings.page_bytes)
    finally:
        holder.go_on()
    granted = len(pages)
    return _aftermath(scene, outcome, seconds, 0.0, quarantined, granted, pages)


def timed_out(scene: Scene, blocks: int) -> Standstill:
    """Post to a holder that stands still, and wait for our own deadline."""
    reader, holder = scene.reader, scene.holder
    request = scene.offer(blocks)
    holder.stop()
    try:
        posted = time.monotonic()
        reader.turn(posted)
        limit = _deadline(reader.incoming(request))
        outcome = reader.settle(request)
        for _ in range(2):
            reader.turn(time.monotonic())
        quarantined, pages = reader.parts.pool.quarantined, reader.grant_again()
    finally:
        holder.go_on()
    late = outcome.at - limit if limit is not None else 0.0
    granted = len(pages)
    return _aftermath(scene, outcome, outcome.at - posted, late, quarantined, granted, pages)


def _aftermath(
    scene: Scene,
    outcome: Outcome | None,
    seconds: float,
    late: float,
    quarantined: int,
    granted: int,
    pages: list[int],
) -> Standstill:
    """The holder goes on: whatever it still had to say about the old read is said now."""
    reader = scene.reader
    reader.until(lambda: reader.parts.pool.quarantined == 0, "quiet")
    pages += reader.grant_again()
    for _ in range(QUIET_TURNS):
        reader.pump()
    hit = reader.hit(pages)
    reader.give_back()
    after = scene.introduce()
    scene.quiet_down()
    return Standstill(outcome, seconds, late, quarantined, granted, hit, after)


def _deadline(incoming: Incoming | None) -> float | None:
    """When the earliest open read of this hand-over is given up."""
    if incoming is None or not incoming.reads:
        return None
    return min(read.limit for read in incoming.reads.values())


def _source_of(scene: Scene, request: int) -> list[int]:
    incoming = scene.reader.incoming(request)
    assert incoming is not None
    return incoming.said.pages(0, incoming.said.count).tolist()


def overwrite(holder: Child, pages: Sequence[int], page_bytes: int) -> None:
    """Change a holder's pages while it stands still, as their next owner would: generation first,
    then the bytes."""
    facts = holder.facts
    path = Path(f"/proc/{holder.pid}/fd/{facts['file']}")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as whole:
        generations = memoryview(whole)[: facts["pages_offset"]].cast("Q")
        for page in pages:
            generations[page] += 1
            start = facts["pages_offset"] + page * page_bytes
            whole[start : start + page_bytes] = bytes([SOURCE_OVERWRITTEN]) * page_bytes
        generations.release()


# --- F5: another incarnation ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Respawn:
    """From the fork of the new incarnation: when it could be spoken to, and its first good read."""

    ready: float
    first_good: float
    outcome: Outcome


def respawn(scene: Scene) -> Respawn:
    """Kill the holder, start it again with its name and port, hand over."""
    began = time.monotonic()
    scene.respawn()
    ready = time.monotonic() - began
    outcome = scene.introduce()
    return Respawn(ready, outcome.at - began, outcome)


# --- what a process holds -------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    """Of this process, in memory of its own: the holders' shared pages are not its growth."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Anonymous":
            return int(rest.split()[0]) << 10
    raise OSError("the kernel does not tell how much memory is anonymous")
