"""Signals as something a selector can wait for."""

import contextlib
import signal
import socket
from collections.abc import Iterable
from types import TracebackType


class SignalPipe(contextlib.AbstractContextManager["SignalPipe"]):
    """Inside the `with`, the given signals do nothing but make `fileno` readable. One that is
    ignored (nohup, a shell's background job) stays ignored."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._receiving, self._sending = socket.socketpair()
        self._receiving.setblocking(False)
        self._sending.setblocking(False)
        self._before = {
            number: signal.signal(number, lambda *_: None)
            for number in numbers
            if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN
        }
        self._before_wakeup = signal.set_wakeup_fd(
            self._sending.fileno(), warn_on_full_buffer=False
        )

    def fileno(self) -> int:
        return self._receiving.fileno()

    def read(self) -> list[int]:
        """The numbers of the signals since last asked."""
        try:
            return list(self._receiving.recv(4096))
        except BlockingIOError:
            return []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._before_wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._receiving.close()
        self._sending.close()
