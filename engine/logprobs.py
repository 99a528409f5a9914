"""Log-probabilities as they are reported: of the model's own logits, before any change to them.

(vLLM's default, "raw_logprobs": no bias, penalty, temperature or filter shows in them.)
Sums go by halves, so that a row does not know its neighbours.

X rows, V vocabulary.
"""

import math

from torch import Tensor

from ..kernels.elementary import tree_sum
from ..protocol.messages import TokenLogprobs
from .exponential import exponential


def log_softmax(logits_XV: Tensor) -> Tensor:
    shifted_XV = logits_XV - logits_XV.amax(1, keepdim=True)
    totals = tree_sum(exponential(shifted_XV)).flatten().tolist()
    # On the host: torch's log in a vector and in its tail differ in the last bit.
    return shifted_XV - shifted_XV.new_tensor([math.log(one) for one in totals])[:, None]


def best(logprobs_XV: Tensor, counts: list[int]) -> list[tuple[list[int], list[float]]]:
    """Ids and values of each row's `counts[x]` highest, descending, ties by id."""
    most = min(max(counts, default=0) + 1, logprobs_XV.shape[1])
    if most <= 1:
        return [([], []) for _ in counts]
    found = logprobs_XV.topk(most, dim=1)
    results = []
    for at, (count, values, ids) in enumerate(
        zip(counts, found.values.tolist(), found.indices.tolist(), strict=True)
    ):
        # topk does not say which of equal values it takes, nor in which order.
        if len(set(values[: count + 1])) <= min(count, most - 1):
            results.append(_best_of_tied(logprobs_XV[at], count))
        else:
            results.append((ids[:count], values[:count]))
    return results


def _best_of_tied(logprobs_V: Tensor, count: int) -> tuple[list[int], list[float]]:
    count = min(count, len(logprobs_V))
    if not count:
        return [], []
    lowest = logprobs_V.topk(count).values[-1]
    ids = (logprobs_V >= lowest).nonzero().flatten()  # ascending; more than `count` if tied
    order = logprobs_V[ids].sort(descending=True, stable=True)
    return ids[order.indices[:count]].tolist(), order.values[:count].tolist()


def reports(
    logprobs_XV: Tensor, token_ids: list[list[int]], alternatives: list[int]
) -> list[tuple[TokenLogprobs, ...]]:
    """One report per token; row x gave the tokens `token_ids[x]`."""
    rows = [at for at, some in enumerate(token_ids) for _ in some]
    flat = [token_id for some in token_ids for token_id in some]
    own = iter(logprobs_XV[rows, flat].tolist())
    return [
        tuple(TokenLogprobs(next(own), ids, values) for _ in some)
        for some, (ids, values) in zip(token_ids, best(logprobs_XV, alternatives), strict=True)
    ]
