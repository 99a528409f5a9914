"""Real clusters for benchmarks: started, asked, and ended with nothing left."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from .accounting import children, cpu_seconds

START_SECONDS = 180.0  # a bound for a machine that is busy
POLL_SECONDS = 0.005
ROLES = ("router", "prefill", "decode", "aggregated")
_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class ClusterError(Exception):
    """A cluster did not do what the benchmark stands on; the text has the end of its log."""


def command(*words: str) -> list[str]:
    """`penstock WORDS` in this interpreter."""
    return [sys.executable, "-P", "-m", __name__.partition(".")[0], *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def split_address(url: str) -> tuple[str, int]:
    """Host and port of an http address."""
    address = urlsplit(url)
    return address.hostname or "127.0.0.1", address.port or 80


def series(page: str) -> dict[str, float]:
    """Every series of a page of /metrics; histograms without their buckets."""
    return {
        f"{name}{{{labels}}}" if labels else name: float(value)
        for name, labels, value in _SERIES.findall(page)
        if not name.endswith("_bucket")
    }


class Site:
    """Where HTTP is answered. One kept connection, so that asking often costs little."""

    def __init__(self, url: str):
        self.url = url
        self._connection = http.client.HTTPConnection(*split_address(url), timeout=60)

    def get(self, path: str) -> tuple[int, str]:
        for last_try in (False, True):
            try:
                self._connection.request("GET", path)
                response = self._connection.getresponse()
                return response.status, response.read().decode()
            except (http.client.HTTPException, ConnectionError):
                self._connection.close()  # it idled too long, or the process is another one now
                if last_try:
                    raise
        raise AssertionError

    def is_ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def workers(self) -> list[str]:
        """The names that /health lists."""
        return [worker["name"] for worker in json.loads(self.get("/health")[1])["workers"]]

    def model(self) -> str:
        return json.loads(self.get("/v1/models")[1])["data"][0]["id"]

    def metrics(self) -> dict[str, float]:
        """Every series; histograms without their buckets."""
        status, page = self.get("/metrics")
        if status != 200:
            raise ClusterError(f"{self.url}/metrics answers {status}")
        return series(page)

    def close(self) -> None:
        self._connection.close()


class Cluster:
    """What `penstock serve` started; also one role alone."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: IO[bytes]):
        self.process = process
        self.site = Site(url)
        self.url = url
        self.control = ""  # where workers report, if whoever started it chose that
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def processes(self) -> dict[str, tuple[str, int]]:
        """Role and pid by name."""
        found = {}
        for pid in children(self.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            role = next((word for word in words if word in ROLES), "")
            if role:
                found[words[words.index("--name") + 1]] = (role, pid)
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """So far, summed by role."""
        spent: dict[str, float] = {}
        for role, pid in self.processes().values():
            spent[role] = spent.get(role, 0.0) + cpu_seconds(pid)
        return spent

    def log(self) -> str:
        """The end of it, for a message."""
        return self.whole_log()[-4000:]

    def whole_log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def wait(self, condition: Callable[[], Any], what: str) -> float:
        """Seconds until it holds."""
        begun = time.monotonic()
        while not condition():
            if self.process.poll() is not None:
                raise ClusterError(f"ended with {self.process.returncode}:\n{self.log()}")
            if time.monotonic() - begun > START_SECONDS:
                raise ClusterError(f"never came about: {what}; log:\n{self.log()}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - begun

    def end(self) -> float:
        """Ask it to end; seconds until it has."""
        begun = time.monotonic()
        self.site.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ClusterError(f"did not end; log:\n{self.log()}") from None
        if status != 0:
            raise ClusterError(f"ended with {status}; log:\n{self.log()}")
        return time.monotonic() - begun


def start(words: list[str], url: str) -> Cluster:
    """A process of ours, not ready yet. Whoever starts it ends it."""
    log = tempfile.NamedTemporaryFile(prefix="penstock-bench-", suffix=".log")  # noqa: SIM115
    process = subprocess.Popen(
        command(*words), stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)
    )
    return Cluster(process, url, log)


@contextmanager
def serving(*words: str) -> Iterator[Cluster]:
    """`penstock serve WORDS`, ready to be asked."""
    port = free_port()
    cluster = start(["serve", "--port", str(port), *words], f"http://127.0.0.1:{port}")
    try:
        cluster.wait(cluster.site.is_ready, "the cluster is ready")
        yield cluster
    finally:
        cluster.end()
