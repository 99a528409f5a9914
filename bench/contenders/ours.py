"""Our own engine as a contender: one real worker process, asked over the real protocol.

The benchmark stands where the router would: it hears the worker's Hello, sends Prefill, and reads
token frames. Scheduling, paging, sampling and frames are all inside the time, as they are inside
the peers'; HTTP and text are outside for everybody.
"""

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...protocol.config import dump, load
from ...protocol.messages import Failed, Hello, Prefill, Sampling, Status, Tokens
from ...protocol.seams import Received
from ...protocol.sockets import Mailbox
from ..cluster import command
from .contender import Contender, ContenderError, Work

START_SECONDS = 300.0
ANSWER_SECONDS = 600.0
NAME = "measured"


class Worker(Contender):
    """An aggregated worker that nobody but us knows."""

    name = "penstock"

    def __init__(self, mailbox: Mailbox, process: subprocess.Popen[bytes], endpoint: str) -> None:
        self._mailbox, self._endpoint = mailbox, endpoint
        self.process = process
        self._requests = 0
        self.counters: dict[str, float] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, work: Work) -> float:
        """Seconds from the first Prefill to the last token of all; prompts are new every time."""
        chance = random.Random(work.seed)
        prompts = [
            chance.choices(range(3, work.vocabulary), k=work.prompt) for _ in range(work.batch)
        ]
        sampling = Sampling(seed=0, temperature=0.0, max_tokens=work.tokens)
        began = time.perf_counter()
        for token_ids in prompts:
            self._requests += 1
            self._mailbox.send(
                self._endpoint,
                Prefill(
                    self._requests,
                    1,
                    self._mailbox.me,
                    "measured",
                    "",
                    token_ids,
                    len(token_ids),
                    [0],
                    sampling,
                ),
            )
        self._until_finished(work.batch * work.tokens, work.batch)
        return time.perf_counter() - began

    def _until_finished(self, tokens: int, ends: int) -> None:
        due = time.monotonic() + ANSWER_SECONDS
        while ends > 0:
            for message in _received(self._mailbox, self.process, due):
                match message:
                    case Tokens():
                        tokens -= len(message.token_ids)
                        ends -= sum(1 for finish in message.finish if finish)
                    case Failed():
                        raise ContenderError(f"the worker failed a request: {message.reason}")
                    case Status():
                        self.counters = message.counters
                    case _:
                        pass
        if tokens:
            raise ContenderError(f"answers ended {tokens} tokens short")

    def told(self) -> dict[str, float]:
        """The worker's counters as of a beat that comes after now."""
        due = time.monotonic() + START_SECONDS
        while True:
            for message in _received(self._mailbox, self.process, due):
                if isinstance(message, Status):
                    return message.counters


def _received(mailbox: Mailbox, process: subprocess.Popen[bytes], due: float) -> Iterator[object]:
    if process.poll() is not None:
        raise ContenderError(f"the worker ended with {process.returncode}")
    if time.monotonic() > due:
        raise ContenderError("the worker does not answer")
    mailbox.wait(0.5, ())
    for arrival in mailbox.receive():
        if isinstance(arrival, Received):
            yield arrival.message


@contextmanager
def penstock(model: Path, threads: int, **settings: object) -> Iterator[Worker]:
    """A worker that is ready; `settings` go into its [worker] table."""
    mailbox = Mailbox("bench")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        document = {
            "cluster": {"model": str(model), "routers": [mailbox.me.endpoint]},
            "worker": {"threads": threads, **settings},
            "aggregated": [{"name": NAME}],
        }
        file = Path(folder, "cluster.toml")
        file.write_text(dump(load(None, document)))
        log = Path(folder, "log").open("wb")
        process = subprocess.Popen(
            command("aggregated", "--config", str(file), "--name", NAME),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Worker(mailbox, process, _joined(mailbox, process))
        except ContenderError as error:
            raise ContenderError(f"{error}\n{Path(log.name).read_text()[-2000:]}") from None
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
            mailbox.close()


def _joined(mailbox: Mailbox, process: subprocess.Popen[bytes]) -> str:
    due = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise ContenderError(f"the worker ended with {process.returncode}")
        if time.monotonic() > due:
            raise ContenderError("the worker did not start")
        mailbox.wait(0.5, ())
        for arrival in mailbox.receive():
            if isinstance(arrival, Received) and isinstance(arrival.message, Hello):
                mailbox.connect(arrival.sender.endpoint)
                return arrival.sender.endpoint
