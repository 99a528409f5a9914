"""One step's tokens as one frame per router. Pure."""

from ..protocol.messages import (
    FinishReason,
    PromptReport,
    TokenLogprobs,
    Tokens,
    WorkerState,
)
from ..protocol.seams import Transport
from .sequence import Sequence


class Frame:
    """Collects what one router is told after one step."""

    __slots__ = ("requests", "attempts", "choices", "positions", "token_ids", "finish", "logprobs")

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.attempts: list[int] = []
        self.choices: list[int] = []
        self.positions: list[int] = []
        self.token_ids: list[int] = []
        self.finish: list[FinishReason] = []
        self.logprobs: list[TokenLogprobs | None] = []


class Frames:
    """The frames of one step, by router endpoint."""

    def __init__(self) -> None:
        self._frames: dict[str, Frame] = {}
        self._reports: dict[str, list[PromptReport]] = {}
        self._with_logprobs: set[str] = set()

    def token(
        self,
        sequence: Sequence,
        choice: int,
        position: int,
        token_id: int,
        finish: FinishReason,
        logprobs: TokenLogprobs | None,
    ) -> None:
        """A token drawn for one choice at an absolute position."""
        prefill = sequence.prefill
        endpoint = prefill.router.endpoint
        frame = self._frames.get(endpoint)
        if frame is None:
            frame = self._frames[endpoint] = Frame()
        frame.requests.append(prefill.request)
        frame.attempts.append(prefill.attempt)
        frame.choices.append(choice)
        frame.positions.append(position)
        frame.token_ids.append(token_id)
        frame.finish.append(finish)
        frame.logprobs.append(logprobs)
        if logprobs is not None:
            self._with_logprobs.add(endpoint)

    def prompt(self, sequence: Sequence, now: float) -> None:
        """The prompt's computation ended: what was cached, and where the time went."""
        prefill = sequence.prefill
        wanted = sequence.sampling.prompt_logprobs >= 0
        self._reports.setdefault(prefill.router.endpoint, []).append(
            PromptReport(
                prefill.request,
                prefill.attempt,
                sequence.cached_tokens,
                max(0.0, sequence.started - sequence.arrived),
                now - sequence.started,
                [None, *sequence.prompt_logprobs] if wanted else [],
            )
        )

    def send(self, transport: Transport, state: WorkerState) -> None:
        """One message per router that is owed anything."""
        for endpoint in self._frames.keys() | self._reports.keys():
            frame = self._frames.get(endpoint) or Frame()
            logprobs = frame.logprobs if endpoint in self._with_logprobs else []
            transport.send(
                endpoint,
                Tokens(
                    state,
                    frame.requests,
                    frame.attempts,
                    frame.choices,
                    frame.positions,
                    frame.token_ids,
                    frame.finish,
                    logprobs,
                    self._reports.get(endpoint, []),
                ),
            )
