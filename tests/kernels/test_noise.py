"""Noise: the known answers of Philox, one set of bits everywhere, the right distribution."""

import math
import struct

import numpy
import pytest
import torch

from penstock.kernels import noise
from penstock.kernels.choice import Kernels

MASK = 0xFFFFFFFF
KNOWN = [  # Random123, kat_vectors, philox4x32 10: counter, key, answer
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


Who = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def numbers(words: str) -> list[int]:
    return [int(word, 16) for word in words.split()]


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        first, third = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(third >> 32) ^ c[1] ^ k[0], third & MASK, (first >> 32) ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def slow_log(e: int, f: numpy.float32) -> numpy.float32:
    """The stated steps, one rounded fp32 operation at a time."""
    one = numpy.float32
    p = one(noise.LOG_POLYNOMIAL[0])
    for coefficient in noise.LOG_POLYNOMIAL[1:]:
        p = p * f + one(coefficient)
    square = f * f
    rest = p * f * square + one(e) * one(noise.LN2_LOW)
    rest = rest + square * one(-0.5)
    return (f + rest) + one(e) * one(noise.LN2_HIGH)


def slow_parts(y: numpy.float32) -> tuple[int, numpy.float32]:
    bits = struct.unpack("<i", struct.pack("<f", y))[0]
    e = (bits - 0x3F3504F3) >> 23
    return e, numpy.float32(
        struct.unpack("<f", struct.pack("<i", bits - (e << 23)))[0]
    ) - numpy.float32(1)


def slow_gumbel(word: int) -> numpy.float32:
    half, scale = numpy.float32(0.5), numpy.float32(2.0**-32)
    if word >= noise.NEAR_ONE:
        e, f = 0, -((numpy.float32(word ^ MASK) + half) * scale)
    else:
        e, f = slow_parts((numpy.float32(word) + half) * scale)
    return -slow_log(*slow_parts(-slow_log(e, f)))


def slow_noise(seed: int, choice: int, position: int, token: int) -> numpy.float32:
    counter = [token >> 2, position & MASK, choice & MASK, 0]
    return slow_gumbel(slow_philox(counter, [seed & MASK, seed >> 32 & MASK])[token & 3])


def rows(seeds: list[int], choices: list[int], positions: list[int]) -> Who:
    columns = [torch.tensor([noise.signed(n) for n in c]) for c in (seeds, choices, positions)]
    return columns[0], columns[1], columns[2]


SEEDS, CHOICES, POSITIONS = (
    [0, 2**64 - 1, 0x123456789ABCDEF0],
    [0, 7, 2**31],
    [0, 131071, 2**32 - 1],
)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    words = [torch.tensor([n]) for n in numbers(counter) + numbers(key)]
    got = noise.philox(tuple(words[:4]), (words[4], words[5]))
    assert [int(word) for word in got] == numbers(answer)
    assert slow_philox(numbers(counter), numbers(key)) == numbers(answer)


@pytest.mark.parametrize(("first", "count"), [(0, 300), (13, 150), (127, 2), (151000, 131), (3, 0)])
def test_one_set_of_bits(kernels: Kernels, first, count):
    who = rows(SEEDS, CHOICES, POSITIONS)
    got = kernels.gumbel_noise(*who, first, count)
    assert got.shape == (3, count)
    for row in range(3):
        expected = [
            slow_noise(SEEDS[row], CHOICES[row], POSITIONS[row], t)
            for t in range(first, first + count)
        ]
        assert got[row].numpy().tobytes() == numpy.array(expected, dtype=numpy.float32).tobytes()
    tokens = torch.arange(first, first + count).flip(0).expand(3, -1).contiguous()
    assert torch.equal(kernels.gumbel_noise_at(*who, tokens), got.flip(1))


def test_native_gives_the_bits_of_torch(native_kernels):
    seeds = torch.randint(-(2**63), 2**63 - 1, (4,))
    who = (seeds, torch.arange(4), torch.randint(0, 2**32, (4,)))
    assert torch.equal(
        native_kernels.gumbel_noise(*who, 0, 50000), noise.gumbel_noise(*who, 0, 50000)
    )


def test_extreme_words_stay_finite():
    words = [0, 1, noise.NEAR_ONE - 1, noise.NEAR_ONE, MASK - 1, MASK]
    got = noise.gumbel(torch.tensor(words))
    exact = [-math.log(-math.log1p(-(MASK - w + 0.5) / 2**32)) for w in words]
    torch.testing.assert_close(got.double(), torch.tensor(exact).double(), rtol=1e-6, atol=1e-6)


def test_error_of_the_logarithm():
    spread = torch.randint(0x00800000, 0x7F7FFFFF, (1 << 20,), dtype=torch.int32)
    for y in (spread.view(torch.float32), torch.rand(1 << 20) * 1.5 + 0.5):
        exact = y.double().log()
        kept = exact != 0
        error = (noise.logarithm(y).double() - exact)[kept] / exact[kept]
        assert error.abs().max() < 1e-7


def test_distribution_is_gumbel():
    """Kolmogorov-Smirnov; the seed is fixed, so this passes or fails for good."""
    who = rows([11] * 4, [0] * 4, [0, 1, 2, 3])
    values = noise.gumbel_noise(*who, 0, 50000).flatten().double().sort().values
    count = values.numel()
    expected = torch.exp(-torch.exp(-values))
    steps = torch.arange(count + 1).double() / count
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    assert distance < 1.63 / math.sqrt(count)  # the 1 % point


def test_arg_max_draws_from_the_distribution():
    """Chi-square over 8 tokens, 20000 positions."""
    chance = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    draws = 20000
    who = (torch.full((draws,), 5), torch.zeros(draws).long(), torch.arange(draws))
    token = (noise.gumbel_noise(*who, 0, 8) + chance.log()).argmax(-1)
    expected = chance * draws
    statistic = ((torch.bincount(token, minlength=8) - expected) ** 2 / expected).sum()
    assert statistic < 18.48  # the 1 % point with 7 degrees of freedom


def test_each_key_counts(kernels: Kernels):
    base = kernels.gumbel_noise(*rows([1], [2], [3]), 0, 64)
    for other in (
        rows([2], [2], [3]),
        rows([1 + 2**32], [2], [3]),
        rows([1], [3], [3]),
        rows([1], [2], [4]),
    ):
        assert not (kernels.gumbel_noise(*other, 0, 64) == base).any()
