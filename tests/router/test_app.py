"""Paths, keys, health; the one gate before everything."""

from pathlib import Path

import pytest

from penstock.router.app_keys import Keys, read_keys
from support.surface import CHAT, TEXT, Surface, chat, post, run

GET_PATHS = ["/v1/models", "/v1/models/tiny", "/version", "/metrics"]
POST_PATHS = [CHAT, TEXT, "/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"]


def test_health_and_ready_say_what_they_are_told():
    async def scenario():
        async with Surface() as surface:
            for path in ("/health", "/ready"):
                assert (await surface.get(path)).json() == {"status": "ok"}
            surface.state = (False, {"status": "stuck", "why": "no worker"})
            for path in ("/health", "/ready"):
                reply = await surface.get(path)
                assert (reply.status, reply.json()["why"]) == (503, "no worker")
            assert (await surface.get("/live")).status == 200
            assert "revision" in (await surface.get("/version")).json()

    run(scenario())


def test_every_path_but_health_wants_a_key():
    async def scenario():
        async with Surface(keys=["one", "two"]) as surface:
            for path in ("/live", "/health", "/ready"):
                assert (await surface.get(path)).status == 200
            for header in ("", "Authorization: Bearer three\r\n", "Authorization: one\r\n"):
                for path in (*GET_PATHS, "/nowhere"):
                    reply = await surface.get(path, header)
                    assert (reply.status, reply.error()["code"]) == (401, "invalid_api_key")
                    assert reply.headers["www-authenticate"] == "Bearer"
                for path in POST_PATHS:
                    assert (await surface.post(path, {}, header)).status == 401
            for key in ("one", "two"):
                header = f"authorization: bearer {key}\r\n"
                assert (await surface.get("/v1/models", header)).status == 200
                assert (await surface.post(CHAT, chat(), header)).status == 200

    run(scenario())


def test_without_a_key_no_body_is_read():
    async def scenario():
        async with Surface(keys=["one"]) as surface:
            client = await surface.connect()
            client.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
            assert (await client.reply()).status == 401
            assert surface.app.counters.answered[(CHAT, 401)] == 1

    run(scenario())


def test_callers_with_different_keys_share_no_cached_prefix():
    async def scenario():
        async with Surface(keys=["one", "two"]) as surface:
            for key in ("one", "two", "one"):
                header = f"Authorization: Bearer {key}\r\n"
                await surface.post(CHAT, chat(cache_salt="mine"), header)
            salts = [one.cache_salt for one in surface.requests.submissions]
            assert salts[0] == salts[2] != salts[1]
            assert all(salt.endswith(":mine") and "one" not in salt for salt in salts)

    run(scenario())


def test_keys_come_from_a_list_and_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# team a\nfirst # of us\n\nsecond\n")
    assert read_keys(" x, y ,", file) == ["x", "y", "first", "second"]
    assert read_keys() == []
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(file=file)


def test_keys_compare_whole_words():
    keys = Keys(["secret"])
    assert keys.allow(b"Bearer secret")
    for given in (b"", b"Bearer", b"Bearer ", b"Bearer secre", b"Bearer secrets", b"Basic secret"):
        assert not keys.allow(given)
    assert Keys().allow(b"")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/chat", "/v1/models/", "/V1/models", "/%2e"]
)
def test_unknown_paths_are_404(path: str):
    async def scenario():
        async with Surface() as surface:
            reply = await surface.get(path)
            assert reply.status == 404
            reply.error()

    run(scenario())


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_are_405(method: str):
    async def scenario():
        async with Surface() as surface:
            client = await surface.connect()
            client.send(f"{method} {CHAT} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            reply = await client.reply()
            assert (reply.status, reply.headers["allow"]) == (405, "POST")
            reply.error()
            client.send(b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            reply = await client.reply()
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")

    run(scenario())


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/files/x"])
def test_unserved_families_are_501(path: str):
    async def scenario():
        async with Surface() as surface:
            for reply in (await surface.post(path, {}), await surface.get(path)):
                assert (reply.status, reply.error()["code"]) == (501, "not_implemented")

    run(scenario())


def test_head_is_get_without_the_body():
    async def scenario():
        async with Surface() as surface:
            client = await surface.connect()
            client.send(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = await client.reply(head=True)
            assert reply.status == 200
            assert int(reply.headers["content-length"]) > 0

    run(scenario())


def test_a_model_name_may_hold_slashes():
    async def scenario():
        async with Surface() as surface:
            reply = await surface.get("/v1/models/org%2Fname")
            assert "org/name" in reply.error()["message"]

    run(scenario())


def test_streams_on_one_connection_follow_each_other():
    async def scenario():
        async with Surface() as surface:
            client = await surface.connect()
            client.send(post(CHAT, chat(stream=True)) + post(TEXT, {"prompt": "x"}))
            assert (await client.reply()).events()[-1] == "[DONE]"
            assert (await client.reply()).json()["choices"][0]["text"] == "hello world"

    run(scenario())
