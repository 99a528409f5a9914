"""GB/s of every plane, alone and through the whole protocol, beside what moves the same pages bare.

Methods take turns, so that a busy moment slows all of them. One round of one method is one
operation on pages scattered in pools that are four times as large.
"""

import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..report import Cell, Table
from .noise import Others
from .pair import METHODS, HandOver, Method, Pair, Sample, Shape

Record = dict[str, Any]

POOL_OF_OPERATION = 4  # pools are so many operations large
LARGE_POOL_BYTES = 128 << 20  # what a pool of large operations has beyond one
SMALLEST_POOL = 8  # pages
PEERS = ("memcpy", "bare nixl", "bare nixl-tcp", "bare socket")
LARGE = ("memcpy", "bare nixl", "nixl", "shm", "bare socket", "tcp")


def shape_of(page_bytes: int, operation: int, **more: Any) -> Shape:
    pages = max(1, operation // page_bytes)
    spare = min(pages * (POOL_OF_OPERATION - 1), LARGE_POOL_BYTES // page_bytes)
    return Shape(page_bytes, max(pages + spare, SMALLEST_POOL), pages, **more)


@contextmanager
def pairs_of(methods: Iterable[Method], shape: Shape) -> Iterator[list[Pair]]:
    """All of them started at once, met one after the other, and ended."""
    pairs: list[Pair] = []
    try:
        pairs += [Pair(method, shape) for method in methods]
        for pair in pairs:
            pair.meet()
        yield pairs
    finally:
        for pair in pairs:
            pair.close()


def measure(
    part: str, methods: list[str], shape: Shape, rounds: int, whole: bool = True
) -> list[Record]:
    """One record per method and way; `whole`: our planes also through the whole protocol."""
    records: list[Record] = []
    others = Others()
    with pairs_of([METHODS[name] for name in methods], shape) as pairs:
        for pair in pairs:
            for way in ("alone", "whole") if pair.method.ours and whole else ("alone",):
                records.append(_record(part, pair, way))
        ways = {(record["method"], record["way"]): record for record in records}
        for pair in pairs:
            pair.warm(whole)
        for turn in range(rounds):
            for pair in pairs:
                _one(pair, turn, ways)
        for pair in pairs:
            for way in ("alone", "whole"):
                if (pair.method.name, way) in ways:
                    ways[pair.method.name, way]["path"] = pair.path
    for record in records:
        record["others_cores"] = others.cores()
    return records


def _record(part: str, pair: Pair, way: str) -> Record:
    return {
        "part": part,
        "method": pair.method.name,
        "way": way,
        "page_bytes": pair.shape.page_bytes,
        "bytes": pair.shape.bytes,
        "seconds": [],
        "cpu": [],
    }


def _one(pair: Pair, turn: int, ways: dict[tuple[str, str], Record]) -> None:
    name, seed = pair.method.name, 2 * turn
    done: list[tuple[str, Sample | HandOver]] = [("alone", pair.read(seed))]
    if (name, "whole") in ways:
        done.append(("whole", pair.hand_over(seed)))
    for way, sample in done:
        ways[name, way]["seconds"].append(sample.seconds)
        ways[name, way]["cpu"].append(sample.cpu)


# --- what came out --------------------------------------------------------------------------------


def rate(record: Record) -> float:
    """GB/s, median."""
    return record["bytes"] / statistics.median(record["seconds"]) / 1e9


def best(record: Record) -> float:
    return record["bytes"] / min(record["seconds"]) / 1e9


def cpu_per_gb(record: Record) -> float:
    return sum(record["cpu"]) / (record["bytes"] * len(record["cpu"]) / 1e9)


def size_text(size: int) -> str:
    for unit, name in ((30, "G"), (20, "M"), (10, "K")):
        if size >= 1 << unit and size % (1 << unit) == 0:
            return f"{size >> unit}{name}"
    return f"{size / (1 << 20):.1f}M" if size >= 1 << 20 else f"{size}"


def label(record: Record) -> str:
    return f"{record['method']}, whole" if record["way"] == "whole" else record["method"]


def speed_tables(title: str, records: list[Record]) -> list[Table]:
    """GB/s as median (best), and CPU seconds of both ends per GB."""
    if not records:
        return []
    sizes = sorted({record["page_bytes"] for record in records})
    columns = ["method", *map(size_text, sizes)]
    notes = [
        f"{size_text(records[0]['bytes'])} per operation, GB/s, median (best) of "
        f"{len(records[0]['seconds'])}; 'whole': publish to Release, real mailboxes and pools.",
        f"Others used {_busiest(records):.1f} cores at most meanwhile.",
    ]
    speeds = _rows(records, sizes, lambda one: f"{rate(one):.2f} ({best(one):.2f})")
    costs = _rows(records, sizes, lambda one: f"{cpu_per_gb(one):.2f}")
    return [
        Table(title, columns, speeds, notes),
        Table(f"{title}: CPU seconds per GB, both ends", columns, costs),
    ]


def _rows(records: list[Record], sizes: list[int], cell: Any) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(label(record) for record in records):
        there = {one["page_bytes"]: one for one in records if label(one) == name}
        rows.append([name, *(cell(there[size]) if size in there else None for size in sizes)])
    return rows


def _busiest(records: list[Record]) -> float:
    return max(record["others_cores"] for record in records)
