"""What processes cost, as the system counts it: CPU time, switches, memory.

    penstock bench accounting PID [--seconds 20]    a process and its children, while they go on

Linux only: read from /proc and from the processes' own clocks.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from .report import Table

MIB = 1 << 20


def cpu_seconds(pid: int) -> float:
    """utime + stime of a process with all its threads, ended ones too.

    The process's own clock counts what /proc/PID/stat counts, in nanoseconds and not in ticks of
    10 ms; its number is made of the pid (clock_getcpuclockid(3)).
    """
    return time.clock_gettime(~pid << 3 | 2)


@dataclass(frozen=True, slots=True)
class Memory:
    """`resident` counts shared pages whole, `proportional` by the number of those who share."""

    resident: int
    proportional: int


def memory(pid: int) -> Memory:
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) << 10
    return Memory(sizes["Rss"], sizes["Pss"])


def switches(pid: int) -> int:
    """How often its threads went to sleep of their own will: how often it was woken."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    found = [(task / "children").read_text().split() for task in tasks.iterdir()]
    return [int(child) for line in found for child in line]


def alive(pid: int) -> bool:
    """There is such a process, and it does not only wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process over a while."""

    core_share: float
    switches_per_second: float
    resident_mib: float
    proportional_mib: float


def costs(pids: dict[str, int], seconds: float) -> dict[str, Cost]:
    """What each does in the next seconds; `pids` by name."""
    begun = time.monotonic()
    before = {name: (cpu_seconds(pid), switches(pid)) for name, pid in pids.items()}
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    found = {}
    for name, pid in pids.items():
        cpu, woken = cpu_seconds(pid) - before[name][0], switches(pid) - before[name][1]
        used = memory(pid)
        found[name] = Cost(
            cpu / elapsed, woken / elapsed, used.resident / MIB, used.proportional / MIB
        )
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="penstock bench accounting", description=__doc__)
    parser.add_argument("pid", type=int, metavar="PID")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(arguments)
    pids = {}
    for pid in (options.pid, *children(options.pid)):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        pids[f"{pid} {words[-2]}"] = pid
    rows: list[list[str | int | float | None]] = [
        [name, 100 * one.core_share, one.switches_per_second, one.resident_mib]
        + [one.proportional_mib]
        for name, one in costs(pids, options.seconds).items()
    ]
    columns = ["process", "% of a core", "wake-ups/s", "RSS MiB", "PSS MiB"]
    print(Table(f"over {options.seconds:g} s", columns, rows).text())
    return 0
