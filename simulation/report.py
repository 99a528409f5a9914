"""`penstock simulate --faults`: many schedules, and what they came to.

    penstock simulate --faults --seeds 10000     the standard run
    penstock simulate --faults --seed 17         one schedule again, with its log

Schedules are dealt to as many processes as there are cores. Which process plays a seed changes
nothing: a schedule is a function of its seed and level.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait

import msgspec

from ..kvtransfer.moves import HOLDER_MOVES, READER_MOVES
from ..protocol.config import usable_cores
from .schedule import Outcome, level_of, play

MOST_SHOWN = 20  # violations that are told in full
SECONDS_BETWEEN_WORDS = 2.0  # of a process to the one that counts
TABLES = {"holder": HOLDER_MOVES, "reader": READER_MOVES}


class Tally(msgspec.Struct):
    """What some schedules came to, added up."""

    schedules: int = 0
    turns: int = 0
    violations: list[tuple[int, int, str]] = []  # seed, level, what
    faults: dict[str, int] = {}
    requests: dict[str, int] = {}
    moves: dict[str, int] = {}
    by_level: dict[int, int] = {}

    def add(self, outcome: Outcome) -> None:
        self.schedules += 1
        self.turns += outcome.turns
        if outcome.violation:
            self.violations.append((outcome.seed, outcome.level, outcome.violation))
        counted = ((self.faults, outcome.faults), (self.requests, outcome.requests))
        for mine, theirs in (*counted, (self.moves, outcome.moves)):
            _sum(mine, theirs)
        _sum(self.by_level, {outcome.level: 1})

    def join(self, other: "Tally") -> None:
        self.schedules += other.schedules
        self.turns += other.turns
        self.violations += other.violations
        _sum(self.faults, other.faults)
        _sum(self.requests, other.requests)
        _sum(self.moves, other.moves)
        _sum(self.by_level, other.by_level)


def _sum(mine: dict, theirs: dict | Counter) -> None:
    for key, count in theirs.items():
        mine[key] = mine.get(key, 0) + count


def simulate(arguments: argparse.Namespace) -> int:
    """The command. Exit status 1 when an invariant does not hold."""
    if arguments.seed is not None:
        return _replay(arguments.seed, arguments.level)
    began = time.monotonic()
    seeds = range(arguments.first_seed, arguments.first_seed + max(0, arguments.seeds))
    jobs = min(arguments.jobs or usable_cores(), max(1, len(seeds)))
    tally = Tally()
    for part in _played(seeds, arguments.level, jobs, arguments.stop):
        tally.join(part)
        for seed, level, what in part.violations:  # at once: the run may take minutes
            print(f"{replay_command(seed, level)}: {what[:200]}", file=sys.stderr, flush=True)
        if arguments.stop and tally.violations:
            break
    print(describe(tally, time.monotonic() - began, jobs))
    return 1 if tally.violations else 0


def replay_command(seed: int, level: int) -> str:
    """What plays a schedule again. The level is named where the standard run has another."""
    named = "" if level == level_of(seed) else f" --level {level}"
    return f"penstock simulate --faults --seed {seed}{named}"


def describe(tally: Tally, seconds: float, jobs: int) -> str:
    """The report of a run."""
    rate = tally.schedules / seconds if seconds else 0.0
    levels = ", ".join(f"{count} at level {one}" for one, count in sorted(tally.by_level.items()))
    lines = [
        f"schedules   {tally.schedules} ({levels})",
        f"seconds     {seconds:.1f} on {jobs} processes: {rate:.1f} schedules a second",
        f"turns       {tally.turns}",
        f"faults      {sum(tally.faults.values())}",
        *_columns(tally.faults),
        f"requests    {tally.requests.get('asked', 0)}",
        *_columns({key: count for key, count in tally.requests.items() if key != "asked"}),
        *_moves(tally.moves),
        f"violations  {len(tally.violations)}",
    ]
    for seed, level, what in sorted(tally.violations)[:MOST_SHOWN]:
        lines += [f"  {what[:600]}", f"    {replay_command(seed, level)}"]
    if len(tally.violations) > MOST_SHOWN:
        lines.append(f"  and {len(tally.violations) - MOST_SHOWN} more")
    return "\n".join(lines)


def _columns(counts: dict[str, int]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return [f"  {count:>9}  {name}" for name, count in ordered]


def _moves(counts: dict[str, int]) -> list[str]:
    """Every row of the move table with its count, and the least visited one."""
    lines = ["moves of the hand-over"]
    rows: list[tuple[int, str]] = []
    for end, table in TABLES.items():
        for (state, event), to in table.items():
            count = counts.get(f"{state.value}: {event.value}", 0)
            text = f"{end:<6}  {state.value} -> {to.value}: {event.value}"
            rows.append((count, text))
            lines.append(f"  {count:>9}  {text}")
    count, text = min(rows)
    return [*lines, f"  least visited: {count} times, {text}"]


# --- many processes -------------------------------------------------------------------------------


def _played(seeds: range, level: int | None, jobs: int, stop: bool) -> Iterator[Tally]:
    """Tallies of parts of the run, as they come."""
    if jobs == 1:
        yield from _part(seeds, level, stop)
        return
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    for job in range(jobs):
        ours, theirs = context.Pipe(duplex=False)
        part = (seeds[job::jobs], level, stop, theirs)
        processes.append(context.Process(target=_child, args=part, daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    try:
        yield from _heard(ends)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _heard(ends: list[Connection]) -> Iterator[Tally]:
    """What the processes tell until each of them has told everything."""
    while ends:
        for end in wait(ends):
            assert isinstance(end, Connection)
            try:
                body = end.recv_bytes()
            except EOFError:
                raise RuntimeError("a simulating process died") from None
            if body:
                yield msgspec.msgpack.decode(body, type=Tally)
            else:
                ends.remove(end)


def _child(seeds: range, level: int | None, stop: bool, end: Connection) -> None:
    for tally in _part(seeds, level, stop):
        end.send_bytes(msgspec.msgpack.encode(tally))
    end.send_bytes(b"")


def _part(seeds: range, level: int | None, stop: bool) -> Iterator[Tally]:
    tally, said = Tally(), time.monotonic()
    for seed in seeds:
        outcome = play(seed, level)
        tally.add(outcome)
        if (stop and outcome.violation) or time.monotonic() - said > SECONDS_BETWEEN_WORDS:
            yield tally
            tally, said = Tally(), time.monotonic()
        if stop and outcome.violation:
            return
    yield tally


def _replay(seed: int, level: int | None) -> int:
    outcome = play(seed, level, logged=True)
    print("\n".join(outcome.log))
    told = outcome.violation or "every invariant held"
    print(f"seed {seed} level {outcome.level} fingerprint {outcome.fingerprint:08x}: {told}")
    return 1 if outcome.violation else 0
