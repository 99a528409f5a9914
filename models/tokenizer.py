"""Text to token ids and back, and the chat template. Torch-free: the router runs this.

`decode` is the tokenizers library's (no clean-up of spaces before punctuation, whatever
tokenizer_config.json says: the streamed text and the whole text must agree). tokenizer.json decides
which special tokens `encode` adds; where it adds none, add_bos_token and add_eos_token of a
tokenizer_config.json of the Llama class do, as DeepSeek's files are meant.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from .chat_template import ChatTemplate, ChatTemplateError
from .fields import ModelError, read_json
from .text_stream import (
    ByteLevelStream,
    ByteTable,
    TextStream,
    WindowStream,
    byte_level_table,
)

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Classes of tokenizer_config.json for which add_bos_token and add_eos_token have a meaning.
ADDING_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
# Other forms of a vocabulary, from which tokenizer.json can be made.
OTHER_FORMS = ("tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """One model folder's tokenizer."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        self.inner = _opened(path)
        self.byte_level = _is_byte_level(path)
        settings = _json(folder / "tokenizer_config.json")
        # Old folders name special tokens in a file of their own.
        named = _json(folder / "special_tokens_map.json")
        self.special_tokens = _special_tokens(named) | _special_tokens(settings)
        self._add_promised_tokens(settings)
        self.templates = _template_sources(folder, settings)
        self._compiled: dict[str, ChatTemplate] = {}

    def _add_promised_tokens(self, settings: dict[str, Any]) -> None:
        if settings.get("tokenizer_class") not in ADDING_CLASSES:
            return
        if self.inner.num_special_tokens_to_add(False):
            return  # tokenizer.json adds its own
        begin, end = (
            [self.special_tokens[f"{name}_token"]]
            if settings.get(f"add_{name}_token") is True and f"{name}_token" in self.special_tokens
            else []
            for name in ("bos", "eos")
        )
        found = [(token, self.inner.token_to_id(token)) for token in (*begin, *end)]
        if missing := [token for token, token_id in found if token_id is None]:
            raise ModelError(f"tokenizer_config.json names {missing[0]!r}, no token of the model")
        if found:
            self.inner.post_processor = tokenizers.processors.TemplateProcessing(
                single=[*begin, "$A", *end], special_tokens=found
            )

    @property
    def vocabulary(self) -> int:
        """Number of ids, added tokens included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.inner.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.inner.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A detokenizer for one output sequence."""
        if self.byte_level:
            return ByteLevelStream(self._visible_table if skip_special_tokens else self._table)
        return WindowStream(lambda token_ids: self.decode(token_ids, skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for, special tokens as they are written."""
        table = self._table.bytes
        return table[token_id] if token_id < len(table) else b""

    def token_text(self, token_id: int) -> str:
        """`token_bytes` for people: what is no whole character becomes U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` skips when it is told to skip special tokens."""
        added = self.inner.get_added_tokens_decoder()
        contents = {token.content for token in added.values() if token.special}
        vocabulary = self.inner.get_vocab(with_added_tokens=True)
        return frozenset(vocabulary[content] for content in contents if content in vocabulary)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.templates)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Messages to prompt text; raises ChatTemplateError. Encode it without special tokens."""
        return self._template(tools is not None).render(
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )

    def _template(self, with_tools: bool) -> ChatTemplate:
        name = "tool_use" if with_tools and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise ChatTemplateError(
                "this model has no chat template; use /v1/completions, or put a "
                "chat_template.jinja into the model folder"
            )
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self.templates[name], self.special_tokens)
        return self._compiled[name]

    @cached_property
    def _table(self) -> ByteTable:
        vocabulary = self.inner.get_vocab(with_added_tokens=True)
        if self.byte_level:
            return ByteTable(byte_level_table(vocabulary))
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            table[token_id] = _piece_bytes(token)
        return ByteTable(table)

    @cached_property
    def _visible_table(self) -> ByteTable:
        hidden = self.special_ids
        table = [b"" if at in hidden else one for at, one in enumerate(self._table.bytes)]
        return ByteTable(table)


def _opened(path: Path) -> tokenizers.Tokenizer:
    if not path.exists():
        others = [name for name in OTHER_FORMS if (path.parent / name).exists()]
        raise ModelError(
            f"{path} is missing; only tokenizers in this format can be served"
            + (
                f". It can be made of {others[0]}, once, with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                if others
                else ""
            )
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} cannot be read: {error}") from None
    # A file saved during training may cut or pad; a server must do neither.
    inner.no_truncation()
    inner.no_padding()
    return inner


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _is_byte_level(path: Path) -> bool:
    """True where the decoder is byte level and nothing else, so that a table is exact."""
    decoder = json.loads(path.read_text(encoding="utf-8")).get("decoder") or {}
    if decoder.get("type") == "Sequence":
        return [one.get("type") for one in decoder.get("decoders", [])] == ["ByteLevel"]
    return decoder.get("type") == "ByteLevel"


def _piece_bytes(token: str) -> bytes:
    """SentencePiece-style pieces: <0xAB> is a byte, U+2581 is a space."""
    match = BYTE_TOKEN.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode()


def _special_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """The names a template may use; values are text or {"content": text}."""
    named: dict[str, Any] = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            named[name] = value
    return named


def _template_sources(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Templates by name. Of several places the newest wins: chat_template.jinja, then
    chat_template.json (which processors have), then tokenizer_config.json.
    """
    path, legacy = folder / "chat_template.jinja", folder / "chat_template.json"
    place = folder / "tokenizer_config.json"
    found: Any = settings.get("chat_template")
    if path.exists():
        found = path.read_text(encoding="utf-8")
    elif legacy.exists():
        place, found = legacy, read_json(legacy).get("chat_template")
    sources = _named_templates(place, found)
    for extra in sorted(folder.glob("additional_chat_templates/*.jinja")):
        sources[extra.stem] = extra.read_text(encoding="utf-8")
    return sources


def _named_templates(place: Path, found: Any) -> dict[str, str]:
    """A text, or a list of {"name": .., "template": ..}, or nothing."""
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    entries = found if isinstance(found, list) else [None]
    named = {
        one["name"]: one["template"]
        for one in entries
        if isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
    }
    if len(named) != len(entries):
        raise ModelError(
            f'{place}: chat_template must be text, or a list of {{"name": .., "template": ..}}'
        )
    return named
