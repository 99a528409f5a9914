"""Failure upon failure in one reader, and what it holds afterwards (F13)."""

import gc
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from ...kvtransfer.columns import Columns
from .reader import COMPLETE
from .rounds import Scene, descriptors, overwrite, resident_bytes

BLOCKS = 24
WARM_UP = 40  # failures before anything is counted: what is kept once is no leak
# A kind of failure, and how often it comes. Death costs the start of a process.
KINDS = {"cancel": 16, "lease ended": 16, "stale": 16, "forged": 16, "garbage": 4, "death": 2}


@dataclass(slots=True)
class Leaks:
    """Differences between the end of the warm-up and the end."""

    failures: int
    descriptors: int
    bytes: int
    pages: int  # held or quarantined in the reader, at the end
    holder_pages: int
    kinds: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    last: str = ""  # how a hand-over ended after all of it


def fail_many(scene: Scene, failures: int, seed: int = 1) -> Leaks:
    """Make so many hand-overs fail, of every kind by chance, and count what is left."""
    chance = random.Random(seed)
    scene.introduce()
    seen = Leaks(failures, 0, 0, 0, 0)
    for _ in range(WARM_UP):
        _fail(scene, _kind(chance), chance, Leaks(0, 0, 0, 0, 0))
    files, memory = _held(scene)
    for _ in range(failures):
        kind = _kind(chance)
        seen.kinds[kind] += 1
        _fail(scene, kind, chance, seen)
    after = _held(scene)
    seen.descriptors, seen.bytes = after[0] - files, after[1] - memory
    pool = scene.reader.parts.pool
    seen.pages = pool.held + pool.quarantined
    seen.holder_pages = scene.holder.state()["held"]
    seen.last = scene.introduce().word
    return seen


def _kind(chance: random.Random) -> str:
    return chance.choices(list(KINDS), list(KINDS.values()))[0]


def _held(scene: Scene) -> tuple[int, int]:
    """Descriptors and bytes of this process, at rest."""
    scene.quiet_down()
    scene.reader.outcomes.clear()
    before = descriptors()
    limit = time.monotonic() + 2.0
    while time.monotonic() < limit:  # closed sockets go when ZeroMQ's own thread gets to them
        scene.reader.pump()
        if (now := descriptors()) < before:
            before, limit = now, time.monotonic() + 2.0
    gc.collect()
    return before, resident_bytes()


def _fail(scene: Scene, kind: str, chance: random.Random, seen: Leaks) -> None:
    reader, holder = scene.reader, scene.holder
    if kind == "garbage":
        holder.ask("garbage", reader=reader.endpoint, frames=4)
        seen.ended[scene.introduce().word] += 1
        return
    request = scene.offer(BLOCKS)
    incoming = reader.incoming(request)
    assert incoming is not None
    match kind:
        case "stale":
            last = incoming.said.pages(incoming.total - 1, incoming.total)
            overwrite(holder, last.tolist(), reader.settings.page_bytes)
        case "forged":
            pages = incoming.said.pages(0, incoming.said.count)
            pages[chance.randrange(BLOCKS)] = 1 << 20
            _, *rest = incoming.said.part(0, incoming.said.count)
            incoming.said = Columns()
            incoming.said.add((pages.tobytes(), rest[0], rest[1], rest[2]))
        case _:
            for _ in range(chance.randrange(3)):
                reader.turn(time.monotonic())
    if kind == "cancel":
        reader.give_up(request)
        seen.ended["CANCELLED"] += 1
    elif kind == "lease ended":
        holder.ask("cancel", request=request, attempt=1)
    elif kind == "death":
        scene.respawn()
    if kind != "cancel":
        outcome = reader.settle(request)
        assert outcome.wrong == 0, f"{kind}: {outcome}"
        assert outcome.word != COMPLETE or kind in ("lease ended", "death"), f"{kind}: {outcome}"
        seen.ended[outcome.word] += 1
    reader.outcomes.clear()
    scene.quiet_down()
    if kind == "death":
        scene.introduce()
