"""Bad bodies: the status, the field, and a sentence that says what would work."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.router.openai_error import envelope
from penstock.router.openai_facts import Facts
from support.surface import CHAT, END, TEXT, VOCABULARY, Reply, Surface, chat, run

SMALL = Facts(("tiny",), 64, VOCABULARY, (END,), longest_token=11)


def send(path: str, body: Any, headers: str = "") -> Reply:
    async def scenario() -> Reply:
        async with Surface(facts=SMALL) as surface:
            reply = await surface.post(path, body, headers)
            assert surface.requests.submissions == []
            return reply

    return run(scenario())


# Fields beside messages or prompt, the field at fault, a part of the sentence.
BOTH: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": 5.0}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
    ({"max_tokens": 64}, "max_tokens", "maximum context length is 64 tokens"),
    ({"max_tokens": 10**30}, "max_tokens", "at most"),
    ({"temperature": -0.1}, "temperature", "between 0 and 2"),
    ({"temperature": 2.1}, "temperature", "between 0 and 2"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": 1.01}, "top_p", "at most 1"),
    ({"top_k": -2}, "top_k", "at least 1"),
    ({"min_p": 1.5}, "min_p", "between 0 and 1"),
    ({"presence_penalty": 3}, "presence_penalty", "between -2 and 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"n": 0}, "n", "between 1 and 128"),
    ({"n": 129}, "n", "between 1 and 128"),
    ({"seed": 1 << 64}, "seed", "between"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"stop": ""}, "stop", "1 to 1024"),
    ({"stop": "x" * 1025}, "stop", "1 to 1024"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"stop": [3]}, "stop[0]", "string"),
    ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids", "out of the vocabulary"),
    ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias", "out of the vocabulary"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "out of the vocabulary"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "a key of logit_bias must be an integer"),
    ({"logit_bias": {"1": 101}}, "logit_bias[1]", "between -100 and 100"),
    ({"logit_bias": {str(one): 1 for one in range(1025)}}, "logit_bias", "at most 1024"),
    ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "between 0 and max_tokens"),
    ({"min_tokens": -1}, "min_tokens", "between 0"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "between 0 and 20"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "without stream"),
    ({"cache_salt": ""}, "cache_salt", "1 to 1024"),
    ({"priority": 1 << 40}, "priority", "between"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"stream_options": 3, "stream": True}, "stream_options", "object"),
    ({"model": 3}, "model", "string"),
    ({"response_format": {"type": "json_object"}}, "response_format", "only text"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "only text"),
    ({"guided_json": {"type": "object"}}, "guided_json", "not served"),
    ({"guided_regex": "a+"}, "guided_regex", "not served"),
    ({"guided_choice": ["a"]}, "guided_choice", "not served"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "not served"),
    ({"regex": "a"}, "regex", "not served"),
    ({"bad_words": ["a"]}, "bad_words", "logit_bias"),
    ({"allowed_token_ids": [1]}, "allowed_token_ids", "not served"),
    ({"use_beam_search": True}, "use_beam_search", "not served"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "not served"),
    ({"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params", "between servers"),
    ({"prompt_embeds": "x"}, "prompt_embeds", "tensors"),
]
IN_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ({"max_completion_tokens": 64}, "max_completion_tokens", "would fit"),
    ({"logprobs": 3}, "logprobs", "true or false"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "between 0 and 20"),
    ({"tools": [{"type": "function"}]}, "tools", "not served"),
    ({"tools": [{}], "tool_choice": "required"}, "tools", "not served"),
    ({"tool_choice": "required"}, "tool_choice", "none"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "none"),
    ({"functions": [{}]}, "functions", "not served"),
    ({"modalities": ["audio"]}, "modalities", "text"),
    ({"chat_template": "{{ x }}"}, "chat_template", "not taken"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "may not be set"),
    ({"chat_template_kwargs": {"thinking": [1]}}, "chat_template_kwargs.thinking", "must be text"),
    ({"echo": True}, "echo", "/v1/completions"),
    ({"best_of": 2}, "best_of", "n draws"),
    (
        {"add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
        "exclude each other",
    ),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": None}, "messages", "list"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": [{}]}, "messages[0].role", "missing"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "string"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "must be one of"),
    ({"messages": [{"role": "user", "content": "x" * 60}]}, "messages", "your prompt has 78"),
    ({"messages": [{"role": "user", "content": "x" * 999}]}, "messages", "at least 93"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "reads text only",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing",
    ),
]
IN_TEXT: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "string"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt[0]", "empty"),
    ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
    ({"prompt": ["a", 3]}, "prompt", "mixes"),
    ({"prompt": [1.5]}, "prompt[0]", "integer"),
    ({"prompt": [VOCABULARY]}, "prompt", "out of the vocabulary"),
    ({"prompt": [-1]}, "prompt", "out of the vocabulary"),
    ({"prompt": [[1], [1, 1 << 70]]}, "prompt[1]", "out of the vocabulary"),
    ({"prompt": "x" * 65}, "prompt", "maximum context length is 64 tokens; your prompt has 65"),
    ({"prompt": "x" * 64}, "prompt", "no room"),
    ({"prompt": ["x"] * 1025}, "prompt", "several requests"),
    ({"logprobs": 21}, "logprobs", "between 0 and 20"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"best_of": 2}, "best_of", "must equal n"),
    ({"suffix": "x"}, "suffix", "not served"),
    ({"tools": [{}]}, "tools", "not served"),
]
TABLE = [(CHAT, chat("x") | fields, param, words) for fields, param, words in BOTH + IN_CHAT]
TABLE += [(TEXT, {"prompt": "x"} | fields, param, words) for fields, param, words in BOTH + IN_TEXT]


def name_of(row: tuple[str, dict[str, Any], str, str]) -> str:
    return f"{row[0]} {row[2]}"


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_a_bad_field_is_named(row: tuple[str, dict[str, Any], str, str]):
    path, body, param, words = row
    reply = send(path, body)
    error = reply.error()
    assert (reply.status, error["param"]) == (400, param)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_too_long_prompts_have_a_code():
    error = send(TEXT, {"prompt": "x" * 100}).error()
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"[]", "must be an object, not a list"),
        (b"3", "must be an object"),
        (b"hello", "byte 0"),
        (b'{"prompt": "x", "n": 1,}', 'byte 23, after the key "n"'),
        (b'{"prompt": "x", "n": }', 'after the key "n"'),
        (b'{"prompt": "x"', "ends too early"),
        (b'{"prompt": "x"} {}', "trailing"),
        (b"{'prompt': 'x'}", "byte 1"),
        (b'{"prompt": "x", "temperature": NaN}', 'after the key "temperature"'),
        (b'{"prompt": "x", "temperature": Infinity}', 'after the key "temperature"'),
        (b'{"prompt": "x", "temperature": -Infinity}', 'after the key "temperature"'),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature is out of range"),
        (b'{"prompt": "x", "temperature": -1e999}', "temperature is out of range"),
        (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", "n is out of range"),
        (b'{"prompt": "\xff"}', 'UTF-8 at byte 12, after the key "prompt"'),
        (b'{"prompt": "x", "user": "\xff"}', "UTF-8"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "x\x00"}', "byte 13"),
        (b'{"prompt": "x", "y": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "x", "y": ' + b'{"a":' * 100_000, "nested too deeply"),
        (b"\xef\xbb\xbf{}", "byte 0"),
    ],
)
def test_what_is_no_json_is_placed(body: bytes, words: str):
    reply = send(TEXT, body)
    assert reply.status == 400
    assert words in reply.error()["message"]


def test_the_answer_to_a_large_mistake_is_small():
    for body in ({"prompt": "x", "model": "m" * 100_000}, chat(tool_choice="x" * 100_000)):
        assert len(send(TEXT if "prompt" in body else CHAT, body).body) < 1500
    long_name = {"prompt": "x", "chat_template_kwargs": {"k" * 100_000: 1}}
    assert len(send(CHAT, chat() | long_name).body) < 1500


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "x"])
def test_other_content_types_are_415(kind: str):
    assert send(CHAT, chat(), f"Content-Type: {kind}\r\n").status == 415


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "x/y+json"]
)
def test_json_by_other_names_is_taken(kind: str):
    reply = send(CHAT, b"{}", f"Content-Type: {kind}\r\n")
    assert (reply.status, reply.error()["param"]) == (400, "messages")


def test_an_unknown_model_is_404():
    for path, body in ((CHAT, chat()), (TEXT, {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        reply = send(path, body | {"model": "gpt-4"})
        assert (reply.status, reply.error()["code"]) == (404, "model_not_found")
        assert reply.error()["param"] == "model"


def test_tokenize_wants_one_of_two():
    assert send("/tokenize", {}).error()["param"] == "prompt"
    assert send("/tokenize", chat() | {"prompt": "x"}).error()["param"] == "prompt"
    assert send("/detokenize", {"tokens": [-1]}).error()["param"] == "tokens"
    assert send("/detokenize", {}).error()["param"] == "tokens"


def test_a_large_body_is_413():
    async def scenario():
        async with Surface() as surface:
            client = await surface.connect()
            head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {50 << 20}\r\n\r\n"
            client.send(head.encode())
            reply = await client.reply()
            assert (reply.status, reply.error()["param"]) == (413, None)

    run(scenario())


# --- anything at all ------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = sorted({name for fields, _, _ in BOTH + IN_CHAT + IN_TEXT for name in fields})
BODIES = st.binary(max_size=200) | st.dictionaries(
    st.sampled_from([*FIELDS, "messages", "prompt", "user"]), JSON_VALUES, max_size=6
).map(lambda body: json.dumps(body).encode())


def every_answer(bodies: list[tuple[str, bytes]]) -> list[Reply]:
    async def scenario() -> list[Reply]:
        async with Surface(facts=SMALL) as surface:
            return [await surface.post(path, body) for path, body in bodies]

    return run(scenario())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from([CHAT, TEXT, "/tokenize", "/detokenize"]), BODIES), max_size=8
    )
)
def test_no_body_breaks_the_server(bodies: list[tuple[str, bytes]]):
    for reply in every_answer(bodies):
        assert reply.status in (200, 400, 404)
        if reply.status != 200:
            reply.error()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_no_bytes_break_the_connection(noise: bytes):
    async def scenario() -> bytes:
        async with Surface() as surface:
            client = await surface.connect()
            client.send(noise)
            client.writer.write_eof()
            return await client.closed()

    answer = run(scenario())
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))


def test_a_deadline_is_a_timeout_error():
    error = json.loads(envelope(504, "the request did not end in time"))["error"]
    assert error["type"] == "timeout_error" and error["message"].startswith("the request")
