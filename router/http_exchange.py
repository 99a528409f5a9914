"""One request and its answer. Knows how HTTP/1.1 frames bodies, not where bytes go.

The connection (http.py) makes exchanges and is told when one has ended.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
JSON = b"Content-Type: application/json\r\n"
EVENT_STREAM = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\n"


@dataclass(slots=True)
class HttpRequest:
    """A request whose body is complete; header names are lower case."""

    method: str = ""
    path: str = ""
    query: str = ""
    version: str = "1.1"
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes | bytearray = b""
    keep_alive: bool = True
    admitted: bool = False  # by whoever was asked before the body was read


class Wire(Protocol):
    """What an exchange needs of its connection."""

    @property
    def send(self) -> Callable[[bytes], None]: ...

    def ended(self, keep_alive: bool) -> None:
        """The answer is complete; the connection may answer the next request, or close."""
        ...

    def date(self) -> bytes: ...

    def now(self) -> float: ...


def response(
    status: int, headers: bytes, body: bytes, keep_alive: bool, version: str, date: bytes
) -> bytes:
    """A whole answer with its length."""
    return b"%b%bContent-Length: %d\r\n%b%b\r\n%b" % (
        STATUS_LINES[status],
        headers,
        len(body),
        date,
        _connection(keep_alive, version),
        body,
    )


def _connection(keep_alive: bool, version: str) -> bytes:
    if not keep_alive:
        return b"Connection: close\r\n"
    return b"" if version == "1.1" else b"Connection: keep-alive\r\n"


class Exchange:
    """Answers one request, once: either `respond`, or `start_stream`, `write`..., `end`.

    After the client is gone every call is a no-op, so that whoever answers needs no flag.
    """

    __slots__ = (
        "request",
        "started",
        "status",
        "_send",
        "_wire",
        "_chunked",
        "_gone",
        "_disconnected",
        "_finished",
    )

    def __init__(self, request: HttpRequest, wire: Wire):
        self.request = request
        self.started = wire.now()
        self.status = 0  # sent so far; 0 = nothing yet
        self._send = wire.send
        self._wire = wire
        self._chunked = False
        self._gone = False  # the client left, or the answer is complete
        self._disconnected: Callable[[], object] | None = None
        self._finished: Callable[[Exchange], None] | None = None

    @property
    def open(self) -> bool:
        """True while an answer is still owed to somebody."""
        return not self._gone

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Called at most once, when the client leaves before the answer is complete."""
        self._disconnected = callback

    def on_finish(self, callback: Callable[["Exchange"], None]) -> None:
        """Called once, when the answer is complete or (status 499) the client has left."""
        self._finished = callback

    def disconnect(self) -> None:
        """The connection's word that the client is gone."""
        callback, self._disconnected = self._disconnected, None
        if self._gone:
            return
        self._gone = True
        self.status = 499
        if self._finished is not None:
            self._finished(self)
        if callback is not None:
            callback()

    def respond(self, status: int, body: bytes, headers: bytes = JSON) -> None:
        if self._gone:
            return
        if self.status:
            raise RuntimeError("an answer has already begun")
        request = self.request
        whole = response(
            status, headers, body, request.keep_alive, request.version, self._wire.date()
        )
        if request.method == "HEAD":
            whole = whole[: len(whole) - len(body)]
        self.status = status
        self._send(whole)
        self._finish()

    def start_stream(self, headers: bytes = EVENT_STREAM) -> None:
        if self._gone:
            return
        request = self.request
        # HTTP/1.0 knows no chunks: there the end of the connection ends the body.
        self._chunked = request.version == "1.1"
        if not self._chunked:
            request.keep_alive = False
        self.status = 200
        self._send(
            b"%b%b%b%b%b\r\n"
            % (
                STATUS_LINES[200],
                headers,
                b"Transfer-Encoding: chunked\r\n" if self._chunked else b"",
                self._wire.date(),
                _connection(request.keep_alive, request.version),
            )
        )

    def write(self, data: bytes) -> None:
        if self._gone or not data:  # an empty chunk would end the body
            return
        self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """Send `data` and complete the stream."""
        if self._gone:
            return
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self._send(chunk + b"0\r\n\r\n")
        elif data:
            self._send(data)
        self._finish()

    def _finish(self) -> None:
        self._gone = True
        self._disconnected = None
        if self._finished is not None:
            self._finished(self)
        self._wire.ended(self.request.keep_alive)
