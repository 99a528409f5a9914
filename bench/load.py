"""A closed loop of streamed completions, in a process of its own.

    penstock bench load --url http://127.0.0.1:8000 --prompt-tokens 2000 --concurrency 8

Each of `concurrency` connections asks, reads the stream to its end, and asks again. Prompts are
token ids, exactly as many as asked, and another prompt each time, so that no prefix cache answers.
Every request gets `output_tokens` tokens: the end of the text is ignored. Prints one JSON object:
every request with its times. Any answer that is not whole ends it with status 1, but where
`--requests 0` says: until standard input closes; then failures are counted.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import httptools
import msgspec
import uvloop

from .cluster import Site, split_address

# Ids that every vocabulary has, and that are ordinary words in it.
FIRST_ID, LAST_ID = 300, 2000


class LoadError(Exception):
    """An answer was not what it must be."""


class Plan(msgspec.Struct, frozen=True):
    """What to ask, and how often."""

    url: str
    prompt_tokens: int
    concurrency: int
    requests: int  # 0 = until standard input closes
    output_tokens: int
    seed: int = 0
    same_prompt: bool = False
    model: str = ""


class Record(msgspec.Struct):
    """One request; times in seconds, `started` since the loop began.

    `gaps` lie between events with text. A token that ends within a character shows nothing of its
    own, so there may be fewer events than tokens: `events` says how many.
    """

    started: float
    first: float = 0.0  # from the request to the first text
    gaps: list[float] = []
    events: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Outcome(msgspec.Struct):
    """All of one loop."""

    records: list[Record]
    wall_seconds: float
    cpu_seconds: float  # of this process: how far it is from being the bottleneck
    failures: list[str] = []


class _Choice(msgspec.Struct):
    text: str = ""


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[None] | None = None
        self._asked_at = 0.0
        self._now = 0.0
        self._last = 0.0
        self._left = b""  # the beginning of an event
        self._done = False
        self.record = Record(0.0)

    # --- asyncio's calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (LoadError, httptools.HttpParserError) as error:
            # httptools wraps what a callback raises.
            cause = error.__context__ if isinstance(error.__context__, LoadError) else error
            self._fail(str(cause))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was closed ({exc or 'by the server'})")

    # --- the parser's calls ----------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        self._left += body
        if self._parser.get_status_code() != 200:
            return
        *events, self._left = self._left.split(b"\n\n")
        for event in events:
            self._event(event.removeprefix(b"data: "))

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            raise LoadError(f"HTTP {status}: {self._left[:300].decode(errors='replace')}")
        if not self._done:
            raise LoadError("the stream ended without [DONE]")
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _event(self, event: bytes) -> None:
        if event == b"[DONE]":
            self._done = True
            return
        content = _decode(event)
        if content.error is not None:
            raise LoadError(f"error in the stream: {content.error}")
        record = self.record
        if content.usage is not None:
            record.tokens = content.usage.completion_tokens
            record.prompt_tokens = content.usage.prompt_tokens
            details = content.usage.prompt_tokens_details
            record.cached_tokens = details.cached_tokens if details else 0
        if not content.choices or not content.choices[0].text:
            return
        record.events += 1
        if record.events == 1:
            record.first = self._now - self._asked_at
        else:
            record.gaps.append(round(self._now - self._last, 6))
        self._last = self._now

    def _fail(self, reason: str) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(LoadError(reason))
        self.transport.close()

    # --- what the loop asks ----------------------------------------------------------------------

    async def ask(self, request: bytes, begun: float) -> Record:
        self._answered = asyncio.get_running_loop().create_future()
        self._done, self._left = False, b""
        self._asked_at = time.perf_counter()
        self.record = Record(self._asked_at - begun, gaps=[])
        self.transport.write(request)
        try:
            await self._answered
        finally:
            self._answered = None
        return self.record


class Loop:
    """Asks by a plan until it is fulfilled."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._host, self._port = split_address(plan.url)
        self._asked = 0
        self.open = True  # false: ask no more
        self.outcome = Outcome([], 0.0, 0.0)

    async def run(self) -> Outcome:
        plan = self._plan
        begun = time.perf_counter()
        await asyncio.gather(*(self._line(begun) for _ in range(plan.concurrency)))
        self.outcome.wall_seconds = time.perf_counter() - begun
        self.outcome.cpu_seconds = time.process_time()
        return self.outcome

    async def _line(self, begun: float) -> None:
        """One connection after the other, as long as there is something to ask."""
        forgiving = self._plan.requests == 0
        while self._more():
            try:
                async with self._connected() as connection:
                    while self._more():
                        self._asked += 1
                        request = request_bytes(self._plan, self._asked)
                        record = await connection.ask(request, begun)
                        check(record, self._plan)
                        self.outcome.records.append(record)
            except (LoadError, OSError) as error:
                if not forgiving:
                    raise
                self.outcome.failures.append(str(error))
                await asyncio.sleep(0.05)  # a server that refuses is not helped by more

    def _more(self) -> bool:
        return self.open and (self._plan.requests == 0 or self._asked < self._plan.requests)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        try:
            yield connection
        finally:
            connection.transport.close()


def prompt(plan: Plan, number: int) -> list[int]:
    """The ids of one request's prompt; others with another number or seed."""
    chance = random.Random(f"{plan.seed} {0 if plan.same_prompt else number}")
    return chance.choices(range(FIRST_ID, LAST_ID), k=plan.prompt_tokens)


def request_bytes(plan: Plan, number: int) -> bytes:
    body = {
        "model": plan.model,
        "prompt": prompt(plan, number),
        "max_tokens": plan.output_tokens,
        "ignore_eos": True,
        "skip_special_tokens": False,  # they count as tokens, so they must be seen
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    payload = msgspec.json.encode(body)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(payload) + payload


def check(record: Record, plan: Plan) -> None:
    """An answer that is not whole makes every figure worthless."""
    if record.tokens != plan.output_tokens:
        raise LoadError(f"{record.tokens} tokens came, {plan.output_tokens} were asked for")
    if record.prompt_tokens != plan.prompt_tokens:
        raise LoadError(f"the prompt counts {record.prompt_tokens}, not {plan.prompt_tokens}")
    if record.events == 0:
        raise LoadError("no event held any text")


async def run(plan: Plan) -> Outcome:
    loop = Loop(plan)
    if plan.requests == 0:

        def closed() -> None:
            loop.open = bool(sys.stdin.buffer.read1(1))  # type: ignore[attr-defined]
            if not loop.open:
                asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), closed)
    return await loop.run()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="penstock bench load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=100, metavar="N")
    parser.add_argument("--concurrency", type=int, default=1, metavar="N")
    parser.add_argument("--requests", type=int, default=8, metavar="N", help="in all")
    parser.add_argument("--output-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other prompts")
    parser.add_argument("--same-prompt", action="store_true", help="the prefix cache may answer")
    options = parser.parse_args(arguments)
    try:
        with contextlib.closing(Site(options.url)) as site:
            plan = Plan(**vars(options), model=site.model())
        outcome = uvloop.run(run(plan))
    except (LoadError, OSError) as error:
        print(f"penstock bench load: {error}", file=sys.stderr)
        return 1
    print(json.dumps(msgspec.to_builtins(outcome)))
    return 0
