"""Layers of experts: right, and each row alone, however tokens spread over the experts."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch

from penstock.kernels.exactness import ATTENTION, AttentionShape, MixtureShape, probe
from penstock.kernels.experts import Activation, ExpertWeights
from penstock.kernels.routing import Routing

Tensor = torch.Tensor
CLAMPED = Activation("clamped", 1.702, 0.7)
SILU = Activation()


def draw(count: int, hidden: int, size: int, dtype: torch.dtype, biased: bool = False):
    shapes = [(size, hidden), (size, hidden), (hidden, size)]
    biases = [(size,), (size,), (hidden,)] if biased else []
    return [
        ExpertWeights(*((torch.randn(shape) * 0.3).to(dtype) for shape in (*shapes, *biases)))
        for _ in range(count)
    ]


def expected(x_D: Tensor, one: ExpertWeights, activation: Activation) -> Tensor:
    """One expert on one row, in fp64."""

    def linear(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return weight.double() @ x + (0.0 if bias is None else bias.double())

    x = x_D.double()
    gate, up = linear(one.gate_FD, x, one.gate_bias_F), linear(one.up_FD, x, one.up_bias_F)
    if activation.kind == "clamped":
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        hidden = gate * torch.sigmoid(activation.alpha * gate) * (up + 1)
    else:
        hidden = gate * torch.sigmoid(gate) * up
    return linear(one.down_DF, hidden, one.down_bias_D)


@pytest.mark.parametrize(("hidden", "size"), [(64, 32), (70, 54), (16, 130)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", [SILU, CLAMPED], ids=["silu", "clamped"])
def test_a_token_is_the_weighted_sum_of_its_experts(
    kernels, dtype, hidden, size, biased, activation
):
    weights = draw(6, hidden, size, dtype, biased)
    layer = kernels.pack_experts(iter(weights), 6, activation)
    x_TD = torch.randn(23, hidden).to(dtype)
    expert_TK, weight_TK = kernels.route(torch.randn(23, 6), None, Routing(3))
    out_TD = layer(x_TD, expert_TK, weight_TK)
    assert out_TD.dtype == dtype
    for row, experts, shares, out in zip(x_TD, expert_TK, weight_TK, out_TD, strict=True):
        each = [expected(row, weights[e], activation) for e in experts.tolist()]
        right = (torch.stack(each) * shares.double()[:, None]).sum(0)
        tolerance = 3e-2 if dtype == torch.bfloat16 else 3e-6
        assert (out.double() - right).abs().max() <= tolerance * right.abs().max()


def one_expert(tokens: int) -> Tensor:
    return torch.tensor([[2, 5]] * tokens)


def one_token_each(tokens: int) -> Tensor:
    return torch.tensor([[at % 8, (at + 4) % 8] for at in range(tokens)])


def random(tokens: int) -> Tensor:
    return torch.stack([torch.randperm(8)[:2] for _ in range(tokens)])


def without_the_ends(tokens: int) -> Tensor:
    """Experts 0 and 7 see nothing, 3 sees every token."""
    return torch.tensor([[3, 1 + at % 2] for at in range(tokens)])


@pytest.mark.parametrize("spread", [one_expert, one_token_each, random, without_the_ends])
def test_rows_do_not_depend_on_how_the_others_spread(kernels, dtype, spread):
    tokens = 41
    layer = kernels.pack_experts(iter(draw(8, 64, 48, dtype)), 8)
    x_TD = torch.randn(tokens, 64).to(dtype)
    expert_TK: Tensor = spread(tokens).int()
    weight_TK = torch.rand(tokens, 2)
    whole = layer(x_TD, expert_TK, weight_TK)
    for cut in ([1] * tokens, [7, 33, 1], [2, 39], [16, 16, 9]):
        parts = zip(x_TD.split(cut), expert_TK.split(cut), weight_TK.split(cut), strict=True)
        assert torch.equal(torch.cat([layer(*part) for part in parts]), whole), cut
    order = torch.randperm(tokens)
    assert torch.equal(layer(x_TD[order], expert_TK[order], weight_TK[order]), whole[order])
    torch.set_num_threads(2)
    assert torch.equal(layer(x_TD, expert_TK, weight_TK), whole)


def test_outputs_are_summed_in_the_order_of_the_choice(kernels, dtype):
    layer = kernels.pack_experts(iter(draw(5, 32, 32, dtype)), 5)
    x_TD = torch.randn(1, 32).to(dtype)
    alone = [
        layer(x_TD, torch.tensor([[e]], dtype=torch.int32), torch.ones(1, 1)).float()
        for e in range(5)
    ]
    shares = [0.3, 0.0, 1e3, 0.7, -1e3]
    sums = set[tuple[float, ...]]()
    for experts in itertools.permutations((0, 2, 3, 4)):
        weight_TK = torch.tensor([[shares[e] for e in experts]])
        out_TD = layer(x_TD, torch.tensor([experts], dtype=torch.int32), weight_TK)
        sum_TD = torch.zeros(1, 32)
        for e in experts:
            sum_TD = sum_TD + shares[e] * alone[e]
        assert torch.equal(out_TD, sum_TD.to(dtype))
        sums.add(tuple(out_TD[0].tolist()))
    assert dtype == torch.bfloat16 or len(sums) > 1, "the order is not seen"


def test_a_row_that_is_not_finite_keeps_to_itself(kernels, dtype):
    layer = kernels.pack_experts(iter(draw(4, 32, 32, dtype)), 4)
    x_TD = torch.randn(9, 32).to(dtype)
    expert_TK = torch.tensor([[0, 1]] * 9, dtype=torch.int32)
    whole = layer(x_TD, expert_TK, torch.ones(9, 2))
    x_TD[4] = torch.nan
    spoilt = layer(x_TD, expert_TK, torch.ones(9, 2))
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert spoilt[4].isnan().all()
    assert torch.equal(spoilt[others], whole[others])


def test_tokens_per_expert_are_counted(kernels):
    layer = kernels.pack_experts(iter(draw(4, 16, 16, torch.float32)), 4)
    assert layer.load_E.tolist() == [0, 0, 0, 0]
    for expert_TK in ([[0, 1], [0, 2]], [[0, 2]]):
        choice = torch.tensor(expert_TK, dtype=torch.int32)
        layer(torch.randn(len(choice), 16), choice, torch.ones(choice.shape))
    assert layer.load_E.tolist() == [3, 1, 2, 0]


def test_no_tokens(kernels, dtype):
    layer = kernels.pack_experts(iter(draw(4, 16, 16, dtype)), 4)
    empty = torch.empty(0, 2, dtype=torch.int32)
    assert layer(torch.empty(0, 16, dtype=dtype), empty, torch.empty(0, 2)).shape == (0, 16)


@pytest.mark.parametrize("outside", [-2, 4])
def test_an_expert_that_is_not_there_is_refused(native_kernels, outside):
    layer = native_kernels.pack_experts(iter(draw(4, 16, 16, torch.float32)), 4)
    expert_TK = torch.tensor([[0, outside]], dtype=torch.int32)
    with pytest.raises(ValueError, match="expert's id"):
        layer(torch.randn(1, 16), expert_TK, torch.ones(1, 2))
    assert layer.load_E.tolist() == [0, 0, 0, 0]


def refused(pack: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pack()


def test_weights_that_do_not_fit_are_refused(kernels):
    weights = draw(4, 16, 16, torch.float32)
    refused(lambda: kernels.pack_experts(iter(weights[:3]), 4), "3 of 4")
    refused(lambda: kernels.pack_experts(iter(weights), 4, Activation("relu")), "relu")


def test_native_experts_are_alike(native_kernels):
    weights = draw(1, 16, 16, torch.float32) + draw(1, 16, 18, torch.float32)
    refused(lambda: native_kernels.pack_experts(iter(weights), 2), "sizes of the first")
    weights = draw(1, 16, 16, torch.float32, True) + draw(1, 16, 16, torch.float32)
    refused(lambda: native_kernels.pack_experts(iter(weights), 2), "for all or for none")
    odd = draw(1, 16, 15, torch.float32)
    refused(lambda: native_kernels.pack_experts(iter(odd), 1), "even sizes")


def test_the_probe_asks_experts_and_heads(kernels, dtype):
    mixtures = (MixtureShape(16, 64, 48, True), MixtureShape(8, 64, 32, False))
    latent = AttentionShape(query_heads=4, groups=1, head=48, value_size=32)
    report = probe(kernels, dtype, ((32, 64),), (latent, ATTENTION), mixtures=mixtures)
    assert report.inexact == () and report.by_threads == ()
    assert {"experts 16 x 48", "experts 8 x 32", "heads 32"} <= set(report.checked)


def leaking(pack: Callable[..., Callable[..., Tensor]]) -> Callable[..., Callable[..., Tensor]]:
    """What it packs, but with a sum over all rows in each."""

    def packed(*weights: object) -> Callable[..., Tensor]:
        inner = pack(*weights)
        return lambda x, *more: inner(x, *more) + x.float().sum().to(x.dtype)

    return packed


@pytest.mark.parametrize(
    ("operation", "name"), [("pack_experts", "experts 8 x 32"), ("pack_heads", "heads 32")]
)
def test_the_probe_sees_rows_that_know_each_other(kernels, operation, name):
    broken = dataclasses.replace(kernels, **{operation: leaking(getattr(kernels, operation))})
    latent = AttentionShape(query_heads=4, groups=1, head=48, value_size=32)
    mixtures = (MixtureShape(8, 64, 32, False),)
    report = probe(broken, torch.float32, ((32, 64),), (latent,), mixtures=mixtures)
    assert report.inexact == (name,)
