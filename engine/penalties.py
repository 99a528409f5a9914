"""What changes a row of logits before a token is drawn: bias, minimum length, penalties.

All of it follows from the sequence's tokens and its prompt_length, so that it is the same after
fail-over, preemption and hand-over. Order, as in vLLM: logit_bias, min_tokens, repetition penalty
(every token so far), presence and frequency penalty (output tokens).
"""

import torch
from torch import Tensor

from ..protocol.messages import Sampling
from .sequence import Sequence, has_penalties


class Counts:
    """Which tokens a sequence holds, over the whole vocabulary; grows with the sequence."""

    def __init__(self, row_V: Tensor) -> None:
        self.counted = 0
        self.seen_V = torch.zeros_like(row_V, dtype=torch.bool)
        self.output_V = torch.zeros_like(row_V)  # how often; exact in fp32 to 2^24

    def extend(self, sequence: Sequence) -> None:
        token_ids, boundary = sequence.token_ids, sequence.prompt_length
        for start, output in ((self.counted, False), (max(self.counted, boundary), True)):
            if start < len(token_ids):
                ids = _ids(token_ids[start:], self.seen_V)
                self.seen_V[ids] = True
                if output:
                    self.output_V += torch.bincount(ids, minlength=len(self.output_V))
        self.counted = len(token_ids)


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
        if sequence not in self.counts:
            self.counts[sequence] = Counts(row_V)
        counts = self.counts[sequence]
        counts.extend(sequence)
        if (penalty := sampling.repetition_penalty) != 1:
            changed_V = torch.where(row_V > 0, row_V / penalty, row_V * penalty)
            row_V.copy_(torch.where(counts.seen_V, changed_V, row_V))
        if sampling.frequency_penalty:
            row_V -= counts.output_V * sampling.frequency_penalty
        if sampling.presence_penalty:
            row_V -= (counts.output_V > 0) * sampling.presence_penalty


def _ids(token_ids: list[int], row_V: Tensor) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=row_V.device)
