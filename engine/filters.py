"""top_k, min_p and top_p as one threshold per row. Knows scores, no sequence.

    scores  z = (logit - highest logit) / temperature, so that p / p of the best = exp(z)
    top_k   z >= the k-th highest z
    min_p   z >= log(min_p)
    top_p   of those left: the fewest highest ones whose share reaches top_p

Equal scores are kept or dropped together (as Hugging Face does for top_k). Shares are summed as
whole numbers in units of 2^-34 of the best token's: in fp64 such sums are exact, so they have no
order, and neither the batch nor the way of sorting can change which tokens are kept.

X rows, V vocabulary.
"""

import math

import numpy
import torch
from torch import Tensor

from ..protocol.messages import Sampling
from .exponential import exponential

UNIT = 2.0**-34  # sums over 2^19 tokens stay below 2^53 units


def sorts(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def drop_unlikely(scores_XV: Tensor, samplings: list[Sampling]) -> None:
    """Set to minus infinity, in place, what each row's filters exclude."""
    lowest = [math.log(one.min_p) if one.min_p > 0 else -math.inf for one in samplings]
    threshold_X1 = scores_XV.new_tensor(lowest)[:, None]
    sorting = [at for at, one in enumerate(samplings) if sorts(one)]
    if sorting:
        rows = torch.tensor(sorting, device=scores_XV.device)
        threshold_X1[rows] = _sorted_threshold(
            scores_XV[rows], threshold_X1[rows], [samplings[at] for at in sorting]
        )
    elif not any(one.min_p > 0 for one in samplings):
        return
    scores_XV.masked_fill_(scores_XV < threshold_X1, -torch.inf)


def _sorted_threshold(scores_XV: Tensor, threshold_X1: Tensor, samplings: list[Sampling]) -> Tensor:
    vocabulary = scores_XV.shape[1]
    descending_XV = _sorted_descending(scores_XV)
    last = [min(one.top_k or vocabulary, vocabulary) - 1 for one in samplings]
    last_X1 = torch.tensor(last, device=scores_XV.device)[:, None]
    threshold_X1 = torch.maximum(threshold_X1, descending_XV.gather(1, last_X1))
    if all(one.top_p >= 1 for one in samplings):
        return threshold_X1
    share = [one.top_p if one.top_p < 1 else math.inf for one in samplings]
    share_X1 = scores_XV.new_tensor(share, dtype=torch.float64)[:, None]
    weights_XV = (exponential(descending_XV) / UNIT).floor_().double()
    weights_XV.masked_fill_(descending_XV < threshold_X1, 0)
    sums_XV = weights_XV.cumsum(1)
    enough_XV = sums_XV - weights_XV >= sums_XV[:, -1:] * share_X1
    enough_XV[:, 0] = False  # the best token always stays
    lowest_X1 = descending_XV.masked_fill(enough_XV, torch.inf).amin(1, keepdim=True)
    return torch.maximum(threshold_X1, lowest_X1)


def _sorted_descending(scores_XV: Tensor) -> Tensor:
    """Sorted values are the same however they were sorted; numpy is ten times torch's speed."""
    if scores_XV.device.type == "cpu":
        return torch.from_numpy(numpy.sort(scores_XV.numpy(), axis=-1)).flip(-1)
    return scores_XV.sort(dim=-1, descending=True).values
