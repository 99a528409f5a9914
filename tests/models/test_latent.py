"""Latent attention, absorbed over pages, is the plain form with keys and values of every head."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from penstock.kernels.choice import Kernels, choose
from penstock.models.batch import Batch
from penstock.models.blueprint import Blueprint, LatentAttention, PageShape, Rope
from penstock.models.config import GenerationDefaults, ModelConfig
from penstock.models.latent import EPSILON, LatentPart
from penstock.models.rotary import rotary

HIDDEN, HEADS, TOKENS, SLOTS = 48, 4, 45, 8
PLANS = {
    "compressed query": LatentAttention(
        **{"query_heads": HEADS, "query_rank": 40, "kv_rank": 32, "plain_size": 24},
        **{"rotary_size": 16, "value_size": 20, "scale": 0.17},
    ),
    "whole query": LatentAttention(
        **{"query_heads": HEADS, "query_rank": 0, "kv_rank": 48, "plain_size": 16},
        **{"rotary_size": 32, "value_size": 32, "scale": 0.2},
    ),
    "biased": LatentAttention(
        **{"query_heads": HEADS, "query_rank": 20, "kv_rank": 16, "plain_size": 18},
        **{"rotary_size": 16, "value_size": 12, "scale": 0.3, "bias": True},
    ),
}


class Drawn:
    """Random tensors of the shapes that the part asks for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.dtype = dtype
        self.tensors = {
            name: (torch.randn(shape) * 0.3 + ("norm" in name)).to(dtype)
            for name, shape in shapes.items()
        }

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.tensors[name].clone().to(dtype or self.dtype)

    def part(
        self, name: str, dimension: int, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        return self.tensor(name, dtype).narrow(dimension, start, stop - start)

    def joined(self, names: Sequence[str], dtype: torch.dtype | None = None) -> Tensor:
        return torch.cat([self.tensor(name, dtype) for name in names])


def config_of(plan: LatentAttention, interleaved: bool) -> ModelConfig:
    blueprint = Blueprint(
        layers=(),
        rope=Rope(size=plan.rotary_size, interleaved=interleaved),
        page=PageShape(1, 1, plan.kv_rank + plan.rotary_size),
    )
    return ModelConfig(
        "", 97, HIDDEN, 64, 1e-6, False, "float32", None, (), GenerationDefaults(), blueprint
    )


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    return choose("cpu", request.param)


def built(
    name: str, kernels: Kernels, interleaved: bool, dtype: torch.dtype = torch.float32
) -> tuple[LatentPart, Drawn]:
    plan = PLANS[name]
    config = config_of(plan, interleaved)
    source = Drawn(LatentPart.shapes(plan, config, "a"), dtype)
    turns = rotary(config.blueprint.rope, 64)
    return LatentPart(plan, config, source, "a", kernels, turns), source


def step(first: int, count: int, wanted: list[int] | None = None) -> Batch:
    """Rows first .. first + count of the one sequence; pages lie in a mixed order."""

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    table = [4, 0, 5, 1, 3, 2]
    positions = range(first, first + count)
    return Batch(
        index([0] * count),
        index(list(positions)),
        index([table[position // SLOTS] for position in positions]),
        index([position % SLOTS for position in positions]),
        index(table)[None],
        index([0, count]),
        index([first + count]),
        None if wanted is None else index(wanted),
        index([0, count if wanted is None else len(wanted)]),
    )


def run(part: LatentPart, x_TD: Tensor, cuts: list[int]) -> Tensor:
    width = part.plan.kv_rank + part.plan.rotary_size
    pages = torch.full((6, 2, 1, 1, SLOTS, width), torch.nan, dtype=x_TD.dtype)
    out, first = [], 0
    for count in cuts:
        rows = x_TD[first : first + count]
        out.append(part(rows, step(first, count), pages, 1, only_wanted=False))
        first += count
    return torch.cat(out)


def plain(part: LatentPart, source: Drawn, x_TD: Tensor) -> Tensor:
    """The published form, in fp64: k and v of every head are made of the compressed vectors."""
    plan = part.plan
    heads, sizes = plan.query_heads, (plan.plain_size, plan.rotary_size)

    def linear(name: str, x: Tensor) -> Tensor:
        bias = source.tensors.get(f"a.{name}.bias", torch.zeros(1))
        return x @ source.tensors[f"a.{name}.weight"].double().T + bias.double()

    def norm(name: str, x: Tensor) -> Tensor:
        scaled = x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
        return scaled * source.tensors[f"a.{name}.weight"].double()

    def turned(x_TNZ: Tensor) -> Tensor:
        cosine, sine = (
            table[: len(x_TNZ)].double()[:, None]
            for table in (part.rotary.cosine_MX2, part.rotary.sine_MX2)
        )
        if part.rotary.interleaved:
            low, high = x_TNZ[..., ::2], x_TNZ[..., 1::2]
        else:
            low, high = x_TNZ.chunk(2, dim=-1)
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)

    x = x_TD.double()
    if plan.query_rank:
        q = linear("q_b_proj", norm("q_a_layernorm", linear("q_a_proj", x)))
    else:
        q = linear("q_proj", x)
    q_plain, q_turned = q.unflatten(-1, (heads, -1)).split(sizes, dim=-1)
    compressed, k_turned = linear("kv_a_proj_with_mqa", x).split(
        (plan.kv_rank, plan.rotary_size), dim=-1
    )
    up = linear("kv_b_proj", norm("kv_a_layernorm", compressed)).unflatten(-1, (heads, -1))
    k_plain, value_TNV = up.split((plan.plain_size, plan.value_size), dim=-1)
    k_TNX = torch.cat((k_plain, turned(k_turned[:, None]).expand(-1, heads, -1)), dim=-1)
    q_TNX = torch.cat((q_plain, turned(q_turned)), dim=-1)
    scores_NTS = torch.einsum("tnx,snx->nts", q_TNX, k_TNX) * plan.scale
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    weights_NTS = scores_NTS.masked_fill(later, -torch.inf).softmax(-1)
    return linear("o_proj", torch.einsum("nts,snv->tnv", weights_NTS, value_TNV).flatten(1))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_absorbed_is_plain(name: str, interleaved: bool, kernels: Kernels) -> None:
    part, source = built(name, kernels, interleaved)
    x_TD = torch.randn(TOKENS, HIDDEN)
    with torch.inference_mode():
        out = run(part, x_TD, [TOKENS])
    right = plain(part, source, x_TD)
    assert (out.double() - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", PLANS)
def test_bits_do_not_depend_on_the_cut(name: str, dtype: torch.dtype, kernels: Kernels) -> None:
    part, _ = built(name, kernels, True, dtype)
    x_TD = torch.randn(TOKENS, HIDDEN).to(dtype)
    with torch.inference_mode():
        whole = run(part, x_TD, [TOKENS])
        for cuts in ([1] * TOKENS, [20, 1, 3, 21], [40, 1, 1, 1, 1, 1]):
            assert torch.equal(run(part, x_TD, cuts), whole), cuts


@pytest.mark.parametrize("name", ["compressed query", "whole query"])
def test_wanted_rows_alone(name: str, kernels: Kernels) -> None:
    part, _ = built(name, kernels, True)
    x_TD = torch.randn(TOKENS, HIDDEN)
    width = part.plan.kv_rank + part.plan.rotary_size
    pages, again = torch.zeros(2, 6, 2, 1, 1, SLOTS, width)
    with torch.inference_mode():
        whole = part(x_TD, step(0, TOKENS), pages, 0, only_wanted=False)
        rows = part(x_TD, step(0, TOKENS, [43, 44]), again, 0, only_wanted=True)
        none = part(x_TD, step(0, TOKENS, []), again, 0, only_wanted=True)
    assert torch.equal(rows, whole[[43, 44]]) and torch.equal(again, pages)
    assert none.shape == (0, HIDDEN)


def test_a_query_without_a_rank_has_one_projection() -> None:
    plan = replace(PLANS["whole query"], bias=True)
    names = LatentPart.shapes(plan, config_of(plan, True), "a")
    assert names["a.q_proj.weight"] == (HEADS * 48, HIDDEN) and "a.q_b_proj.weight" not in names
