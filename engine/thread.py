"""The engine on a thread of its own, so that the server's loop never waits for a step.

Knows how to call a runner and how to wake a poll loop; knows no model and no request.
"""

import os
import queue
import threading
import time
from collections import deque
from typing import Protocol

import torch

from .flights import MOST
from .step import Step, StepResult


class Runs(Protocol):
    """What the thread calls; `Runner` for real."""

    def run(self, step: Step) -> StepResult: ...


class EngineThread:
    """Implements `step.Engine`. One thread, at most two steps in flight, answered in order.

        start -> [queue] -> thread: run -> results, then the eventfd -> finished

    `busy` is true from `start` until `finished` gave the last result.
    """

    def __init__(self, runner: Runs, threads: int = 0) -> None:
        self._runner = runner
        self._threads = threads
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._results: deque[StepResult] = deque()
        self._flying = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._lock = threading.Lock()  # holds the results and the eventfd together
        # A daemon: a step that hangs on a device must not keep a dying process alive.
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable while results wait."""
        return self._wake

    @property
    def busy(self) -> bool:
        return self._flying > 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self, step: Step) -> None:
        if self._flying == MOST:
            raise RuntimeError(f"{MOST} steps are in flight; take a result first")
        self._flying += 1
        self._steps.put(step)

    def finished(self) -> StepResult | None:
        """The oldest result, once; None while there is none."""
        with self._lock:
            if not self._results:
                return None
            os.eventfd_read(self._wake)
            self._flying -= 1
            return self._results.popleft()

    def close(self, seconds: float = 10.0) -> None:
        """End the thread after the steps in flight; raises if that takes too long."""
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
            with self._lock:
                self._results.append(result)
                os.eventfd_write(self._wake, 1)
            # Not to hold the sequences of an old step while waiting for a new one.
            del step, result
