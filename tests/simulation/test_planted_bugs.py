"""Bugs planted in the production files: the simulator finds each of them.

Each test copies the package (by links), changes one production file, and runs the simulator on the
copy from seed 0 on until the first violation. The simulator itself is never touched. The table of
what was found where is printed with `pytest -rP`.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_SEEDS = 2000
LIMIT_SECONDS = 600  # only so that a run that hangs ends
FOLDERS = ("decode", "engine", "kernels", "kvtransfer", "models", "prefill", "protocol", "router")


@dataclass(frozen=True)
class Bug:
    """`changes`: each text stands exactly once in the file, and is replaced."""

    file: str
    changes: tuple[tuple[str, str], ...]
    finding: str  # a pattern that the violation matches
    level: int | None = None  # the mix of the standard run


OLD_ATTEMPT = """\
            if flight is None or placement is None:
                self._stale(sender, request"""
TRUSTED = """\
            if flight is not None and placement is None:
                placement = next(iter(flight.placements.values()), None)
                position = flight.prompt_length + len(flight.progress[choice].emitted)
"""
LOOKED_UP = "skipped = self._pool.lookup(incoming.hashes)"
LOOKED_UP_ONCE = """\
known = self.__dict__.setdefault("known", {})
            skipped = known.setdefault(id(incoming), self._pool.lookup(incoming.hashes))"""
FORGOTTEN = """\
            # Its link to us broke and it forgot our work, though our link to it stands.
            self._flow.worker_lost(sender.endpoint)"""
UNKNOWN = """\
        for found in self._silence.unknown(self.in_flight, sender, message):
            self._placing.again"""

BUGS = {
    "pages are free on cancel before they are quiet": Bug(
        "protocol/pages.py",
        (("if self._inbound[page]:\n            self._move", "if False:\n            self._move"),),
        "granted again|may still land|is free",
    ),
    "no generation is checked": Bug(
        "kvtransfer/reader.py",
        (
            ("                said.generations(start, known),\n", ""),
            ("stale = not incoming.said.are_at(", "stale = False and incoming.said.are_at("),
        ),
        "pages hold",
    ),
    "a renewal does not lengthen the lease": Bug(
        "kvtransfer/holder.py",
        (("lease.expires = now + self._lease_seconds\n        if known", "if known"),),
        "ran out .* after a renewal",
    ),
    "a repeated publication is counted twice": Bug(
        "kvtransfer/hearing.py",
        # The check of the content stands behind it and would refuse what is shifted.
        (
            ("fresh = known - message.first_block", "fresh = 0"),
            (
                "    incoming.said.add(packed(message), fresh)\n",
                "    incoming.said.add(packed(message), fresh)\n"
                "    incoming.vetted = incoming.said.count\n",
            ),
        ),
        "IndexError|hung|pages hold",
    ),
    "a repeated word is taken twice": Bug(
        "protocol/seen.py",
        (("        if key in self._keys:\n            return False\n", ""),),
        "twice in one step|writes it|is written by|holds pages already",
    ),
    "pages are leaked when prefill dies between two chunks": Bug(
        "kvtransfer/reader.py",
        (
            (
                "        self._pool.release(incoming.pool_holder)\n        if event not in",
                "        if event is not Event.PEER_LOST:\n"
                "            self._pool.release(incoming.pool_holder)\n        if event not in",
            ),
        ),
        "left behind|leaks",
    ),
    "a prefix is looked up once, and used when pages are free": Bug(
        "kvtransfer/reader.py",
        ((LOOKED_UP, LOOKED_UP_ONCE),),
        "pages hold|only sealed pages are shared",
    ),
    "the delta is asked from a wrong offset": Bug(
        "kvtransfer/reader.py",
        (
            (
                "said.pages(start, known)",
                "said.pages(start - incoming.skipped, known - incoming.skipped)",
            ),
            (
                "said.generations(start, known)",
                "said.generations(start - incoming.skipped, known - incoming.skipped)",
            ),
        ),
        "pages hold",
    ),
    "the lease is released before all is read": Bug(
        "kvtransfer/incoming.py",
        (("self.asked == self.total and not self.reads", "self.asked == self.total"),),
        "while complete|pages hold|still writes it",
    ),
    "a cancel drops a sequence under its step": Bug(
        "decode/worker.py",
        (
            (
                "if self._flights.holds(sequence):\n            sequence",
                "if False:\n            sequence",
            ),
        ),
        "changed under its step",
    ),
    "the router trusts a token of an old attempt": Bug(
        "router/flow.py",
        ((OLD_ATTEMPT, TRUSTED + OLD_ATTEMPT),),
        "wrong tokens|different tokens",
    ),
    "a page's content is not checked": Bug(
        "kvtransfer/words.py",
        (("    if ours == said:\n", "    if True:\n"),),
        "pages hold",
    ),
    "a page's digest is not checked": Bug(
        "kvtransfer/reader.py",
        (("if digest == incoming.said.digest(block):", "if True:"),),
        "pages hold",
    ),
    "the answer to an inquiry is ignored": Bug(
        "router/flow.py",
        ((UNKNOWN, "        for found in ():\n            self._placing.again"),),
        "hung",
    ),
    "the router does not know that a worker forgot its work": Bug(
        "router/inbox.py",
        ((FORGOTTEN, "            pass"),),
        "hung",
    ),
}


def plant(tree: Path, bug: Bug) -> None:
    """The package in `tree`, with the bug in it. Fails where a text is not there exactly once."""
    package = tree / "penstock"
    package.mkdir()
    changed = Path(bug.file)
    for name in ("__init__.py", "__main__.py", "simulation", *FOLDERS):
        if name != changed.parent.name:
            (package / name).symlink_to(ROOT / name)
    folder = package / changed.parent
    folder.mkdir()
    for file in (ROOT / changed.parent).glob("*.py"):
        if file.name != changed.name:
            (folder / file.name).symlink_to(file)
    text = (ROOT / changed).read_text()
    for old, new in bug.changes:
        assert text.count(old) == 1, f"{bug.file} holds this {text.count(old)} times: {old!r}"
        text = text.replace(old, new)
    (folder / changed.name).write_text(text)


def simulate(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "penstock", "simulate", "--faults", "--jobs", "1"]
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    plant(tmp_path, bug)
    ran = simulate(tmp_path, "--seeds", str(MOST_SEEDS), "--stop")
    assert ran.returncode == 1, f"not found within {MOST_SEEDS} seeds: {ran.stdout}{ran.stderr}"
    (told,) = re.findall(r"^violations  1\n  (.*)\n    (penstock simulate .*)$", ran.stdout, re.M)
    assert re.search(bug.finding, told[0]), told[0]
    seed = re.search(r"--seed (\d+)", told[1])
    assert seed is not None
    print(f"{name}: seed {seed[1]}: {told[0][:120]}")
