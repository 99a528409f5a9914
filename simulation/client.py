"""What one simulated client asks, and whether what it was given is right. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from ..protocol.messages import PromptReport, Sampling, TokenLogprobs
from .chance import Violation
from .cluster import Client
from .engine import true_tokens

NO_WORKER, OVERDUE = 503, 504  # the only ways in which a valid request may fail


@dataclass(frozen=True, slots=True)
class Question:
    """One request."""

    prompt: list[int]
    choices: int
    sampling: Sampling
    salt: str

    def fits(self, longest: int) -> bool:
        """Do prompt and at least one token fit the workers' memory of `longest` tokens?"""
        return len(self.prompt) + min(1, self.sampling.max_tokens) <= longest

    def answer(self, choice: int, longest: int) -> list[int]:
        """The one right answer of a choice, where `longest` tokens fit the workers' memory."""
        count = min(self.sampling.max_tokens, longest - len(self.prompt) or 1)
        tokens = true_tokens(self.prompt, self.sampling.seed, choice, count)
        stops = [at for at, token in enumerate(tokens) if token in self.sampling.stop_token_ids]
        return tokens[: stops[0] + 1] if stops else tokens


class CheckedClient(Client):
    """Checks when it is called, and may answer from inside a call as the HTTP side does."""

    def __init__(self, question: Question, asked: float):
        super().__init__(question.choices)
        self.question = question
        self.asked = asked  # when
        self.over = False  # cancelled, or its router is gone: no call may come
        self.stopped: set[int] = set()  # choices it wanted no more of
        self.after_token: Callable[[int], None] = lambda choice: None

    def prompt(self, report: PromptReport) -> None:
        if self.over or self.report is not None or self.failure is not None:
            raise Violation("prompt() after the end, or twice")
        super().prompt(report)

    def token(
        self, choice: int, token_id: int, logprobs: TokenLogprobs | None, finish: str
    ) -> None:
        early = self.report is None
        if self.over or early or self.failure is not None or self.finish[choice]:
            raise Violation(f"token() after the end or before the report: {self.finish}")
        super().token(choice, token_id, logprobs, finish)
        self.after_token(choice)

    def failed(self, status: int, reason: str) -> None:
        if self.over or self.ended:
            raise Violation("failed() after the end")
        super().failed(status, reason)

    def judge(self, longest: int, may_fail: bool) -> None:
        """What it was given, against the one right answer."""
        who = f"request {self.request}"
        self._judge_failure(who, longest, may_fail)
        if not self.over and not self.ended:
            raise Violation(f"{who} never ended, and is not in flight")
        for choice, given in enumerate(self.tokens):
            right = self.question.answer(choice, longest)
            if given != right[: len(given)]:
                raise Violation(f"{who}.{choice}: wrong tokens {given}, not {right}")
            cut = self.over or self.failure is not None or choice in self.stopped
            if not cut and given != right:
                raise Violation(f"{who}.{choice}: only {given} of {right}")
        self._judge_scores(who)

    def _judge_failure(self, who: str, longest: int, may_fail: bool) -> None:
        if self.failure is None or not self.question.fits(longest):
            return
        status, reason = self.failure
        if not may_fail or status not in (NO_WORKER, OVERDUE):
            raise Violation(f"{who} failed: {self.failure}")
        if not reason:
            raise Violation(f"{who} failed with {status} and no reason")

    def _judge_scores(self, who: str) -> None:
        sampling = self.question.sampling
        if sampling.logprobs >= 0 and any(one is None for ones in self.logprobs for one in ones):
            raise Violation(f"{who}: a token without its log-probabilities")
        if sampling.prompt_logprobs >= 0 and self.report is not None:
            scores = [None if one is None else one.logprob for one in self.prompt_scores]
            if scores != [None, *(-float(one) for one in range(1, len(self.question.prompt)))]:
                raise Violation(f"{who}: prompt scores {scores}")
