"""What changes a row of logits before a token is drawn: bias, minimum length, penalties.

All of it follows from the sequence's tokens and its prompt_length, so that it is the same after
fail-over, preemption and hand-over. Order, as in vLLM: logit_bias, min_tokens, repetition penalty
(every token so far), presence and frequency penalty (output tokens).
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..protocol.messages import Sampling
from .sequence import Sequence


@dataclass(slots=True)
class Counts:
    """Which tokens a sequence holds; grows with it."""

    counted: int = 0
    everything: set[int] = field(default_factory=set)
    output: Counter[int] = field(default_factory=Counter)

    def extend(self, sequence: Sequence) -> None:
        token_ids = sequence.token_ids
        self.everything.update(token_ids[self.counted :])
        self.output.update(token_ids[max(self.counted, sequence.prompt_length) :])
        self.counted = len(token_ids)


def has_penalties(sampling: Sampling) -> bool:
    return (
        sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or sampling.repetition_penalty != 1
    )


def changes_logits(sampling: Sampling, outputs: int) -> bool:
    """Whether `Penalties.apply` would do anything for the output token of this index."""
    return bool(sampling.logit_bias) or outputs < sampling.min_tokens or has_penalties(sampling)


class Penalties:
    """Keeps counts of the last step's sequences, so that a step costs what is new."""

    def __init__(self) -> None:
        self.counts: dict[Sequence, Counts] = {}

    def keep_only(self, sequences: set[Sequence]) -> None:
        """Forget sequences that left; whoever comes back is counted anew."""
        self.counts = {one: kept for one, kept in self.counts.items() if one in sequences}

    def apply(self, row_V: Tensor, sequence: Sequence, position: int) -> None:
        """Change one row in place, for the token at `position`."""
        sampling = sequence.sampling
        vocabulary = row_V.shape[0]
        if sampling.logit_bias:
            biases = {one: bias for one, bias in sampling.logit_bias.items() if one < vocabulary}
            row_V[_ids(list(biases), row_V)] += row_V.new_tensor(list(biases.values()))
        if position - sequence.prompt_length < sampling.min_tokens:
            stops = [one for one in sampling.stop_token_ids if one < vocabulary]
            row_V[_ids(stops, row_V)] = -torch.inf
        if has_penalties(sampling):
            self._penalise(row_V, sequence)

    def _penalise(self, row_V: Tensor, sequence: Sequence) -> None:
        sampling = sequence.sampling
        counts = self.counts.setdefault(sequence, Counts())
        counts.extend(sequence)
        if sampling.repetition_penalty != 1:
            ids = _ids(list(counts.everything), row_V)
            old = row_V[ids]
            penalty = sampling.repetition_penalty
            row_V[ids] = torch.where(old > 0, old / penalty, old * penalty)
        if counts.output and (sampling.presence_penalty or sampling.frequency_penalty):
            presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
            taken = [presence + frequency * count for count in counts.output.values()]
            row_V[_ids(list(counts.output), row_V)] -= row_V.new_tensor(taken)


def _ids(token_ids: list[int], row_V: Tensor) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=row_V.device)
