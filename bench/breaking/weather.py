"""Hand-overs whose control words pass a proxy that loses, doubles and delays them (F8)."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .process import Nursery
from .proxy import TOLD, Proxy, Weather
from .reader import COMPLETE
from .rounds import Scene

LEASE_SECONDS, WAITING_SECONDS = 1.5, 3.0
STORM = Weather(lost=0.06, doubled=0.06, delayed=0.3, longest_delay=0.08)
AT_ONCE = 16
MOST_BLOCKS = 12
PATIENCE = 30.0  # seconds for one batch, whatever the deadlines say: then something hangs


@dataclass(slots=True)
class Storm:
    """What became of hand-overs in bad weather."""

    ended: Counter[str] = field(default_factory=Counter)  # by outcome; UNHEARD: lost with its offer
    twice: int = 0  # ended more than once
    wrong: int = 0  # complete with wrong bytes
    hung: int = 0  # neither ended nor expired
    seconds: list[float] = field(default_factory=list)  # from the offer to the end
    words: Counter[str] = field(default_factory=Counter)
    left: dict[str, Any] = field(default_factory=dict)  # what the holder still held at the end


def storm(nursery: Nursery, plane: str, handovers: int, seed: int, weather: Weather) -> Storm:
    """So many hand-overs, some at a time, each published in pieces."""
    scene = Scene(
        nursery,
        plane,
        advertise=TOLD,
        lease_seconds=LEASE_SECONDS,
        renew_every=LEASE_SECONDS / 6,
        waiting_seconds=WAITING_SECONDS,
        read_seconds=2.0,
    )
    proxy = Proxy((scene.reader.endpoint, scene.holder.endpoint), weather, seed)
    seen, chance = Storm(), random.Random(seed)
    try:
        while handovers > 0:
            _batch(scene, min(AT_ONCE, handovers), chance, seen)
            handovers -= AT_ONCE
        scene.reader.until(lambda: scene.holder.state()["leases"] == 0, "the last leases expire")
        scene.quiet_down()
        seen.left = {name: scene.holder.state()[name] for name in ("held", "leases", "quarantined")}
        seen.words = proxy.counts
    finally:
        proxy.close()
        scene.close()
    return seen


def _batch(scene: Scene, count: int, chance: random.Random, seen: Storm) -> None:
    reader, holder = scene.reader, scene.holder
    offered: dict[int, float] = {}
    to_publish: list[tuple[int, int]] = []
    for _ in range(count):
        request, blocks = reader.next_request(), chance.randint(1, MOST_BLOCKS)
        holder.begin(request, blocks, reader.endpoint)
        offered[request] = time.monotonic()
        first = chance.randint(0, blocks - 1)
        to_publish += [(request, first), (request, -1)] if first else [(request, -1)]
        reader.pump()
    for last in (False, True):
        for request, blocks in to_publish:
            if (blocks < 0) == last:
                holder.publish(request, blocks)
                reader.pump()
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        missing = [one for one in offered if not reader.ended(one)]
        if not missing or (not reader.reader.incoming and not scene.holder.state()["leases"]):
            break
        reader.pump()
    for request, at in offered.items():
        _note(scene, request, at, seen)


def _note(scene: Scene, request: int, offered: float, seen: Storm) -> None:
    outcomes = scene.reader.outcomes.get((request, 1), [])
    if not outcomes:
        known = scene.reader.incoming(request) is not None
        seen.hung += known
        seen.ended["HUNG" if known else "UNHEARD"] += 1
        return
    seen.twice += len(outcomes) > 1
    seen.ended[outcomes[0].word] += 1
    seen.wrong += sum(one.wrong > 0 for one in outcomes if one.word == COMPLETE)
    seen.seconds.append(outcomes[0].at - offered)
