"""One client's answer: listens to the flow, counts, and ends in exactly one way.

A client's request may hold several prompts; each is a submission of its own with n choices, and
`Part` listens to it. How the answer is written is the business of the two subclasses: token by
token (answer_stream.py) or at the end (answer_whole.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ..protocol.messages import FinishReason, PromptReport, TokenLogprobs
from .answer_text import ChoiceText, StopString
from .http_exchange import Exchange
from .metrics import Counters
from .metrics_page import STAGES
from .openai_error import ApiError
from .openai_prompt import Prompt, Tokenizer
from .openai_sampling import Stops
from .request import Refusal, Requests, Submission
from .sse import Form


@dataclass(slots=True)
class Service:
    """What every answer needs: the flow, the tokenizer, the counters."""

    requests: Requests
    tokenizer: Tokenizer
    counters: Counters = field(default_factory=Counters)


class Part:
    """Listener of one submission."""

    __slots__ = ("answer", "asked", "report", "choices", "request", "open", "counters")

    def __init__(self, answer: "Answer", prompt: Prompt, choices: list[ChoiceText]):
        self.answer = answer
        self.asked = prompt
        self.report: PromptReport | None = None
        self.choices = choices
        self.request = -1  # until submitted
        self.open = len(choices)
        self.counters = answer.service.counters

    def prompt(self, report: PromptReport) -> None:
        self.report = report
        form = self.answer.form
        wanted = form.prompt_logprobs or (form.echo and form.logprobs)
        if wanted and len(report.prompt_logprobs) != len(self.asked.token_ids):
            return self.answer.logprobs_missing()
        self.answer.cached_tokens += report.cached_tokens
        self.answer.service.counters.cached_tokens += report.cached_tokens

    def token(
        self, choice: int, token_id: int, logprobs: TokenLogprobs | None, finish: FinishReason
    ) -> None:
        taken = self.choices[choice]
        if taken.finish:  # a stop string ended it; its worker has not heard yet
            return
        now = monotonic()
        last = taken.last_at
        if last:
            self.counters.between_tokens.observe(now - last)
        elif not self.answer.first_at:
            self.answer.first_token(now)
        taken.last_at = now
        if token_id >= 0:
            self.counters.generated_tokens += 1
        text = taken.push(token_id, finish)
        self.answer.token(self, taken, text, token_id, logprobs)
        if taken.finish and not self.answer.over:
            self._ended(choice, taken)

    def failed(self, status: int, reason: str) -> None:
        self.open = 0
        self.answer.fail(ApiError(reason, status=status, code="request_failed"))

    def _ended(self, choice: int, taken: ChoiceText) -> None:
        self.open -= 1
        if taken.cut:
            self.answer.service.requests.stop_choice(self.request, choice)
        self.answer.choice_ended(taken)


class Answer:
    """The request as a whole. Ends by the last choice, a failure, or the client's leaving.

    Slots here and in all a token passes: with hundreds of streams each token finds its objects
    out of the processor's caches, so fewer and smaller ones count more than fewer instructions.
    """

    __slots__ = (
        "exchange",
        "form",
        "service",
        "parts",
        "open",
        "prompt_tokens",
        "cached_tokens",
        "first_at",
        "over",
    )

    def __init__(self, exchange: Exchange, form: Form, service: Service):
        self.exchange = exchange
        self.form = form
        self.service = service
        self.parts: list[Part] = []
        self.open = 0  # choices going on
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.first_at = 0.0
        self.over = False

    # --- how it is written: for the subclasses ---------------------------------------------------

    def token(
        self,
        part: Part,
        choice: ChoiceText,
        text: str,
        token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> None:
        """A choice has one more token (-1: none), and `text` to show."""
        raise NotImplementedError

    def close_choice(self, choice: ChoiceText) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Every choice has ended."""
        raise NotImplementedError

    def close_failed(self, error: ApiError) -> None:
        raise NotImplementedError

    # --- its life --------------------------------------------------------------------------------

    def begin(
        self, prompts: Sequence[Prompt], submissions: Sequence[Submission], stops: Stops
    ) -> None:
        """Hand all prompts to the flow, or raise ApiError with none of them left there."""
        strings = [StopString(one) for one in stops.strings]
        for prompt, submission in zip(prompts, submissions, strict=True):
            choices = [self._choice(stops, strings, at) for at in range(submission.choices)]
            self.parts.append(Part(self, prompt, choices))
            self.open += submission.choices
            self.prompt_tokens += len(prompt.token_ids)
        counters = self.service.counters
        counters.running += 1
        self.exchange.on_disconnect(self._left)
        for part, submission in zip(self.parts, submissions, strict=True):
            try:
                part.request = self.service.requests.submit(submission, part)
            except Refusal as refusal:
                self._cancel()
                self._end("refused")
                self.parts.clear()
                raise ApiError(
                    refusal.reason,
                    refusal.field or None,
                    refusal.status,
                    retry_after=refusal.retry_after,
                ) from None
            counters.prompt_length.observe(len(submission.token_ids))
        counters.prompt_tokens += self.prompt_tokens

    def _choice(self, stops: Stops, strings: Sequence[StopString], at: int) -> ChoiceText:
        stream = self.service.tokenizer.stream(self.form.skip_special_tokens)
        return ChoiceText(self.open + at, stream, stops, strings)

    def first_token(self, now: float) -> None:
        self.first_at = now
        self.service.counters.first_token.observe(now - self.exchange.started)

    def choice_ended(self, choice: ChoiceText) -> None:
        counters = self.service.counters
        counters.answer_length.observe(choice.tokens)
        counters.finished[choice.finish] += 1
        self.open -= 1
        self.close_choice(choice)
        if self.open == 0:
            self._stages()
            self._end("")
            counters.whole_request.observe(monotonic() - self.exchange.started)
            self.close()
            self.parts.clear()  # they refer back: left to the collector, they would be its work

    def fail(self, error: ApiError) -> None:
        if self.over:
            return
        self._cancel()
        self._end("failed")
        self.close_failed(error)
        self.parts.clear()

    def logprobs_missing(self) -> None:
        """They were asked for; an answer without them would look whole."""
        self.fail(ApiError("a worker sent no log-probabilities", status=500))

    def _left(self) -> None:
        """The client is gone."""
        if not self.over:
            self._cancel()
            self._end("cancelled")
            self.parts.clear()

    def _cancel(self) -> None:
        for part in self.parts:
            if part.open and part.request >= 0:
                self.service.requests.cancel(part.request)
            part.open = 0

    def _end(self, why: str) -> None:
        """`why` all open choices end together, if they do."""
        self.over = True
        counters = self.service.counters
        counters.running -= 1
        if why:
            counters.finished[why] += self.open

    def _stages(self) -> None:
        counters = self.service.counters
        for part in self.parts:
            stages = self.service.requests.stages(part.request)
            for stage in STAGES:
                seconds = getattr(stages, stage)
                if seconds >= 0:
                    getattr(counters, stage).observe(seconds)

    def usage(self) -> dict[str, Any]:
        generated = sum(choice.tokens for part in self.parts for choice in part.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def prompt_text(self, prompt: Prompt) -> str:
        """For echo: as it was sent, or as its ids read."""
        if prompt.text is not None:
            return prompt.text
        return self.service.tokenizer.decode(prompt.token_ids, self.form.skip_special_tokens)
