"""The part: transformers' own blocks give the same rows, however unevenly tokens are routed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from penstock.bench.reference.measure import Pages, sequence_of
from penstock.kernels.choice import Kernels, choose
from penstock.models.blueprint import Blueprint, ExpertNames, Experts, PageShape, Rope
from penstock.models.config import GenerationDefaults, ModelConfig
from penstock.models.experts import ExpertsPart
from penstock.models.families import gpt_oss, mixtral
from penstock.models.registry import load_model
from support.latent_model import SIZES
from support.small_model import write_model

HIDDEN, SIZE, COUNT, TOKENS = 64, 32, 8, 50
COMMON: dict[str, Any] = {"hidden_size": HIDDEN, "num_experts_per_tok": 3}


class Held:
    """Tensors of a test, as a part takes them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.tensors[name].clone().to(dtype or torch.float32)

    def part(
        self, name: str, dimension: int, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        return self.tensor(name, dtype).narrow(dimension, start, stop - start)

    def joined(self, names: Sequence[str], dtype: torch.dtype | None = None) -> Tensor:
        return torch.cat([self.tensor(name, dtype) for name in names])


def model_config() -> ModelConfig:
    blueprint = Blueprint(layers=(), rope=Rope(size=2), page=PageShape(2, 1, 2))
    return ModelConfig(
        "", 97, HIDDEN, 64, 1e-6, False, "float32", None, (), GenerationDefaults(), blueprint
    )


def published(block: nn.Module, names: ExpertNames) -> dict[str, Tensor]:
    """The block's tensors by the names of checkpoints, under "mlp."."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in block.state_dict().items():
        if name == "experts.gate_up_proj" and names.up:
            for at, (gate, up) in enumerate(one.chunk(2) for one in tensor):
                tensors[f"mlp.{names.gate.format(at)}.weight"] = gate
                tensors[f"mlp.{names.up.format(at)}.weight"] = up
        elif name == "experts.down_proj" and names.up:
            for at, down in enumerate(tensor):
                tensors[f"mlp.{names.down.format(at)}.weight"] = down
        else:
            tensors[f"mlp.{name}"] = tensor
    return tensors


def blocks() -> dict[str, tuple[nn.Module, Experts]]:
    sizes: dict[str, Any] = {"count": COUNT, "chosen": 3, "size": SIZE}
    deepseek = DeepseekV3Config(
        **COMMON, moe_intermediate_size=SIZE, n_routed_experts=COUNT, n_group=4, topk_group=2
    )
    qwen3 = Qwen3MoeConfig(**COMMON, moe_intermediate_size=SIZE, num_experts=COUNT)
    return {
        "mixtral": (
            MixtralSparseMoeBlock(
                MixtralConfig(**COMMON, intermediate_size=SIZE, num_local_experts=COUNT)
            ),
            Experts(**sizes, normalised=True, names=mixtral.EXPERT_NAMES),
        ),
        "qwen3": (Qwen3MoeSparseMoeBlock(qwen3), Experts(**sizes)),
        "deepseek": (
            DeepseekV3MoE(deepseek),
            Experts(
                **sizes,
                **{"shared_size": SIZE, "scoring": "sigmoid", "normalised": True, "scale": 2.5},
                **{"groups": 4, "chosen_groups": 2, "correction": True},
            ),
        ),
        "gpt-oss": (
            GptOssMLP(GptOssConfig(**COMMON, intermediate_size=SIZE, num_local_experts=COUNT)),
            Experts(
                **sizes,
                **{"normalised": True, "bias": True, "activation": "clamped", "alpha": 1.702},
                **{"limit": 7.0, "stacked": True, "names": gpt_oss.EXPERT_NAMES},
            ),
        ),
    }


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    return choose("cpu", request.param)


def built(name: str, kernels: Kernels) -> tuple[nn.Module, ExpertsPart]:
    torch.manual_seed(0)
    block, plan = blocks()[name]
    for one in (*block.parameters(), *block.buffers()):
        nn.init.normal_(one, std=0.2)
    source = Held(published(block, plan.names))
    assert {
        name: tuple(tensor.shape) for name, tensor in source.tensors.items()
    } == ExpertsPart.shapes(plan, model_config(), "mlp")
    return block.eval(), ExpertsPart(plan, model_config(), source, "mlp", kernels)


def theirs(block: nn.Module, x_TD: Tensor) -> Tensor:
    out = block(x_TD[None])
    return (out[0] if isinstance(out, tuple) else out)[0]


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "deepseek", "gpt-oss"])
def test_rows_are_those_of_transformers(name: str, kernels: Kernels) -> None:
    block, part = built(name, kernels)
    x_TD = torch.randn(TOKENS, HIDDEN)
    with torch.inference_mode():
        expected, out = theirs(block, x_TD), part(x_TD)
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
        for cut in ([1] * TOKENS, [7, 42, 1]):
            assert torch.equal(torch.cat([part(rows) for rows in x_TD.split(cut)]), out)


@pytest.mark.parametrize("loved", [(0, 1, 7), (2, 3, 6)])
def test_all_tokens_to_the_same_experts(loved: tuple[int, ...], kernels: Kernels) -> None:
    """A correction that outweighs every score, so that five experts see nothing."""
    torch.manual_seed(0)
    block, plan = blocks()["deepseek"]
    for one in (*block.parameters(), *block.buffers()):
        nn.init.normal_(one, std=0.2)
    correction = torch.zeros(COUNT)
    correction[list(loved)] = 5.0
    block.load_state_dict({"gate.e_score_correction_bias": correction}, strict=False)
    source = Held(published(block, plan.names))
    part = ExpertsPart(plan, model_config(), source, "mlp", kernels)
    x_TD = torch.randn(TOKENS, HIDDEN)
    with torch.inference_mode():
        expected, out = theirs(block.eval(), x_TD), part(x_TD)
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(torch.cat([part(rows) for rows in x_TD.split(1)]), out)
    seen = [2 * TOKENS if expert in loved else 0 for expert in range(COUNT)]
    assert part.load_E.tolist() == seen


def test_the_load_counts_every_choice(kernels: Kernels) -> None:
    _, part = built("mixtral", kernels)
    with torch.inference_mode():
        part(torch.randn(TOKENS, HIDDEN))
        assert int(part.load_E.sum()) == 3 * TOKENS
        part(torch.randn(1, HIDDEN))
    assert int(part.load_E.sum()) == 3 * (TOKENS + 1)


def test_a_model_tells_the_load_of_each_layer(tmp_path: Path, kernels: Kernels) -> None:
    """Three layers, the first dense; four experts per token; every row is wanted."""
    loaded = load_model(write_model(tmp_path, **SIZES), kernels, torch.float32)
    pages = Pages(loaded)
    with torch.inference_mode():
        pages.logits(sequence_of(list(range(20))), [20])
    pages.close()
    load = loaded.model.expert_load
    assert [len(load_E) for load_E in load.values()] == [16, 16] and list(load) == [1, 2]
    assert int(load[1].sum()) == int(load[2].sum()) == 4 * 20


def test_a_correction_is_not_rounded_to_the_run_dtype(kernels: Kernels) -> None:
    """In bf16 these two corrections would be one, and the tie would go to expert 0."""
    torch.manual_seed(0)
    block, plan = blocks()["deepseek"]
    tensors = published(block, plan.names)
    tensors["mlp.gate.weight"] = torch.zeros(COUNT, HIDDEN)
    tensors["mlp.gate.e_score_correction_bias"] = torch.tensor([1.0, 1.0001] + [0.0] * 6)
    source = Held(tensors)

    class Half(Held):
        def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
            return source.tensor(name, dtype or torch.bfloat16)

    part = ExpertsPart(plan, model_config(), Half(tensors), "mlp", kernels)
    chosen = part.route(torch.zeros(1, COUNT), part.correction_E, part.routing)[0]
    assert chosen[0, 0] == 1
