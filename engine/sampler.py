"""From logits to tokens: the arg-max of filtered scores plus noise (DESIGN.md, rule 1).

    logits -> bias, min_tokens, penalties -> / temperature -> top_k, min_p, top_p
           -> + Gumbel noise of (seed, choice, position, token id) -> arg-max, ties to the lowest id

Temperature 0: the arg-max of the penalised logits, without filters and noise. Every operation is
elementwise, exact (maximum, integer sum) or of one row, so a row's token does not depend on
which other rows are drawn with it.

R rows, X rows that need more than an arg-max, Y draws (one per choice of those rows), V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from ..kernels.noise import signed
from ..protocol.messages import Sampling, TokenLogprobs
from .filters import drop_unlikely
from .logprobs import log_softmax, reports
from .penalties import Penalties, changes_logits
from .sequence import Sequence
from .step import Drawn, Slice


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits and what is to be drawn from it."""

    sequence: Sequence
    position: int  # absolute, of the token to be drawn
    choices: tuple[int, ...]

    @property
    def sampling(self) -> Sampling:
        return self.sequence.sampling

    @property
    def changed(self) -> bool:
        return changes_logits(self.sampling, self.position - self.sequence.prompt_length)

    @property
    def plain(self) -> bool:
        """The arg-max of the model's logits is the answer."""
        return self.sampling.temperature == 0 and not self.changed


def row_of(part: Slice) -> Row:
    return Row(part.sequence, part.start + part.count, part.draw)


class Sampler:
    """Draws for all rows of a step. Its only state is counts that could be counted anew."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.penalties = Penalties()

    def draw(self, logits_RV: Tensor, rows: list[Row]) -> list[Drawn]:
        highest = logits_RV.max(1)
        token_ids = [[token_id] for token_id in highest.indices.tolist()]
        peaks_R = highest.values
        errors: dict[int, str] = {}
        if not bool(torch.isfinite(peaks_R).all()):
            for at in (~torch.isfinite(peaks_R)).nonzero().flatten().tolist():
                errors[at] = refusal(rows[at].sequence, rows[at].position, "logits are not finite")
        special = [at for at, row in enumerate(rows) if not row.plain and at not in errors]
        self.penalties.keep_only(
            {rows[at].sequence for at in special if rows[at].sequence.remembers}
        )
        if special:
            scores_XV = logits_RV[special]
            drawn = self._draw_special(scores_XV, [rows[at] for at in special])
            for at, answer in zip(special, drawn, strict=True):
                token_ids[at] = answer
                if not answer:
                    errors[at] = refusal(
                        rows[at].sequence, rows[at].position, "no token may be drawn"
                    )
        for at, row in enumerate(rows):
            if len(token_ids[at]) < len(row.choices):  # greedy choices are all the same
                token_ids[at] *= len(row.choices)
        logprobs = _logprobs(logits_RV, rows, token_ids, errors)
        return [
            Drawn(error=errors[at])
            if at in errors
            else Drawn(tuple(token_ids[at]), logprobs.get(at, ()))
            for at in range(len(rows))
        ]

    def _draw_special(self, scores_XV: Tensor, rows: list[Row]) -> list[list[int]]:
        """A token per choice (one for all at temperature 0); [] where none may be drawn.

        Changes scores_XV.
        """
        for at, row in enumerate(rows):
            if row.changed:
                self.penalties.apply(scores_XV[at], row.sequence, row.position)
        highest = scores_XV.max(1)
        possible = (highest.values > -torch.inf).tolist()
        answers = [
            [token_id] if one else []
            for token_id, one in zip(highest.indices.tolist(), possible, strict=True)
        ]
        random = [at for at, row in enumerate(rows) if row.sampling.temperature and possible[at]]
        if random:
            peaks_X1 = highest.values[random][:, None]
            scores = scores_XV[random] - peaks_X1
            drawn = self._draw_random(scores, [rows[at] for at in random])
            for at, token_ids in zip(random, drawn, strict=True):
                answers[at] = token_ids
        return answers

    def _draw_random(self, scores_XV: Tensor, rows: list[Row]) -> list[list[int]]:
        """Scores are logits less their row's highest: fp32 is finest where tokens compete."""
        samplings = [row.sampling for row in rows]
        scores_XV /= scores_XV.new_tensor([one.temperature for one in samplings])[:, None]
        drop_unlikely(scores_XV, samplings)
        draws = [(at, row, choice) for at, row in enumerate(rows) for choice in row.choices]
        keys_Y3 = [(signed(row.sampling.seed), choice, row.position) for _, row, choice in draws]
        keys_3Y = torch.tensor(keys_Y3, device=scores_XV.device).T.contiguous()
        noise_YV = self.kernels.gumbel_noise(*keys_3Y, 0, scores_XV.shape[1])
        scores_YV = scores_XV
        if len(draws) != len(rows):
            scores_YV = scores_XV[[at for at, _, _ in draws]]
        token_ids = noise_YV.add_(scores_YV).max(1).indices.tolist()
        answers: list[list[int]] = [[] for _ in rows]
        for (at, _, _), token_id in zip(draws, token_ids, strict=True):
            answers[at].append(token_id)
        return answers


def refusal(sequence: Sequence, position: int, why: str) -> str:
    """What `Drawn.error` says; it names the row."""
    prefill = sequence.prefill
    return f"request {prefill.request} attempt {prefill.attempt} position {position}: {why}"


def _logprobs(
    logits_RV: Tensor, rows: list[Row], token_ids: list[list[int]], errors: dict[int, str]
) -> dict[int, tuple[TokenLogprobs | None, ...]]:
    """Reports of the rows that asked for them."""
    asking = [at for at, row in enumerate(rows) if row.sampling.logprobs >= 0 and at not in errors]
    if not asking:
        return {}
    logprobs_XV = log_softmax(logits_RV[asking])
    answers = reports(
        logprobs_XV,
        [token_ids[at] for at in asking],
        [rows[at].sampling.logprobs for at in asking],
    )
    return dict(zip(asking, answers, strict=True))
