"""Tokenizers as the families lay them out, and templates with the constructs that theirs use."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from penstock.models.chat_template import ChatTemplateError
from penstock.models.fields import ModelError
from penstock.models.tokenizer import Tokenizer

TEXT = ["The water runs down the pipe, 12345 times.", "Grüße, 水が 🌊🏔️!\n\n  naïve café\t5 × 7"]
WORDS = r"'(?i:s|t|re|ve)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def begins_with(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])


def byte_level(splits: list[str], normalizer: Any = None) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        inner.normalizer = normalizer
    cuts = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*cuts, BYTE_LEVEL])
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return trained(inner, ["<begin>", "<end>"], pre_tokenizers.ByteLevel.alphabet())


def byte_fallback() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return trained(inner, ["<unk>", "<begin>", "<end>", *BYTES], [])


def trained(
    inner: tokenizers.Tokenizer, special: list[str], alphabet: list[str]
) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXT[:1] * 20, trainer)
    return inner


def llama3() -> tokenizers.Tokenizer:
    inner = byte_level([WORDS])
    steps = [processors.ByteLevel(trim_offsets=True), begins_with("<begin>", 0)]
    inner.post_processor = processors.Sequence(steps)  # type: ignore[arg-type]
    return inner


def mistral() -> tokenizers.Tokenizer:
    inner = byte_fallback()
    inner.post_processor = begins_with("<begin>", 1)
    return inner


def qwen() -> tokenizers.Tokenizer:
    return byte_level([WORDS], normalizers.NFC())


def deepseek() -> tokenizers.Tokenizer:
    return byte_level([r"\p{N}{1,3}", r"[一-龥ぁ-ゟァ-ヿ]+", WORDS])


LLAMA_CLASS = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}
PLAIN_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
# How it is laid out, what tokenizer_config.json says, whether encode begins with <begin>.
FAMILIES: dict[str, Any] = {
    "llama3": (llama3, PLAIN_CLASS, True),
    "mistral": (mistral, LLAMA_CLASS | {"add_eos_token": False}, True),
    "qwen": (qwen, {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}, False),
    "deepseek": (deepseek, LLAMA_CLASS | {"add_eos_token": False}, True),
    "deepseek, told not to": (deepseek, LLAMA_CLASS | {"add_bos_token": False}, False),
    "no such class": (deepseek, PLAIN_CLASS | {"add_bos_token": True}, False),
}


def write(folder: Path, inner: tokenizers.Tokenizer, **settings: Any) -> Tokenizer:
    inner.save(str(folder / "tokenizer.json"))
    named = {"bos_token": {"__type": "AddedToken", "content": "<begin>"}, "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    return Tokenizer(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_reads_and_writes_as_transformers_does(tmp_path: Path, family: str) -> None:
    from transformers import PreTrainedTokenizerFast

    build, settings, begins = FAMILIES[family]
    tokenizer = write(tmp_path, build(), **settings)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    begin = tokenizer.inner.token_to_id("<begin>")
    for text in (*TEXT, "<begin>hey<end>", "", " two  spaces "):
        plain = theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special_tokens=False) == plain
        assert tokenizer.encode(text) == ([begin, *plain] if begins else plain)
        for skip in (True, False):
            told = theirs.decode(plain, skip_special_tokens=skip)
            stream = tokenizer.stream(skip_special_tokens=skip)
            streamed = "".join([stream.push(one) for one in plain]) + stream.flush()
            assert streamed == tokenizer.decode(plain, skip) == told
    chance = random.Random(3)
    for _ in range(100):
        token_ids = chance.choices(range(tokenizer.vocabulary), k=20)
        stream = tokenizer.stream()
        streamed = "".join([stream.push(one) for one in token_ids]) + stream.flush()
        assert streamed == tokenizer.decode(token_ids)


def test_an_ending_token_is_added_where_it_is_promised(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, deepseek(), **LLAMA_CLASS, add_eos_token=True)
    assert tokenizer.encode("the") == [0, *tokenizer.encode("the", add_special_tokens=False), 1]
    with pytest.raises(ModelError, match="'<stop>', no token of the model"):
        write(tmp_path, deepseek(), **LLAMA_CLASS, bos_token="<stop>")


def test_special_tokens_of_an_old_folder(tmp_path: Path) -> None:
    old = {"bos_token": "<old>", "unk_token": {"content": "<unk>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(old))
    tokenizer = write(tmp_path, deepseek(), chat_template="{{ bos_token }}{{ unk_token }}")
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "<begin><unk>"


@pytest.mark.parametrize("other", ["tokenizer.model", "tiktoken.model", "tekken.json"])
def test_a_vocabulary_in_another_form_is_named(tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(ModelError, match=f"can be made of {other}, once, with transformers"):
        Tokenizer(tmp_path)


def test_where_a_template_lies(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    tokenizer = write(tmp_path, deepseek(), chat_template="config")
    assert tokenizer.render(messages) == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert Tokenizer(tmp_path).render(messages) == "processor"
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert Tokenizer(tmp_path).render(messages) == "file"
    assert Tokenizer(tmp_path).render(messages, tools=[]) == "tools"


@pytest.mark.parametrize("wrong", [5, {"default": "x"}, ["x"], [{"name": "default"}]])
def test_a_template_of_another_kind_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: chat_template must be text"):
        write(tmp_path, deepseek(), chat_template=wrong)


# --- templates: the constructs of the published ones, in other words ------------------------------

TOOLS_LIKE_LLAMA = """
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not in_user_message is defined %}{%- set in_user_message = true %}{%- endif %}
{%- if not day is defined %}{%- set day = strftime_now("%Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set first = "" %}
{%- endif %}
{{- "<|head|>system\\n\\n" }}
{%- if builtin is defined or tools is not none %}{{- "Runs: code\\n" }}{%- endif %}
{%- if builtin is defined %}
    {{- "Has: " + builtin | reject('equalto', 'code') | join(", ") + "\\n" }}
{%- endif %}
{{- day + "\\n" + first }}
{%- if tools is not none and not in_user_message %}
    {%- for one in tools %}{{- one | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role in ['ipython', 'tool'] or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant\\n\\n' }}{%- endif %}
"""

THINKING_LIKE_QWEN = """
{%- if tools %}
    {{- '<|start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and
        not(message.content.startswith('<answer>') and message.content.endswith('</answer>')) %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {% generation %}{{- content }}{% endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- call.name }}
            {%- if call.arguments is string %}{{- call.arguments }}
            {%- else %}{{- call.arguments | tojson }}{%- endif %}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|u|>' }}{%- endif %}
        {{- '<answer>' + content + '</answer>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|/u|>' }}{%- endif %}
    {%- else %}{{- '<|start|>' + message.role + '\\n' + content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

INSTRUCTIONS_LIKE_MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set head = messages[0]["content"] %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in turns if message.role in ("user", "assistant") and not message.tool_calls %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("user and assistant must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message.role == "user" %}
        {%- if tools is not none and message == asked[-1] %}
            {{- "[TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}{{- '{"function": {' }}
                {%- for key, value in tool.items() if key != "return" %}
                    {%- if value is string %}{{- '"' + key + '": "' + value + '"' }}
                    {%- else %}{{- '"' + key + '": ' + value|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}{{- "}}" }}
            {%- endfor %}{{- "][/TOOLS]" }}
        {%- endif %}
        {%- if loop.last and head is defined %}{{- "[INST] " + head + "\\n\\n" + message.content }}
        {%- else %}{{- "[INST] " + message["content"] }}{%- endif %}{{- "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- for call in message.tool_calls %}{%- set out = call.function|tojson %}
            {{- out[:-1] }}{{- ', "id": "' + call.id + '"}' }}
        {%- endfor %}{{- eos_token }}
    {%- elif message.role == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- elif message.role == "tool" %}{{- '{"content": ' + message.content|string + "}" }}
    {%- endif %}
{%- endfor %}
"""

SWITCHES_LIKE_DEEPSEEK = """
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{% set ns = namespace(first=false, tool=false, head='', first_head=true, last_user=false) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
    {%- if ns.first_head %}{% set ns.head = ns.head + message['content'] %}
        {% set ns.first_head = false %}
    {%- else %}{% set ns.head = ns.head + '\\n\\n' + message['content'] %}{%- endif %}
{%- endif %}{%- endfor %}
{{ bos_token }}{{ ns.head }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.tool = false -%}{%- set ns.first = false -%}{%- set ns.last_user = true -%}
        {{ '<|User|>' + message['content'] }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['tool_calls'] is defined
        and message['tool_calls'] is not none %}
        {%- if ns.last_user %}{{ '<|Assistant|></think>' }}{%- endif %}
        {%- for call in message['tool_calls'] %}
            {%- if not ns.first %}
                {%- if message['content'] is none %}{{ '<calls>' + call['function']['name'] }}
                {%- else %}{{ message['content'] + '<calls>' + call['function']['name'] }}
                {%- endif %}
                {%- set ns.first = true -%}
            {%- else %}{{ '<call>' + call['function']['name'] }}{%- endif %}
        {%- endfor %}{{ '<|eos|>' }}
    {%- elif message['role'] == 'assistant' %}
        {%- if ns.last_user %}
            {{ '<|Assistant|>' }}
            {%- if message['prefix'] is defined and message['prefix'] and thinking %}{{ '<think>' }}
            {%- else %}{{ '</think>' }}{%- endif %}
        {%- endif %}
        {%- set ns.last_user = false -%}{%- set content = message['content'] -%}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>', 1)[1] -%}
        {%- endif %}
        {{ content + '<|eos|>' }}
    {%- endif %}
    {%- if message['role'] == 'tool' %}{%- set ns.tool = true -%}
        {{ '<out>' + message['content'] + '</out>' }}{%- endif %}
{%- endfor -%}
{%- if add_generation_prompt and ns.last_user and not ns.tool %}
    {{ '<|Assistant|>' }}
    {%- if not thinking %}{{ '</think>' }}{%- else %}{{ '<think>' }}{%- endif %}
{% endif %}
"""

TEMPLATES = {
    "llama": TOOLS_LIKE_LLAMA,
    "qwen": THINKING_LIKE_QWEN,
    "mistral": INSTRUCTIONS_LIKE_MISTRAL,
    "deepseek": SWITCHES_LIKE_DEEPSEEK,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "Wie ist's in <Köln>?",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "wetter", "arguments": {"city": "水"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": " hello\n"}],
    "turns": [
        {"role": "system", "content": "Be <kind>. "},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
    ],
    "called": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning": "so"},
        {"role": "tool", "content": "21 °C"},
    ],
    "answered": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "because"},
    ],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False, "thinking": True, "in_user_message": False, "day": "1"},
    {"builtin": ["code", "search"]},
]


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_templates_render_as_in_transformers(tmp_path: Path, family: str, chat: str) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = write(tmp_path, qwen(), chat_template=TEMPLATES[family])
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    rendered = set()
    for tools in (None, TOOLS):
        for options in OPTIONS:
            for prompt in (True, False):
                expected = theirs.apply_chat_template(
                    CHATS[chat],
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **options,
                )
                got = tokenizer.render(CHATS[chat], tools, add_generation_prompt=prompt, **options)
                assert got == expected
                rendered.add(got)
    assert len(rendered) > 1 or family == "deepseek"


def test_a_template_says_no(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, qwen(), chat_template=INSTRUCTIONS_LIKE_MISTRAL)
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ChatTemplateError, match="user and assistant must alternate"):
        tokenizer.render(twice)
    tokenizer = write(tmp_path, qwen(), chat_template=TOOLS_LIKE_LLAMA)
    both = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL, CALL]}]
    with pytest.raises(ChatTemplateError, match="one call at a time"):
        tokenizer.render(both)
