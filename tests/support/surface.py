"""A surface to test against: the real server and app on a socket, a scripted flow behind them."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import uvloop

from penstock.models.chat_template import ChatTemplate
from penstock.models.text_stream import ByteLevelStream, ByteTable
from penstock.protocol.messages import FinishReason, PromptReport, TokenLogprobs
from penstock.router.app import App, Model, Wiring
from penstock.router.http_connection import Limits
from penstock.router.http_server import HttpServer
from penstock.router.openai_facts import Facts
from penstock.router.request import Listener, Refusal, Stages, Submission

Result = TypeVar("Result")

END = 256  # the model's own end
WORDS = ("hello", " world", "ST", "OP", "ab", "bc", "\U0001f600")
VOCABULARY = 257 + len(WORDS)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def run(scenario: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop, as in earnest; whatever hangs fails. Clients are closed at the end."""

    async def to_the_end() -> Result:
        try:
            return await asyncio.wait_for(scenario, 60)
        finally:
            for client in Client.opened:
                client.abort()
            Client.opened.clear()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(to_the_end())


class ByteTokenizer:
    """Ids below 256 are bytes; 256 ends; then come a few words."""

    def __init__(self) -> None:
        self.table = [bytes([one]) for one in range(256)] + [b"<|end|>"]
        self.table += [word.encode() for word in WORDS]
        self.shown = ByteTable(self.table)
        self.visible = ByteTable([*self.table[:END], b"", *self.table[END + 1 :]])
        self.template = ChatTemplate(TEMPLATE)
        self.encoded = asyncio.Event()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        table = self.visible if skip_special_tokens else self.shown
        return b"".join(table.bytes[one] for one in token_ids).decode(errors="replace")

    def stream(self, skip_special_tokens: bool = True) -> ByteLevelStream:
        return ByteLevelStream(self.visible if skip_special_tokens else self.shown)

    def token_bytes(self, token_id: int) -> bytes:
        return self.table[token_id]

    def token_text(self, token_id: int) -> str:
        return self.table[token_id].decode(errors="replace")

    def render(self, messages: Any, tools: Any = None, **variables: Any) -> str:
        return self.template.render(messages, tools, **variables)


def spell(*pieces: str | int) -> list[int]:
    """Token ids: an int is itself, a known word one token, other text its bytes."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        elif piece in WORDS:
            ids.append(257 + WORDS.index(piece))
        else:
            ids += piece.encode()
    return ids


@dataclass
class Running:
    submission: Submission
    listener: Listener
    at: list[int]  # next token per choice
    stopped: set[int] = field(default_factory=set)


class ScriptedRequests:
    """Answers every submission with `script(submission, choice)`, one token per turn of the loop.

    With `hold` set, that many tokens come and then nothing more, until the request is cancelled.
    """

    def __init__(self) -> None:
        self.script: Callable[[Submission, int], list[int]] = lambda submission, choice: spell(
            "hello", " world", END
        )
        self.hold: int | None = None
        self.fail_after: int | None = None
        self.refusal: Refusal | None = None
        self.silent = False  # about log-probabilities, whoever asks
        self.submissions: list[Submission] = []
        self.cancelled: list[int] = []
        self.stopped: list[tuple[int, int]] = []
        self.held = asyncio.Event()
        self.gone = asyncio.Event()
        self._running: dict[int, Running] = {}

    def submit(self, submission: Submission, listener: Listener) -> int:
        if self.refusal is not None:
            raise self.refusal
        number = len(self.submissions)
        self.submissions.append(submission)
        self._running[number] = Running(submission, listener, [0] * submission.choices)
        asyncio.get_running_loop().call_soon(self._begin, number)
        return number

    def stop_choice(self, request: int, choice: int) -> None:
        self.stopped.append((request, choice))
        self._running[request].stopped.add(choice)

    def cancel(self, request: int) -> None:
        self.cancelled.append(request)
        self._running.pop(request, None)
        self.gone.set()

    def stages(self, request: int) -> Stages:
        return Stages(queue=0.001, prefill=0.002)

    def _begin(self, number: int) -> None:
        running = self._running.get(number)
        if running is None:
            return
        sampling = running.submission.sampling
        reported: list[TokenLogprobs | None] = []
        if sampling.prompt_logprobs >= 0 and not self.silent:
            ids = running.submission.token_ids
            reported = [None, *(logprobs_of(one, sampling.prompt_logprobs) for one in ids[1:])]
        running.listener.prompt(PromptReport(number, 0, 2, 0.0, 0.0, reported))
        self._step(number, 0)

    def _step(self, number: int, count: int) -> None:
        """One token for every choice that goes on."""
        running = self._running.get(number)
        if running is None:
            return
        if count == self.hold:
            self.held.set()
            return
        if count == self.fail_after:
            del self._running[number]
            running.listener.failed(503, "the worker died")
            return
        for choice in range(running.submission.choices):
            if number in self._running and running.at[choice] >= 0:
                self._token(running, choice)
        if any(at >= 0 for at in running.at):
            asyncio.get_running_loop().call_soon(self._step, number, count + 1)
        else:
            self._running.pop(number, None)

    def _token(self, running: Running, choice: int) -> None:
        sampling = running.submission.sampling
        if choice in running.stopped:
            running.at[choice] = -1
            return
        if sampling.max_tokens == 0:
            running.at[choice] = -1
            running.listener.token(choice, -1, None, "length")
            return
        ids = self.script(running.submission, choice)
        at = running.at[choice]
        running.at[choice] += 1
        finish: FinishReason = ""
        if ids[at] in sampling.stop_token_ids and at >= sampling.min_tokens:
            finish = "stop"
        elif at + 1 in (sampling.max_tokens, len(ids)):
            finish = "length"
        if finish:
            running.at[choice] = -1
        asked = sampling.logprobs >= 0 and not self.silent
        logprobs = logprobs_of(ids[at], sampling.logprobs) if asked else None
        running.listener.token(choice, ids[at], logprobs, finish)


def logprobs_of(token_id: int, best: int) -> TokenLogprobs:
    """The token itself first, then ids 65, 66, ..."""
    ids = [token_id, *range(65, 65 + best)][:best]
    return TokenLogprobs(-0.5, ids, [-0.5 - 0.25 * rank for rank in range(len(ids))])


@dataclass
class Reply:
    """One HTTP answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        fields = self.json()["error"]
        assert set(fields) == {"message", "type", "param", "code"}
        return fields

    def events(self) -> list[Any]:
        """The payloads of an event stream; [DONE] as the string."""
        found: list[Any] = []
        for event in self.body.decode().split("\n\n")[:-1]:
            assert event.startswith("data: ")
            payload = event.removeprefix("data: ")
            found.append(payload if payload == "[DONE]" else json.loads(payload))
        return found


class Client:
    """One raw connection."""

    opened: "ClassVar[list[Client]]" = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        self.opened.append(self)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, head: bool = False) -> Reply:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(lines[0].split()[1])
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        if head or status == 100:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = await self.reader.read()
        return Reply(status, headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await self.reader.readline(), 16)
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if size == 0:
                return body

    def abort(self) -> None:
        self.writer.transport.abort()

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


class Surface:
    """`async with Surface() as surface:` a server on a free port."""

    def __init__(
        self,
        limits: Limits | None = None,
        facts: Facts | None = None,
        keys: Sequence[str] = (),
        models: Sequence[Model] = (),
        **wiring: Any,
    ):
        self.requests = ScriptedRequests()
        self.tokenizer = ByteTokenizer()
        self.facts = facts or Facts(("tiny", "alias"), 4096, VOCABULARY, (END,))
        self.state: tuple[bool, dict[str, Any]] = (True, {"status": "ok"})
        self.app = App(
            Wiring(
                self.requests,
                [Model(self.facts, self.tokenizer), *models],
                lambda: self.state,
                lambda: self.state,
                keys,
                **wiring,
            )
        )
        self.server = HttpServer(self.app.handle, self.app.admit, limits)

    async def __aenter__(self) -> "Surface":
        await self.server.start("127.0.0.1", 0)
        self.port = self.server.port
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.server.stop()
        self.app.close()

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def post(self, path: str, body: Any, headers: str = "") -> Reply:
        """One request on its own connection; a body that is not bytes is sent as JSON."""
        client = await self.connect()
        client.send(post(path, body, headers))
        reply = await client.reply()
        client.writer.close()
        return reply

    async def get(self, path: str, headers: str = "") -> Reply:
        client = await self.connect()
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        reply = await client.reply()
        client.writer.close()
        return reply


def post(path: str, body: Any, headers: str = "") -> bytes:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    if "content-type" not in headers.lower():
        headers += "Content-Type: application/json\r\n"
    length = f"Content-Length: {len(payload)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}{length}\r\n".encode() + payload


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
