"""Gumbel noise that is a pure function of (seed, choice, position, token).

1.  word = Philox4x32-10(counter, key)[token mod 4], with
        counter = (token div 4, position, choice, 0),  key = (seed mod 2^32, seed div 2^32)
2.  u = (word + 1/2) / 2^32, which is never 0 and never 1
3.  noise = -log(-log(u))

A sampler adds it to log-probabilities and takes the arg-max: that draws from the distribution. The
last word of the counter is a domain: 0 is this noise, other uses of the same seed take other
numbers.

The logarithm uses nothing but fp32 add and multiply, each rounded by itself, conversions from
integers and bit operations, so that a CPU, C and a GPU agree bit for bit. For y in fp32:

    e = (bits(y) - bits(0.70710677)) >> 23;  y = 2^e (1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1)
    log y = (f + ((P(f) f f^2 + e LN2_LOW) - f^2 / 2)) + e LN2_HIGH

with P of Cephes logf by Horner. Where u >= sqrt(1/2), u itself is not formed: f = -(not(word) +
1/2) / 2^32 and e = 0, so that u near 1, which gives the large noise that decides arg-max, keeps
all its bits (the largest noise is 22.9, not the 16.6 of a 24-bit u). Greatest relative error of
log against fp64, over 2^22 values of y spread over every exponent: 7.9e-8
(tests/kernels/test_noise.py holds it to 1e-7).

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox, with the
vectors of Random123); Cephes logf (https://www.netlib.org/cephes/).

B rows, C tokens of a range, K listed tokens. Seeds, choices, positions and tokens are int64
tensors.
"""

import torch

from .native import Library, require

Tensor = torch.Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
NEAR_ONE = 3037000500  # the least word whose u is at least sqrt(1/2)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOG_POLYNOMIAL = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def signed(seed: int) -> int:
    """A seed of 64 bits as the int64 with the same bits."""
    return (seed & (2**64 - 1)) - ((seed & 2**63) << 1)


def gumbel_noise(
    seed_B: Tensor, choice_B: Tensor, position_B: Tensor, first: int, count: int
) -> Tensor:
    """noise_BC, fp32, of the tokens first .. first + count."""
    start, stop = first // 4, (first + count + 3) // 4
    block_C = torch.arange(start, stop, device=seed_B.device)
    words = philox((block_C, *_counter(choice_B, position_B)), _key(seed_B))
    word_BC = torch.stack(words, dim=-1).flatten(1)
    return gumbel(word_BC[:, first - start * 4 :][:, :count])


def gumbel_noise_at(
    seed_B: Tensor, choice_B: Tensor, position_B: Tensor, token_BK: Tensor
) -> Tensor:
    """noise_BK, fp32, of the tokens listed."""
    words = philox((token_BK >> 2, *_counter(choice_B, position_B)), _key(seed_B))
    lane_BK1 = (token_BK & 3).unsqueeze(-1)
    return gumbel(torch.stack(words, dim=-1).gather(-1, lane_BK1).squeeze(-1))


def _counter(choice_B: Tensor, position_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return position_B[:, None] & MASK, choice_B[:, None] & MASK, torch.zeros_like(choice_B)[:, None]


def _key(seed_B: Tensor) -> tuple[Tensor, Tensor]:
    return seed_B[:, None] & MASK, (seed_B[:, None] >> 32) & MASK


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words in, four out, each a 32-bit number in int64; shapes broadcast."""
    first, second, third, fourth = torch.broadcast_tensors(*counter)
    for turn in range(10):
        key_0 = (key[0] + turn * WEYL[0]) & MASK
        key_1 = (key[1] + turn * WEYL[1]) & MASK
        high_0, low_0 = _multiply(MULTIPLIERS[0], first)
        high_1, low_1 = _multiply(MULTIPLIERS[1], third)
        first, second, third, fourth = (
            high_1 ^ second ^ key_0,
            low_1,
            high_0 ^ fourth ^ key_1,
            low_0,
        )
    return first, second, third, fourth


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product; by halves, so that nothing passes 63 bits."""
    upper, lower = multiplier * (word >> 16), multiplier * (word & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (lower + ((upper & 0xFFFF) << 16)) & MASK


def gumbel(word: Tensor) -> Tensor:
    """Words (int64) to noise (fp32)."""
    near_one = word >= NEAR_ONE
    u = (word.float() + 0.5) * 2.0**-32
    above = ((word ^ MASK).float() + 0.5) * -(2.0**-32)
    e, f = _parts(u)
    y = -_log_of_parts(torch.where(near_one, 0.0, e), torch.where(near_one, above, f))
    return -_log_of_parts(*_parts(y))


def logarithm(y: Tensor) -> Tensor:
    """log of positive normal fp32 numbers."""
    return _log_of_parts(*_parts(y))


def _parts(y: Tensor) -> tuple[Tensor, Tensor]:
    bits = y.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    return exponent.float(), (bits - (exponent << 23)).view(torch.float32) - 1.0


def _log_of_parts(e: Tensor, f: Tensor) -> Tensor:
    square = f * f
    polynomial = torch.full_like(f, LOG_POLYNOMIAL[0])
    for coefficient in LOG_POLYNOMIAL[1:]:
        polynomial = polynomial * f
        polynomial = polynomial + coefficient
    rest = polynomial * f * square + e * LN2_LOW
    rest = rest + square * -0.5
    return (f + rest) + e * LN2_HIGH


def gumbel_noise_native(
    library: Library, seed_B: Tensor, choice_B: Tensor, position_B: Tensor, first: int, count: int
) -> Tensor:
    _check(seed_B, choice_B, position_B)
    require(first >= 0 and count >= 0, "gumbel_noise: a token range starts at 0 or later")
    noise_BC = torch.empty(seed_B.shape[0], count)
    library.call(
        "penstock_gumbel",
        seed_B.data_ptr(),
        choice_B.data_ptr(),
        position_B.data_ptr(),
        seed_B.shape[0],
        first,
        count,
        noise_BC.data_ptr(),
        torch.get_num_threads(),
    )
    return noise_BC


def gumbel_noise_at_native(
    library: Library, seed_B: Tensor, choice_B: Tensor, position_B: Tensor, token_BK: Tensor
) -> Tensor:
    _check(seed_B, choice_B, position_B)
    require(
        token_BK.dtype == torch.int64
        and token_BK.is_contiguous()
        and token_BK.shape[0] == seed_B.shape[0],
        "gumbel_noise_at: tokens must be contiguous int64 [B, K]",
    )
    noise_BK = torch.empty(token_BK.shape)
    library.call(
        "penstock_gumbel_at",
        seed_B.data_ptr(),
        choice_B.data_ptr(),
        position_B.data_ptr(),
        token_BK.data_ptr(),
        *token_BK.shape,
        noise_BK.data_ptr(),
    )
    return noise_BK


def _check(seed_B: Tensor, choice_B: Tensor, position_B: Tensor) -> None:
    for name, value in (("seed", seed_B), ("choice", choice_B), ("position", position_B)):
        require(
            value.shape == seed_B.shape
            and value.dtype == torch.int64
            and value.is_contiguous()
            and value.device.type == "cpu",
            f"gumbel_noise: {name} must be contiguous int64 [B] in the CPU's memory",
        )
