"""A model cut into shards gives the logits of the whole, and refuses what does not divide."""

import json
from pathlib import Path

import pytest
import torch

from penstock.bench.reference.families import FAMILIES, write
from penstock.engine.batch import BatchBuilder
from penstock.engine.paged_memory import PageLayout
from penstock.engine.step import Slice, Step
from penstock.kernels.choice import Kernels, choose
from penstock.models.checkpoint import Checkpoint
from penstock.models.config import read_config
from penstock.models.decoder import Decoder
from penstock.models.fields import ModelError
from penstock.models.filling import Box
from penstock.models.parts import Shard
from penstock.models.registry import load_model
from penstock.models.shards import Shards
from penstock.models.weights import Weights
from support.small_model import make_sequence, write_model

SLOTS = 8
TOKENS = [3 + 7 * at % 89 for at in range(41)]
CUTS = ([41], [7, 16, 1, 17], [33] + [1] * 8)


@pytest.fixture(scope="module", params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    return choose("cpu", request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    write(request.param, folder)
    return folder


def logits(folder: Path, kernels: Kernels, shards: int, cuts: list[int]) -> torch.Tensor:
    return run(folder, kernels, shards, cuts)[0]


def run(
    folder: Path, kernels: Kernels, shards: int, cuts: list[int]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Logits of every position, the prompt computed in steps of these lengths; experts' load."""
    loaded = load_model(folder, kernels, torch.float32, shards=Shards(shards, 0, shards))
    pages = list(range(-(-len(TOKENS) // SLOTS)))[::-1]
    sequence = make_sequence(TOKENS, len(TOKENS) + 1, pages, prompt_logprobs=0)
    layout = PageLayout.of(loaded.config.blueprint, SLOTS, torch.float32)
    memory = torch.zeros(layout.shape(len(pages)))
    builder, out, start = BatchBuilder(SLOTS), [], 0
    with torch.inference_mode():
        for count in cuts:
            batch = builder.build(Step((Slice(sequence, start, count),)))
            out.append(loaded.model.logits(loaded.model.forward(batch, memory)))
            start += count
    return torch.cat(out), loaded.model.expert_load


def test_two_shards_give_the_logits_of_the_whole(folder: Path, kernels: Kernels) -> None:
    whole, load = run(folder, kernels, 1, CUTS[0])
    halves, halves_load = run(folder, kernels, 2, CUTS[0])
    assert (halves - whole).abs().max() <= 1e-4 * whole.abs().max()
    assert {at: (len(one), one.sum()) for at, one in halves_load.items()} == {
        at: (len(one), one.sum()) for at, one in load.items()
    }
    for cuts in CUTS[1:]:
        assert torch.equal(logits(folder, kernels, 2, cuts), halves)


def test_what_does_not_divide_is_named(tmp_path: Path) -> None:
    config = read_config(write_model(tmp_path))  # 4 query heads, 2 key heads, 96 columns
    assert Decoder.divided(config, 1) == config
    layer = Decoder.divided(config, 2).blueprint.layers[0]
    assert (layer.attention.query_heads, layer.attention.kv_heads) == (2, 1)  # type: ignore
    with pytest.raises(ModelError, match="4 shards: the model's 2 key heads.*: 1, 2$"):
        Decoder.divided(config, 4)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"intermediate_size": 63}))
    with pytest.raises(ModelError, match="63 feed-forward columns"):
        Decoder.divided(read_config(tmp_path), 2)


class Asked(Weights):
    """Weights that keep what was asked of them: name -> elements."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Checkpoint(folder), torch.float32)
        self.elements: dict[str, int] = {}

    def _taken(self, name: str, box: Box, dtype: torch.dtype | None) -> torch.Tensor:
        taken = super()._taken(name, box, dtype)
        self.elements[name] = self.elements.get(name, 0) + taken.numel()
        return taken


def test_a_rank_reads_its_own_slices(folder: Path) -> None:
    config = read_config(folder)
    asked = [Asked(folder), Asked(folder)]
    for rank, source in enumerate(asked):
        shards = Shards.of_rank(2, rank, 2)
        Decoder(config, source, choose("cpu", "torch"), shards, head=rank == 0)
    sizes = {name: torch.Size(shape).numel() for name, shape in Decoder.shapes(config).items()}
    for name, size in sizes.items():
        read = [source.elements.get(name, 0) for source in asked]
        if name == "lm_head.weight":
            assert read == [size, 0]
        elif ".experts." in name and not name.endswith("_bias"):
            assert sum(read) == size, name
        elif name.endswith(("q_proj.weight", "o_proj.weight", "down_proj.weight")):
            assert read == [size // 2, size // 2], name


def test_shards_are_held_in_equal_runs() -> None:
    assert Shards.of_rank(4, 1, 2).own == [Shard(2, 4), Shard(3, 4)]
    with pytest.raises(ModelError, match="3 shards cannot be held by 2 ranks"):
        Shards.of_rank(3, 0, 2)


def test_shards_are_added_in_their_order_and_rounded_once() -> None:
    partials = [torch.tensor([value]).bfloat16() for value in (256.0, 1.0, 1.0, -256.0)]
    assert Shards(4, 0, 4).sum(partials).tolist() == [2.0]
    large = [torch.tensor([value]) for value in (1e8, 1.0, -1e8)]
    assert Shards(3, 0, 3).sum(large).tolist() == [0.0]
    assert Shards(3, 0, 3).sum([large[0], large[2], large[1]]).tolist() == [1.0]
