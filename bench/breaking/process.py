"""Holders and readers as processes that can be killed, stopped and started again within moments.

A nursery imports everything once and forks a child for each end that is asked for, so that a new
incarnation costs what its plane costs and not what importing torch costs. A child is driven by
packets of JSON on a socket of its own and ends when that socket does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ...protocol.messages import Peer
from .parts import EndSettings

LARGEST_PACKET = 1 << 17  # bytes
PATIENCE = 60.0  # seconds for an answer, on a machine that is busy


class End(Protocol):
    """What a child runs: HolderEnd or ReaderEnd."""

    def turn(self, now: float) -> float: ...

    def wait(self, seconds: float, also: int) -> None: ...

    def command(self, do: str, words: dict[str, Any], now: float) -> dict[str, Any]: ...

    def facts(self) -> dict[str, Any]: ...


# --- this side ------------------------------------------------------------------------------------


class Child:
    """One end in another process."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        channel.settimeout(PATIENCE)
        self.began = time.monotonic()
        self.facts = self.answer()
        self.endpoint: str = self.facts["endpoint"]

    @property
    def peer(self) -> Peer:
        return Peer("holder", self.facts["incarnation"], self.endpoint)

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def tell(self, do: str, **words: Any) -> None:
        self._channel.send(json.dumps({"do": do, **words}).encode())

    def answer(self) -> dict[str, Any]:
        """Raises RuntimeError with the child's own sentence where it could not do it."""
        received = self._channel.recv(LARGEST_PACKET)
        if not received:
            raise RuntimeError(f"process {self.pid} ended")
        answer = json.loads(received)
        if "fault" in answer:
            raise RuntimeError(answer["fault"])
        return answer

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        self.tell(do, **words)
        return self.answer()

    def hand(self, request: int, blocks: int, reader: str, attempt: int = 1) -> dict[str, Any]:
        """Compute a prompt and publish all of it."""
        words = {"request": request, "attempt": attempt, "blocks": blocks, "reader": reader}
        return self.ask("hand", **words)

    def begin(self, request: int, blocks: int, reader: str, attempt: int = 1) -> dict[str, Any]:
        """Compute a prompt and announce it; `publish` follows."""
        words = {"request": request, "attempt": attempt, "blocks": blocks, "reader": reader}
        return self.ask("begin", **words)

    def publish(self, request: int, count: int = -1, attempt: int = 1) -> dict[str, Any]:
        return self.ask("publish", request=request, attempt=attempt, count=count)

    def state(self) -> dict[str, Any]:
        return self.ask("state")

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        while _run_state(self.pid) not in "TXZ":
            time.sleep(0)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def strike(self) -> float:
        """SIGKILL, now; returns when."""
        at = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        return at

    def bury(self) -> None:
        """Wait until a struck process is gone with all it held."""
        try:
            while self._channel.recv(LARGEST_PACKET):
                pass
        except ConnectionResetError:
            pass
        self._channel.close()

    def kill(self) -> None:
        if self._channel.fileno() >= 0:
            if _run_state(self.pid) != "X":
                self.strike()
            self.bury()


class Nursery:
    """Forks ends. `before` is put before its command line, e.g. to run in a network namespace."""

    def __init__(self, before: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*before, sys.executable, "-m", __name__, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        ours.settimeout(PATIENCE)
        self._channel = ours
        self._children: list[Child] = []

    def start(self, role: str, settings: EndSettings) -> Child:
        """Fork a "holder" or a "reader" and wait until it is ready."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = {"role": role, "settings": msgspec.to_builtins(settings)}
        with theirs:
            socket.send_fds(self._channel, [json.dumps(words).encode()], [theirs.fileno()])
        pid = json.loads(self._channel.recv(LARGEST_PACKET))["pid"]
        child = Child(pid, ours)
        self._children = [one for one in self._children if one._channel.fileno() >= 0]
        self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            child.kill()
        self._channel.close()
        self._process.wait()


def _run_state(pid: int) -> str:
    """One letter as the kernel tells it; X where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


# --- the other side -------------------------------------------------------------------------------


def nurse(control: socket.socket) -> None:
    """Fork an end for every request, until nobody asks any more."""
    from . import holder, reader

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    ends = {"holder": holder.HolderEnd, "reader": reader.ReaderEnd}
    while True:
        received, descriptors, _, _ = socket.recv_fds(control, LARGEST_PACKET, 1)
        if not received:
            return
        words = json.loads(received)
        channel = socket.socket(fileno=descriptors[0])
        if words["settings"]["plane"].startswith("nixl"):
            _import_nixl()
        pid = os.fork()
        if pid == 0:
            control.close()
            _live(channel, ends[words["role"]], words["settings"])
        channel.close()
        control.send(json.dumps({"pid": pid}).encode())


def _import_nixl() -> None:
    """Where it is installed: the slow part of its start, before the fork."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    try:
        import nixl._api  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass


def _live(channel: socket.socket, kind: Any, settings: dict[str, Any]) -> None:
    """A child's whole life; it never returns."""
    try:
        end: End = kind(msgspec.convert(settings, EndSettings))
        _say(channel, end.facts())
        while True:
            due = end.turn(time.monotonic())
            end.wait(max(0.0, due - time.monotonic()), channel.fileno())
            _obey(end, channel)
    except BaseException as error:
        try:
            _say(channel, {"fault": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(1)


def _obey(end: End, channel: socket.socket) -> None:
    try:
        received = channel.recv(LARGEST_PACKET, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    if not received:
        os._exit(0)  # whoever started us is gone
    words = json.loads(received)
    try:
        answer = end.command(words.pop("do"), words, time.monotonic())
    except (AssertionError, ValueError) as error:
        answer = {"fault": str(error)}
    _say(channel, answer)


def _say(channel: socket.socket, words: dict[str, Any]) -> None:
    channel.send(json.dumps(words).encode())


if __name__ == "__main__":
    nurse(socket.socket(fileno=int(sys.argv[1])))
