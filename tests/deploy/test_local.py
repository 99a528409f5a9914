"""The supervisor with real processes: it starts, restarts and ends them, and leaves nothing."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CLUSTER = str(Path(__file__).with_name("fake_cluster.py"))
PATIENCE = 60.0  # a deadlock's end, not a measurement

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches processes by pidfd")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """A supervisor and all it has said so far."""

    def __init__(self, folder: Path, workers: list[str], port: int, behaviour: dict[str, str]):
        environment = {**os.environ, "PORT": str(port), "TMPDIR": str(folder)}
        environment |= {f"FAKE_{name}": text for name, text in behaviour.items()}
        self.folder = folder
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, CLUSTER, *workers],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.start()

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"never said: {pattern}\n{self.text}")

    def ready(self) -> "Running":
        self.until("Ctrl-C ends it")
        return self

    def process_of(self, name: str) -> int:
        """The newest process of that name."""
        return int(re.findall(rf" {name} is process (\d+)", self.text)[-1])

    def end(self) -> int:
        """Its exit status, when all is said."""
        assert self.process.stdout is not None
        self.text += self.process.stdout.read()
        status = self.process.wait()
        self._watchdog.cancel()
        return status

    def close(self) -> None:
        self.process.kill()
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def begin(*workers: str, port: int = 0, **behaviour: str) -> Running:
        started.append(Running(tmp_path, list(workers), port or free_port(), behaviour))
        return started[-1]

    yield begin
    for running in started:
        running.close()


def gone(process: int) -> bool:
    """It ended, or ends within our patience."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


def test_it_says_what_runs_and_ends_all_on_sigterm(start: Start) -> None:
    running = start("a", "b").ready()
    for text in (
        "is ready at http://127.0.0.1:",
        "penstock-demo",
        "numeric class  one",
        "curl http://",
    ):
        assert text in running.text
    assert "a: loading 50%" in running.text
    processes = [running.process_of(name) for name in ("router", "a", "b")]
    assert len(list(running.folder.iterdir())) == 1
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert all(gone(process) for process in processes)
    assert "[a] a ends" in running.text
    assert list(running.folder.iterdir()) == []


def test_the_router_ends_before_the_workers(start: Start) -> None:
    running = start("a").ready()
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 0
    assert running.text.index("router ends") < running.text.index("a ends")


def test_children_are_out_of_a_terminals_reach(start: Start) -> None:
    running = start("a").ready()
    process = running.process_of("a")
    assert os.getsid(process) == process


def test_a_worker_that_dies_is_started_again(start: Start) -> None:
    running = start("a").ready()
    first = running.process_of("a")
    os.kill(first, signal.SIGKILL)
    running.until(r"a ended \(killed by SIGKILL.*again in")
    running.until("a is ready again")
    assert running.process_of("a") != first
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0


def test_nothing_survives_a_killed_supervisor(start: Start) -> None:
    running = start("a", "b", a="stubborn").ready()
    processes = [running.process_of(name) for name in ("router", "a", "b")]
    running.process.kill()
    assert all(gone(process) for process in processes)


def test_what_a_worker_started_ends_with_it(start: Start) -> None:
    running = start("a", a="family").ready()
    kin = int(re.findall(r"kin of a is process (\d+)", running.text)[0])
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert gone(kin)


def test_a_second_signal_forces(start: Start) -> None:
    running = start("a", a="stubborn").ready()
    process = running.process_of("a")
    running.process.send_signal(signal.SIGINT)
    running.until("router ends")
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 1
    assert "killing what has not ended" in running.text
    assert gone(process)


def test_a_taken_port_is_said_before_anything_starts(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = start("a", port=port)
        assert running.end() == 1
    assert running.text == (
        f"penstock: port {port} on 127.0.0.1 is in use; "
        "choose another with --port or [router] port\n"
    )


def test_a_worker_that_says_why_it_cannot_start_ends_the_cluster(start: Start) -> None:
    running = start("a", "b", b="fail")
    assert running.end() == 1
    assert "penstock: b cannot start: no such weights\n" in running.text
    assert "Penstock is ready" not in running.text


def test_a_worker_that_crashes_at_start_is_tried_twice(start: Start) -> None:
    running = start("a", a="crash")
    assert running.end() == 1
    assert len(re.findall("a is process", running.text)) == 2
    assert re.search("a: it cannot start, twice for the same reason: .*Segmentation", running.text)


def test_different_numeric_classes_are_said(start: Start) -> None:
    running = start("a", "odd").ready()
    assert "different numeric classes (one, two)" in running.text
