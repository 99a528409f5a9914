"""The leader's side of a worker of several ranks: starts the followers, tells them steps.

    starting --meet--> met --a rank ends, or only some fail a step--> lost
        \\______________ close ______________________________________/

Lost is for good: no step is answered any more, so that nobody is told a failure that another worker
can mend; `failure` says why, the worker's loop tells it and ends the process.
"""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from ..models.fields import ModelError
from .batch import BatchBuilder
from .paged_memory import PagedMemory
from .rank_group import RankGroup
from .rank_words import Done, Ended, Line, Loaded, Pages, Ready, Setup, Unwilling

DEATH_SECONDS = 1.0  # between the end of a process's stream and its own
END_SECONDS = 5.0  # for a follower whose stream was closed

Answer = TypeVar("Answer")


class RankError(RuntimeError):
    """A rank is gone, and the worker with it."""


class Follower:
    """One child process and the stream to it."""

    def __init__(self, setup: Setup) -> None:
        self.rank = setup.rank
        ours, theirs = socket.socketpair()
        self.line = Line(ours)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.rank_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.line.send(setup)

    @property
    def ended(self) -> str:
        """How it ended; "" while it runs."""
        status = self.process.poll()
        if status is None:
            return ""
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else "ended"
        return f"rank {self.rank} (process {self.process.pid}) {how}"

    def why(self, error: Exception) -> str:
        """After its stream failed: how it ended, or that it did not."""
        try:
            self.process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        return self.ended or f"rank {self.rank} (process {self.process.pid}) stands still: {error}"

    def close(self, seconds: float) -> None:
        """Let it end by itself for so long."""
        self.line.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Ranks:
    """All followers of this process, which is rank 0."""

    def __init__(self, setup: Setup) -> None:
        """Starts them; they load while the caller does. `setup` with the meeting left open."""
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-ranks-"))  # nobody else's
        self._meeting = self._folder / "meeting"
        self._seconds = setup.seconds
        self._failure = ""
        self._closed = threading.Event()
        self.group = RankGroup(0, setup.ranks)
        self.followers: list[Follower] = []
        try:
            for rank in range(1, setup.ranks):
                self.followers.append(Follower(_of_rank(setup, rank, self._meeting)))
        except BaseException:
            self.close()
            raise

    def meet(self, memory: PagedMemory, kernels_digest: str) -> None:
        """Wait until all have loaded, share the pages, join. Raises ModelError."""
        for follower in self.followers:
            loaded = self._asked(follower, lambda one: one.line.receive(Loaded))
            if loaded.kernels != kernels_digest:
                raise ModelError(
                    f"rank {follower.rank}: its kernels are others than the leader's; "
                    "let nothing change them while a worker starts"
                )
            word = Pages(memory.description.page_count)
            self._asked(follower, lambda one, word=word: one.line.send(word, memory.file))
        try:
            self.group.join(self._meeting, self._seconds)
        except RuntimeError as error:
            raise ModelError(f"the ranks of this worker did not find together: {error}") from None
        for follower in self.followers:
            self._asked(follower, lambda one: one.line.receive(Ready))
            follower.line.limit(self._seconds)
        self._forget_meeting()

    @property
    def failure(self) -> str:
        """Why no step will be answered any more; "" while all is well. Asked by the loop."""
        if not self._failure and not self._closed.is_set():
            ended = [one.ended for one in self.followers if one.ended]
            self._failure = f"ranks: {ended[0]}" if ended else ""
        return self._failure

    def run(self, builder: BatchBuilder, forward: Callable[[], Answer]) -> Answer:
        """The step that was just built, on all ranks; returns when the pages are written.

        Raises what `forward` raised where all ranks refused the step. Where a rank is gone, or
        only some failed, it returns no more: see `failure`; after `close` it raises RankError.
        """
        if self.failure:
            self._lost(self._failure)
        self._tell(builder)
        try:
            answer = forward()
        except Exception as raised:
            error = _told(raised)
            # Refused by all alike; an exchange that failed for the others' sake does not look so.
            if any(one != error for one in self._answers()):
                self._lost(f"ranks: not all failed a step alike: rank 0 {error}")
            raise
        if failed := [one for one in self._answers() if one]:
            self._lost(f"ranks: a follower alone failed a step: {failed[0]}")
        return answer

    def _tell(self, builder: BatchBuilder) -> None:
        for follower in self.followers:
            try:
                follower.line.send_batch(builder.counts, builder.words)
            except Ended as error:
                self._lost(f"ranks: {follower.why(error)}")

    def _answers(self) -> list[str]:
        """Each follower's error, "" where there was none."""
        answers = []
        for follower in self.followers:
            try:
                answers.append(follower.line.receive(Done).error)
            except (Ended, Unwilling) as error:
                self._lost(f"ranks: {follower.why(error)}")
        return answers

    def _lost(self, reason: str) -> NoReturn:
        self._failure = reason
        self._closed.wait()
        raise RankError(reason)

    def close(self) -> None:
        """End all followers, whatever they do."""
        if self._closed.is_set():
            return
        self._closed.set()
        for follower in self.followers:
            follower.close(0.0 if self._failure else END_SECONDS)
        self.group.leave()
        self._forget_meeting()

    def _forget_meeting(self) -> None:
        """Once all are connected nobody needs it, and a crash would leave it behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _asked(self, follower: Follower, ask: Callable[[Follower], Answer]) -> Answer:
        try:
            return ask(follower)
        except Unwilling as error:
            raise ModelError(f"rank {follower.rank}: {error}") from None
        except Ended as error:
            raise ModelError(f"{follower.why(error)} before it was ready") from None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _of_rank(setup: Setup, rank: int, meeting: Path) -> Setup:
    return msgspec.structs.replace(setup, rank=rank, meeting=str(meeting))
