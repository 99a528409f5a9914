"""The layout of a weight for products of a few rows, as grouped.h reads it.

Units of 64 outputs, each in blocks of 16; a block depth by depth, 16 words. A word is one fp32 or
two bf16 inputs. What misses in the last unit is zeros.
"""

import torch

Tensor = torch.Tensor

UNIT, BLOCK = 64, 16


def unit_shape(weight_OI: Tensor) -> tuple[int, int, int, int]:
    """(units, blocks, depth, 16) words of one weight; bf16 weights have an even I."""
    outputs, inputs = weight_OI.shape
    depth = inputs // 2 if weight_OI.dtype == torch.bfloat16 else inputs
    return -(-outputs // UNIT), UNIT // BLOCK, depth, BLOCK


def fill_units(out: Tensor, weight_OI: Tensor) -> None:
    """Write one weight [O, I] into words (int32) of `unit_shape`."""
    words_OX = weight_OI.contiguous().view(torch.int32)
    more = -len(words_OX) % UNIT
    if more:
        words_OX = torch.nn.functional.pad(words_OX, (0, 0, 0, more))
    out.copy_(words_OX.view(out.shape[0], out.shape[1], BLOCK, -1).transpose(2, 3))
