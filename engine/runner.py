"""One step on the device: batch, forward pass, draw. Knows no queue and no pool."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from ..models.registry import Model
from ..protocol.messages import TokenLogprobs
from .batch import BatchBuilder, reported_rows, wanted_rows
from .device_order import DeviceOrder
from .logprobs import log_softmax, reports
from .ranks import Ranks
from .sampler import Sampler, refusal, row_of
from .sequence import Sequence
from .step import Drawn, Slice, Step, StepResult

# Rows whose logits over the whole vocabulary exist at one time when a prompt is reported.
REPORTED_AT_ONCE = 64


class Runner:
    """Runs steps against one model and one pages tensor. Called by one thread at a time."""

    def __init__(
        self,
        model: Model,
        pages_PLCGSH: Tensor,
        order: DeviceOrder | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`ranks`: those that hold the other shards of the model."""
        self.model = model
        self.pages = pages_PLCGSH
        self.builder = BatchBuilder(pages_PLCGSH.shape[4], pages_PLCGSH.device)
        self.sampler = Sampler(model.kernels)
        self.ranks = ranks
        self.order = order or DeviceOrder(pages_PLCGSH.device)
        self._drawn: dict[Sequence, int] = {}  # in the step before, for slices that follow it

    @torch.inference_mode()
    def run(self, step: Step) -> StepResult:
        began = time.monotonic()
        before, self._drawn = self._drawn, {}
        try:
            self.order.arrived()
            hidden_RD = self._forward(step, before)
            drawn = self._draw(step.slices, hidden_RD)
            self._drawn = {
                # Where nothing was drawn the row behind is computed for nothing, with any token.
                part.sequence: one.token_ids[0] if one.token_ids else 0
                for part, one in zip(step.slices, drawn, strict=True)
            }
        finally:
            # As soon as this returns, or raises, the step's pages may be read by a peer or be
            # given to another sequence or a plane, and the batch's host buffer be written again.
            self.order.publish()
        return StepResult(step, tuple(drawn), time.monotonic() - began)

    def _forward(self, step: Step, before: Mapping[Sequence, int]) -> Tensor:
        batch = self.builder.build(step, before)
        if self.ranks is None:
            return self.model.forward(batch, self.pages)
        return self.ranks.run(self.builder, lambda: self.model.forward(batch, self.pages))

    def _draw(self, slices: tuple[Slice, ...], hidden_RD: Tensor) -> list[Drawn]:
        ends = list(accumulate(wanted_rows(part) for part in slices))
        drawing = [(end - 1, part) for end, part in zip(ends, slices, strict=True) if part.draw]
        answers = iter(self._sample(hidden_RD, drawing))
        result = []
        for end, part in zip(ends, slices, strict=True):
            drawn = next(answers) if part.draw else Drawn()
            if count := reported_rows(part):
                first = end - part.count
                drawn = self._report_prompt(drawn, part, hidden_RD[first : first + count])
            result.append(drawn)
        return result

    def _sample(self, hidden_RD: Tensor, drawing: list[tuple[int, Slice]]) -> list[Drawn]:
        if not drawing:
            return []
        rows = [row for row, _ in drawing]
        chosen_RD = hidden_RD if len(rows) == len(hidden_RD) else hidden_RD[rows]
        return self.sampler.draw(
            self.model.logits(chosen_RD), [row_of(part) for _, part in drawing]
        )

    def _report_prompt(self, drawn: Drawn, part: Slice, hidden_RD: Tensor) -> Drawn:
        """Add the log-probabilities of the prompt tokens that follow this slice's tokens."""
        following = part.sequence.token_ids[part.start + 1 : part.start + 1 + len(hidden_RD)]
        alternatives = part.sequence.sampling.prompt_logprobs
        told: list[TokenLogprobs] = []
        for first in range(0, len(hidden_RD), REPORTED_AT_ONCE):
            logprobs_RV = log_softmax(
                self.model.logits(hidden_RD[first : first + REPORTED_AT_ONCE])
            )
            token_ids = [[one] for one in following[first : first + len(logprobs_RV)]]
            told += [
                one for (one,) in reports(logprobs_RV, token_ids, [alternatives] * len(token_ids))
            ]
        for at, one in enumerate(told):
            if math.isnan(one.logprob):
                position = part.start + 1 + at
                return Drawn(error=refusal(part.sequence, position, "logits are not finite"))
        return replace(drawn, prompt_logprobs=tuple(told))
