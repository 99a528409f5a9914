"""What faults cost between real processes, on every plane: the promises' numbers.

    penstock bench faults [--rounds 40] [--planes nixl,shm] [--promises F1,F4] [--json FILE]

A reader in this process, holders in others, real mailboxes, pages, leases and planes; no model.
Planes take turns within a round. `nixl-tcp` is NIXL held to TCP, as between hosts; `-small` is
with pages of 12 KB, which it gathers, instead of 20 KB. What a round does with a fault is in
`breaking/rounds.py`; the tests of the promises (tests/faults) play the same rounds.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .breaking import tables
from .breaking.cut import cut_rounds
from .breaking.leaks import fail_many
from .breaking.neighbours import neighbours
from .breaking.network import has_loss, why_not
from .breaking.parts import ACROSS_HOSTS, PLANES, SMALL_PAGES, EndSettings
from .breaking.process import Nursery
from .breaking.reader import COMPLETE
from .breaking.rounds import (
    WHEN,
    Scene,
    aborted,
    death,
    descriptors,
    resident_bytes,
    respawn,
    timed_out,
)
from .breaking.weather import STORM, storm
from .report import Result, result_file

Round = dict[str, Any]
BLOCKS = 1000  # 20 MB
STANDSTILL_BLOCKS = 400  # 8 MB
READ_SECONDS = 0.1  # the floor of our deadline where one is awaited
LEASE_SECONDS = 1.0
NEIGHBOUR_BLOCKS = 80


def deaths(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F1."""
    scenes = {plane: Scene(nursery, plane) for plane in planes}
    for _ in range(rounds):
        for plane, scene in scenes.items():
            for when in WHEN:
                if when != "unmet":
                    scene.introduce()
                seen = death(scene, when, BLOCKS)
                yield {
                    "plane": plane,
                    "when": when,
                    "word": seen.outcome.word,
                    "seconds": seen.seconds,
                    "wrong": seen.outcome.wrong,
                }
                scene.respawn()
    _close(scenes)


def standstills(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F2 and F4: as many cancels as rounds, and an eighth as many deadlines."""
    scenes = {plane: Scene(nursery, plane, read_seconds=READ_SECONDS) for plane in planes}
    for scene in scenes.values():
        scene.introduce()
    for number in range(rounds):
        for plane, scene in scenes.items():
            kinds = ["cancel", "deadline"] if number % 8 == 0 else ["cancel"]
            for kind in kinds:
                turns = number % 6
                cancel = kind == "cancel"
                seen = (
                    aborted(scene, STANDSTILL_BLOCKS, turns)
                    if cancel
                    else timed_out(scene, STANDSTILL_BLOCKS)
                )
                yield {
                    "plane": plane,
                    "kind": kind,
                    "word": seen.outcome.word if seen.outcome else "CANCELLED",
                    "seconds": seen.seconds,
                    "late": seen.late,
                    "quarantined": seen.quarantined,
                    "granted": seen.granted,
                    "hit": seen.hit,
                    "good": seen.after.word == COMPLETE and not seen.after.wrong,
                }
    _close(scenes)


def cuts(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F3: short cuts, and one for each plane that outlasts the link's own heartbeats."""
    if why_not():
        return
    for plane in [plane for plane in planes if plane in ACROSS_HOSTS]:
        for down, count in ((0.2, max(1, rounds // 8)), (8.0, 1)):
            for seen in cut_rounds(plane, STANDSTILL_BLOCKS, count, down):
                yield {"plane": plane, "down": down, **seen}


def respawns(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F5: rounds and a quarter, 50 where there are 40."""
    for plane in planes:
        scene = Scene(nursery, plane)
        for _ in range(3):
            respawn(scene)
        scene.quiet_down()
        files, memory = descriptors(), resident_bytes()
        for _ in range(rounds * 5 // 4):
            seen = respawn(scene)
            yield {
                "plane": plane,
                "ready": seen.ready,
                "first_good": seen.first_good,
                "word": seen.outcome.word,
            }
        scene.quiet_down()
        limit = time.monotonic() + 5.0
        while descriptors() > files and time.monotonic() < limit:
            scene.reader.pump()
        yield {
            "plane": plane,
            "descriptors": descriptors() - files,
            "bytes": resident_bytes() - memory,
        }
        scene.close()


def leases(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F7: readers that die or stand still; when are the holder's pages free?"""
    for number in range(max(2, rounds // 4)):
        for kind in ("killed", "stopped"):
            plane = planes[number % len(planes)]
            settings = {"plane": plane, "lease_seconds": LEASE_SECONDS, "renew_every": 0.25}
            holder = nursery.start("holder", EndSettings(name="holder", **settings))
            reader = nursery.start("reader", EndSettings(name="reader", **settings))
            holder.begin(1, 8, reader.endpoint)
            holder.publish(1, 4)
            while reader.state()["held"] < 8:
                time.sleep(0.01)
            began = time.monotonic()
            reader.stop() if kind == "stopped" else reader.strike()
            while holder.state()["held"]:
                time.sleep(0.002)
            yield {"plane": plane, "kind": kind, "seconds": time.monotonic() - began}
            holder.kill()
            reader.kill()


def storms(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F8: 25 hand-overs per round and plane."""
    for number, plane in enumerate(planes):
        seen = storm(nursery, plane, 25 * rounds, number, STORM)
        yield {
            "plane": plane,
            "ended": dict(seen.ended),
            "twice": seen.twice,
            "wrong": seen.wrong,
            "hung": seen.hung,
            "seconds": seen.seconds,
            "words": dict(seen.words),
            "left": seen.left,
        }


def companies(nursery: Nursery, planes: Sequence[str], rounds: int) -> Iterator[Round]:
    """F13: one sick holder among eight, then 50 failures per round."""
    for plane in planes:
        scene = Scene(nursery, plane, page_count=1200)
        seen = neighbours(scene, rounds, NEIGHBOUR_BLOCKS)
        scene.close()
        yield {
            "plane": plane,
            "healthy": seen.healthy,
            "troubled": seen.troubled,
            "lost": seen.lost,
        }
        scene = Scene(nursery, plane, page_count=200)
        left = fail_many(scene, 50 * rounds)
        scene.close()
        yield {
            "plane": plane,
            "failures": left.failures,
            "descriptors": left.descriptors,
            "bytes": left.bytes,
            "pages": left.pages + left.holder_pages,
            "kinds": dict(left.kinds),
            "last": left.last,
        }


PROMISES: dict[str, Callable[[Nursery, Sequence[str], int], Iterator[Round]]] = {
    "F1": deaths,
    "F2": standstills,
    "F3": cuts,
    "F5": respawns,
    "F7": leases,
    "F8": storms,
    "F13": companies,
}
PLAYED_WITH = {"F4": "F2"}


def _close(scenes: dict[str, Scene]) -> None:
    for scene in scenes.values():
        scene.close()


def run(promises: Sequence[str], planes: Sequence[str], rounds: int, result: Result) -> None:
    nursery = Nursery()
    try:
        for promise in promises:
            print(f"{promise} ...", file=sys.stderr)
            for one in PROMISES[promise](nursery, planes, rounds):
                result.rounds.append({"promise": promise, **one})
    finally:
        nursery.close()


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """A list on the command line. Raises ValueError naming what there is."""
    asked = text.split(",")
    for one in asked:
        if one not in known:
            raise argparse.ArgumentTypeError(f"{one!r}; there are: {', '.join(known)}")
    return asked


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="penstock bench faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known, ways = [*PROMISES, *PLAYED_WITH], [*PLANES, *SMALL_PAGES]
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--planes", type=lambda text: chosen(text, ways), default=ways)
    parser.add_argument("--promises", type=lambda text: chosen(text, known), default=list(PROMISES))
    parser.add_argument("--json", type=result_file, metavar="FILE")
    options = parser.parse_args(arguments)
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")  # of every dead peer it would say four lines
    promises = list(dict.fromkeys(PLAYED_WITH.get(one) or one for one in options.promises))
    asked = {name: value for name, value in vars(options).items() if name != "json"}
    result = Result("faults", asked)
    run(promises, options.planes, options.rounds, result)
    notes = [f"no cable can be laid here: {why_not()}"] if why_not() else []
    if not notes and not has_loss():
        notes = ["this kernel has no netem: packets are not lost, delayed or doubled on purpose"]
    result.finish(tables.tables(result.rounds, notes), options.json)
    return 0 if tables.kept(result.rounds) else 1
