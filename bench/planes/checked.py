"""G10: what checked mode (a digest of each page, made and compared) adds to a hand-over."""

import statistics
import time
from dataclasses import replace

import numpy

from ...kvtransfer.digests import HostDigests
from ...kvtransfer.host_memory import HostMemory
from ..report import Table
from .noise import Others
from .pair import METHODS, Pair
from .speed import Record, shape_of, size_text

DIGESTED = 64 << 20  # bytes, to learn how fast a digest is made


def digest_seconds_per_gb(page_bytes: int) -> float:
    """One end's work, on pages that no cache holds."""
    memory = HostMemory(page_bytes, DIGESTED // page_bytes)
    numpy.frombuffer(memory.pages, dtype=numpy.uint64)[:] = 1
    digests = HostDigests(memory.memory)
    began = time.perf_counter()
    for page in range(memory.memory.page_count):
        digests.of(page)
    return (time.perf_counter() - began) / (DIGESTED / 1e9)


def measure_checked(
    methods: list[str], sizes: list[int], operation: int, rounds: int
) -> list[Record]:
    """Hand-overs with and without, in turn."""
    records: list[Record] = []
    for size in sizes:
        for method in methods:
            records.append(_one(method, size, operation, rounds))
            records[-1]["digest_seconds_per_gb"] = digest_seconds_per_gb(size)
    return records


def _one(method: str, size: int, operation: int, rounds: int) -> Record:
    others = Others()
    plain = shape_of(size, operation)
    pairs = [Pair(METHODS[method], shape) for shape in (plain, replace(plain, checked=True))]
    seconds: list[list[float]] = [[], []]
    try:
        for pair in pairs:
            pair.meet().warm()
        for turn in range(rounds):
            for pair, taken in zip(pairs, seconds, strict=True):
                taken.append(pair.hand_over(2 * turn).seconds)
    finally:
        for pair in pairs:
            pair.close()
    return {
        "part": "checked",
        "method": method,
        "page_bytes": size,
        "bytes": plain.bytes,
        "seconds": seconds[0],
        "checked": seconds[1],
        "others_cores": others.cores(),
    }


def pipelined(record: Record) -> float:
    """Share added to the time of a hand-over."""
    return statistics.median(record["checked"]) / statistics.median(record["seconds"]) - 1


def serial(record: Record) -> float:
    """Share that would be added were nothing done side by side."""
    both = 2 * record["digest_seconds_per_gb"] * record["bytes"] / 1e9
    return both / statistics.median(record["seconds"])


def checked_tables(records: list[Record]) -> list[Table]:
    rows = [
        [
            one["method"],
            size_text(one["page_bytes"]),
            one["bytes"] / statistics.median(one["seconds"]) / 1e9,
            one["bytes"] / statistics.median(one["checked"]) / 1e9,
            pipelined(one) * 100,
            serial(one) * 100,
            1 / one["digest_seconds_per_gb"],
        ]
        for one in records
        if one["part"] == "checked"
    ]
    columns = ["plane", "pages", "GB/s", "checked GB/s", "added %", "if serial %", "digest GB/s"]
    notes = ["Whole protocol. If serial: the time without, and both ends' digests after another."]
    return [Table("Checked mode", columns, rows, notes)] if rows else []
