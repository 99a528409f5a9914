"""How busy the rest of the machine was while something was measured."""

import os
import resource
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# user, nice, system, irq, softirq, steal: the fields of /proc/stat's first line that are work
WORKING = (0, 1, 2, 5, 6, 7)


def busy_seconds() -> float:
    """CPU seconds all processes of the machine used since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[at]) for at in WORKING) / TICKS


def own_seconds() -> float:
    """Ours, and our ended children's."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


class Others:
    """Cores that others used between the beginning and `cores`; our children must have ended."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), busy_seconds(), own_seconds()

    def cores(self) -> float:
        busy, own = busy_seconds() - self._busy, own_seconds() - self._own
        return max(0.0, busy - own) / (time.monotonic() - self._began)
