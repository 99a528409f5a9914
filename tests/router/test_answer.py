"""Answers through the whole surface: streamed and whole are the same text, and end rightly."""

import asyncio
from typing import Any

import pytest

from penstock.router import openai_tokenise
from support.surface import CHAT, END, TEXT, Reply, Surface, chat, post, run, spell


def ask(path: str, body: dict[str, Any], *pieces: str | int) -> tuple[Surface, Reply]:
    """One request, answered with these pieces on every choice."""

    async def scenario() -> tuple[Surface, Reply]:
        async with Surface() as surface:
            if pieces:
                surface.requests.script = lambda submission, choice: spell(*pieces)
            return surface, await surface.post(path, body)

    return run(scenario())


def streamed_text(reply: Reply, index: int = 0) -> str:
    texts: list[str] = []
    for event in reply.events()[:-1]:
        for choice in event["choices"]:
            if choice["index"] == index:
                texts.append(
                    choice["text"] if "text" in choice else choice["delta"].get("content", "")
                )
    return "".join(texts)


STORIES: list[tuple[Any, ...]] = [
    ("hello", " world", END),
    ("é€\U0001f600 ", "\U0001f600", 'quote " and \\ and \n and \x00', END),
    ("ST", "ST", "OP", "never shown", END),
    ("ab", "bc", "ST", END),
    (0xE2, 0x82, END),
    (0xFF, 0xFE, "a", 0xC3),
]


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_stream_is_the_whole_text_cut_up(path: str, story: tuple[Any, ...]):
    body = chat(stop="STOP") if path == CHAT else {"prompt": "x", "stop": ["STOP"]}
    body["max_tokens"] = 100
    _, whole = ask(path, body, *story)
    _, stream = ask(path, body | {"stream": True}, *story)
    choice = whole.json()["choices"][0]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert streamed_text(stream).encode() == text.encode()
    last = stream.events()[-2]["choices"][0]
    assert last["finish_reason"] == choice["finish_reason"]
    assert last["stop_reason"] == choice["stop_reason"]


def test_a_chat_stream_has_the_official_form():
    _, reply = ask(CHAT, chat(stream=True))
    events = reply.events()
    assert reply.headers["content-type"] == "text/event-stream"
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "hello"},
        {"content": " world"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 3 + ["stop"]
    assert events[-1] == "[DONE]"
    assert len({(event["id"], event["created"], event["model"]) for event in events[:-1]}) == 1
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    assert all("usage" not in event for event in events[:-1])


def test_usage_comes_in_an_event_of_its_own():
    _, reply = ask(CHAT, chat(stream=True, stream_options={"include_usage": True}))
    *others, last, done = reply.events()
    assert done == "[DONE]"
    assert all(event["usage"] is None for event in others)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": len("<user>hi\n<assistant>"),
        "completion_tokens": 3,
        "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_running_usage_counts_up():
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, reply = ask(CHAT, chat(stream=True, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in reply.events()[1:-1]]
    assert counts == [1, 2, 3, 3]


def test_n_choices_of_several_prompts_are_numbered_through():
    async def scenario():
        async with Surface() as surface:
            surface.requests.script = lambda submission, choice: spell(
                f"{submission.token_ids[0]}/{choice}", END
            )
            body = {"prompt": ["a", "b"], "n": 3, "max_tokens": 50}
            whole = await surface.post(TEXT, body)
            texts = [one["text"] for one in whole.json()["choices"]]
            assert texts == ["97/0", "97/1", "97/2", "98/0", "98/1", "98/2"]
            assert [one["index"] for one in whole.json()["choices"]] == list(range(6))
            stream = await surface.post(TEXT, body | {"stream": True})
            assert [streamed_text(stream, index) for index in range(6)] == texts
            assert whole.json()["usage"]["prompt_tokens"] == 2

    run(scenario())


def test_a_stop_string_stops_only_its_choice():
    async def scenario():
        async with Surface() as surface:
            surface.requests.script = lambda submission, choice: spell(
                *(("ST", "OP", "x", "y") if choice == 1 else ("a", "b", "c", "d"))
            )
            reply = await surface.post(CHAT, chat(n=2, stop="STOP", max_tokens=4))
            first, second = reply.json()["choices"]
            assert (first["message"]["content"], first["finish_reason"]) == ("abcd", "length")
            assert (second["message"]["content"], second["stop_reason"]) == ("", "STOP")
            assert surface.requests.stopped == [(0, 1)]
            assert surface.requests.cancelled == []
            assert reply.json()["usage"]["completion_tokens"] == 6

    run(scenario())


def test_a_user_stop_token_is_named_and_its_text_is_not_shown():
    _, reply = ask(TEXT, {"prompt": "x", "stop_token_ids": [98]}, "abc")
    (choice,) = reply.json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", 98)


def test_special_tokens_are_shown_on_demand():
    body = {"prompt": "x", "ignore_eos": True, "max_tokens": 3}
    _, hidden = ask(TEXT, body, "a", END, "b")
    _, shown = ask(TEXT, body | {"skip_special_tokens": False}, "a", END, "b")
    assert hidden.json()["choices"][0]["text"] == "ab"
    assert shown.json()["choices"][0]["text"] == "a<|end|>b"


def test_chat_logprobs():
    for stream in (False, True):
        _, reply = ask(
            CHAT, chat(logprobs=True, top_logprobs=2, max_tokens=2, stream=stream), 0xE2, "é"
        )
        if stream:
            found = [event["choices"][0]["logprobs"] for event in reply.events()[1:-2]]
            content = [entry for one in found for entry in one["content"]]
        else:
            content = reply.json()["choices"][0]["logprobs"]["content"]
        assert content[0] == {
            "token": "\ufffd",
            "logprob": -0.5,
            "bytes": [0xE2],
            "top_logprobs": [
                {"token": "\ufffd", "logprob": -0.5, "bytes": [0xE2]},
                {"token": "A", "logprob": -0.75, "bytes": [65]},
            ],
        }
        assert len(content) == 2


def test_echo_scores_the_prompt():
    body = {"prompt": [97, 98, 0xC3], "echo": True, "logprobs": 1, "max_tokens": 1}
    for stream in (False, True):
        _, reply = ask(TEXT, body | {"stream": stream}, "x")
        if stream:
            pieces = [event["choices"][0] for event in reply.events()[:-2]]
            text = "".join(piece["text"] for piece in pieces)
            merged: dict[str, list[Any]] = {}
            for piece in pieces:
                for name, values in piece["logprobs"].items():
                    merged[name] = merged.get(name, []) + values
        else:
            (choice,) = reply.json()["choices"]
            text, merged = choice["text"], choice["logprobs"]
        assert text == "ab\ufffdx"
        assert merged == {
            "tokens": ["a", "b", "bytes:\\xc3", "x"],
            "token_logprobs": [None, -0.5, -0.5, -0.5],
            "top_logprobs": [None, {"b": -0.5}, {"bytes:\\xc3": -0.5}, {"x": -0.5}],
            "text_offset": [0, 1, 2, 3],
        }


def test_a_prompt_can_be_scored_without_an_answer():
    surface, reply = ask(TEXT, {"prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": 0})
    (choice,) = reply.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]
    assert reply.json()["usage"]["completion_tokens"] == 0
    assert surface.requests.submissions[0].sampling.max_tokens == 0


def test_prompt_logprobs_by_id():
    _, reply = ask(TEXT, {"prompt": "ab", "prompt_logprobs": 1, "max_tokens": 1})
    assert reply.json()["choices"][0]["prompt_logprobs"] == [
        None,
        {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}},
    ]


def test_token_ids_on_demand():
    _, whole = ask(TEXT, {"prompt": "ab", "return_token_ids": True})
    choice = whole.json()["choices"][0]
    assert choice["prompt_token_ids"] == [97, 98]
    assert choice["token_ids"] == spell("hello", " world", END)
    _, stream = ask(CHAT, chat(stream=True, return_token_ids=True), 0xC3, 0xA9, END)
    first, *rest = stream.events()[:-1]
    assert first["prompt_token_ids"] == list(b"<user>hi\n<assistant>")
    ids = [one for event in rest for one in event["choices"][0].get("token_ids", [])]
    assert ids == [0xC3, 0xA9, END]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_cancelled_once(stream: bool):
    async def scenario():
        async with Surface() as surface:
            requests = surface.requests
            requests.hold = 1
            client = await surface.connect()
            client.send(post(CHAT, chat(stream=stream, n=2)))
            await requests.held.wait()
            client.abort()
            await requests.gone.wait()
            assert requests.cancelled == [0]
            assert surface.app.counters.running == 0
            assert surface.app.counters.answered[(CHAT, 499)] == 1
            assert surface.app.counters.finished["cancelled"] == 2

    run(scenario())


def test_of_several_prompts_only_the_open_ones_are_cancelled():
    async def scenario():
        async with Surface() as surface:
            requests = surface.requests
            requests.script = lambda submission, choice: spell(
                *(["a"] if submission.token_ids == [97] else ["b", "b", "b"])
            )
            requests.hold = 2
            client = await surface.connect()
            client.send(post(TEXT, {"prompt": ["a", "b"], "stream": True}))
            await requests.held.wait()
            client.abort()
            await requests.gone.wait()
            assert requests.cancelled == [1]

    run(scenario())


def test_a_failure_before_the_first_token_is_a_status():
    async def scenario():
        async with Surface() as surface:
            surface.requests.fail_after = 0
            for stream in (False, True):
                reply = await surface.post(CHAT, chat(stream=stream))
                assert reply.status == 503
                assert reply.error()["message"] == "the worker died"

    run(scenario())


def test_a_failure_after_it_is_an_event_and_no_done():
    async def scenario():
        async with Surface() as surface:
            surface.requests.fail_after = 1
            reply = await surface.post(CHAT, chat(stream=True))
            events = reply.events()
            assert reply.status == 200
            assert events[-1]["error"]["message"] == "the worker died"
            assert "[DONE]" not in events
            whole = await surface.post(CHAT, chat())
            assert whole.status == 503
            assert surface.app.counters.running == 0

    run(scenario())


def test_one_failing_prompt_takes_the_others_along():
    async def scenario():
        async with Surface() as surface:
            surface.requests.fail_after = 1
            reply = await surface.post(TEXT, {"prompt": ["a", "b"], "stream": True})
            assert "error" in reply.events()[-1]
            assert surface.requests.cancelled == [1]

    run(scenario())


def test_long_prompts_are_tokenised_beside_the_loop_and_answers_keep_their_order():
    async def scenario():
        async with Surface() as surface:
            client = await surface.connect()
            long = {"prompt": "a" * 3000, "echo": True, "max_tokens": 1}
            client.send(post(TEXT, long) + post(TEXT, {"prompt": "b", "echo": True}))
            first, second = await client.reply(), await client.reply()
            assert first.json()["choices"][0]["text"] == "a" * 3000 + "hello"
            assert second.json()["choices"][0]["text"].startswith("b")

    run(scenario())


def test_a_client_that_leaves_while_its_prompt_is_tokenised_asks_nothing():
    async def scenario():
        async with Surface() as surface:
            entered, leave = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()
            encode = surface.tokenizer.encode

            def slow(text: str, add_special_tokens: bool = True) -> list[int]:
                loop.call_soon_threadsafe(entered.set)
                asyncio.run_coroutine_threadsafe(leave.wait(), loop).result()
                return encode(text)

            surface.tokenizer.encode = slow
            client = await surface.connect()
            client.send(post(TEXT, {"prompt": "a" * 3000}))
            await entered.wait()
            client.abort()
            while surface.server.connections:
                await asyncio.sleep(0)
            leave.set()
            surface.tokenizer.encode = encode
            await surface.post(TEXT, {"prompt": "b" * 3000})
            assert [one.token_ids[0] for one in surface.requests.submissions] == [98]
            assert surface.app.counters.tokenising == 0

    run(scenario())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(logprobs=True)),
        (TEXT, {"prompt": "ab", "logprobs": 1}),
        (TEXT, {"prompt": "ab", "logprobs": 1, "echo": True}),
        (TEXT, {"prompt": "ab", "prompt_logprobs": 1}),
    ],
)
def test_an_answer_without_the_logprobs_asked_for_fails(path: str, body: dict[str, Any]):
    async def scenario():
        async with Surface() as surface:
            surface.requests.silent = True
            reply = await surface.post(path, body)
            assert reply.status == 500
            assert "log-probabilities" in reply.error()["message"]
            if "prompt_logprobs" not in body:
                reply = await surface.post(path, body | {"stream": True})
                failed = reply.json() if reply.status == 500 else reply.events()[-1]
                assert "log-probabilities" in failed["error"]["message"]
            assert surface.app.counters.running == 0
            assert surface.requests.cancelled == list(range(len(surface.requests.submissions)))

    run(scenario())


def test_so_many_long_prompts_are_tokenised_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openai_tokenise, "MOST_CHARACTERS", 5000)

    async def scenario():
        async with Surface() as surface:
            entered, leave = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()
            encode = surface.tokenizer.encode

            def slow(text: str, add_special_tokens: bool = True) -> list[int]:
                loop.call_soon_threadsafe(entered.set)
                asyncio.run_coroutine_threadsafe(leave.wait(), loop).result()
                return encode(text)

            surface.tokenizer.encode = slow
            client = await surface.connect()
            client.send(post(TEXT, {"prompt": "a" * 3000}))
            await entered.wait()
            refused = await surface.post(TEXT, {"prompt": "b" * 3000})
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            leave.set()
            assert (await client.reply()).status == 200

    run(scenario())
