"""Choice of experts: the formulas, ties, groups, and rows that do not know each other."""

import pytest
import torch

from penstock.kernels.routing import Routing

MANY = 1e4  # a correction that decides a choice


def naive(
    logits: list[float], correction: list[float], routing: Routing
) -> tuple[list[int], list[float]]:
    """One row, in fp64, as the formulas of routing.py read."""
    row = torch.tensor(logits, dtype=torch.float64)
    if routing.scoring == "softmax":
        score = torch.softmax(row, 0)
        ranked = score.tolist()
    else:
        score = torch.sigmoid(row)
        ranked = (score + torch.tensor(correction, dtype=torch.float64)).tolist()
    size = len(logits) // routing.groups
    groups = [ranked[start : start + size] for start in range(0, len(ranked), size)]
    sums = [sum(sorted(group)[-2:]) for group in groups]
    best = sorted(range(routing.groups), key=lambda g: (-sums[g], g))[: routing.chosen_groups]
    allowed = [e for e in range(len(ranked)) if e // size in best]
    chosen = sorted(allowed, key=lambda e: (-ranked[e], e))[: routing.chosen]
    weights = [float(score[e]) for e in chosen]
    whole = sum(weights) if routing.normalised else 1.0
    return chosen, [weight / whole * routing.scale for weight in weights]


ROUTINGS = {
    "mixtral": (Routing(2), 8),
    "qwen3": (Routing(8), 128),
    "not normalised": (Routing(3, normalised=False), 24),
    "deepseek": (Routing(8, "sigmoid", True, 2.5, 8, 4), 256),
    "kimi": (Routing(8, "sigmoid", True, 2.827), 384),
    "sigmoid as it is": (Routing(3, "sigmoid", False, 0.5, 4, 1), 16),
    "all": (Routing(5), 5),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_choice_and_weights_are_those_of_the_formulas(kernels, name):
    routing, experts = ROUTINGS[name]
    logits_TE = torch.randn(40, experts)
    correction_E = torch.randn(experts) * 0.1 if routing.scoring == "sigmoid" else None
    expert_TK, weight_TK = kernels.route(logits_TE, correction_E, routing)
    assert expert_TK.dtype == torch.int32 and weight_TK.dtype == torch.float32
    correction = [0.0] * experts if correction_E is None else correction_E.tolist()
    for row, chosen, weights in zip(logits_TE.tolist(), expert_TK, weight_TK, strict=True):
        expected, expected_weights = naive(row, correction, routing)
        assert chosen.tolist() == expected
        assert weights.tolist() == pytest.approx(expected_weights, rel=2e-6)


@pytest.mark.parametrize("name", ROUTINGS)
def test_rows_do_not_know_each_other(kernels, name):
    routing, experts = ROUTINGS[name]
    logits_TE = torch.randn(300, experts) * 3
    expert_TK, weight_TK = kernels.route(logits_TE, None, routing)
    torch.set_num_threads(2)
    for first, last in ((0, 1), (299, 300), (5, 12), (0, 130)):
        expert, weight = kernels.route(logits_TE[first:last], None, routing)
        assert torch.equal(expert, expert_TK[first:last])
        assert torch.equal(weight, weight_TK[first:last])


def test_equal_scores_go_to_the_lowest_ids(kernels):
    logits_TE = torch.tensor([[0.0] * 8, [1.0, 2.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0]])
    expert_TK, _ = kernels.route(logits_TE, None, Routing(3))
    assert expert_TK.tolist() == [[0, 1, 2], [1, 3, 4]]
    grouped = Routing(3, "sigmoid", groups=4, chosen_groups=2)
    expert_TK, weight_TK = kernels.route(logits_TE, None, grouped)
    # Groups (0 1) (2 3) (4 5) (6 7): of the second row the first, second and last are equal.
    assert expert_TK.tolist() == [[0, 1, 2], [1, 3, 0]]
    assert weight_TK[0].unique().numel() == 1


def test_a_correction_decides_the_choice_and_not_the_weight(kernels):
    logits_TE = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    correction_E = torch.tensor([0.0, 0.0, 0.0, MANY])
    expert_TK, weight_TK = kernels.route(
        logits_TE, correction_E, Routing(2, "sigmoid", normalised=False)
    )
    assert expert_TK.tolist() == [[3, 0]]
    assert weight_TK[0].tolist() == pytest.approx([0.5, 0.95257413], rel=1e-6)


def test_a_group_counts_its_two_best(kernels):
    """One expert far above its group does not carry the group."""
    probabilities = torch.tensor([[0.95, 0.05, 0.6, 0.6, 0.5, 0.5]])
    logits_TE = torch.logit(probabilities)
    expert_TK, _ = kernels.route(logits_TE, None, Routing(2, "sigmoid", groups=3, chosen_groups=1))
    assert expert_TK.tolist() == [[2, 3]]


def test_large_logits_stay_finite(kernels):
    logits_TE = torch.tensor([[1e4, -1e4, 9e3, 0.0]])
    for scoring in ("softmax", "sigmoid"):
        _, weight_TK = kernels.route(logits_TE, None, Routing(3, scoring))
        assert weight_TK.isfinite().all()
        assert float(weight_TK.sum()) == pytest.approx(1.0)


def test_no_rows(kernels):
    expert_TK, weight_TK = kernels.route(torch.empty(0, 4), None, Routing(2))
    assert expert_TK.shape == weight_TK.shape == (0, 2)


@pytest.mark.parametrize(
    ("routing", "correction", "sentence"),
    [
        (Routing(5), None, "5 of 4 experts"),
        (Routing(3, "sigmoid", groups=2, chosen_groups=1), None, "3 of 2 experts"),
        (Routing(2, "sigmoid", groups=3, chosen_groups=1), None, "of one size"),
        (Routing(2, groups=2, chosen_groups=1), None, "sigmoid"),
        (Routing(2, "tanh"), None, "tanh"),
        (Routing(2), torch.zeros(4), "correction"),
        (Routing(2, "sigmoid"), torch.zeros(4, dtype=torch.bfloat16), "correction"),
        (Routing(2, "sigmoid"), torch.zeros(3), "correction"),
    ],
)
def test_what_cannot_be_routed_is_refused(kernels, routing, correction, sentence):
    with pytest.raises(ValueError, match=sentence):
        kernels.route(torch.zeros(1, 4), correction, routing)
