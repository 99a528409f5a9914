"""The tables of the rotary embedding, for every way its frequencies are stretched.

    default  f_i = theta^(-2 i / X)
    linear   f_i / factor                             (Chen et al., arXiv 2306.15595)
    llama3   slow pairs / factor, fast ones kept, mixed between (Llama 3.1's model card)
    yarn     as llama3, with a ramp along the pairs' numbers; cosines and sines are multiplied by
             the attention factor (Peng et al., arXiv 2309.00071)

M positions, X rotated columns.
"""

import math

import torch
from torch import Tensor

from .blueprint import Rope
from .parts import Rotary


def rotary(rope: Rope, positions: int, device: torch.device | str = "cpu") -> Rotary:
    """Tables [M, X / 2] in fp32.

    Powers and cosines are taken in fp64 and rounded, so that the tables agree between machines;
    the angle is the fp32 product that Hugging Face (and so training) uses.
    """
    angles_MX2 = torch.outer(
        torch.arange(positions, dtype=torch.float32), frequencies(rope).float()
    ).double()
    cosine, sine = angles_MX2.cos().float(), angles_MX2.sin().float()
    if rope.attention_factor != 1.0:
        cosine, sine = cosine * rope.attention_factor, sine * rope.attention_factor
    return Rotary(cosine.to(device), sine.to(device), rope.interleaved)


def frequencies(rope: Rope) -> Tensor:
    """Radians per position of each pair, [X / 2] in fp64."""
    exponents = torch.arange(0, rope.size, 2, dtype=torch.float64) / rope.size
    plain = rope.theta**-exponents
    if rope.kind == "default":
        return plain
    kept = {"linear": _none_kept, "llama3": _kept_by_turns, "yarn": _kept_by_pair}[rope.kind]
    return _mixed(plain, kept(plain, rope), rope.factor)


def _mixed(plain: Tensor, kept: Tensor, factor: float) -> Tensor:
    return kept * plain + (1.0 - kept) * plain / factor


def _none_kept(plain: Tensor, rope: Rope) -> Tensor:
    return torch.zeros_like(plain)


def _kept_by_turns(plain: Tensor, rope: Rope) -> Tensor:
    """By how often a pair turned around within the original context."""
    turns = rope.original_positions * plain / (2 * math.pi)
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    return ((turns - low) / (high - low)).clamp(0.0, 1.0)


def _kept_by_pair(plain: Tensor, rope: Rope) -> Tensor:
    """1 up to the pair that made beta_fast turns, 0 from the one that made beta_slow."""

    def pair(turns: float) -> float:
        wavelength = rope.original_positions / (turns * 2 * math.pi)
        return rope.size * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    # A ramp of no length would divide by zero; the authors' code makes it this short.
    length = high - low or 0.001
    return 1.0 - ((torch.arange(len(plain)) - low) / length).clamp(0.0, 1.0).double()
