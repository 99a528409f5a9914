"""One client's connection: bytes to requests, answers in order, patience.

It answers its requests one at a time: bytes that come while an answer is under way are held
unparsed (a small bound, then the socket is not read), so there is at most one open exchange.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, cast

import httptools

from .http_exchange import JSON, Exchange, HttpRequest, response
from .http_outbox import Outgoing, Turn
from .openai_error import ApiError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NEVER = float("inf")
# Pipelined requests answered before the loop may turn to other connections.
ANSWERS_AT_ONCE = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take before it is refused."""

    header_bytes: int = 32 << 10
    headers: int = 100
    body_bytes: int = 16 << 20
    held_bytes: int = 64 << 10  # of pipelined requests, while one is being answered
    connections: int = 16384
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    unsent_bytes: int = 256 << 10  # a stream's reader is stalled above this...
    stalled_seconds: float = 30.0  # ...for this long
    linger_bytes: int = 1 << 20  # read and dropped after a refusal, so that it can be read
    linger_seconds: float = 2.0


Handle = Callable[[HttpRequest, Exchange], None]
# Asked when the headers of a request with a body are complete: an ApiError saves reading the body.
Admit = Callable[[HttpRequest], ApiError | None]


class Owner(Protocol):
    """What a connection asks of its server."""

    limits: Limits
    draining: bool
    date: bytes
    handle: Handle
    admit: Admit
    connections: set["Connection"]
    turn: Turn

    def left(self, connection: "Connection") -> None: ...


class Stage(Enum):
    """Where the parser stands in a connection's incoming bytes."""

    BETWEEN = "no byte of the next request yet"
    HEADERS = "in the headers"
    BODY = "in the body"
    DEAF = "nothing more is parsed: the connection ends with what is being answered"


class Connection(asyncio.Protocol):
    """One client. Parsed requests wait in `_waiting`; `_exchange` is the one being answered."""

    def __init__(self, server: Owner):
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # pyright: ignore[reportAttributeAccessIssue]
        self._outgoing = Outgoing(server.turn, lambda data: None)
        self.send: Callable[[bytes], None] = self._outgoing.send
        self._parser = httptools.HttpRequestParser(self)
        self._stage = Stage.BETWEEN
        self._request = HttpRequest()
        self._refusal: ApiError | None = None  # why a parser callback raised
        self._continue_owed = False
        self._header_bytes = 0
        self._waiting: deque[HttpRequest | ApiError] = deque()
        self._held = bytearray()
        self._exchange: Exchange | None = None
        self._answering = False  # inside _answer, further up the stack
        self._closing = False
        self._dropped = 0
        self._deadline = NEVER
        self._stalled_since = NEVER

    # --- the transport's words ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._outgoing = Outgoing(self._server.turn, self._transport.write)
        self.send = self._outgoing.send
        self._transport.set_write_buffer_limits(high=self._limits.unsent_bytes)
        _tune(transport.get_extra_info("socket"), self._limits.stalled_seconds)
        self._server.connections.add(self)
        self._deadline = self._loop.time() + self._limits.header_seconds
        if len(self._server.connections) > self._limits.connections or self._server.draining:
            self._refuse(ApiError("too many connections", status=503, retry_after=1))

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.DEAF:
            self._drop(len(data))
        elif self._exchange is not None or self._waiting:
            self._held += data
            if len(self._held) > self._limits.held_bytes:
                self._transport.pause_reading()
        else:
            self._parse(data)
            self._answer()

    def eof_received(self) -> bool:
        return False  # a client that shuts its side is gone: the transport closes

    def pause_writing(self) -> None:
        self._stalled_since = self._loop.time()

    def resume_writing(self) -> None:
        self._stalled_since = NEVER

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._stage = Stage.DEAF
        self._waiting.clear()
        self._outgoing.drop()
        self._server.left(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnect()

    # --- the server's words ---------------------------------------------------------------------

    def look(self, now: float) -> None:
        """End what has taken too long."""
        if now - self._stalled_since > self._limits.stalled_seconds:
            self.abort()
        elif now >= self._deadline and self._exchange is None:
            if self._closing:
                self.abort()
            elif self._stage is Stage.BETWEEN:
                self._close()
            else:
                waited = "headers" if self._stage is Stage.HEADERS else "body"
                self._refuse(ApiError(f"the request's {waited} took too long", status=408))

    def drain(self) -> None:
        """Close when nothing is owed, at the latest after the answer under way."""
        if self._exchange is not None:
            self._exchange.request.keep_alive = False
        elif not self._waiting and self._stage is Stage.BETWEEN:
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    # --- reading --------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Feed the parser; its callbacks below fill `_waiting`."""
        while data and self._stage is not Stage.DEAF:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # No other protocol is spoken here; a server may ignore the wish (RFC 9110, 7.8).
                self._parser = httptools.HttpRequestParser(self)
                data = data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                if self._stage is not Stage.DEAF:  # else: bytes after "Connection: close"
                    self._give_up(self._refusal or ApiError(f"bad HTTP: {error}"))
            if self._stage is Stage.HEADERS:
                # Counted whole, not per header: a header that never ends is never given out.
                self._header_bytes += len(data)
                if self._header_bytes > self._limits.header_bytes:
                    self._give_up(self._headers_too_large())
            return

    def _give_up(self, error: ApiError) -> None:
        """Answer this after what waits, and read no more requests."""
        self._stage = Stage.DEAF
        self._held.clear()
        self._waiting.append(error)

    def _refuse(self, error: ApiError) -> None:
        self._give_up(error)
        self._answer()

    def _stop_parsing(self, error: ApiError) -> None:
        """From a parser callback: leave the parser, which then may not be fed again."""
        self._refusal = error
        raise error

    def _headers_too_large(self) -> ApiError:
        limits = self._limits
        return ApiError(
            f"the request's headers are larger than {limits.header_bytes} bytes "
            f"or more than {limits.headers}",
            status=431,
        )

    def on_message_begin(self) -> None:
        self._stage = Stage.HEADERS
        self._deadline = self._loop.time() + self._patience()
        self._request = HttpRequest()
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        request = self._request
        if not url.startswith(b"/") and b"://" in url:
            parsed = httptools.parse_url(url)
            url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
        path, _, query = url.decode("latin-1").partition("?")
        request.path, request.query = path, query
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._limits.header_bytes:
            self._stop_parsing(self._headers_too_large())
        if self._stage is not Stage.HEADERS:
            return  # a trailer
        headers = self._request.headers
        name = name.lower()
        if name in headers:
            value = headers[name] + b", " + value
        headers[name] = value
        if len(headers) > self._limits.headers:
            self._stop_parsing(self._headers_too_large())

    def on_headers_complete(self) -> None:
        request, parser = self._request, self._parser
        headers = request.headers
        request.method = parser.get_method().decode()
        request.version = parser.get_http_version()
        request.keep_alive = parser.should_keep_alive()
        self._stage = Stage.BODY
        self._header_bytes = 0  # from here on it counts trailers
        if request.version not in ("1.1", "1.0"):
            self._stop_parsing(ApiError("only HTTP/1.1 and 1.0 are spoken here", status=505))
        if b"host" not in headers and request.version == "1.1":
            self._stop_parsing(ApiError("the Host header is missing"))
        length = int(headers.get(b"content-length", b"0"))
        if length == 0 and b"transfer-encoding" not in headers:
            return
        self._deadline = self._loop.time() + self._patience()
        if length > self._limits.body_bytes:
            self._stop_parsing(self._body_too_large())
        refusal = self._server.admit(request)
        if refusal is not None:
            self._stop_parsing(refusal)
        if b"expect" in headers:
            self._expect(headers[b"expect"])

    def _expect(self, wish: bytes) -> None:
        if wish.lower() != b"100-continue":
            self._stop_parsing(ApiError("only Expect: 100-continue is known here", status=417))
        if self._exchange is None and not self._waiting:
            self.send(CONTINUE)
        else:
            self._continue_owed = True  # an answer still to be sent goes first

    def on_body(self, piece: bytes) -> None:
        request = self._request
        if not request.body:
            request.body = piece  # most bodies come in one piece and are never copied
        else:
            if isinstance(request.body, bytes):
                request.body = bytearray(request.body)
            request.body += piece
        if len(request.body) > self._limits.body_bytes:
            self._stop_parsing(self._body_too_large())

    def _body_too_large(self) -> ApiError:
        limit = self._limits.body_bytes
        return ApiError(f"the request's body is larger than {limit} bytes", status=413)

    def on_message_complete(self) -> None:
        self._stage = Stage.BETWEEN
        self._continue_owed = False
        self._waiting.append(self._request)
        if not self._request.keep_alive:
            self._stage = Stage.DEAF

    def _drop(self, count: int) -> None:
        """Bytes nobody will parse; reading some lets the client see a refusal, not a reset."""
        self._dropped += count
        if self._dropped > self._limits.linger_bytes:
            self._transport.pause_reading()

    # --- answering ------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Begin answers until one stays open or nothing is left to answer."""
        if self._answering:
            return
        self._answering = True
        for _ in range(ANSWERS_AT_ONCE):
            if self._exchange is not None or self._closing:
                break
            if self._waiting:
                self._begin(self._waiting.popleft())
            elif self._held and self._stage is not Stage.DEAF:
                held = bytes(self._held)
                self._held.clear()
                self._transport.resume_reading()
                self._parse(held)
            else:
                break
        else:
            self._loop.call_soon(self._answer)
        self._answering = False
        if self._exchange is None and not self._waiting and self._continue_owed:
            self._continue_owed = False
            self.send(CONTINUE)

    def _begin(self, request: HttpRequest | ApiError) -> None:
        if isinstance(request, ApiError):
            headers, body = JSON + request.headers(), request.body()
            whole = response(request.status, headers, body, False, "1.1", self._server.date)
            self.send(whole)
            self._close(unread=True)
            return
        if self._server.draining:
            request.keep_alive = False
        self._exchange = exchange = Exchange(request, self)
        try:
            self._server.handle(request, exchange)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            if exchange.status == 0:
                request.keep_alive = False
                exchange.respond(500, ApiError("internal error", status=500).body())
            else:
                self.abort()

    def ended(self, keep_alive: bool) -> None:
        self._exchange = None
        if not keep_alive:
            self._close()
        elif not self._closing:
            self._deadline = self._loop.time() + self._patience()
            self._answer()

    def _patience(self) -> float:
        limits = self._limits
        waits = {Stage.HEADERS: limits.header_seconds, Stage.BODY: limits.body_seconds}
        return waits.get(self._stage, limits.idle_seconds)

    def date(self) -> bytes:
        return self._server.date

    def now(self) -> float:
        return self._loop.time()

    def _close(self, unread: bool = False) -> None:
        """Close after what is written; `unread`: the client may still be sending.

        Closing a socket with unread bytes resets it, and a reset can destroy the answer on its
        way. So the sending side is shut first and what comes is dropped, for a while.
        """
        self._outgoing.flush()
        self._closing = True
        self._stage = Stage.DEAF
        self._deadline = self._loop.time() + self._limits.stalled_seconds
        if unread and self._transport.can_write_eof():
            self._transport.write_eof()
            self._deadline = self._loop.time() + self._limits.linger_seconds
        else:
            self._transport.close()


def _tune(sock: socket.socket | None, stalled_seconds: float) -> None:
    """Tokens leave at once; a peer that acknowledges nothing for so long is given up.

    The second matters because the kernel takes megabytes before the write buffer here sees a
    stalled reader: minutes of tokens.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, int(stalled_seconds * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
