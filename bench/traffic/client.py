"""One HTTP request over one connection of its own, so that leaving is closing it.

Knows no request's meaning: it collects bytes, and says how the exchange ended.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Literal, cast

import httptools
import msgspec

How = Literal["complete", "cut", "left", "hung"]


@dataclass(frozen=True, slots=True)
class Reply:
    """How one exchange ended. `cut`: the connection failed or was closed by the other side."""

    how: How
    status: int  # 0 = none came
    body: bytes
    seconds: float
    first_seconds: float  # until the first byte; 0 = none came
    reason: str = ""


class _Exchange(asyncio.Protocol):
    """Bytes of one answer."""

    def __init__(self, leave_events: int):
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._events_left = leave_events
        self._leaves = leave_events > 0
        self.ended: asyncio.Future[tuple[How, str]] = asyncio.get_running_loop().create_future()
        self.first_at = 0.0

    @property
    def status(self) -> int:
        return self._parser.get_status_code() if self.first_at else 0

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    def data_received(self, data: bytes) -> None:
        self.first_at = self.first_at or time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end("cut", f"no HTTP: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("cut", f"the connection was closed ({exc or 'by the server'})")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        if self._leaves:
            self._events_left -= body.count(b"\n\n")
            if self._events_left <= 0:
                self._end("left", "")

    def on_message_complete(self) -> None:
        self._end("complete", "")

    def _end(self, how: How, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result((how, reason))


async def exchange(
    address: tuple[str, int],
    request: bytes,
    limit_seconds: float,
    leave_events: int = 0,
    leave_seconds: float = 0.0,
) -> Reply:
    """Ask and wait for the end, but no longer than `limit_seconds` (then it is hung)."""
    begun = time.monotonic()
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await asyncio.wait_for(
            loop.create_connection(lambda: _Exchange(leave_events), *address), limit_seconds
        )
    except TimeoutError:
        return Reply("hung", 0, b"", time.monotonic() - begun, 0.0, "no connection")
    except OSError as error:
        return Reply("cut", 0, b"", time.monotonic() - begun, 0.0, f"no connection: {error}")
    transport = cast(asyncio.Transport, transport)
    how: How
    try:
        transport.write(request)
        how, reason = await asyncio.wait_for(
            asyncio.shield(protocol.ended), leave_seconds or limit_seconds
        )
    except TimeoutError:
        how, reason = ("left" if leave_seconds else "hung"), ""
    finally:
        transport.close()
    first = protocol.first_at - begun if protocol.first_at else 0.0
    return Reply(how, protocol.status, protocol.body, time.monotonic() - begun, first, reason)


def post(path: str, body: object) -> bytes:
    payload = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(payload) + payload


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode()
