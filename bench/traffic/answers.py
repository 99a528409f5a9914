"""Answers in one form, whole or put together from a stream, and how two of them differ. Pure.

    {"choices": {index: {"text", "finish", "stop_reason", "tokens", "logprobs"}}, "usage": {...}}

`tokens` and `logprobs` are None where they were not asked for. Ids, times and how much was cached
are left out: they may differ.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

Answer = dict[str, Any]
USAGE = ("prompt_tokens", "completion_tokens")
FIELDS = ("finish", "stop_reason", "text", "tokens", "logprobs")
DONE = b"[DONE]"


@dataclass(slots=True)
class Streamed:
    """As far as a stream went. `error`: the sentence of an error event, after which it ends."""

    answer: Answer
    done: bool = False
    error: str = ""


def of_whole(body: bytes) -> Answer:
    """An answer that came in one piece. Raises what malformed JSON raises."""
    fields = msgspec.json.decode(body)
    choices = {}
    for one in fields["choices"]:
        logprobs = one["logprobs"]
        if logprobs is not None and "content" in logprobs:
            logprobs = logprobs["content"]
        choices[one["index"]] = {
            "text": one["text"] if "text" in one else one["message"]["content"],
            "finish": one["finish_reason"],
            "stop_reason": one.get("stop_reason"),
            "tokens": one.get("token_ids"),
            "logprobs": logprobs,
        }
    return {"choices": choices, "usage": {name: fields["usage"][name] for name in USAGE}}


def of_stream(body: bytes) -> Streamed:
    """What came of a stream; an event that did not come whole is left out."""
    streamed = Streamed({"choices": {}, "usage": {}})
    *events, _ = body.split(b"\n\n")
    for event in events:
        content = event.removeprefix(b"data: ")
        if content == DONE:
            streamed.done = True
            continue
        fields = msgspec.json.decode(content)
        if "error" in fields:
            streamed.error = str(fields["error"].get("message", ""))
            continue
        if not fields["choices"]:
            streamed.answer["usage"] = {name: fields["usage"][name] for name in USAGE}
        for part in fields["choices"]:
            _add(streamed.answer["choices"], part)
    return streamed


def _add(choices: dict[int, Any], part: dict[str, Any]) -> None:
    blank = {"text": "", "finish": None, "stop_reason": None, "tokens": None, "logprobs": None}
    choice = choices.setdefault(part["index"], blank)
    text = part["delta"].get("content", "") if "delta" in part else part["text"]
    choice["text"] += text or ""
    if "token_ids" in part:
        choice["tokens"] = (choice["tokens"] or []) + part["token_ids"]
    choice["finish"] = part["finish_reason"] or choice["finish"]
    if part.get("stop_reason") is not None:
        choice["stop_reason"] = part["stop_reason"]
    more = part.get("logprobs")
    if more is None:
        return
    if "content" in more:
        choice["logprobs"] = (choice["logprobs"] or []) + more["content"]
    else:
        kept = choice["logprobs"] or {name: [] for name in more}
        choice["logprobs"] = {name: kept[name] + more[name] for name in more}


def difference(expected: Answer, got: Answer) -> str:
    """The first thing in which a finished answer is not the expected one; "" = equal."""
    if sorted(expected["choices"]) != sorted(got["choices"]):
        return f"choices {sorted(got['choices'])}, expected {sorted(expected['choices'])}"
    for index, wanted in sorted(expected["choices"].items()):
        for name in FIELDS:
            if got["choices"][index][name] != wanted[name]:
                return f"{name} of choice {index} differs"
    if got["usage"] != expected["usage"]:
        return f"usage {got['usage']}, expected {expected['usage']}"
    return ""


def contradiction(expected: Answer, part: Answer) -> str:
    """The first thing in an unfinished answer that could not become the expected one."""
    for index, said in sorted(part["choices"].items()):
        wanted = expected["choices"].get(index)
        if wanted is None:
            return f"choice {index} was not asked for"
        if said["finish"] is not None and said["finish"] != wanted["finish"]:
            return f"finish of choice {index} differs"
        for name in ("text", "tokens", "logprobs"):
            if not _begins(wanted[name], said[name]):
                return f"{name} of choice {index} differs"
    return ""


def _begins(wanted: Any, said: Any) -> bool:
    """Text, a list, or lists by name."""
    if not said or wanted is None:
        return not said
    if isinstance(said, dict):
        return all(_begins(wanted[name], value) for name, value in said.items())
    return wanted[: len(said)] == said
