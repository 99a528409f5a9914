"""What the HTTP side costs: CPU time of the router's process per request and per streamed token.

    python -m penstock.bench.router [--streams 64] [--steps 250] [--requests 20000] [--json FILE]

The real server and OpenAI surface on loopback, clients in a process of their own, and instead of
the flow a source in the router's process that gives every stream a token each 20 ms. The floor
is a protocol without parser or surface that writes prepared bytes of the same length to the same
clients at the same pace: what is left above it is ours. Rows take turns, medians of rounds; CPU
time, so that neighbours on the machine disturb little. Last the longest turn of the loop after one
of two workers died with half of 2000 requests of 1000 tokens: what everybody else waits then.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvloop

from ..models.tokenizer import Tokenizer
from ..protocol.messages import (
    Compatibility,
    FinishReason,
    Hello,
    PromptReport,
    Sampling,
    TokenLogprobs,
    WorkerDescription,
    WorkerState,
)
from ..protocol.sockets import Mailbox
from ..router.app import App, Model, Wiring
from ..router.fleet import Fleet
from ..router.flow import Flow
from ..router.flow_numbers import FlowSettings
from ..router.http_server import HttpServer
from ..router.openai_facts import Facts
from ..router.request import Listener, Stages, Submission

STEP_SECONDS = 0.02
CHECKPOINT = Path(__file__).parent.parent / "models" / "demo" / "checkpoint"
STREAM_BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
TINY_BODY = {"prompt": "hi", "max_tokens": 1}


class Source:
    """A flow that never computes: the next token of every stream at each step."""

    def __init__(self, token_ids: list[int]):
        self._token_ids = token_ids
        self._streams: dict[int, tuple[Listener, int]] = {}  # listener, tokens still to come
        self._next = 0
        self.burst = 1  # tokens per stream and step, as speculation brings them
        self.tokens = 0

    def submit(self, submission: Submission, listener: Listener) -> int:
        self._next += 1
        if submission.sampling.max_tokens == 1:  # a tiny request is answered in the next turn
            asyncio.get_running_loop().call_soon(self._answer, self._next, listener)
        else:
            listener.prompt(PromptReport(self._next, 0, 0, 0.0, 0.0))
            self._streams[self._next] = (listener, submission.sampling.max_tokens)
        return self._next

    def _answer(self, request: int, listener: Listener) -> None:
        listener.prompt(PromptReport(request, 0, 0, 0.0, 0.0))
        listener.token(0, self._token_ids[0], None, "length")

    def step(self) -> None:
        """One frame: the next tokens of each stream."""
        for request, (listener, left) in list(self._streams.items()):
            self.tokens += self.burst
            for more in range(left, left - self.burst, -1):
                token_id = self._token_ids[more % len(self._token_ids)]
                listener.token(0, token_id, None, "length" if more == 1 else "")
            if left == self.burst:
                del self._streams[request]
            else:
                self._streams[request] = (listener, left - self.burst)

    def stop_choice(self, request: int, choice: int) -> None:
        self._streams.pop(request, None)

    def cancel(self, request: int) -> None:
        self._streams.pop(request, None)

    def stages(self, request: int) -> Stages:
        return Stages()


class Bare(asyncio.Protocol):
    """The floor: any bytes in, prepared bytes out."""

    chunk = b""
    answer = b""
    steps = 0

    def __init__(self, streams: "dict[Bare, int]"):
        self.streams = streams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if b'"stream"' in data:
            self.streams[self] = self.steps
        else:
            self.transport.write(self.answer)


def step_bare(streams: dict[Bare, int]) -> int:
    for one, left in list(streams.items()):
        one.transport.write(Bare.chunk)
        if left == 1:
            del streams[one]
            one.transport.write(b"0\r\n\r\n")
        else:
            streams[one] = left - 1
    return len(streams)


class Bench:
    """Both servers in this process, a client process per measurement."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        tokenizer = Tokenizer(CHECKPOINT)
        ids = tokenizer.encode("The quick brown fox jumps over the lazy dog.", False)
        self.source = Source([one for one in ids if tokenizer.token_text(one).isascii()])
        facts = Facts(("demo",), 1 << 20, tokenizer.vocabulary, (0,))
        well = lambda: (True, {})  # noqa: E731
        self.app = App(Wiring(self.source, [Model(facts, tokenizer)], well, well))
        self.server = HttpServer(self.app.handle, self.app.admit)
        self.bare_streams: dict[Bare, int] = {}

    async def start(self) -> None:
        await self.server.start("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        bare = await loop.create_server(lambda: Bare(self.bare_streams), "127.0.0.1", 0)
        self.bare = bare
        self.bare_port = bare.sockets[0].getsockname()[1]
        Bare.steps = self.options.steps
        # The same bytes per token and per answer as the real server sends.
        Bare.chunk = await self._sample(STREAM_BODY | {"max_tokens": 2})
        Bare.answer = await self._sample(TINY_BODY)

    async def _sample(self, body: dict[str, Any]) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(request_bytes(body))
        if not body.get("stream"):
            return await reader.read(1 << 16)
        while self.source.tokens < 2:
            await asyncio.sleep(STEP_SECONDS)
            self.source.step()
        answer = await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
        writer.close()
        chunks = answer.split(b"\r\n\r\n", 1)[1].split(b"\r\n")
        text = next(one for one in chunks if b'"content":"' in one and b'"role"' not in one)
        return b"%x\r\n%b\r\n" % (len(text), text)

    async def streams(self, bare: bool, burst: int = 1) -> float:
        """CPU µs per streamed token."""
        options = self.options
        self.source.burst = burst
        port = self.bare_port if bare else self.server.port
        body = STREAM_BODY | {"max_tokens": options.steps * burst}
        client = await run_client(port, body, options.streams, options.streams)
        # Warm until all are there; then the clock runs for all steps but the last ones.
        steps = options.steps - 20
        await self._paced(5, bare)
        while (len(self.bare_streams) if bare else self.app.counters.running) < options.streams:
            await self._paced(1, bare)
        gc.collect()
        gc.freeze()
        begun, tokens = time.process_time(), await self._paced(steps - 20, bare)
        spent = time.process_time() - begun
        await self._paced(60, bare)
        await client.wait()
        return spent / tokens * 1e6

    async def _paced(self, steps: int, bare: bool) -> int:
        loop = asyncio.get_running_loop()
        tokens = 0
        due = loop.time()
        for _ in range(steps):
            due += STEP_SECONDS
            await asyncio.sleep(max(0.0, due - loop.time()))
            before = self.source.tokens
            tokens += step_bare(self.bare_streams) if bare else 0
            if not bare:
                self.source.step()
                tokens += self.source.tokens - before
        return tokens

    async def requests(self, bare: bool) -> float:
        """CPU µs per tiny completion."""
        options = self.options
        port = self.bare_port if bare else self.server.port
        client = await run_client(port, TINY_BODY, options.concurrency, options.requests)
        assert client.stdout is not None
        await client.stdout.readline()  # connected and warm
        begun = time.process_time()
        await client.stdout.readline()
        spent = time.process_time() - begun
        await client.wait()
        return spent / options.requests * 1e6


def request_bytes(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    path = b"/v1/chat/completions" if "messages" in body else b"/v1/completions"
    head = b"POST %b HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" % path
    return head + b"Content-Length: %d\r\n\r\n" % len(payload) + payload


# --- the client's process -------------------------------------------------------------------------


async def run_client(
    port: int, body: dict[str, Any], connections: int, requests: int
) -> asyncio.subprocess.Process:
    arguments = ["--client", json.dumps([port, body, connections, requests])]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.bench.router", *arguments, stdout=subprocess.PIPE
    )


class ClientConnection(asyncio.Protocol):
    """Asks again as soon as an answer ends, until enough have been asked for."""

    def __init__(self, request: bytes, end: bytes, more: Callable[[], bool]):
        self._request = request
        self._end = end
        self._more = more
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-len(self._end) :]
        if self._tail == self._end:
            self._tail = b""
            if self._more():
                self.ask()


async def client(port: int, body: dict[str, Any], connections: int, requests: int) -> None:
    """Say a line when warm and a line when done."""
    loop = asyncio.get_running_loop()
    left = 0
    open_answers = connections
    done = asyncio.Event()

    def more() -> bool:
        nonlocal left, open_answers
        if left > 0:
            left -= 1
            return True
        open_answers -= 1
        if open_answers == 0:
            done.set()
        return False

    end = b"0\r\n\r\n" if body.get("stream") else b"}}}"
    protocols: list[ClientConnection] = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: ClientConnection(request_bytes(body), end, more), "127.0.0.1", port
        )
        protocols.append(protocol)
    for rounds in (requests // 10, requests) if not body.get("stream") else (requests,):
        left, open_answers = rounds - connections, connections
        done.clear()
        if rounds == requests:
            print("ready", flush=True)
        for protocol in protocols:
            protocol.ask()
        await done.wait()
    print("done", flush=True)


# --- a worker is lost -----------------------------------------------------------------------------


class Deaf:
    """A listener that nothing is told."""

    def prompt(self, report: PromptReport) -> None: ...

    def token(
        self, choice: int, token_id: int, logprobs: TokenLogprobs | None, finish: FinishReason
    ) -> None: ...

    def failed(self, status: int, reason: str) -> None: ...


def longest_turn(requests: int = 2000, tokens: int = 1000) -> float:
    """CPU µs, of the real flow on real links."""
    router, *boxes = (Mailbox(name) for name in ("router", "one", "other"))
    fleet = Fleet(silence_seconds=1e9)
    flow = Flow(router, fleet, FlowSettings(), time.monotonic, first_id=0)
    kind = Compatibility(1, "m", "c", "bf16", "layout", 1, "none")
    described = WorkerDescription("aggregated", "m", kind, 32, 1 << 20, 1 << 20, "none", "cpu", 1)
    for box in boxes:
        fleet.hello(box.me, Hello(described, WorkerState(), []), 0.0)
        router.connect(box.me.endpoint)
    for number in range(requests):
        prompt = [(number + at) % 30000 for at in range(tokens)]
        flow.submit(Submission("m", prompt, 1, Sampling(1, max_tokens=100)), Deaf())
        for box in (router, *boxes):
            box.receive()
    turns: list[float] = []
    lost = boxes[0].me.endpoint
    begun = time.thread_time()
    fleet.lost(lost, 0.0)
    flow.worker_lost(lost)
    turns.append(time.thread_time() - begun)
    while flow.behind:
        begun = time.thread_time()
        flow.turn(time.monotonic())
        turns.append(time.thread_time() - begun)
        boxes[1].receive()
    for box in (router, *boxes):
        box.close()
    return max(turns) * 1e6


# --- the report -----------------------------------------------------------------------------------


async def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    bench = Bench(options)
    await bench.start()
    rows: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for bare in (True, False):
            whose = "bare write" if bare else "penstock"
            rows.setdefault(f"token, {whose}", []).append(await bench.streams(bare))
            rows.setdefault(f"request, {whose}", []).append(await bench.requests(bare))
        rows.setdefault("token, penstock, 4 a step", []).append(await bench.streams(False, 4))
        rows.setdefault("turn after a loss, longest", []).append(longest_turn())
    bench.bare.close()
    await bench.server.stop()
    bench.app.close()
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench router", description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--steps", type=int, default=250, help="of 20 ms, at least 50")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.client:
        uvloop.run(client(*json.loads(options.client)))
        return 0
    rows = uvloop.run(measure(options))
    print(f"CPU µs of the server's process, median (lowest-highest) of {options.rounds} rounds")
    for name, values in sorted(rows.items()):
        low, high = min(values), max(values)
        print(f"{name:28} {statistics.median(values):7.2f}  ({low:.2f}-{high:.2f})")
    if options.json:
        machine = {"python": platform.python_version(), "machine": platform.processor()}
        result = {"machine": machine, "microseconds": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
