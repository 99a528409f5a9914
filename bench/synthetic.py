"""What a measured router stands between: a worker and clients that cost little; and its floor.

    penstock bench synthetic worker --router tcp://127.0.0.1:5570    joins, computes nothing
    penstock bench synthetic floor --port 8001 --chunk FILE --answer FILE
    penstock bench synthetic client --url http://127.0.0.1:8000 --body JSON --connections 64

The worker speaks the real protocol: it joins as an aggregated worker and answers with one frame
per step, which holds the next token of every sequence; a request for one token it answers at
once. The floor writes prepared bytes to as many streams at the same pace, and nothing else.
Worker and floor say how many tokens they have sent whenever a line comes on standard input, and
end with it. The client reads to the end of each answer, and says `ready` and `done`.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

from ..models.tokenizer import Tokenizer
from ..protocol.config import DEMO_MODEL, DEMO_NAME
from ..protocol.membership import Membership
from ..protocol.messages import (
    REVISION,
    Cancel,
    Compatibility,
    Identify,
    Prefill,
    PromptReport,
    Tokens,
    WorkerDescription,
    WorkerState,
)
from ..protocol.pages import PagePool
from ..protocol.seams import Arrival, Connected, Disconnected, Received, SystemClock
from ..protocol.sockets import Mailbox
from .cluster import split_address

NAME = "synthetic"
PAGES = 4096
PAGE_SLOTS = 32
BEAT_SECONDS = 0.25
TEXT = "The quick brown fox jumps over the lazy dog."

# --- the worker -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Sequence:
    request: int
    attempt: int
    router: str
    position: int
    left: int
    begun: bool = False


class Worker:
    """Never computes; always on time."""

    def __init__(self, router: str, step_seconds: float):
        self._mailbox = Mailbox(NAME)
        self._clock = SystemClock()
        self._step_seconds = step_seconds
        self._due = self._clock.now()
        self._sequences: dict[tuple[int, int], Sequence] = {}
        self._tokens = _words()
        self.sent = 0
        compatibility = Compatibility(REVISION, NAME, NAME, "none", "none", 1, "none")
        description = WorkerDescription(
            "aggregated",
            DEMO_NAME,
            compatibility,
            PAGE_SLOTS,
            PAGES,
            PAGES * PAGE_SLOTS,
            NAME,
            "none",
            os.getpid(),
        )
        pool = PagePool([0] * PAGES)
        self._membership = Membership(self._mailbox, [router], description, pool, BEAT_SECONDS)

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            now = self._clock.now()
            beat = self._membership.beat(now, self._state, dict, "")
            if now >= self._due:
                self._due += self._step_seconds
                self._send(list(self._sequences.values()))
            due = min(self._due, beat) - self._clock.now()
            self._mailbox.wait(max(0.0, due), (sys.stdin.fileno(),))
            if _asked_for(lambda: self.sent):
                return
            for arrival in self._mailbox.receive():
                self._take(arrival)

    def _take(self, arrival: Arrival) -> None:
        match arrival:
            case Connected() | Disconnected():
                self._membership.link(arrival, self._state())
            case Received(sender, Identify() as message):
                self._membership.take(sender, message, self._state())
            case Received(_, Prefill() as asked):
                length = len(asked.token_ids)
                left = asked.sampling.max_tokens - (length - asked.prompt_length)
                one = Sequence(asked.request, asked.attempt, asked.router.endpoint, length, left)
                self._sequences[one.request, one.attempt] = one
                if left == 1:
                    self._send([one])
            case Received(_, Cancel(request, attempt)):
                self._sequences.pop((request, attempt), None)
            case _:
                pass

    def _state(self) -> WorkerState:
        return WorkerState(len(self._sequences), free_pages=PAGES, step_seconds=self._step_seconds)

    def _send(self, step: list[Sequence]) -> None:
        """One frame: the next token of each; there is one router."""
        if not step:
            return
        words = self._tokens
        frame = Tokens(
            self._state(),
            [one.request for one in step],
            [one.attempt for one in step],
            [0] * len(step),
            [one.position for one in step],
            [words[one.position % len(words)] for one in step],
            ["length" if one.left == 1 else "" for one in step],
            [],
            [PromptReport(o.request, o.attempt, 0, 0.0, 0.0) for o in step if not o.begun],
        )
        self._mailbox.send(step[0].router, frame)
        self.sent += len(step)
        for one in step:
            one.begun = True
            one.position += 1
            one.left -= 1
            if one.left == 0:
                del self._sequences[one.request, one.attempt]


def _words() -> list[int]:
    """Tokens whose text needs no escape, so that every step costs the router the same."""
    tokenizer = Tokenizer(DEMO_MODEL)
    return [one for one in tokenizer.encode(TEXT, False) if tokenizer.token_text(one).isascii()]


def _asked_for(count: Callable[[], int]) -> bool:
    """Answer a line on standard input; True when it has ended."""
    os.set_blocking(sys.stdin.fileno(), False)
    line = sys.stdin.buffer.raw.read(64)  # type: ignore[attr-defined]
    if line:
        print(count(), flush=True)
    return line == b""


# --- the floor ------------------------------------------------------------------------------------


class Floor(asyncio.Protocol):
    """Any request in, prepared bytes out. The step reaches all that stream."""

    chunk = b""
    answer = b""
    streams: "dict[Floor, int]" = {}  # of this process: connection -> tokens to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if b'"stream"' in data:
            self.streams[self] = int(data.rpartition(b'"max_tokens":')[2].strip(b" }"))
            self._transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            self._transport.write(self.answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.pop(self, None)

    def step(self) -> None:
        self._transport.write(self.chunk)
        self.streams[self] -= 1
        if not self.streams[self]:
            del self.streams[self]
            self._transport.write(b"0\r\n\r\n")


async def floor(port: int, step_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    sent = 0
    await loop.create_server(Floor, "127.0.0.1", port)

    def asked() -> None:
        if _asked_for(lambda: sent):
            ended.set()

    def step(due: float) -> None:
        nonlocal sent
        sent += len(Floor.streams)
        for stream in list(Floor.streams):
            stream.step()
        loop.call_at(due + step_seconds, step, due + step_seconds)

    loop.add_reader(sys.stdin.fileno(), asked)
    step(loop.time())
    print("listening", flush=True)
    await ended.wait()


# --- the client -----------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """Asks, and asks again as long as more is wanted. Looks at nothing."""

    def __init__(self, request: bytes, batch: "Batch"):
        self._request = request
        self._batch = batch
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, batch: "Batch") -> None:
        self._batch = batch
        self._silent = True
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._silent:
            self._silent = False
            self._batch.begun += 1
            if self._batch.begun == self._batch.announced:
                print("begun", flush=True)
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            raise ConnectionError(f"HTTP {self._parser.get_status_code()}")
        if self._batch.more():
            self.ask(self._batch)


class Batch:
    """So many answers, over all connections."""

    def __init__(self, requests: int, connections: int, announced: int = 0):
        self._left = requests  # answers to come
        self._open = connections
        self.begun = 0
        self.announced = announced  # a word is said when so many answers have begun
        self.done = asyncio.Event()

    def more(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self.done.set()
        return self._left >= self._open


async def client(url: str, request: bytes, connections: int, warm: int, requests: int) -> None:
    """Says `begun` when every connection has its first bytes, and `done` at the end. With `warm`
    requests before: says `ready` after them and goes on when a line comes."""
    loop = asyncio.get_running_loop()
    failed: list[str] = []
    batch = Batch(warm, connections)

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failed.append(repr(context.get("exception")))
        batch.done.set()

    loop.set_exception_handler(fail)
    host, port = split_address(url)
    clients = [
        (await loop.create_connection(lambda: Client(request, batch), host, port))[1]
        for _ in range(connections)
    ]
    if warm:
        for one in clients:
            one.ask(batch)
        await batch.done.wait()
        print("ready", flush=True)
        sys.stdin.readline()
    batch = Batch(requests, connections, 0 if warm else connections)
    for one in clients:
        one.ask(batch)
    if not failed:
        await batch.done.wait()
    print(failed[0] if failed else "done", flush=True)


def request_bytes(body: str) -> bytes:
    path = "chat/completions" if '"messages"' in body else "completions"
    return (
        f"POST /v1/{path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="penstock bench synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=["worker", "floor", "client"])
    parser.add_argument("--router", help="its control endpoint")
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--port", type=int)
    parser.add_argument("--chunk", type=Path, help="what the floor writes per token")
    parser.add_argument("--answer", type=Path, help="and for a request that does not stream")
    parser.add_argument("--url")
    parser.add_argument("--body", default="{}")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--warm", type=int, default=0, help="requests before `ready`")
    parser.add_argument("--requests", type=int, default=64)
    options = parser.parse_args(arguments)
    if options.part == "worker":
        Worker(options.router, options.step_seconds).run()
    elif options.part == "floor":
        Floor.chunk, Floor.answer = options.chunk.read_bytes(), options.answer.read_bytes()
        uvloop.run(floor(options.port, options.step_seconds))
    else:
        request = request_bytes(options.body)
        count = (options.connections, options.warm, options.requests)
        uvloop.run(client(options.url, request, *count))
    return 0
