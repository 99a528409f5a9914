"""The HTTP server alone, over real sockets, with a handler of a few lines."""

import asyncio
import contextlib

import pytest

from penstock.router.http_connection import Limits
from support.site import connect, get, refused, serving, talk
from support.surface import run


def test_keep_alive_answers_one_after_another():
    async def scenario():
        async with serving() as (_, server):
            client = await connect(server)
            for path in ("/a", "/b", "/c"):
                client.send(get(path))
                assert (await client.reply()).body == path.encode()

    run(scenario())


def test_pipelined_requests_are_answered_in_order():
    replies = talk(b"".join(get(f"/{one}") for one in range(100)), 100)
    assert [reply.body for reply in replies] == [f"/{one}".encode() for one in range(100)]


def test_a_pipelined_request_waits_for_a_late_answer():
    async def scenario():
        async with serving() as (site, server):
            client = await connect(server)
            client.send(get("/later") + get("/after"))
            await site.asked.wait()
            client.send(get("/last"))
            assert site.seen == ["/later"]
            site.later[0].respond(200, b"late")
            bodies = [(await client.reply()).body for _ in range(3)]
            assert bodies == [b"late", b"/after", b"/last"]

    run(scenario())


def test_many_pipelined_bytes_behind_an_open_answer_are_bounded_and_then_served():
    async def scenario():
        async with serving(Limits(held_bytes=1000)) as (site, server):
            client = await connect(server)
            client.send(get("/later"))
            await site.asked.wait()
            client.send(b"".join(get(f"/{one}") for one in range(2000)))
            site.later[0].respond(200, b"late")
            await client.reply()
            for one in range(2000):
                assert (await client.reply()).body == f"/{one}".encode()

    run(scenario())


def test_every_byte_in_its_own_packet():
    async def scenario():
        async with serving() as (_, server):
            client = await connect(server)
            body = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
            for one in body:
                client.send(bytes([one]))
                await client.writer.drain()
            assert (await client.reply()).body == b"hello"

    run(scenario())


def test_chunked_body_with_trailer():
    sent = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent += b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n" + get("/next")
    first, second = talk(sent, 2)
    assert (first.body, second.body) == (b"abcdefg", b"/next")


def test_expect_continue():
    async def scenario():
        async with serving() as (_, server):
            client = await connect(server)
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            client.send(head + b"Expect: 100-continue\r\n\r\n")
            assert (await client.reply()).status == 100
            client.send(b"ok")
            assert (await client.reply()).body == b"ok"

    run(scenario())


def test_expect_continue_waits_for_the_answer_before_it():
    async def scenario():
        async with serving() as (site, server):
            client = await connect(server)
            client.send(
                get("/later") + b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            await site.asked.wait()
            site.later[0].respond(200, b"late")
            assert (await client.reply()).body == b"late"
            assert (await client.reply()).status == 100
            client.send(b"ok")
            assert (await client.reply()).body == b"ok"

    run(scenario())


def test_other_expectations_fail():
    sent = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: tea\r\n\r\nok"
    assert refused(sent).status == 417


def test_head_has_the_length_and_no_body():
    async def scenario():
        async with serving() as (_, server):
            client = await connect(server)
            client.send(b"HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\n" + get("/next"))
            reply = await client.reply(head=True)
            assert reply.headers["content-length"] == "4"
            assert (await client.reply()).body == b"/next"

    run(scenario())


def test_stream_is_chunked_and_the_connection_goes_on():
    first, second = talk(get("/stream") + get("/next"), 2)
    assert first.headers["transfer-encoding"] == "chunked"
    assert (first.body, second.body) == (b"one two three", b"/next")


def test_http_1_0_gets_neither_chunks_nor_keep_alive():
    (reply,) = talk(b"GET /stream HTTP/1.0\r\n\r\n")
    assert "transfer-encoding" not in reply.headers
    assert reply.body == b"one two three"


def test_http_1_0_keep_alive_is_said():
    first, _ = talk(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2, 2)
    assert first.headers["connection"] == "keep-alive"


def test_connection_close_ends_the_connection():
    reply = refused(get("/a", "Connection: close\r\n") + get("/never"))
    assert reply.body == b"/a"


def test_an_upgrade_is_ignored():
    sent = get("/a", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n") + get("/b")
    assert [reply.body for reply in talk(sent, 2)] == [b"/a", b"/b"]


def test_absolute_form_and_query():
    (reply,) = talk(get("http://host/path?x=1"))
    assert reply.body == b"/path"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),  # TLS
    ],
)
def test_bad_http_is_400(sent: bytes):
    reply = refused(sent)
    assert reply.status == 400
    assert reply.error()["type"] == "invalid_request_error"


def test_bad_http_behind_a_good_request_waits_its_turn():
    first, second = talk(get("/a") + b"nonsense\r\n\r\n", 2)
    assert (first.body, second.status) == (b"/a", 400)


def test_other_versions_are_505():
    assert refused(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n").status == 505


@pytest.mark.parametrize(
    "headers",
    ["X: " + "a" * 33_000 + "\r\n", "X: y\r\n" * 6000, "".join(f"X{n}: y\r\n" for n in range(101))],
)
def test_large_headers_are_431(headers: str):
    assert refused(get("/", headers)).status == 431


def test_a_header_that_never_ends_is_431():
    assert refused(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000).status == 431


def test_a_url_that_never_ends_is_431():
    assert refused(b"GET /" + b"a" * 100_000).status == 431


def test_50_megabytes_are_refused_before_they_are_sent():
    async def scenario():
        async with serving(Limits(linger_seconds=0.2)) as (site, server):
            client = await connect(server)
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            client.send(head % (50 << 20))
            reply = await client.reply()
            assert (reply.status, reply.headers["connection"]) == (413, "close")
            # A client that sends all the same is not read to the end, and cut.
            with contextlib.suppress(ConnectionError):
                client.send(bytes(50 << 20))
                await client.writer.drain()
            await client.closed()
            assert site.seen == []

    run(scenario())


def test_a_chunked_body_is_refused_at_the_cap():
    chunk = b"%x\r\n%b\r\n" % (1000, bytes(1000))
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert refused(head + chunk * 20, Limits(body_bytes=10_000)).status == 413


def test_a_refusal_comes_before_the_body():
    sent = b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    assert refused(sent).status == 404


def test_slow_headers_are_408():
    reply = refused(b"GET / HTTP/1.1\r\nHost", Limits(header_seconds=0.05))
    assert reply.status == 408


def test_slow_body_is_408():
    sent = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
    assert refused(sent, Limits(body_seconds=0.05)).status == 408


@pytest.mark.parametrize("first", [b"", get("/a")])
def test_idle_connections_are_closed(first: bytes):
    async def scenario():
        async with serving(Limits(header_seconds=0.05, idle_seconds=0.05)) as (_, server):
            client = await connect(server)
            if first:
                client.send(first)
                await client.reply()
            assert await client.closed() == b""

    run(scenario())


def test_a_late_answer_outlives_all_patience_with_the_client():
    limits = Limits(header_seconds=0.02, body_seconds=0.02, idle_seconds=0.02)

    async def scenario():
        async with serving(limits) as (site, server):
            early, late = await connect(server), await connect(server)
            early.send(get("/later"))
            await site.asked.wait()
            assert await late.closed() == b""  # opened later, given up in the meantime
            site.later[0].respond(200, b"late")
            assert (await early.reply()).body == b"late"

    run(scenario())


def test_a_client_that_leaves_is_noticed_once():
    async def scenario():
        async with serving() as (site, server):
            client = await connect(server)
            client.send(get("/later"))
            await site.asked.wait()
            client.abort()
            await site.left.wait()
            exchange = site.later[0]
            assert not exchange.open
            exchange.respond(200, b"to nobody")
            exchange.write(b"to nobody")
            exchange.end()
            assert site.departures == 1
            assert not server.connections

    run(scenario())


def test_a_client_lost_with_bytes_on_their_way_costs_the_others_nothing():
    """Its connection goes after its bytes were queued and before the turn's end writes them."""

    async def scenario():
        async with serving() as (site, server):
            leaving, staying = await connect(server), await connect(server)
            for client in (leaving, staying):
                client.send(get("/later"))
                await site.asked.wait()
                site.asked.clear()
            lost, kept = site.later
            for connection in list(server.connections):
                if connection._exchange is lost:
                    connection.abort()  # connection_lost is called before the turn ends
            for exchange in (lost, kept):
                exchange.start_stream()
                exchange.write(b"a token")
            await site.left.wait()
            kept.end()
            assert (await staying.reply()).body == b"a token"

    run(scenario())


def test_a_reader_that_stalls_is_given_up():
    async def scenario():
        async with serving(Limits(stalled_seconds=0.05)) as (site, server):
            client = await connect(server)
            client.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
            client.send(get("/flood"))
            await site.left.wait()
            assert site.departures == 1
            client.abort()

    run(scenario())


def test_a_bug_in_a_handler_is_500(caplog: pytest.LogCaptureFixture):
    (reply,) = talk(get("/broken"))
    assert reply.status == 500
    assert reply.error()["message"] == "internal error"
    assert "a bug" in caplog.text


def test_stop_lets_answers_end():
    async def scenario():
        async with serving() as (site, server):
            client, idle = await connect(server), await connect(server)
            client.send(get("/later"))
            await site.asked.wait()
            stopping = asyncio.create_task(server.stop(grace=30))
            assert await idle.closed() == b""
            site.later[0].respond(200, b"late")
            reply = await client.reply()
            assert (reply.body, reply.headers["connection"]) == (b"late", "close")
            await stopping

    run(scenario())


def test_too_many_connections_are_refused():
    async def scenario():
        async with serving(Limits(connections=1)) as (_, server):
            first = await connect(server)
            first.send(get("/a"))
            await first.reply()
            second = await connect(server)
            assert (await second.reply()).status == 503

    run(scenario())
