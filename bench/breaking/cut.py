"""A cable is cut while pages cross it. Runs as a process inside the reader's network namespace.

    python -m penstock.bench.breaking.cut PLANE BLOCKS ROUNDS LONG

prints one line of JSON per round

The process that lays the cable (`cut_rounds`) starts it and cuts when it says so: it has no right
to do that from inside. LONG is how many seconds the link stays down after the deadline.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import zmq

from .network import HOLDER_ADDRESS, READER_ADDRESS, Cable
from .process import Nursery
from .reader import COMPLETE
from .rounds import Scene

MEGABITS = 800  # so that a read of some megabytes is under way for some time
READ_SECONDS = 0.5
MENDED_SECONDS = 30.0
SMALL_BLOCKS = 8


def cut_rounds(plane: str, blocks: int, rounds: int, down_seconds: float) -> list[dict[str, Any]]:
    """Lay a cable, and play so many cuts. Raises OSError where no cable can be laid."""
    try:
        cable = Cable(MEGABITS)
    except OSError:
        cable = Cable()  # a kernel without rate limits: the read is faster, the cut the same
    try:
        return _play(cable, [plane, str(blocks), str(rounds), str(down_seconds)])
    finally:
        cable.close()


def _play(cable: Cable, arguments: list[str]) -> list[dict[str, Any]]:
    command = [*cable.inside(cable.reader), sys.executable, "-m", __name__, cable.holder]
    process = subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    results: list[dict[str, Any]] = []
    with process.stdin, process.stdout:
        for line in process.stdout:
            match line.split():
                case ["cut"]:
                    cable.cut()
                case ["mend"]:
                    cable.mend()
                case _:
                    results.append(json.loads(line))
                    continue
            process.stdin.write("done\n")
            process.stdin.flush()
    if process.wait() or not results:
        raise RuntimeError(f"the rounds inside the namespace ended with {process.returncode}")
    return results


# --- inside ---------------------------------------------------------------------------------------


def inside(holder_namespace: str, plane: str, blocks: int, rounds: int, down: float) -> None:
    nursery = Nursery(["ip", "netns", "exec", holder_namespace])
    public, secret = (half.decode() for half in zmq.curve_keypair())
    scene = Scene(
        nursery,
        plane,
        {"host": HOLDER_ADDRESS},
        host=READER_ADDRESS,
        control_key=(public, secret),
        read_seconds=READ_SECONDS,
        renew_every=0.25,
        lease_seconds=2.0,
    )
    try:
        for _ in range(rounds):
            scene.introduce()
            print(json.dumps(cut_once(scene, blocks, down)), flush=True)
    finally:
        scene.close()
        nursery.close()


def cut_once(scene: Scene, blocks: int, down: float) -> dict[str, Any]:
    """One round: cut in the middle of a read, wait for our deadline, mend, hand over again."""
    reader = scene.reader
    request = scene.offer(blocks)
    incoming = reader.incoming(request)
    assert incoming is not None
    early = reader.parts.memory.page(incoming.pages[blocks // 8])
    before = bytes(early)
    reader.turn(time.monotonic())
    limit = min((read.limit for read in incoming.reads.values()), default=0.0)
    reader.until(lambda: bytes(early) != before or reader.ended(request), "an eighth of the read")
    assert not reader.ended(request), f"it ended before it was cut: {reader.outcome(request)}"
    early.release()
    _say_and_pump(scene, "cut")
    cut = time.monotonic()
    outcome = reader.settle(request)
    for _ in range(2):  # a plane that moves every byte itself is quiet by now
        reader.turn(time.monotonic())
    quarantined, pages = reader.parts.pool.quarantined, reader.grant_again(but=SMALL_BLOCKS)
    again = time.monotonic() + down
    while time.monotonic() < again:
        reader.pump()
    _say_and_pump(scene, "mend")
    mended = time.monotonic()
    tries = 1
    while (good := scene.hand_over(SMALL_BLOCKS)).word != COMPLETE:
        assert time.monotonic() < mended + MENDED_SECONDS, f"not whole again: {good}"
        tries += 1
    reader.until(lambda: reader.parts.pool.quarantined == 0, "quiet")
    hit = reader.hit(pages)
    reader.give_back()
    scene.quiet_down()
    return {
        "word": outcome.word,
        "reason": outcome.reason,
        "late": outcome.at - limit,
        "after_cut": outcome.at - cut,
        "quarantined": quarantined,
        "hit": hit,
        "wrong": outcome.wrong + good.wrong,
        "good_again": good.at - mended,
        "tries": tries,
    }


def _say_and_pump(scene: Scene, word: str) -> None:
    """Tell the process outside, and go on reading until it has done so."""
    print(word, flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        scene.reader.pump()
    sys.stdin.readline()


def run(arguments: Sequence[str]) -> None:
    namespace, plane, blocks, rounds, down = arguments
    inside(namespace, plane, int(blocks), int(rounds), float(down))


if __name__ == "__main__":
    run(sys.argv[1:])
