"""Rule 1 on the engine: a request's tokens and log-probabilities, bit for bit, however it runs."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.paged_memory import PagedMemory, PageLayout
from penstock.engine.runner import Runner
from penstock.engine.sequence import Sequence
from penstock.engine.step import Slice, Step
from penstock.kernels.choice import choose
from penstock.models.registry import load_model
from penstock.protocol.messages import TokenLogprobs
from support.small_model import make_sequence, write_model

SLOTS, PAGES, OUTPUT = 8, 400, 12
PROMPT = [random.Random(1).randrange(128) for _ in range(70)]


@dataclass
class World:
    """A runner and its free pages; the plainest scheduler there can be."""

    runner: Runner
    memory: PagedMemory
    free: list[int] = field(default_factory=lambda: list(range(PAGES)))

    def step(self, slices: list[Slice]) -> None:
        """Run, and give each sequence its token."""
        for part in slices:
            sequence = part.sequence
            needed = sequence.pages_needed(part.start + part.count, SLOTS)
            sequence.pages += [self.free.pop() for _ in range(needed)]
        result = self.runner.run(Step(tuple(slices)))
        for part, drawn in zip(slices, result.drawn, strict=True):
            assert not drawn.error
            part.sequence.computed = part.start + part.count
            part.sequence.token_ids.extend(drawn.token_ids)
            answers[part.sequence].extend(drawn.logprobs)
            prompts[part.sequence].extend(drawn.prompt_logprobs)

    def run(self, sequences: list[Sequence], chunk: int, length: int) -> None:
        """All sequences together until the first one has `length` tokens."""
        for sequence in sequences:
            answers.setdefault(sequence, [])
            prompts.setdefault(sequence, [])
        while len(sequences[0].token_ids) < length:
            slices = []
            for sequence in sequences:
                missing = len(sequence.token_ids) - sequence.computed
                count = min(chunk, missing)
                draw = (0,) if count == missing else ()
                slices.append(Slice(sequence, sequence.computed, count, draw))
            self.step(slices)

    def preempt(self, sequence: Sequence) -> None:
        """Take its pages, and make sure that what was in them is not needed."""
        self.memory.pages_PLCGSH[sequence.pages] = torch.nan
        self.free[:0] = sequence.pages
        sequence.pages, sequence.computed = [], 0


answers: dict[Sequence, list[TokenLogprobs | None]] = {}
prompts: dict[Sequence, list[TokenLogprobs]] = {}


@pytest.fixture(scope="module", params=["native bfloat16", "native float32", "torch bfloat16"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    name, dtype = request.param.split()
    if name == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    folder: Path = write_model(tmp_path_factory.mktemp("model"), dtype)
    kernels = choose("cpu", name)
    loaded = load_model(folder, kernels, getattr(torch, dtype))
    memory = PagedMemory(PageLayout(2, 2, 2, SLOTS, 16, getattr(torch, dtype)), PAGES)
    return World(Runner(loaded.model, memory.pages_PLCGSH), memory)


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "prompt_logprobs": 2},
    "plain": {},
    "everything": {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 60,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "min_tokens": 5,
        "stop_token_ids": (2, 3, 4),
    },
}
Outcome = tuple[list[int], list[TokenLogprobs | None], list[TokenLogprobs]]


def request_of(sampling: str) -> Sequence:
    return make_sequence(PROMPT, seed=99, logprobs=3, **SAMPLINGS[sampling])


def outcome(sequence: Sequence) -> Outcome:
    return sequence.token_ids, answers[sequence], prompts[sequence]


def alone(world: World, sampling: str, chunk: int = 512) -> Outcome:
    sequence = request_of(sampling)
    world.run([sequence], chunk, len(PROMPT) + OUTPUT)
    world.free += sequence.pages
    return outcome(sequence)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_chunks_pages_and_neighbours_change_no_bit(world: World, sampling: str) -> None:
    expected = alone(world, sampling)
    assert len(expected[0]) == len(PROMPT) + OUTPUT and len(expected[1]) == OUTPUT
    assert len(expected[2]) == (len(PROMPT) - 1 if sampling == "greedy" else 0)
    for chunk in (7, 32):
        random.Random(chunk).shuffle(world.free)  # other pages, too
        assert alone(world, sampling, chunk) == expected
    chance = random.Random(3)
    # Plain torch attends one sequence after another: more of them would only take longer.
    neighbours = 16 if world.runner.model.kernels.name == "native" else 3
    for chunk in (7, 512):
        sequence = request_of(sampling)
        others = [
            make_sequence(
                chance.choices(range(128), k=chance.randrange(1, 60)),
                seed=number,
                logprobs=number % 3 - 1,
                **chance.choice(list(SAMPLINGS.values())),
            )
            for number in range(neighbours)
        ]
        world.run([sequence, *others], chunk, len(PROMPT) + OUTPUT)
        assert outcome(sequence) == expected
        for one in (sequence, *others):
            world.free += one.pages


@pytest.mark.parametrize("sampling", ["plain", "everything"])
def test_preemption_and_fail_over_change_no_bit(world: World, sampling: str) -> None:
    expected = alone(world, sampling)
    sequence = request_of(sampling)
    for length in (len(PROMPT) + 1, len(PROMPT) + 5, len(PROMPT) + OUTPUT):
        world.run([sequence], 32, length)
        world.preempt(sequence)
    assert outcome(sequence) == expected
    # Elsewhere: prompt and output so far arrive as one, with the boundary between them.
    emitted = expected[0][: len(PROMPT) + 4]
    settings = SAMPLINGS[sampling]
    moved = make_sequence(emitted, len(PROMPT), seed=99, logprobs=3, **settings)
    world.run([moved], 32, len(PROMPT) + OUTPUT)
    assert outcome(moved)[:2] == (expected[0], expected[1][4:])
    world.free += moved.pages


def test_choices_of_one_prompt_are_those_drawn_alone(world: World) -> None:
    def first_tokens(choices: tuple[int, ...]) -> tuple[int, ...]:
        sequence = request_of("plain")
        sequence.pages = [world.free.pop() for _ in range(sequence.pages_needed(70, SLOTS))]
        result = world.runner.run(Step((Slice(sequence, 0, 70, choices),)))
        world.free += sequence.pages
        return result.drawn[0].token_ids

    together = first_tokens((0, 1, 2, 3))
    assert together == tuple(first_tokens((choice,))[0] for choice in range(4))
    assert len(set(together)) > 1


def test_prompt_logprobs_are_the_models(world: World) -> None:
    """Each prompt token's log-probability is the one reported when it is drawn at its place."""
    sequence = request_of("greedy")
    world.run([sequence], 16, len(PROMPT) + 3)
    drawn = answers[sequence]
    whole = make_sequence(sequence.token_ids, temperature=0.0, prompt_logprobs=3)
    world.run([whole], 512, len(whole.token_ids) + 1)
    reported = prompts[whole][-3:]
    assert reported == drawn[:3]
    world.free += sequence.pages + whole.pages


def test_one_sequences_bad_page_fails_it_alone(world: World) -> None:
    healthy, broken = request_of("plain"), request_of("plain")
    world.run([broken], 512, len(PROMPT) + 1)
    kept = world.memory.pages_PLCGSH[broken.pages[0]].clone()
    world.memory.pages_PLCGSH[broken.pages[0]] = torch.nan
    healthy.pages = [world.free.pop() for _ in range(9)]
    step = Step((Slice(broken, 70, 1, (0,)), Slice(healthy, 0, 70, (0,))))
    bad, good = world.runner.run(step).drawn
    assert "position 71: logits are not finite" in bad.error and not bad.token_ids
    assert not good.error and good.token_ids == tuple(alone(world, "plain")[0][70:71])
    world.memory.pages_PLCGSH[broken.pages[0]] = kept
    world.free += broken.pages + healthy.pages


def test_missing_pages_raise(world: World) -> None:
    with pytest.raises(ValueError, match="fewer pages"):
        world.runner.run(Step((Slice(request_of("plain"), 0, 70),)))
