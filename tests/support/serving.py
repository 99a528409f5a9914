"""A real cluster for tests: `penstock serve` and everything it starts, ended with nothing left."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .http_client import ask

PATIENCE = 120.0  # seconds; a bound for a machine that is busy, never a measurement


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for a condition, and say what never came about."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > limit:
            raise AssertionError(f"never came about: {what}")
        threading.Event().wait(0.02)
    return found


class Serving:
    """One running cluster."""

    def __init__(self, process: subprocess.Popen[str], url: str):
        self.process = process
        self.url = url
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def finish(self) -> None:
        """After the process ended: the rest of its output."""
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def get(self, path: str) -> Any:
        return ask(self.url, path)[1]

    def health(self) -> dict[str, Any]:
        return self.get("/health")

    def metric(self, name: str) -> dict[str, float]:
        """Every series of one metric: labels -> value."""
        found = {}
        for line in self.get("/metrics").splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name:
                found[series.partition("{")[2].rstrip("}")] = float(value)
        return found

    def total(self, name: str) -> float:
        return sum(self.metric(name).values())

    def pid_of(self, name: str) -> int:
        """The operating system's number of one worker."""
        for child in children_of(self.process.pid):
            if name in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                return child
        raise AssertionError(f"no process called {name}; log:\n{self.log}")

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log}")
        try:
            return ask(self.url, "/ready", timeout=5)[0] == 200
        except OSError:
            return False

    def wait_idle(self) -> None:
        """Until no worker holds a page: nothing was lost, whatever happened."""
        until(lambda: self.total("penstock_worker_held_pages") == 0, "all pages given back")
        assert self.total("penstock_worker_quarantined_pages") == 0


def children_of(pid: int) -> list[int]:
    """Direct children."""
    tasks = Path(f"/proc/{pid}/task")
    return [
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    ]


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[Serving]:
    """`penstock serve` with these arguments, ready to be asked; afterwards nothing is left."""
    port = free_port()
    command = [sys.executable, "-m", "penstock", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | (environment or {}),
    )
    cluster = Serving(process, f"http://127.0.0.1:{port}")
    try:
        until(cluster.ready, "the cluster is ready")
        yield cluster
    finally:
        family = children_of(process.pid) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"serve did not end:\n{cluster.log}") from None
        cluster.finish()
        left = [child for child in family if not gone(child)]
        assert status == 0 and not left, f"status {status}, left {left}, log:\n{cluster.log}"
