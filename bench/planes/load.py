"""The hand-over as load sees it: several in flight at once, beside one after the other.

The peers do as many operations: a copy one behind the other, bare NIXL with as many READs in
flight. Every byte is verified after each burst, outside the time.
"""

import statistics

from ..report import Cell, Table
from .noise import Others
from .pair import METHODS, Pair, Shape
from .speed import Record, best, cpu_per_gb, pairs_of, rate, size_text

FLIGHT = 4
PER_BURST = 16  # hand-overs; the pools hold a burst and a quarter more
ALONE = 4  # one after the other, beside each burst
PEERS = {"shm": "memcpy", "nixl": "bare nixl"}


def load_shape(page_bytes: int, operation: int) -> Shape:
    pages = max(1, operation // page_bytes)
    return Shape(page_bytes, pages * (PER_BURST + PER_BURST // 4), pages)


def measure_load(methods: list[str], sizes: list[int], operation: int, bursts: int) -> list[Record]:
    """One record per method, size and way: "load" has bursts, "alone" single operations."""
    records: list[Record] = []
    for size in sizes:
        others, shape = Others(), load_shape(size, operation)
        with pairs_of([METHODS[name] for name in methods], shape) as pairs:
            made = [(pair, _record(pair, "alone"), _record(pair, "load")) for pair in pairs]
            for pair in pairs:
                pair.warm()
            for turn in range(bursts):
                for pair, alone, load in made:
                    _turn(pair, alone, load, 2 * turn)
        for _, alone, load in made:
            alone["others_cores"] = load["others_cores"] = others.cores()
            records += [alone, load]
    return records


def _record(pair: Pair, way: str) -> Record:
    handovers = PER_BURST if way == "load" else 1
    return {
        "part": "load",
        "method": pair.method.name,
        "way": way,
        "page_bytes": pair.shape.page_bytes,
        "bytes": handovers * pair.shape.bytes,
        "seconds": [],
        "cpu": [],
    }


def _turn(pair: Pair, alone: Record, load: Record, seed: int) -> None:
    one = pair.hand_over if pair.method.ours else pair.read
    samples = [one(seed + 2 * number) for number in range(ALONE)]
    alone["seconds"] += [sample.seconds for sample in samples]
    alone["cpu"] += [sample.cpu for sample in samples]
    burst = pair.burst(PER_BURST, FLIGHT, seed)
    load["seconds"].append(burst.seconds)
    load["cpu"].append(burst.cpu)


def load_tables(records: list[Record]) -> list[Table]:
    here = [one for one in records if one["part"] == "load"]
    found = {(one["method"], one["way"], one["page_bytes"]): one for one in here}
    rows: list[list[Cell]] = []
    for load in (one for one in here if one["way"] == "load"):
        name, size = load["method"], load["page_bytes"]
        alone = found[name, "alone", size]
        peer = found.get((PEERS.get(name, ""), "load", size))
        rows.append(
            [
                name if name not in PEERS and name not in ("tcp", "zmq") else f"{name}, whole",
                size_text(size),
                f"{rate(alone):.2f} ({best(alone):.2f})",
                f"{rate(load):.2f} ({best(load):.2f})",
                rate(load) / rate(peer) if peer else None,
                cpu_per_gb(alone),
                cpu_per_gb(load),
                cpu_per_gb(load) / cpu_per_gb(peer) if peer else None,
            ]
        )
    if not rows:
        return []
    bursts = statistics.median(len(one["seconds"]) for one in here if one["way"] == "load")
    size = min(one["bytes"] for one in here)
    columns = ["method", "pages", "alone GB/s", f"{FLIGHT} in flight GB/s", "of its peer"]
    columns += ["alone CPU s/GB", "in flight CPU s/GB", "of its peer's"]
    notes = [
        f"{size_text(size)} per hand-over, median (best) of {bursts:.0f} bursts of {PER_BURST},",
        f"and of {ALONE * bursts:.0f} one after the other. Peers: shm memcpy, nixl bare NIXL.",
        f"Others used {max(one['others_cores'] for one in here):.1f} cores at most meanwhile.",
    ]
    return [Table("Hand-overs under load", columns, rows, notes)]
