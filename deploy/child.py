"""One supervised process: how it is started, what it says, how it ends."""

import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from ..protocol.lifeline import LIFELINE, Event, Failed, Ready, decode_event

READ_BYTES = 1 << 16
MOST_LINE_BYTES = 1 << 16  # a longer line is cut into several


class Child:
    """Its own session, so that Ctrl-C in a terminal reaches the supervisor alone."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.ready: Ready | None = None
        self.failure = ""  # the reason it gave itself
        self.last_line = ""
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, LIFELINE: str(theirs.fileno()), "PYTHONUNBUFFERED": "1"}
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        assert self.process.stdout is not None
        self._channel = ours
        self._output = self.process.stdout
        os.set_blocking(self._output.fileno(), False)
        ours.setblocking(False)
        self._events = _Lines()
        self._lines = _Lines()

    def filenos(self) -> set[int]:
        """What may still have something to say."""
        open_ends = ((self._channel, self._events), (self._output, self._lines))
        return {end.fileno() for end, lines in open_ends if not lines.over}

    def read_events(self, to_end: bool) -> list[Event]:
        """News since last asked; `to_end`: all of it, however much."""
        lines = self._events.read(self._channel.fileno(), to_end)
        events = [event for line in lines if (event := decode_event(line)) is not None]
        for event in events:
            if isinstance(event, Ready):
                self.ready = event
            elif isinstance(event, Failed):
                self.failure = event.reason
        return events

    def read_lines(self, to_end: bool) -> list[str]:
        """What it printed since last asked."""
        lines = self._lines.read(self._output.fileno(), to_end)
        texts = [line.decode(errors="replace").rstrip() for line in lines]
        for text in texts:
            self.last_line = text.strip() or self.last_line
        return texts

    def ended(self) -> bool:
        """It is not collected yet where the system allows that: until then nobody else can get
        its process id, and `kill` cannot hit a stranger."""
        if self.process.returncode is None and hasattr(os, "waitid"):
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.process.pid, flags) is not None
        return self.process.poll() is not None

    def reason(self) -> str:
        """Why it ended, in one line: its own words, else its last line, else how."""
        status = self.process.returncode
        if self.failure:
            return self.failure
        how = f"exit status {status}"
        if status < 0:
            how = f"killed by {signal.Signals(-status).name}"
        return f"{how}, last words: {self.last_line}" if self.last_line else how

    def terminate(self) -> None:
        if not self.ended():
            self.process.terminate()

    def kill(self) -> None:
        """It and all that it started, at once."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # nobody of its session is left

    def finish(self) -> None:
        """No process and no descriptor of it is left afterwards."""
        self.kill()
        self.process.wait()
        self._channel.close()
        self._output.close()


class _Lines:
    """Bytes of a descriptor that does not block, cut at line ends."""

    def __init__(self) -> None:
        self.over = False
        self._rest = b""

    def read(self, fileno: int, to_end: bool) -> list[bytes]:
        lines: list[bytes] = []
        while not self.over:
            try:
                chunk = os.read(fileno, READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self.over = not chunk
            lines += self._cut(chunk)
            if not to_end:
                break
        if to_end and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def _cut(self, chunk: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if self._rest and (self.over or len(self._rest) > MOST_LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        return lines
