"""Token ids to text, one token at a time. Torch-free; knows vocabularies, no model.

The concatenation of all `push` results and of `flush` is the decoding of the whole sequence. Byte
level vocabularies (GPT-2's, Llama 3's) go through a table of each token's bytes; others (byte
fallback and the like) decode a short window again with every token.
"""

import codecs
from collections.abc import Callable
from typing import Protocol


class TextStream(Protocol):
    """The text of one output sequence as it grows."""

    def push(self, token_id: int) -> str:
        """The text this token completes; "" while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end; incomplete characters become U+FFFD."""
        ...


def byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable bytes stand for themselves, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def byte_level_table(vocabulary: dict[str, int]) -> list[bytes]:
    """Bytes of each id. A token outside the alphabet (some added ones) is its own UTF-8 text."""
    alphabet = byte_of_character()
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        try:
            table[token_id] = bytes([alphabet[character] for character in token])
        except KeyError:
            table[token_id] = token.encode()
    return table


class ByteTable:
    """Per id: its bytes, and its text where the bytes are whole characters."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self.bytes = token_bytes
        self.texts = [_whole_text(one) for one in token_bytes]


def _whole_text(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


class ByteLevelStream:
    """Whole characters come from the table; bytes of broken ones wait in `pending`."""

    __slots__ = ("texts", "bytes", "pending")

    def __init__(self, table: ByteTable) -> None:
        self.texts = table.texts
        self.bytes = table.bytes
        self.pending = b""

    def push(self, token_id: int) -> str:
        if token_id >= len(self.texts):  # a padded vocabulary's unused ids have no text
            return ""
        if not self.pending:
            text = self.texts[token_id]
            if text is not None:
                return text
        waiting = self.pending + self.bytes[token_id]
        text, used = codecs.utf_8_decode(waiting, "replace", False)
        self.pending = waiting[used:]
        return text

    def flush(self) -> str:
        text = self.pending.decode(errors="replace")
        self.pending = b""
        return text


class WindowStream:
    """For any decoder: decode from the last place where text was given out, twice per token.

        tokens  ... [ prefix ][ not given out yet ]

    The prefix is decoded along because a token's text may depend on the one before (a leading
    space is dropped at the start of a sequence only).
    """

    __slots__ = ("decode", "window", "prefix", "prefix_text")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.window: list[int] = []
        self.prefix = 0  # tokens at the window's start whose text was given out
        self.prefix_text = ""

    def push(self, token_id: int) -> str:
        self.window.append(token_id)
        text = self.decode(self.window)
        if len(text) <= len(self.prefix_text) or text.endswith("\ufffd"):
            return ""
        new = text[len(self.prefix_text) :]
        self.window = self.window[self.prefix :]
        self.prefix = len(self.window)
        self.prefix_text = self.decode(self.window)
        return new

    def flush(self) -> str:
        left = self.decode(self.window)[len(self.prefix_text) :]
        self.window, self.prefix, self.prefix_text = [], 0, ""
        return left
