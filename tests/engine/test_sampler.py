"""Drawing: the law of the draws, features against a slow reference, independence of rows."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from penstock.engine.exponential import exponential
from penstock.engine.sampler import Row, Sampler
from penstock.engine.step import Drawn
from penstock.kernels.choice import Kernels, choose
from support.slow_sampler import changed_logits, distribution
from support.small_model import make_sequence

VOCABULARY = 50
PROMPT = [3, 4, 4, 5, 9]
OUTPUT = [7, 7, 3]


@pytest.fixture(scope="module", params=["auto", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return choose("cpu", request.param)


def some_logits(rows: int, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def draw(kernels: Kernels, logits: torch.Tensor, rows: list[Row]) -> list[Drawn]:
    with torch.inference_mode():
        return Sampler(kernels).draw(logits, rows)


# 20,000 draws against enumerated probabilities. The seeds are fixed, so the test is too; the
# bound is the 99.99% point of chi-square by the Wilson-Hilferty approximation.
LAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 20, "min_p": 0.01, "top_p": 0.9, "temperature": 1.3},
    {"logit_bias": {1: 5.0, 2: -100.0}, "repetition_penalty": 1.3, "presence_penalty": 0.5},
]


def expect_law(counts: Counter[int], probabilities: list[float], draws: int) -> None:
    assert all(probabilities[token_id] > 0 for token_id in counts)
    rare = [at for at, p in enumerate(probabilities) if 0 < p * draws < 10]
    cells = [(counts[at], p * draws) for at, p in enumerate(probabilities) if p * draws >= 10]
    if rare:
        cells.append(
            (sum(counts[at] for at in rare), sum(probabilities[at] * draws for at in rare))
        )
    statistic = sum((seen - meant) ** 2 / meant for seen, meant in cells if meant > 0)
    freedom = max(1, len(cells) - 1)
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound


def expect_draws(rows: list[Row], draws_per_row: int) -> None:
    """Draw all rows from the same logits and hold the counts against the first row's law."""
    logits = some_logits(1)
    counts: Counter[int] = Counter()
    for first in range(0, len(rows), 500):
        part = rows[first : first + 500]
        for answer in draw(choose("cpu"), logits.expand(len(part), -1), part):
            counts.update(answer.token_ids)
    sequence = rows[0].sequence
    sampling, token_ids = sequence.sampling, sequence.token_ids
    scores = changed_logits(logits[0].tolist(), sampling, token_ids, sequence.prompt_length)
    expect_law(counts, distribution(scores, sampling), len(rows) * draws_per_row)


@pytest.mark.parametrize("law", LAWS)
def test_choices_follow_the_law(law: dict[str, Any]) -> None:
    sequence = make_sequence(PROMPT + OUTPUT, len(PROMPT), seed=11, **law)
    choices = [tuple(range(first, first + 1000)) for first in range(0, 20_000, 1000)]
    expect_draws([Row(sequence, 8, some) for some in choices], 1000)


def test_positions_follow_the_law() -> None:
    sequence = make_sequence(PROMPT + OUTPUT, len(PROMPT), seed=12)
    expect_draws([Row(sequence, 8 + number, (0,)) for number in range(20_000)], 1)


def test_seeds_follow_the_law() -> None:
    seeds = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(20_000)]
    sequences = [make_sequence(PROMPT + OUTPUT, len(PROMPT), seed=seed) for seed in seeds]
    expect_draws([Row(sequence, 8, (0,)) for sequence in sequences], 1)


FEATURES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 0.0, "repetition_penalty": 0.6, "frequency_penalty": 0.9},
    {"temperature": 0.0, "presence_penalty": 2.0},
    {"temperature": 0.0, "presence_penalty": -2.0},
    {"temperature": 0.0, "frequency_penalty": -1.5},
    {"temperature": 0.0, "logit_bias": {17: 100.0}},
    {"temperature": 0.0, "logit_bias": {at: -100.0 for at in range(40)}},
    {"temperature": 0.0, "min_tokens": 4, "stop_token_ids": tuple(range(45))},
    {"temperature": 0.0, "min_tokens": 3, "stop_token_ids": tuple(range(45))},
    {"temperature": 0.7, "top_k": 1},
    {"top_p": 1e-6},
    {"min_p": 1.0},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"top_k": 400, "top_p": 0.95, "min_p": 0.001},
]


@pytest.mark.parametrize("feature", FEATURES)
def test_features_against_the_reference(kernels: Kernels, feature: dict[str, Any]) -> None:
    """The token is the arg-max of the reference's log-probabilities plus the kernels' noise."""
    logits = some_logits(30, seed=1)
    for number, row_V in enumerate(logits):
        sequence = make_sequence(PROMPT + OUTPUT, len(PROMPT), seed=number, **feature)
        sampling = sequence.sampling
        answer = draw(kernels, row_V[None], [Row(sequence, 8, (2,))])[0]
        scores = changed_logits(row_V.tolist(), sampling, sequence.token_ids, len(PROMPT))
        if sampling.temperature:
            key = [torch.tensor([value]) for value in (number, 2, 8)]
            noise = kernels.gumbel_noise(*key, 0, VOCABULARY)[0].tolist()
            law = distribution(scores, sampling)
            scores = [
                math.log(p) + bump if p else -math.inf for p, bump in zip(law, noise, strict=True)
            ]
        assert answer.token_ids == (max(range(VOCABULARY), key=lambda at: scores[at]),)


def test_ties_go_to_the_lowest_id(kernels: Kernels) -> None:
    logits = torch.zeros(1, 4096)
    logits[0, [77, 2000, 4095]] = 1.0
    greedy = make_sequence(PROMPT, temperature=0.0)
    biased = make_sequence(PROMPT, temperature=0.0, logit_bias={5: -1.0})
    for sequence in (greedy, biased):
        assert draw(kernels, logits, [Row(sequence, 5, (0,))])[0].token_ids == (77,)


def mixed_rows(count: int) -> list[Row]:
    chance = random.Random(4)
    rows = []
    for number in range(count):
        feature: dict[str, Any] = chance.choice([*LAWS, *FEATURES])
        prompt = chance.choices(range(VOCABULARY), k=chance.randrange(1, 20))
        output = chance.choices(range(VOCABULARY), k=chance.randrange(6))
        settings: dict[str, Any] = {"seed": number, "logprobs": chance.randrange(-1, 4)} | feature
        sequence = make_sequence(prompt + output, len(prompt), **settings)
        choices = (0, 1, 5) if not output and number % 2 else (chance.randrange(4),)
        rows.append(Row(sequence, len(sequence.token_ids), choices))
    return rows


def test_a_row_does_not_depend_on_its_neighbours(kernels: Kernels) -> None:
    rows = mixed_rows(60)
    logits = some_logits(60, seed=2)
    together = draw(kernels, logits, rows)
    for at in range(60):
        assert draw(kernels, logits[at : at + 1], [rows[at]]) == together[at : at + 1]
    order = random.Random(5).sample(range(60), 37)
    assert draw(kernels, logits[order], [rows[at] for at in order]) == [
        together[at] for at in order
    ]


def test_counts_kept_between_steps_change_nothing(kernels: Kernels) -> None:
    penalties: dict[str, Any] = {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    }
    grown = make_sequence(PROMPT, temperature=0.0, **penalties)
    kept = Sampler(kernels)
    for number in range(12):
        logits = some_logits(1, seed=number)
        if number == 6:  # the sequence leaves the batch for one step
            kept.draw(logits, [Row(make_sequence(PROMPT), 5, (0,))])
        row = Row(grown, len(grown.token_ids), (0,))
        with torch.inference_mode():
            answer = kept.draw(logits, [row])[0]
        assert [answer] == draw(kernels, logits, [row])
        grown.token_ids.append(answer.token_ids[0])


def test_seeds_and_choices(kernels: Kernels) -> None:
    logits = torch.zeros(1, 4096)

    def tokens(seed: int, choices: tuple[int, ...], position: int = 9) -> tuple[int, ...]:
        sequence = make_sequence(PROMPT, seed=seed)
        return draw(kernels, logits, [Row(sequence, position, choices)])[0].token_ids

    assert tokens(1, (0, 1, 2, 3)) == tokens(1, (0, 1, 2, 3))
    assert len(set(tokens(1, (0, 1, 2, 3)))) == 4
    assert tokens(1, (2,)) == tokens(1, (0, 1, 2, 3))[2:3]
    different = {tokens(seed, (0,)) for seed in (1, 2, 2**32 + 1, 2**63 + 1, 2**64 - 1)}
    assert len(different | {tokens(1, (0,), 10)}) == 6


def test_greedy_choices_are_alike(kernels: Kernels) -> None:
    sequence = make_sequence(PROMPT, temperature=0.0, logprobs=0)
    answer = draw(kernels, some_logits(1), [Row(sequence, 5, (0, 1, 2))])[0]
    assert len(set(answer.token_ids)) == 1 and len(answer.token_ids) == 3
    assert len(answer.logprobs) == 3


def test_logprobs_are_of_the_raw_logits(kernels: Kernels) -> None:
    logits = some_logits(1)
    logits[0, 13] = logits[0, 31] = 20.0
    settings = {"logit_bias": {2: 100.0}, "temperature": 0.3, "top_k": 3, "logprobs": 4}
    answer = draw(kernels, logits, [Row(make_sequence(PROMPT, **settings), 5, (0,))])[0]
    exact = logits[0].double().log_softmax(0)
    report = answer.logprobs[0]
    assert answer.token_ids == (2,) and report is not None
    assert report.logprob == pytest.approx(exact[2].item(), abs=1e-5)
    assert report.top_ids[:2] == [13, 31] and len(report.top_ids) == 4  # ties by id
    assert report.top_logprobs == pytest.approx(exact[report.top_ids].tolist(), abs=1e-5)
    assert report.top_logprobs == sorted(report.top_logprobs, reverse=True)


def test_bad_logits_fail_their_row_alone(kernels: Kernels) -> None:
    logits = some_logits(5)
    logits[1, 7] = torch.nan
    logits[3, :] = -torch.inf
    cases: list[dict[str, Any]] = [{"temperature": 0.0}, {"logprobs": 2}]
    for settings in cases:
        rows = [Row(make_sequence(PROMPT, **settings), 5, (0,)) for _ in range(5)]
        banned: dict[str, Any] = {"logit_bias": {at: -math.inf for at in range(VOCABULARY)}}
        rows[4] = Row(make_sequence(PROMPT, **banned), 5, (0,))
        answers = draw(kernels, logits, rows)
        assert [bool(answer.error) for answer in answers] == [False, True, False, True, True]
        request = rows[1].sequence.prefill.request
        assert answers[1].error == (
            f"request {request} attempt 1 position 5: logits are not finite"
        )
        assert "no token may be drawn" in answers[4].error
        assert all(bool(answer.token_ids) != bool(answer.error) for answer in answers)


def test_ids_beyond_the_vocabulary_are_ignored(kernels: Kernels) -> None:
    settings: dict[str, Any] = {
        "logit_bias": {10_000: 5.0},
        "stop_token_ids": (10_000,),
        "min_tokens": 2,
        "temperature": 0.0,
    }
    logits = some_logits(1)
    answer = draw(kernels, logits, [Row(make_sequence(PROMPT, **settings), 5, (0,))])[0]
    assert answer.token_ids == (int(logits.argmax()),)


def test_exp_does_not_depend_on_the_place_in_a_tensor() -> None:
    x = -torch.rand(5000, generator=torch.Generator().manual_seed(1)) * 100
    whole = exponential(x)
    assert torch.allclose(whole.double(), x.double().exp(), rtol=1e-6, atol=1e-44)
    for start, stop in ((1, 5000), (3, 20), (777, 778), (12, 4099)):
        assert torch.equal(exponential(x[start:stop]), whole[start:stop])
    for place in range(0, 5000, 97):
        assert torch.equal(exponential(x[place : place + 1].clone()), whole[place : place + 1])
    assert torch.equal(exponential(x.view(50, 100)[:, :33]), whole.view(50, 100)[:, :33])
    assert exponential(torch.tensor([-torch.inf, 0.0])).tolist() == [0.0, 1.0]
