"""Eight holders, one of which fails while seven are read: what the others notice of it (F13)."""

import time
from dataclasses import dataclass, field

from .process import Child
from .reader import COMPLETE
from .rounds import Scene

HOLDERS = 8
TROUBLES = ("killed", "stopped", "garbage")
GARBAGE_FRAMES = 200


@dataclass(slots=True)
class Neighbours:
    """Seconds that seven hand-overs took together, in rounds that took turns."""

    healthy: list[float] = field(default_factory=list)
    troubled: dict[str, list[float]] = field(
        default_factory=lambda: {trouble: [] for trouble in TROUBLES}
    )
    lost: int = 0  # hand-overs of the seven that failed


def neighbours(scene: Scene, rounds: int, blocks: int) -> Neighbours:
    """Rounds of seven hand-overs: the eighth healthy and idle, then in each of its troubles."""
    while len(scene.holders) < HOLDERS:
        scene.add_holder()
    for holder in scene.holders:
        scene.introduce(holder)
    seen = Neighbours()
    for turn in range(rounds + 1):  # the first to warm up
        for trouble in ("", *TROUBLES):
            seconds = _round(scene, trouble, blocks, seen)
            if turn:
                (seen.troubled[trouble] if trouble else seen.healthy).append(seconds)
    return seen


def _round(scene: Scene, trouble: str, blocks: int, seen: Neighbours) -> float:
    reader, (sick, *others) = scene.reader, scene.holders
    requests = [scene.announce(blocks, holder) for holder in others]
    failing = scene.announce(blocks, sick) if trouble else 0
    if trouble:
        _strike(scene, sick, trouble, failing)
    began = time.monotonic()
    for holder, request in zip(others, requests, strict=True):
        holder.publish(request)
    reader.until(lambda: all(reader.ended(one) for one in requests), "seven hand-overs")
    outcomes = [reader.outcome(one) for one in requests]
    seconds = max(one.at for one in outcomes) - began
    seen.lost += sum(one.word != COMPLETE or one.wrong > 0 for one in outcomes)
    _heal(scene, sick, trouble, failing)
    reader.outcomes.clear()
    scene.quiet_down()
    return seconds


def _strike(scene: Scene, sick: Child, trouble: str, request: int) -> None:
    """In the middle of a read where it is killed or stopped."""
    match trouble:
        case "killed":
            sick.publish(request)
            scene.reader.pump()
            sick.strike()
        case "stopped":
            sick.publish(request)
            scene.reader.pump()
            sick.stop()
        case "garbage":
            words = {"reader": scene.reader.endpoint, "frames": GARBAGE_FRAMES}
            sick.tell("garbage", **words)


def _heal(scene: Scene, sick: Child, trouble: str, request: int) -> None:
    reader = scene.reader
    match trouble:
        case "killed":
            reader.settle(request)
            scene.introduce(scene.respawn(sick))
        case "stopped":
            sick.go_on()
            reader.settle(request)
        case "garbage":
            sick.answer()
            sick.publish(request)
            reader.settle(request)
            scene.introduce(sick)
