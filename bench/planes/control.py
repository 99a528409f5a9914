"""What a hand-over costs before its bytes do: one page's round trip, and two idle workers."""

import statistics
from typing import Any

from ..accounting import costs
from ..report import Table
from .noise import Others
from .pair import METHODS, Method, Pair, Shape
from .speed import Record

PAGE = Shape(page_bytes=4096, page_count=64, pages=1)
SPINNING = Shape(page_bytes=4096, page_count=64, pages=1, spin=True)
BARE = ("bare nixl", "memcpy")
SEQUENCES = [  # words, what moves between them, spinning
    ("nixl", "nixl", True),
    ("zmq", "nixl", True),
    ("zmq", "nixl", False),
    ("zmq", "nothing", True),
    ("zmq", "nothing", False),
]
IDLE_SHAPE = Shape(page_bytes=64 << 10, page_count=256, pages=64)


class Asking:
    """A pair that says and does only what must be (sequence)."""

    def __init__(self, words: str, moves: str, spin: bool) -> None:
        self.way = "spinning" if spin else "sleeping"
        self.name = f"bare: {words} words, {'NIXL READ' if moves == 'nixl' else 'no page'}"
        method = Method(self.name, "sequence", METHODS["bare nixl"].environment)
        self._pair = Pair(method, SPINNING if spin else PAGE, words=words, moves=moves).meet()
        self._pair.reader.ask("answer")

    def seconds(self, times: int) -> list[float]:
        return self._pair.holder.ask("ask", times=times)["seconds"]

    def close(self) -> None:
        self._pair.close()


class Handing:
    """A pair with everything of ours."""

    def __init__(self, method: str, spin: bool) -> None:
        self.way = "spinning" if spin else "sleeping"
        self.name = f"{method}, whole"
        self._pair = Pair(METHODS[method], SPINNING if spin else PAGE).meet()
        self._pair.warm()

    def seconds(self, times: int) -> list[float]:
        return [self._pair.hand_over(seed).seconds for seed in range(times)]

    def close(self) -> None:
        self._pair.close()


class Reading:
    """A plane, or a peer, alone: one page, as soon as it is asked for."""

    way = "spinning"

    def __init__(self, method: str) -> None:
        self.name = method if method in BARE else f"{method}, plane alone"
        self._pair = Pair(METHODS[method], PAGE).meet()
        self._pair.warm()

    def seconds(self, times: int) -> list[float]:
        return [self._pair.read(seed).seconds for seed in range(times)]

    def close(self) -> None:
        self._pair.close()


def measure_round_trips(methods: list[str], rounds: int, times: int) -> list[Record]:
    """Seconds of one page, from the first word to the last."""
    records: list[Record] = []
    others = Others()
    kinds: list[Any] = [lambda one=one: Asking(*one) for one in SEQUENCES]
    kinds += [lambda name=name: Reading(name) for name in (*BARE, *methods)]
    kinds += [lambda n=n, spin=spin: Handing(n, spin) for n in methods for spin in (True, False)]
    for kind in kinds:  # one at a time: those that spin would take the others' cores
        records.append({"part": "control", "seconds": []})
        one = kind()
        try:
            records[-1] |= {"method": one.name, "way": one.way}
            one.seconds(times // 4)
            for _ in range(rounds):
                records[-1]["seconds"] += one.seconds(times)
        finally:
            one.close()
    for record in records:
        record["others_cores"] = others.cores()
    return records


def measure_idle(methods: list[str], seconds: float) -> list[Record]:
    """Core share of a connected pair that has nothing to do."""
    records = []
    for method in methods:
        pair = Pair(METHODS[method], IDLE_SHAPE)
        try:
            pair.meet().warm()
            found = costs(pair.pids, seconds)
        finally:
            pair.close()
        for side, cost in found.items():
            records.append(
                {
                    "part": "idle",
                    "method": method,
                    "side": side,
                    "core_share": cost.core_share,
                    "switches_per_second": cost.switches_per_second,
                }
            )
    return records


def control_tables(records: list[Record]) -> list[Table]:
    trips = [one for one in records if one["part"] == "control"]
    idle = [one for one in records if one["part"] == "idle"]
    tables = []
    if trips:
        rows = [
            [
                one["method"],
                one["way"],
                statistics.median(one["seconds"]) * 1e6,
                min(one["seconds"]) * 1e6,
            ]
            for one in trips
        ]
        notes = [
            "A word to the reader, one page of 4 KB, a word back. Whole: Published, read, Release.",
            f"Median of {len(trips[0]['seconds'])}; "
            f"others used {trips[0]['others_cores']:.1f} cores meanwhile.",
        ]
        columns = ["what", "ends", "median us", "best us"]
        tables.append(Table("Control round trip of one 4 KB page", columns, rows, notes))
    if idle:
        rows = [
            [one["method"], one["side"], one["core_share"] * 100, one["switches_per_second"]]
            for one in idle
        ]
        columns = ["plane", "end", "% of a core", "wake-ups/s"]
        tables.append(Table("Idle: a connected pair after a hand-over", columns, rows))
    return tables
