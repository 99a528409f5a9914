"""A handler of a few lines behind the real HTTP server, and ways to talk to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from penstock.router.http_connection import Limits
from penstock.router.http_exchange import Exchange, HttpRequest
from penstock.router.http_server import HttpServer
from penstock.router.openai_error import ApiError
from support.surface import Client, Reply, run


class Site:
    """Answers /echo with the body, keeps /later open, streams /stream, breaks on /broken."""

    def __init__(self) -> None:
        self.later: list[Exchange] = []
        self.seen: list[str] = []
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self.departures = 0

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        self.seen.append(request.path)
        if request.path == "/broken":
            raise ValueError("a bug")
        if request.path == "/later":
            exchange.on_disconnect(self.gone)
            self.later.append(exchange)
            self.asked.set()
        elif request.path == "/stream":
            exchange.start_stream()
            for piece in (b"one ", b"two ", b"three"):
                exchange.write(piece)
            exchange.end()
        elif request.path == "/flood":
            exchange.on_disconnect(self.gone)
            exchange.start_stream()
            for _ in range(64):
                exchange.write(bytes(1 << 20))
        else:
            exchange.respond(200, bytes(request.body) or request.path.encode())

    def gone(self) -> None:
        self.departures += 1
        self.left.set()

    def admit(self, request: HttpRequest) -> ApiError | None:
        return ApiError("not here", status=404) if request.path == "/refused" else None


@contextlib.asynccontextmanager
async def serving(limits: Limits | None = None) -> AsyncIterator[tuple[Site, HttpServer]]:
    site = Site()
    server = HttpServer(site.handle, site.admit, limits)
    await server.start("127.0.0.1", 0)
    try:
        yield site, server
    finally:
        await server.stop()


async def connect(server: HttpServer) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", server.port))


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def talk(sent: bytes, answers: int = 1, limits: Limits | None = None) -> list[Reply]:
    """Send bytes on one connection and read so many answers."""

    async def scenario():
        async with serving(limits) as (_, server):
            client = await connect(server)
            client.send(sent)
            return [await client.reply() for _ in range(answers)]

    return run(scenario())


def refused(sent: bytes, limits: Limits | None = None) -> Reply:
    """Send bytes; the answer, after which the server closes."""

    async def scenario():
        async with serving(limits) as (_, server):
            client = await connect(server)
            client.send(sent)
            reply = await client.reply()
            assert await client.closed() == b""
            assert reply.headers["connection"] == "close"
            return reply

    return run(scenario())
