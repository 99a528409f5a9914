"""What benchmarks say alike: on which machine, as a table for people, as JSON for later.

    penstock bench report FILE...    prints the tables of saved results again

Knows nothing of what was measured. The machine is told in general terms only: enough to judge a
figure by, not enough to know whose machine it was.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..protocol.config import usable_cores

Cell = str | int | float | None

ROOT = Path(__file__).resolve().parent.parent
# Strongest first; the first one that the processor names is told.
PROCESSOR_CLASSES = (
    ("amx_tile", "AMX"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2"),
    ("sve", "SVE"),
    ("asimd", "NEON"),
)
FIGURES = 3  # significant ones; more would be noise


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; a cell is None where there is nothing to tell."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [self.columns, *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        # Words stand left, numbers right.
        numeric = [any(_is_number(row[at]) for row in self.rows) for at in range(len(widths))]
        written = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(len(line) for line in written)
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([self.title, rule, written[0], rule, *written[1:], rule, *notes])


@dataclass(slots=True)
class Result:
    """One run of one benchmark: how it was asked, every round, and the tables made of them."""

    benchmark: str
    arguments: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    commit: str = field(default_factory=lambda: commit())
    load_before: float = field(default_factory=lambda: load_of_machine())
    load_after: float = 0.0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def finish(self, tables: Iterable[Table], file: Path | None) -> None:
        """Print the tables and, where a file is named, keep everything."""
        self.load_after = load_of_machine()
        self.tables = list(tables)
        for table in self.tables:
            print(table.text(), end="\n\n")
        print(_conditions(asdict(self)))
        if file is not None:
            file.write_text(json.dumps(asdict(self), indent=1) + "\n")
            print(f"written to {file}")


def result_file(text: str) -> Path:
    """An argument: where to write. Tried before anything is measured."""
    file = Path(text)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file} cannot be written: {error.strerror}") from None
    return file


# --- statistics -----------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` (0 to 1) of them lie, between two by straight line."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Lowest and highest, as they stand behind a median."""
    if not values:
        return ""
    return f"{shown(min(values) * scale)}..{shown(max(values) * scale)}"


def scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def shown(cell: Cell) -> str:
    """A cell as people read it: three significant figures, and no exponent."""
    if cell is None:
        return "-"
    if isinstance(cell, str | int):
        return str(cell)
    if abs(cell) >= 10 ** (FIGURES - 1):
        return f"{cell:.0f}"
    digits = FIGURES - 1
    size = abs(cell)
    while 0 < size < 1 and digits < 6:
        size *= 10
        digits += 1
    return f"{cell:.{digits - (size >= 10)}f}"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float)


# --- where it was measured ------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": usable_cores(),
        "memory_gib": round(pages * size / (1 << 30)),
        "processor": processor_class(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": _version("torch"),
    }


def processor_class() -> str:
    """The family and its widest vector instructions."""
    kind = platform.machine()
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return kind
    flags = set(words)
    widest = next((name for flag, name in PROCESSOR_CLASSES if flag in flags), "")
    return f"{kind} {widest}".strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """The commit, marked where files differ from it; "" outside a checkout."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True
        )
    except OSError:
        return ""
    return found.stdout.decode().strip() + (" and changes" if changed.stdout else "")


def load_of_machine() -> float:
    """How many processes wanted to run, mean of the last minute; more than the cores is noise."""
    return round(os.getloadavg()[0], 2)


def _conditions(result: dict[str, Any]) -> str:
    told = result["machine"]
    return (
        f"{told['cores']} cores {told['processor']}, {told['memory_gib']} GiB, torch "
        f"{told['torch']}, commit {result['commit'] or 'unknown'}, load of the machine "
        f"{result['load_before']} before and {result['load_after']} after"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="penstock bench report", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(arguments)
    for file in options.files:
        result = json.loads(file.read_text())
        for table in result["tables"]:
            print(Table(**table).text(), end="\n\n")
        print(_conditions(result))
    return 0
