"""Text to token ids and back, and the chat template. Torch-free: the router runs this.

`decode` is the tokenizers library's (no clean-up of spaces before punctuation, whatever
tokenizer_config.json says: the streamed text and the whole text must agree). tokenizer.json alone
decides which special tokens `encode` adds.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from .chat_template import ChatTemplate, ChatTemplateError
from .config import ModelError, read_json
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
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """One model folder's tokenizer."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"{path} is missing; only tokenizers in this format can be served")
        try:
            self.inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} cannot be read: {error}") from None
        # A file saved during training may cut or pad; a server must do neither.
        self.inner.no_truncation()
        self.inner.no_padding()
        self.byte_level = _is_byte_level(path)
        settings_path = folder / "tokenizer_config.json"
        settings = read_json(settings_path) if settings_path.exists() else {}
        self.special_tokens = _special_tokens(settings)
        self.templates = _template_sources(folder, settings)
        self._compiled: dict[str, ChatTemplate] = {}

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
    """Templates by name. chat_template.jinja is newer than tokenizer_config.json's and wins."""
    path = folder / "chat_template.jinja"
    if path.exists():
        found: Any = path.read_text(encoding="utf-8")
    else:
        found = settings.get("chat_template")
    sources: dict[str, str] = {}
    if isinstance(found, str):
        sources["default"] = found
    elif isinstance(found, list):
        sources = {one["name"]: one["template"] for one in found}
    elif found is not None:
        raise ModelError(f"{folder}/tokenizer_config.json: chat_template must be text or a list")
    for extra in sorted(folder.glob("additional_chat_templates/*.jinja")):
        sources[extra.stem] = extra.read_text(encoding="utf-8")
    return sources
