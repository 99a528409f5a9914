"""Two ranks give, bit for bit, what one process with two shards gives; a lost rank is named."""

import os
import select
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.load import EngineSettings, LoadedEngine, load_engine
from penstock.engine.paged_memory import PagedMemory, PageLayout
from penstock.engine.rank_words import Setup
from penstock.engine.ranks import Ranks
from penstock.engine.step import Slice, Step, StepResult
from penstock.models.fields import ModelError
from support.latent_model import write_latent_model
from support.serving import gone, until
from support.small_model import make_sequence, write_model

EXPERTS = {
    **{"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 3},
    **{"moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 16},
}
# Kind -> how it is written, shards of two ranks.
MODELS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "dense": (lambda folder: write_model(folder, "bfloat16", num_key_value_heads=4), 4),
    "experts": (lambda folder: write_model(folder, **EXPERTS, attention_bias=True), 2),
    "latent, experts": (write_latent_model, 2),
}
PROMPT = [3 + 5 * at % 90 for at in range(21)]
Opener = Callable[..., LoadedEngine]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Loads engines, and afterwards closes them."""
    engines: list[LoadedEngine] = []

    def load(folder: Path, **settings: Any) -> LoadedEngine:
        chosen: dict[str, Any] = {"pages": 12, "page_slots": 8, "threads": 1} | settings
        engines.append(load_engine(EngineSettings(folder, **chosen)))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def result_of(loaded: LoadedEngine, step: Step) -> StepResult:
    loaded.engine.start(step)
    assert select.select([loaded.engine.fileno()], [], [], 60)[0]
    result = loaded.engine.finished()
    assert result is not None
    return result


def answers(loaded: LoadedEngine) -> list[Any]:
    """Prompts in chunks beside each other, then a few tokens each; all that was drawn and told."""
    first = make_sequence(PROMPT, pages=[7, 2, 5, 9], temperature=0.0, logprobs=4)
    other = make_sequence(PROMPT[::-1], pages=[1, 8, 3, 0], temperature=0.7, prompt_logprobs=3)
    told: list[Any] = []

    def run(*slices: Slice) -> None:
        result = result_of(loaded, Step(slices))
        assert not result.error
        told.extend(result.drawn)
        for part, drawn in zip(slices, result.drawn, strict=True):
            part.sequence.token_ids += drawn.token_ids

    run(Slice(first, 0, 13))  # nothing is wanted
    run(Slice(first, 13, 8, (0,)), Slice(other, 0, 9))
    run(Slice(first, 21, 1, (0,)), Slice(other, 9, 12, (0,)))
    for at in range(22, 26):
        run(Slice(first, at, 1, (0,)), Slice(other, at - 1, 1, (0,)))
    return told


@pytest.mark.parametrize("kind", MODELS)
def test_two_ranks_give_the_bits_of_one_process(
    tmp_path: Path, tmp_path_factory: Any, monkeypatch: Any, opened: Opener, kind: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("meetings")))
    write, shards = MODELS[kind]
    folder = write(tmp_path)
    alone, together = opened(folder, shards=shards), opened(folder, ranks=2, shards=shards)
    assert alone.numeric_class == together.numeric_class != opened(folder).numeric_class
    assert f"{shards} shards" in alone.numeric_class and together.device == "cpu, 2 ranks"
    assert answers(together) == answers(alone)
    assert torch.equal(together.memory.pages_PLCGSH, alone.memory.pages_PLCGSH)
    assert alone.memory.pages_PLCGSH.any()
    assert not list(Path(tempfile.gettempdir()).iterdir()), "the meeting's file stays behind"
    check_a_refused_step(together)
    assert together.ranks is not None
    pid = together.ranks.followers[0].process.pid
    assert not gone(pid)
    together.close()
    assert gone(pid) and together.failure() == ""


def check_a_refused_step(loaded: LoadedEngine) -> None:
    """What all ranks refuse is one step's error, and the next step runs."""
    outside = make_sequence([1, 2, 3], pages=[400])
    assert "page id" in result_of(loaded, Step((Slice(outside, 0, 3, (0,)),))).error
    sequence = make_sequence([1, 2, 3], pages=[4])
    assert not result_of(loaded, Step((Slice(sequence, 0, 3, (0,)),))).error
    assert not loaded.failure()


@pytest.mark.parametrize("busy", [False, True])
def test_a_lost_rank_is_named_and_answers_nothing(
    tmp_path: Path, opened: Opener, busy: bool
) -> None:
    loaded = opened(write_model(tmp_path), ranks=2)
    assert loaded.ranks is not None
    process = loaded.ranks.followers[0].process
    sequence = make_sequence(PROMPT, pages=[4, 5, 6])
    if busy:  # it stands still in the middle of a step
        os.kill(process.pid, signal.SIGSTOP)
        loaded.engine.start(Step((Slice(sequence, 0, 21, (0,)),)))
    os.kill(process.pid, signal.SIGKILL)
    until(loaded.failure, "the lost rank is named")
    assert loaded.failure() == f"ranks: rank 1 (process {process.pid}) was killed by SIGKILL"
    if not busy:
        loaded.engine.start(Step((Slice(sequence, 0, 21, (0,)),)))
    assert loaded.engine.finished() is None
    loaded.ranks.close()
    assert select.select([loaded.engine.fileno()], [], [], 60)[0]
    result = loaded.engine.finished()
    assert result is not None and "was killed by SIGKILL" in result.error


def test_a_rank_that_stands_still_is_lost_too(tmp_path: Path, opened: Opener) -> None:
    loaded = opened(write_model(tmp_path), ranks=2, exchange_seconds=3.0)
    assert loaded.ranks is not None
    process = loaded.ranks.followers[0].process
    os.kill(process.pid, signal.SIGSTOP)
    sequence = make_sequence(PROMPT, pages=[4, 5, 6])
    loaded.engine.start(Step((Slice(sequence, 0, 21, (0,)),)))
    until(loaded.failure, "the rank that stands still is named")
    assert loaded.failure() == f"ranks: rank 1 (process {process.pid}) stands still: timed out"
    loaded.close()
    assert gone(process.pid)


def test_a_rank_that_cannot_load_says_why(tmp_path: Path) -> None:
    setup = Setup(str(tmp_path), "float32", "auto", 1, 8, 0, 2, 2, "", 60.0)
    memory = PagedMemory(PageLayout(1, 2, 1, 8, 16, torch.float32), 2)
    ranks = Ranks(setup)
    with pytest.raises(ModelError, match="rank 1: ModelError: .*config.json"):
        ranks.meet(memory, "")
    ranks.close()
    memory.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ranks": 4}, "4 shards: the model's 2 key heads"),
        ({"ranks": 2, "shards": 3}, "3 shards cannot be held by 2 ranks"),
        ({"shards": 3}, "4 query heads"),
    ],
)
def test_what_does_not_divide_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_engine(EngineSettings(write_model(tmp_path), threads=1, pages=4, **settings))
