"""An answer, stripped of what may differ: ids, times, and how much was cached."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .conformance_table import TABLE
from .http_client import Stream, ask

BUSY = 16


def whole(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer in one piece."""
    status, answer = ask(url, path, body)
    assert status == 200, answer
    choices = {}
    for choice in answer["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        choices[choice["index"]] = {
            "text": text,
            "finish": choice["finish_reason"],
            "stop_reason": choice.get("stop_reason"),
            "tokens": choice.get("token_ids"),
            "logprobs": choice["logprobs"],
        }
    usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    return {"choices": choices, "usage": usage}


def streamed(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The same answer, put together from a stream."""
    stream = Stream(url, path, body | {"stream_options": {"include_usage": True}})
    assert stream.status == 200
    choices: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    for event in stream:
        if not event["choices"]:
            usage = event["usage"]
        for part in event["choices"]:
            choice = choices.setdefault(
                part["index"], {"text": "", "finish": None, "stop_reason": None, "tokens": []}
            )
            delta = part["delta"].get("content", "") if "delta" in part else part["text"]
            choice["text"] += delta or ""
            choice["tokens"] += part.get("token_ids") or []
            choice["finish"] = part["finish_reason"] or choice["finish"]
            choice["stop_reason"] = part.get("stop_reason") or choice["stop_reason"]
    assert stream.done
    usage = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
    return {"choices": choices, "usage": usage}


def without_logprobs(answer: dict[str, Any]) -> dict[str, Any]:
    """As far as a stream can be compared (its logprobs come in pieces)."""
    kept = ("text", "finish", "stop_reason", "tokens")
    choices = {
        index: {name: choice[name] for name in kept} for index, choice in answer["choices"].items()
    }
    return {"choices": choices, "usage": answer["usage"]}


def alone(url: str) -> dict[str, Any]:
    return {name: whole(url, path, body) for name, (path, body) in TABLE.items()}


def alone_streamed(url: str) -> dict[str, Any]:
    return {name: streamed(url, path, body) for name, (path, body) in TABLE.items()}


def among_others(url: str, names: Iterable[str] = tuple(TABLE)) -> dict[str, Any]:
    """Every request while 16 others (of the same table, other seeds) are being answered."""
    others = [
        (path, body | {"seed": number, "temperature": 1.0, "cache_salt": f"crowd {number % 3}"})
        for number, (path, body) in enumerate(TABLE.values())
    ]
    asking = {name: TABLE[name] for name in names}
    with ThreadPoolExecutor(BUSY + 4) as pool:
        crowd = [pool.submit(whole, url, *other) for other in others[:BUSY]]
        asked = {name: pool.submit(whole, url, *request) for name, request in asking.items()}
        answers = {name: answer.result() for name, answer in asked.items()}
        for one in crowd:
            one.result()
    return answers
