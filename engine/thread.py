"""The engine on a thread of its own, so that the server's loop never waits for a step.

Knows how to call a runner and how to wake a poll loop; knows no model and no request.
"""

import os
import queue
import threading
import time
from typing import Protocol

import torch

from .step import Step, StepResult


class Runs(Protocol):
    """What the thread calls; `Runner` for real."""

    def run(self, step: Step) -> StepResult: ...


class EngineThread:
    """Implements `step.Engine`. One thread, at most one step in flight.

        start -> [queue] -> thread: run -> result, then the eventfd -> finished

    `busy` is true from `start` until `finished` gave the result.
    """

    def __init__(self, runner: Runs, threads: int = 0) -> None:
        self._runner = runner
        self._threads = threads
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._result: StepResult | None = None
        self._busy = False
        self._began = 0.0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # holds the result and the eventfd together
        # A daemon: a step that hangs on a device must not keep a dying process alive.
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable while a result waits."""
        return self._wake

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def running_seconds(self) -> float:
        """How long the present step has been running; 0 while none is."""
        began = self._began
        return time.monotonic() - began if began else 0.0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self, step: Step) -> None:
        if self._busy:
            raise RuntimeError("a step is in flight; take its result first")
        self._busy = True
        self._began = time.monotonic()
        self._steps.put(step)

    def finished(self) -> StepResult | None:
        """The result, once; None while there is none."""
        with self._lock:
            result = self._result
            if result is None:
                return None
            os.eventfd_read(self._wake)
            self._result = None
            self._busy = False
        return result

    def close(self, seconds: float = 10.0) -> None:
        """End the thread after the present step; raises if that takes too long."""
        self._steps.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine's step did not end within {seconds} s")
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _loop(self) -> None:
        if self._threads:  # OpenMP keeps the number per thread, so it is set on this one
            torch.set_num_threads(self._threads)
        while (step := self._steps.get()) is not None:
            began = time.monotonic()
            try:
                result = self._runner.run(step)
            except Exception as error:
                error_text = f"{type(error).__name__}: {error}"
                result = StepResult(step, (), time.monotonic() - began, error_text)
            self._began = 0.0
            with self._lock:
                self._result = result
                os.eventfd_write(self._wake, 1)
            # Not to hold the sequences of an old step while waiting for a new one.
            del step, result
