"""The sampler once more, slowly and plainly: one row, python floats and sorted lists."""

import math
from collections import Counter
from collections.abc import Sequence

from penstock.protocol.messages import Sampling


def changed_logits(
    logits: Sequence[float], sampling: Sampling, token_ids: list[int], prompt_length: int
) -> list[float]:
    """Bias, minimum length, penalties."""
    scores = list(logits)
    for token_id, bias in sampling.logit_bias.items():
        scores[token_id] += bias
    output = token_ids[prompt_length:]
    if len(output) < sampling.min_tokens:
        for token_id in sampling.stop_token_ids:
            scores[token_id] = -math.inf
    for token_id in set(token_ids):
        penalty = sampling.repetition_penalty
        scores[token_id] *= 1 / penalty if scores[token_id] > 0 else penalty
    for token_id, count in Counter(output).items():
        scores[token_id] -= sampling.presence_penalty + sampling.frequency_penalty * count
    return scores


def distribution(scores: Sequence[float], sampling: Sampling) -> list[float]:
    """Probability of each token: temperature, then top_k, min_p, top_p, each renormalised."""
    peak = max(scores)
    weights = [math.exp((score - peak) / sampling.temperature) for score in scores]
    order = sorted(range(len(weights)), key=lambda at: -weights[at])
    kept = order[: sampling.top_k or len(order)]
    kept = [at for at in kept if weights[at] >= sampling.min_p]
    total = sum(weights[at] for at in kept)
    nucleus, mass = [], 0.0
    for at in kept:
        if mass >= sampling.top_p * total and sampling.top_p < 1:
            break
        nucleus.append(at)
        mass += weights[at]
    return [weights[at] / mass if at in nucleus else 0.0 for at in range(len(weights))]
