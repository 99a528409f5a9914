"""Log-probabilities in the three forms clients know: chat's, completions', and prompt's. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..protocol.messages import TokenLogprobs
from .openai_prompt import Tokenizer

# JSON has no minus infinity; clients of other servers know this value for "never".
LOWEST = -9999.0


def chat_entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """One element of choices[].logprobs.content."""
    entry = _chat_token(tokenizer, token_id, logprobs.logprob)
    entry["top_logprobs"] = [
        _chat_token(tokenizer, one, logprob)
        for one, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    ]
    return entry


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, LOWEST),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def text_token(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as completions name it: no whole character is written as its bytes."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass(slots=True)
class TextLogprobs:
    """choices[].logprobs of /v1/completions, growing; `offset` is where the next token begins."""

    tokenizer: Tokenizer
    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        token = text_token(self.tokenizer, token_id)
        self.tokens.append(token)
        self.text_offset.append(self.offset)
        self.offset += len(self.tokenizer.token_text(token_id))
        if logprobs is None:  # the first token of a prompt follows nothing
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        self.token_logprobs.append(max(logprobs.logprob, LOWEST))
        top = {token: max(logprobs.logprob, LOWEST)}
        for one, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True):
            top.setdefault(text_token(self.tokenizer, one), max(logprob, LOWEST))
        self.top_logprobs.append(top)

    def add_prompt(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> None:
        for token_id, one in zip(token_ids, logprobs, strict=True):
            self.add(token_id, one)

    def take(self) -> dict[str, Any]:
        """What has come since the last call."""
        taken = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return taken


def prompt_entries(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
) -> list[dict[str, Any] | None]:
    """The `prompt_logprobs` other servers give: per token null or {id: {logprob, rank, ...}}."""
    return [
        None if one is None else _prompt_entry(tokenizer, token_id, one)
        for token_id, one in zip(token_ids, logprobs, strict=True)
    ]


def _prompt_entry(tokenizer: Tokenizer, token_id: int, one: TokenLogprobs) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    best = zip(one.top_ids, one.top_logprobs, strict=True)
    for rank, (top_id, logprob) in enumerate(best, start=1):
        entry[str(top_id)] = _ranked(tokenizer, top_id, logprob, rank)
    if str(token_id) not in entry:  # its rank is not known, only that it is not among the best
        entry[str(token_id)] = _ranked(tokenizer, token_id, one.logprob, None)
    return entry


def _ranked(
    tokenizer: Tokenizer, token_id: int, logprob: float, rank: int | None
) -> dict[str, Any]:
    return {
        "logprob": max(logprob, LOWEST),
        "rank": rank,
        "decoded_token": tokenizer.token_text(token_id),
    }
