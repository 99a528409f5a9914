"""What a model's forward pass is given: the step's tokens of all sequences, flat.

T tokens, B sequences, W pages per sequence at most, R rows whose hidden state is wanted. All
int32 and contiguous.

    query_start   rows of sequence b are query_start[b] .. query_start[b + 1]
    wanted        ascending rows, of each sequence the last few of its rows (or none)
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    token_T: Tensor
    position_T: Tensor
    page_T: Tensor  # where K and V of each token go
    slot_T: Tensor
    page_table_BW: Tensor
    query_start_B1: Tensor
    context_length_B: Tensor  # the step's tokens included
    wanted_R: Tensor | None  # None: all rows
    wanted_start_B1: Tensor  # rows of `wanted` of sequence b, as query_start
