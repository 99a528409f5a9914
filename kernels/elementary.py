"""exp, log and sums out of IEEE operations alone, for the torch path.

torch computes exp and log by other code in a vector than in its tail, and sums by an order that
depends on the shape; both make a row's bits depend on its neighbours. The functions here use only
adds, multiplies, divisions and integer operations, each rounded by itself, so that an element's
bits depend on that element and no device differs. exp is Cephes expf, log is Cephes logf
(https://www.netlib.org/cephes/), with the exponent handled by integer operations.
"""

import torch

Tensor = torch.Tensor

EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
LOG2_E = 1.44269504088896341
# ln 2 in two parts; the first has few bits, so that n times it is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4


def exponential(x: Tensor) -> Tensor:
    """exp(x) in fp32, relative error below 2e-7; 0 below -103, infinite above 88.73."""
    x = x.clamp(-103.0, 89.5)
    n = torch.round(x * LOG2_E)
    r = x - n * LN2_HIGH - n * LN2_LOW
    polynomial = torch.full_like(r, EXP_POLYNOMIAL[0])
    for coefficient in EXP_POLYNOMIAL[1:]:
        polynomial = polynomial * r + coefficient
    polynomial = polynomial * (r * r) + r + 1.0
    exponent = torch.nan_to_num(n).to(torch.int32)
    # In two steps, because 2^n alone may lie below the smallest normal number.
    half = torch.div(exponent, 2, rounding_mode="floor")
    return polynomial * _power_of_two(half) * _power_of_two(exponent - half)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 127) << 23).view(torch.float32)


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last axis by halving: [..., D] -> [..., 1]; the order depends on D alone."""
    size = x.shape[-1]
    width = 1 << (size - 1).bit_length()
    x = torch.nn.functional.pad(x, (0, width - size))
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x
