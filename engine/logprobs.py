"""Log-probabilities as they are reported: of the model's own logits, before any change to them.

(vLLM's default, "raw_logprobs": no bias, penalty, temperature or filter shows in them.)
Sums go by halves and exp by IEEE operations, so that a row does not know its neighbours.

X rows, V vocabulary.
"""

import math

from torch import Tensor

from ..kernels.elementary import exponential, tree_sum
from ..protocol.messages import TokenLogprobs


def log_softmax(logits_XV: Tensor) -> Tensor:
    shifted_XV = logits_XV - logits_XV.amax(1, keepdim=True)
    totals = tree_sum(exponential(shifted_XV)).flatten().tolist()
    # On the host: torch's log in a vector and in its tail differ in the last bit.
    return shifted_XV - shifted_XV.new_tensor([math.log(one) for one in totals])[:, None]


def best(logprobs_V: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The `count` highest, descending, ties by id."""
    count = min(count, logprobs_V.shape[0])
    if count <= 0:
        return [], []
    lowest = logprobs_V.topk(count).values[-1]
    ids = (logprobs_V >= lowest).nonzero().flatten()  # ascending; more than `count` if tied
    order = logprobs_V[ids].sort(descending=True, stable=True)
    chosen = order.indices[:count]
    return ids[chosen].tolist(), order.values[:count].tolist()


def report(logprobs_V: Tensor, token_id: int, alternatives: int) -> TokenLogprobs:
    top_ids, top_logprobs = best(logprobs_V, alternatives)
    return TokenLogprobs(float(logprobs_V[token_id]), top_ids, top_logprobs)
