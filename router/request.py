"""The seam between the HTTP side and the flow of requests. Pure.

The HTTP side turns a client's body into a Submission and hands it to Requests.submit together with
a Listener; the flow calls the listener as tokens arrive, each (choice, position) exactly once and
in order per choice, whatever happens to workers meanwhile. The HTTP side never sees a worker.
"""

from dataclasses import dataclass
from typing import Protocol

from ..protocol.messages import FinishReason, PromptReport, Sampling, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Submission:
    """One valid request, tokenised. `choices` is the client's n."""

    model: str
    token_ids: list[int]
    choices: int
    sampling: Sampling
    cache_salt: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Stages:
    """Where the time of one request went, in seconds (-1 = did not happen)."""

    queue: float = -1.0
    prefill: float = -1.0
    transfer: float = -1.0
    admission_wait: float = -1.0
    first_decode_step: float = -1.0


class Listener(Protocol):
    """What the flow tells about one request. Called on the router's loop; must not block."""

    def prompt(self, report: PromptReport) -> None:
        """Once, before any token: how much of the prompt was cached, its log-probabilities."""

    def token(
        self, choice: int, token_id: int, logprobs: TokenLogprobs | None, finish: FinishReason
    ) -> None:
        """The next token of a choice. `finish` is "" while it goes on.

        A prompt that is only scored (max_tokens 0) ends with token_id -1 and finish "length".
        """

    def failed(self, status: int, reason: str) -> None:
        """The request ends here with this HTTP status (e.g. 503) and sentence; nothing follows."""


class Refusal(Exception):
    """The request cannot be taken now; `status` is 4xx or 5xx, `retry_after` in seconds or 0."""

    def __init__(self, status: int, reason: str, field: str = "", retry_after: float = 0.0):
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.field = field
        self.retry_after = retry_after


class Requests(Protocol):
    """What the HTTP side may ask of the flow. All calls return at once."""

    def submit(self, submission: Submission, listener: Listener) -> int:
        """Take a request; returns its id. Raises Refusal."""
        ...

    def stop_choice(self, request: int, choice: int) -> None:
        """Nothing more is wanted of this choice (a stop string was found); no more calls for it."""
        ...

    def cancel(self, request: int) -> None:
        """The client is gone: cancel everywhere; the listener is not called again."""
        ...

    def stages(self, request: int) -> Stages:
        """What is known so far of where the time went (also shortly after the end)."""
        ...
