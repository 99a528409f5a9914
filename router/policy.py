"""Where a request goes. Pure: a function of the request and of what the router knows of workers.

Version one of context-length-aware placement:
- the decode worker is the one whose pool is least full after taking the request, cached prefix
  counted; ties by running sequences, then by name;
- where at most `local_prefill_tokens` of the prompt are not cached there, it prefills itself: a
  short remainder costs a decode step little, a hand-over costs two hops;
- else the prompt goes to the prefill worker that will be done first: (tokens before it + tokens
  to compute) / its measured rate. What counts is uncached work, not length.
"""

from dataclasses import dataclass
from typing import Literal

from .fleet import Worker

Kind = Literal["local", "remote", "aggregated", "prefill_only"]


@dataclass(frozen=True, slots=True)
class Demand:
    """A request as the policy sees it."""

    tokens: int
    positions: int  # that the longest answer would reach
    hashes: list[bytes]  # of its full blocks
    page_slots: int
    answers_at_once: bool = False  # max_tokens <= 1: nothing is decoded after the prompt

    @property
    def pages(self) -> int:
        return -(-self.tokens // self.page_slots)

    def uncached(self, worker: Worker) -> int:
        """Prompt tokens this worker would compute; the last one always, for its logits."""
        return max(1, self.tokens - worker.cached_blocks(self.hashes) * self.page_slots)


@dataclass(frozen=True, slots=True)
class Route:
    """The decision, with what it was made of, for the records."""

    kind: Kind
    prefill: str  # endpoint that computes the prompt
    decode: str  # endpoint that goes on; the same one unless the prompt is handed over
    uncached: int  # prompt tokens to be computed
    predicted_seconds: float  # until the prompt is computed


def choose(demand: Demand, workers: list[Worker], local_prefill_tokens: int) -> Route | None:
    """The route, or None where no usable worker can take it."""
    usable = [one for one in workers if one.usable]
    prefills = [one for one in usable if one.role == "prefill" and _holds(one, demand.tokens)]
    decodes = [one for one in usable if one.role != "prefill" and _holds(one, demand.positions)]
    able = [one for one in decodes if prefills or _alone(one, demand, local_prefill_tokens)]
    decode = min(able, key=lambda one: _fullness(one, demand), default=None)
    if decode is not None and decode.role == "aggregated":
        return _at(decode, demand, "aggregated")
    if decode is not None and demand.uncached(decode) <= local_prefill_tokens:
        return _at(decode, demand, "local")
    if not prefills or (decode is None and not demand.answers_at_once):
        return None
    prefill = min(prefills, key=lambda one: (seconds_until_done(one, demand), one.peer.name))
    if demand.answers_at_once:
        return _at(prefill, demand, "prefill_only")
    assert decode is not None
    seconds = seconds_until_done(prefill, demand)
    return Route(
        "remote", prefill.peer.endpoint, decode.peer.endpoint, demand.uncached(prefill), seconds
    )


def seconds_until_done(worker: Worker, demand: Demand) -> float:
    """Predicted time until this worker has computed the prompt."""
    return (worker.queue_tokens + demand.uncached(worker)) / worker.tokens_per_second


def _holds(worker: Worker, positions: int) -> bool:
    """A smaller worker would end the answer earlier than another one does."""
    return worker.description.context_length >= positions


def _alone(worker: Worker, demand: Demand, local_prefill_tokens: int) -> bool:
    """Would it compute the prompt itself? A decode worker computes a short remainder."""
    return worker.role == "aggregated" or demand.uncached(worker) <= local_prefill_tokens


def _at(worker: Worker, demand: Demand, kind: Kind) -> Route:
    endpoint = worker.peer.endpoint
    seconds = seconds_until_done(worker, demand)
    return Route(kind, endpoint, endpoint, demand.uncached(worker), seconds)


def _fullness(worker: Worker, demand: Demand) -> tuple[float, int, str]:
    cached = worker.cached_blocks(demand.hashes)
    after = worker.pages_taken + demand.pages - cached
    load = worker.state.running + worker.state.waiting
    return after / worker.description.pages, max(load, len(worker.bookings)), worker.peer.name
