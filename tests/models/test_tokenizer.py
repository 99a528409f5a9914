"""Tokenizer: streaming equals decoding, and chat templates render as transformers renders them."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from penstock.models.chat_template import ChatTemplate, ChatTemplateError
from penstock.models.fields import ModelError
from penstock.models.tokenizer import Tokenizer

TEXT = ["the water runs down the pipe", "Grüße, 水 and 🌊🏔️!", "naïve café, 5 × 7 = 35\n\n\tx"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_byte_level(folder: Path, **config: object) -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT * 20, trainer)
    inner.add_tokens([AddedToken("a café"), AddedToken("é~"), AddedToken("水 🌊")])
    inner.add_special_tokens([AddedToken("<|im_end|>")])
    inner.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer(folder)


def write_byte_fallback(folder: Path) -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted(set("thewarunsdopi"))
    inner = tokenizers.Tokenizer(
        models.BPE(
            {piece: at for at, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    inner.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.inner.token_to_id(token)
    assert token_id is not None
    return token_id


def streamed(tokenizer: Tokenizer, token_ids: list[int], skip: bool) -> str:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return "".join([stream.push(token_id) for token_id in token_ids]) + stream.flush()


@pytest.mark.parametrize("skip", [True, False])
def test_byte_level_stream_equals_decode(tmp_path: Path, skip: bool) -> None:
    tokenizer = write_byte_level(tmp_path)
    assert tokenizer.byte_level
    everything = list(range(tokenizer.vocabulary))
    assert streamed(tokenizer, everything, skip) == tokenizer.decode(everything, skip)
    for token_id in everything:
        assert streamed(tokenizer, [token_id], skip) == tokenizer.decode([token_id], skip)
    chance = random.Random(1)
    for _ in range(500):  # mostly invalid byte sequences
        token_ids = chance.choices(everything, k=30)
        assert streamed(tokenizer, token_ids, skip) == tokenizer.decode(token_ids, skip)
    for text in TEXT:
        assert streamed(tokenizer, tokenizer.encode(text), skip) == text


def test_a_split_character_waits(tmp_path: Path) -> None:
    tokenizer = write_byte_level(tmp_path)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False)
    symbols = alphabet.pre_tokenize_str("🦀")[0][0]
    token_ids = [id_of(tokenizer, symbol) for symbol in symbols]
    assert len(token_ids) == 4
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in token_ids] == ["", "", "", "🦀"]
    assert stream.push(token_ids[0]) == ""
    assert stream.flush() == "\ufffd"
    assert tokenizer.token_bytes(token_ids[0]) == b"\xf0"
    assert tokenizer.token_text(token_ids[0]) == "\ufffd"
    assert tokenizer.token_text(id_of(tokenizer, "<|im_end|>")) == "<|im_end|>"


def test_ids_beyond_the_vocabulary_have_no_text(tmp_path: Path) -> None:
    tokenizer = write_byte_level(tmp_path)
    beyond = tokenizer.vocabulary + 5
    assert streamed(tokenizer, [beyond], True) == "" and tokenizer.token_bytes(beyond) == b""


def test_byte_fallback_stream_equals_decode(tmp_path: Path) -> None:
    tokenizer = write_byte_fallback(tmp_path)
    assert not tokenizer.byte_level
    space = id_of(tokenizer, "▁")
    letters = list(range(space, tokenizer.vocabulary))
    chance = random.Random(2)
    for _ in range(200):
        token_ids = chance.choices([*letters, space, 1, 2], k=12)
        crab = [3 + byte for byte in "🦀é".encode()]
        token_ids[6:6] = crab
        for skip in (True, False):
            assert streamed(tokenizer, token_ids, skip) == tokenizer.decode(token_ids, skip)
    # An unfinished character at the end appears when the stream is flushed.
    token_ids = [*letters[:2], 3 + 0xF0, 3 + 0x9F]
    assert streamed(tokenizer, token_ids, True) == tokenizer.decode(token_ids, True)
    assert tokenizer.token_bytes(3 + 0xF0) == b"\xf0" and tokenizer.token_bytes(space) == b" "


def test_encode_adds_special_tokens_only_when_told(tmp_path: Path) -> None:
    tokenizer = write_byte_level(tmp_path)
    tokenizer.inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert tokenizer.encode("the", add_special_tokens=False) == tokenizer.encode("the")[1:]
    assert tokenizer.encode("the")[0] == 0
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


def test_missing_or_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


def test_router_side_needs_no_torch() -> None:
    code = (
        "import sys, penstock.models.config, penstock.models.tokenizer\n"
        "bad = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- chat templates ---------------------------------------------------------------------------

TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}",
    "{%- set ns = namespace(last='') %}\n{% for m in messages %}\n    {% if m.role == 'system' %}\n"
    "{% continue %}\n    {% endif %}\n{% set ns.last = m.content %}\n"
    "{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}{{ ns.last | tojson }}",
    "{% for m in messages %}{{ m.role }}{{ m.reasoning_content or '' }}:{{ m.content }}{{ x }}"
    "{% if m.tool_calls is defined %}T{% endif %};{% endfor %}",
]
CHATS = [
    [{"role": "user", "content": "  <b>Grüße</b> & 'hi'\n"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "水?"},
        {"role": "assistant", "content": "Yes.", "reasoning": "hm", "tool_calls": None},
    ],
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("mode", ["plain", "prompt", "continue"])
def test_rendering_equals_transformers(source: str, chat: list[dict[str, Any]], mode: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    tools: list[Any] = [{"type": "function", "function": {"name": "größe", "parameters": {}}}]
    options: dict[str, Any] = {
        "add_generation_prompt": mode == "prompt",
        "continue_final_message": mode == "continue",
    }
    # apply_chat_template drops null fields before it calls this function
    cleaned = [{k: v for k, v in message.items() if v is not None} for message in chat]
    expected, _ = render_jinja_template(
        [cleaned], tools=tools, chat_template=source, x="!", **options, **special
    )
    got = ChatTemplate(source, special).render(chat, tools, x="!", **options)
    assert got == expected[0]


def test_a_tokenizer_finds_its_template(tmp_path: Path) -> None:
    tokenizer = write_byte_level(tmp_path)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        tokenizer.render([{"role": "user", "content": "x"}])
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    tokenizer = write_byte_level(tmp_path, chat_template=named)
    messages = [{"role": "user", "content": "hey"}]
    assert tokenizer.render(messages) == "D" and tokenizer.render(messages, tools=[]) == "T"
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    text = Tokenizer(tmp_path).render(messages)
    assert text == "<|im_start|>user\nhey<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'x' * 999999999 }}", "out of bounds"),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "characters"),
    ],
)
def test_template_faults_are_typed(source: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=reason):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.models.chat_template.LONGEST_RENDER_SECONDS", 0.05)
    loop = "{% for i in range(99999) %}"
    source = f"{loop * 2}{{{{ messages[0].x }}}}{'{% endfor %}' * 2}"
    with pytest.raises(ChatTemplateError, match="took longer"):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_a_broken_template_is_named() -> None:
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate("{% for %}")
