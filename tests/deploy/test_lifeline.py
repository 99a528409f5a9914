"""What a process tells its supervisor, and how it hears that it should end."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.deploy import run_directory
from penstock.protocol.lifeline import Failed, Progress, Ready, Report, decode_event


def test_each_percent_is_told_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        report = Report("p", theirs)
        for done in (0, 1, 15, 19, 20, 1000):
            report.progress(done, 1000)
        report.ready(kernels="native", pages=12)
        report.failed("no\nmore")
        lines = ours.recv(65536).splitlines()
    assert [decode_event(line) for line in lines] == [
        Progress(0, 1000),
        Progress(15, 1000),
        Progress(20, 1000),
        Progress(1000, 1000),
        Ready({"kernels": "native", "pages": "12"}),
        Failed("no\nmore"),
    ]


def test_the_end_of_the_supervisor_is_readable() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        report = Report("p", theirs)
        assert not report.stopping
        ours.close()
        assert select.select(report.filenos(), [], [], 0)[0]
        assert report.stopping
        report.ready()  # to nobody: no exception


def test_by_hand_it_speaks_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("p")
    for done in range(1001):
        report.progress(done, 1000)
    report.ready(numeric_class="abc")
    assert not report.stopping
    assert report.filenos() == ()
    assert capsys.readouterr().err.splitlines() == [
        *(f"p: {percent}%" for percent in (0, 25, 50, 75, 100)),
        "p: ready: numeric class abc",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_readable_and_a_second_one_ends(number: signal.Signals) -> None:
    program = (
        "import select\n"
        "from penstock.protocol.lifeline import Report\n"
        "report = Report('p'); report.catch_signals(); print('on', flush=True)\n"
        "select.select(report.filenos(), [], [])\n"
        "print(report.stopping, flush=True)\n"
        "select.select([], [], [])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "on\n"
        process.send_signal(number)
        assert process.stdout.readline() == "True\n"
        process.send_signal(number)
        assert process.wait() == -number


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"event": "dance"}', b"\xff", b'"' * 5])
def test_what_is_no_event_is_none(line: bytes) -> None:
    assert decode_event(line) is None


def test_folders_of_killed_supervisors_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory.tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"penstock-{ended.pid}-abc").mkdir()
    (tmp_path / f"penstock-{os.getpid()}-abc").mkdir()
    (tmp_path / "penstock-notes").mkdir()
    made = run_directory.make_run_directory()
    assert made.stat().st_mode & 0o777 == 0o700
    run_directory.remove_run_directory(made)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        f"penstock-{os.getpid()}-abc",
        "penstock-notes",
    ]
