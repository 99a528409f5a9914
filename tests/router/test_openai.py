"""The official client against the surface, and what reaches the flow."""

from typing import Any

import openai
import pytest

from penstock.protocol.messages import Sampling
from penstock.router.openai_facts import Defaults, Facts
from penstock.router.request import Refusal
from support.surface import CHAT, END, TEXT, VOCABULARY, Surface, chat, run, spell


def client_of(surface: Surface, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{surface.port}/v1", api_key=key, max_retries=0
    )


def test_the_official_client_chats():
    async def scenario():
        async with Surface() as surface, client_of(surface) as client:
            answer = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}]
            )
            assert answer.choices[0].message.content == "hello world"
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            assert answer.usage.prompt_tokens_details.cached_tokens == 2
            stream = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
                logprobs=True,
                top_logprobs=1,
                extra_body={"top_k": 3, "min_p": 0.1},
            )
            text, usage = "", None
            async for event in stream:
                text += "".join(one.delta.content or "" for one in event.choices)
                usage = event.usage or usage
            assert text == "hello world"
            assert usage is not None and usage.completion_tokens == 3
            assert surface.requests.submissions[1].sampling.top_k == 3

    run(scenario())


def test_the_official_client_completes_and_lists():
    async def scenario():
        async with Surface() as surface, client_of(surface) as client:
            answer = await client.completions.create(model="alias", prompt=["a", "b"], logprobs=1)
            assert [one.text for one in answer.choices] == ["hello world"] * 2
            assert answer.model == "alias"
            stream = await client.completions.create(model="tiny", prompt=[1, 2], stream=True)
            assert "".join([one.choices[0].text async for one in stream]) == "hello world"
            models = await client.models.list()
            assert [one.id for one in models.data] == ["tiny", "alias"]
            assert (await client.models.retrieve("alias")).id == "alias"

    run(scenario())


def test_the_official_client_knows_our_errors():
    async def scenario():
        async with Surface(keys=["secret"]) as surface, client_of(surface, "secret") as client:
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.completions.create(model="other", prompt="x")
            assert unknown.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as bad:
                await client.completions.create(model="tiny", prompt="x", temperature=3)
            assert bad.value.param == "temperature"
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="wrong").models.list()
            surface.requests.fail_after = 1
            stream = await client.completions.create(model="tiny", prompt="x", stream=True)
            with pytest.raises(openai.APIError, match="the worker died"):
                async for _ in stream:
                    pass

    run(scenario())


def sampling_for(body: dict[str, Any], facts: Facts | None = None) -> Sampling:
    """What a body asks of the flow."""

    async def scenario() -> Sampling:
        async with Surface(facts=facts) as surface:
            reply = await surface.post(CHAT if "messages" in body else TEXT, body)
            assert reply.status == 200, reply.body
            return surface.requests.submissions[0].sampling

    return run(scenario())


def test_every_sampling_field_arrives():
    given: dict[str, Any] = {
        "seed": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 5,
        "min_p": 0.125,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.25,
        "max_tokens": 9,
        "min_tokens": 2,
    }
    sampling = sampling_for(
        chat(
            logit_bias={"97": -100},
            stop_token_ids=[98],
            logprobs=True,
            top_logprobs=4,
            **given,
        )
    )
    assert sampling == Sampling(
        logit_bias={97: -100.0}, stop_token_ids=(END, 98), logprobs=4, **given
    )


def test_null_means_not_sent():
    names = ["temperature", "top_p", "max_tokens", "stop", "logit_bias", "n", "stream", "tools"]
    nulls: dict[str, Any] = dict.fromkeys(names)
    sampling = sampling_for(chat(seed=1) | nulls)
    assert sampling == sampling_for(chat(seed=1))


def test_ignored_fields_are_accepted():
    fields = {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}
    fields |= {"prediction": {"x": 1}, "brand_new": [1, 2], "prompt_cache_key": "k"}
    sampling_for(chat(parallel_tool_calls=True, response_format={"type": "text"}, **fields))
    sampling_for(chat(tools=[{"type": "function"}], tool_choice="none", modalities=["text"]))


def test_defaults_come_from_the_model():
    defaults = Defaults(0.6, 0.9, 20, 0.05, 1.1)
    sampling = sampling_for(chat(), Facts(("tiny",), 4096, VOCABULARY, (END,), defaults))
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.1)


def test_max_tokens_defaults_fill_the_context_and_no_more():
    facts = Facts(("tiny",), 30, VOCABULARY, (END,))
    assert sampling_for(chat("hi"), facts).max_tokens == 30 - len("<user>hi\n<assistant>")
    assert sampling_for({"prompt": "x"}, facts).max_tokens == 16
    assert sampling_for({"prompt": "x" * 20}, facts).max_tokens == 10
    assert sampling_for(chat(max_tokens=5, max_completion_tokens=3), facts).max_tokens == 3


def test_seeds_are_drawn_and_fit_63_bits():
    drawn = {sampling_for(chat()).seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(0 <= seed < 1 << 63 for seed in drawn)
    assert sampling_for(chat(seed=-1)).seed == (1 << 63) - 1


def test_ignore_eos_drops_only_the_models_own_end():
    assert sampling_for(chat(ignore_eos=True)).stop_token_ids == ()
    assert sampling_for(chat(ignore_eos=True, stop_token_ids=[98])).stop_token_ids == (98,)
    assert sampling_for(chat(stop_token_ids=[98, END])).stop_token_ids == (END, 98)


def prompt_for(body: dict[str, Any]) -> str:
    async def scenario() -> str:
        async with Surface() as surface:
            reply = await surface.post(CHAT, body)
            assert reply.status == 200, reply.body
            return surface.tokenizer.decode(surface.requests.submissions[0].token_ids)

    return run(scenario())


def test_messages_become_the_templates_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    expected = "<system>be kind\n<user>a\nb\n<assistant>\n<tool>42\n"
    assert prompt_for({"messages": messages}) == expected + "<assistant>"
    assert prompt_for({"messages": messages, "add_generation_prompt": False}) == expected


def test_the_final_message_can_be_continued():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The ans"}]
    text = prompt_for({"messages": messages, "continue_final_message": True})
    assert text == "<user>hi\n<assistant>The ans"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: Any, expected: list[list[int]]):
    async def scenario():
        async with Surface() as surface:
            await surface.post(TEXT, {"prompt": prompt, "cache_salt": "s", "priority": 3, "n": 2})
            found = surface.requests.submissions
            assert [one.token_ids for one in found] == expected
            assert {(one.cache_salt, one.priority, one.choices) for one in found} == {("s", 3, 2)}

    run(scenario())


def test_a_refusal_of_the_flow_is_passed_on():
    async def scenario():
        async with Surface() as surface:
            surface.requests.refusal = Refusal(503, "all workers are busy", retry_after=2.4)
            reply = await surface.post(CHAT, chat(stream=True))
            assert (reply.status, reply.headers["retry-after"]) == (503, "2")
            assert reply.error()["type"] == "service_unavailable_error"
            assert surface.app.counters.running == 0

    run(scenario())


def test_tokenize_and_detokenize():
    async def scenario():
        async with Surface() as surface:
            for prefix in ("", "/v1"):
                body = {"prompt": "aé", "return_token_strs": True}
                reply = await surface.post(f"{prefix}/tokenize", body)
                assert reply.json() == {
                    "count": 3,
                    "max_model_len": 4096,
                    "tokens": [97, 0xC3, 0xA9],
                    "token_strs": ["a", "\ufffd", "\ufffd"],
                }
                reply = await surface.post(f"{prefix}/detokenize", {"tokens": spell("hello", END)})
                assert reply.json() == {"prompt": "hello<|end|>"}
            reply = await surface.post("/tokenize", chat())
            assert reply.json()["tokens"] == list(b"<user>hi\n<assistant>")

    run(scenario())


def test_the_clients_request_id_comes_back_if_it_is_fit():
    async def scenario():
        async with Surface() as surface:
            mine = await surface.post(CHAT, chat(), "X-Request-Id: abc-1\r\n")
            assert mine.headers["x-request-id"] == "abc-1"
            unfit = await surface.post(CHAT, chat(), "X-Request-Id: a b\r\n")
            assert unfit.headers["x-request-id"] == unfit.json()["id"]

    run(scenario())
