"""The line between a supervised process and its supervisor: JSON lines up, end-of-file down.

    {"event": "progress", "done": 10, "total": 200, "what": "lm_head"}   while it gets ready; bytes,
                                                          usually
    {"event": "ready", "facts": {"kernels": "native"}}    once; facts are shown to people
    {"event": "failed", "reason": "..."}                  it ends now, and this is why

The supervisor passes one end of a socket pair and names its descriptor in the environment. When
the supervisor ends, however it ends, the other end closes: a loop that watches `filenos` sees
that. Where the system can, it also kills the process with its supervisor, so that one that is
stuck cannot be left behind. A process started by hand prints the same news to standard error.
"""

import ctypes
import functools
import os
import signal
import socket
import sys

import msgspec

LIFELINE = "PENSTOCK_LIFELINE"
_PR_SET_PDEATHSIG = 1


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="event"):
    """So much is done; `total` 0 = unknown. `what` is at hand, "" where nobody says."""

    done: int
    total: int
    what: str = ""


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="event"):
    """It serves. What is in use, for people: kernels, transport, numeric class."""

    facts: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="event"):
    """It cannot go on."""

    reason: str


Event = Progress | Ready | Failed

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def decode_event(line: bytes) -> Event | None:
    """None for what is no event."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


class Report:
    """What one process tells about itself, and how it learns that it should end."""

    def __init__(self, name: str, channel: socket.socket | None = None) -> None:
        self._name = name
        self._channel = channel
        self._percent = -1
        self._signalled = False
        self._bell: tuple[int, int] | None = None  # a pipe that a signal writes to

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Call it as often as you like; each percent is told once."""
        percent = 100 * done // total if total else 0
        if percent == self._percent:
            return
        self._percent = percent
        if self._channel is None and percent % 25:
            return
        self._tell(Progress(done, total, what), f"{percent}%")

    def ready(self, **facts: object) -> None:
        told = {key: str(value) for key, value in facts.items()}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items())
        self._tell(Ready(told), f"ready: {text}")

    def failed(self, reason: str) -> None:
        """Why the process ends. The caller ends it."""
        self._tell(Failed(reason), f"failed: {reason}")

    def catch_signals(self) -> None:
        """From now on SIGTERM and SIGINT set `stopping`; a second one ends the process at once.
        For plain loops: asyncio has add_signal_handler."""
        self._bell = os.pipe()
        for descriptor in self._bell:
            os.set_blocking(descriptor, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take_signal)

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that become readable when `stopping` becomes true."""
        channel = () if self._channel is None else (self._channel.fileno(),)
        return channel if self._bell is None else (*channel, self._bell[0])

    @property
    def stopping(self) -> bool:
        """The process was told to end, or its supervisor is gone."""
        return self._signalled or self.orphaned

    @property
    def orphaned(self) -> bool:
        """The supervisor is gone. Always false for a process started by hand."""
        if self._channel is None:
            return False
        try:
            return self._channel.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _take_signal(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._signalled = True
        if self._bell is not None:
            os.write(self._bell[1], b"!")

    def _tell(self, event: Event, text: str) -> None:
        if self._channel is None:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
            return
        try:
            self._channel.sendall(_encoder.encode(event) + b"\n")
        except OSError:
            pass  # the supervisor is gone; `orphaned` says so


@functools.cache
def report(name: str) -> Report:
    """This process's report; a process has one, as it has one standard error."""
    descriptor = os.environ.pop(LIFELINE, "")  # not for its own children
    if not descriptor:
        return Report(name)
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    die_with_parent()
    opened = Report(name, channel)
    if opened.orphaned:  # before the line above took hold
        raise SystemExit(f"{name}: the supervisor is gone")
    return opened


def die_with_parent() -> None:
    """Linux: killed with the thread that started us. Elsewhere the closed line must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
