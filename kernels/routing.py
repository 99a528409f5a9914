"""Which experts see a token, and with what weight.

    softmax    p = softmax(logits);  the K largest;  weight = p, over their sum where normalised
    sigmoid    s = sigmoid(logits), c = s + correction;  the experts stand in groups, a group counts
               the sum of its two largest c, only the best groups stay;  the K largest c of those;
               weight = s, over their sum where normalised
    both       times scale

Normalised softmax is the softmax of the chosen logits (Mixtral, gpt-oss). A token's experts come
in falling order, equal ones by the lower id; in that order their outputs are summed. Everything is
fp32, row by row. Sources: Shazeer et al., arXiv 1701.06538; Jiang et al., "Mixtral of Experts",
arXiv 2401.04088; DeepSeek-AI, "DeepSeek-V3", arXiv 2412.19437, section 2.1.2.

T tokens in the batch, E experts, K chosen per token.
"""

import ctypes
from dataclasses import dataclass

import torch

from .elementary import exponential, tree_sum
from .native import Library, require

Tensor = torch.Tensor

LEAST_SUM = 1e-20  # added to a sigmoid's denominator, as DeepSeek does


@dataclass(frozen=True, slots=True)
class Routing:
    chosen: int
    scoring: str = "softmax"  # or "sigmoid"
    normalised: bool = True
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1


class Shape(ctypes.Structure):
    """RoutingShape of routing.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("tokens", "experts", "chosen", "groups", "chosen_groups"),
                *("sigmoid", "normalised"),
            )
        ),
        ("scale", ctypes.c_float),
    ]


def route(
    logits_TE: Tensor, correction_E: Tensor | None, routing: Routing
) -> tuple[Tensor, Tensor]:
    """expert_TK int32 and weight_TK fp32."""
    _check(logits_TE, correction_E, routing)
    if routing.scoring == "softmax":
        ranked_TE = score_TE = exponential(logits_TE - logits_TE.amax(-1, keepdim=True))
        expert_TK = _largest(logits_TE, routing.chosen)
    else:
        score_TE = 1.0 / (1.0 + exponential(-logits_TE))
        ranked_TE = score_TE if correction_E is None else score_TE + correction_E
        expert_TK = _largest(_within_groups(ranked_TE, routing), routing.chosen)
    weight_TK = score_TE.gather(-1, expert_TK)
    if routing.normalised:
        least = LEAST_SUM if routing.scoring == "sigmoid" else 0.0
        weight_TK = weight_TK / (_sum_in_order(weight_TK) + least)
    elif routing.scoring == "softmax":
        weight_TK = weight_TK / tree_sum(score_TE)
    return expert_TK.int(), weight_TK * routing.scale


def _largest(score_TE: Tensor, count: int) -> Tensor:
    """Their places, falling; a stable sort leaves equal ones in the order of their places."""
    return score_TE.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _within_groups(ranked_TE: Tensor, routing: Routing) -> Tensor:
    if routing.chosen_groups == routing.groups:
        return ranked_TE
    ranked_TGX = ranked_TE.unflatten(-1, (routing.groups, -1))
    two_largest_TG2 = ranked_TGX.sort(dim=-1, descending=True).values[..., :2]
    group_TX = _largest(two_largest_TG2.sum(-1), routing.chosen_groups)
    kept_TG = torch.zeros_like(ranked_TGX[..., 0], dtype=torch.bool).scatter(-1, group_TX, True)
    return ranked_TGX.masked_fill(~kept_TG.unsqueeze(-1), -torch.inf).flatten(-2)


def _sum_in_order(weight_TK: Tensor) -> Tensor:
    total_T1 = weight_TK[:, :1]
    for rank in range(1, weight_TK.shape[1]):
        total_T1 = total_T1 + weight_TK[:, rank : rank + 1]
    return total_T1


def route_native(
    library: Library, logits_TE: Tensor, correction_E: Tensor | None, routing: Routing
) -> tuple[Tensor, Tensor]:
    _check(logits_TE, correction_E, routing)
    logits_TE = logits_TE.contiguous()
    tokens, experts = logits_TE.shape
    expert_TK = torch.empty(tokens, routing.chosen, dtype=torch.int32)
    weight_TK = torch.empty(tokens, routing.chosen)
    shape = Shape(
        *(tokens, experts, routing.chosen, routing.groups, routing.chosen_groups),
        *(routing.scoring == "sigmoid", routing.normalised, routing.scale),
    )
    library.call(
        "penstock_route",
        logits_TE.data_ptr(),
        None if correction_E is None else correction_E.data_ptr(),
        expert_TK.data_ptr(),
        weight_TK.data_ptr(),
        ctypes.byref(shape),
        torch.get_num_threads(),
    )
    return expert_TK, weight_TK


def _check(logits_TE: Tensor, correction_E: Tensor | None, routing: Routing) -> None:
    experts = logits_TE.shape[1]
    require(logits_TE.dtype == torch.float32, "route: logits must be fp32")
    require(routing.scoring in ("softmax", "sigmoid"), f"route: no scoring {routing.scoring!r}")
    require(
        correction_E is None
        or (
            correction_E.shape == (experts,)
            and correction_E.dtype == torch.float32
            and correction_E.is_contiguous()
            and correction_E.device == logits_TE.device
            and routing.scoring == "sigmoid"
        ),
        "route: a correction goes with sigmoid scores, contiguous fp32 [E], where they are",
    )
    if routing.groups > 1 or routing.chosen_groups != routing.groups:
        require(
            routing.scoring == "sigmoid"
            and experts % routing.groups == 0
            and experts // routing.groups >= 2
            and 1 <= routing.chosen_groups <= routing.groups,
            "route: groups go with sigmoid scores, are of one size of at least 2, and 1 to all of "
            "them can be chosen",
        )
    left = experts // routing.groups * routing.chosen_groups
    require(1 <= routing.chosen <= left, f"route: {routing.chosen} of {left} experts")
