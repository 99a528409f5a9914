"""Causal attention over paged keys and values, exact in each row.

    out = sum_i w_i v_i / sum_i w_i,  w_i = exp(scale q.k_i - max_j scale q.k_j),  i, j <= position

The bits of a row depend on its q and on the keys and values of its own prefix: not on the batch,
the number of query rows in the step, threads, page ids or W. The order is fixed: keys in chunks of
64 counted from position 0, merged chunk after chunk by online softmax (Milakov and Gimelshein,
arXiv 1805.02867; Dao et al., FlashAttention, arXiv 2205.14135):

    peak' = max(peak, scores of the chunk);  decay = exp(peak - peak')
    total' = total decay + sum w;            sums' = sums decay + sum w v

A masked key has weight exactly 0 and cannot be the peak, so it changes nothing: neither later keys
nor those before a window. A chunk of which a row sees nothing leaves its bits as they are, whether
it is skipped or, for other rows' sake, walked: a row without a peak yet keeps sums of 0, one with a
peak is multiplied by exp(0) = 1. A sink starts a row with its own peak and a total of 1: a score
without value, seen first. Slots behind the context are not read. One condition: values of masked
keys that are read (later tokens of the same step, earlier ones of a window's first chunk) must be
finite, for 0 times infinity is no zero.

Orders inside a chunk. Native: a score is one chain of fused multiply-adds along H, an output one
chain along the keys; the total is kept in lanes, folded at the end. For bf16 with AVX512_BF16 both
chains go by pairs (vdpbf16ps) and the weights are rounded to bf16 before the product and the
total. Torch: a matrix product of one fixed shape per (key head, chunk), in which the place of a
row is its position modulo 16. These are two numeric classes.

P pages, L layers, G key heads, S slots per page, H head size, V value size, N query heads, T
tokens, B sequences, W pages per sequence at most. Pages are [P, L, 2, G, S, H], keys and values
with V = H; or [P, L, 1, G, S, H] (latent attention), where the first V columns of a key are its
value. They may be a view of some of the key heads that the memory holds.
"""

import ctypes
from dataclasses import dataclass

import torch

from .elementary import exponential
from .native import REFUSALS, Library, half, held_groups, refuse, require

Tensor = torch.Tensor

CHUNK = 64
BLOCK = 16  # query positions of one fixed-shape product on the torch path


class Shape(ctypes.Structure):
    """AttentionShape of attention.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("sequences", "table_width", "query_heads", "groups", "head"),
                *("slots", "layers", "layer", "pages"),
                *("sides", "held", "value", "window", "half"),
            )
        ),
        ("scale", ctypes.c_float),
    ]


@dataclass(frozen=True, slots=True)
class Look:
    """What a layer's rows see, and how they weigh it."""

    scale: float
    window: int
    sinks_N: Tensor | None

    def first_chunk(self, position: int) -> int:
        """The first key of the first chunk of which a row at this position sees something."""
        first = position - self.window + 1 if self.window else 0
        return max(0, first) // CHUNK * CHUNK


def paged_attention(
    q_TNH: Tensor,
    pages: Tensor,
    layer: int,
    page_table_BW: Tensor,  # int32; entries behind a sequence's context are not looked at
    query_start_B1: Tensor,  # int32 [B + 1]: b's rows are query_start[b]..query_start[b + 1]
    context_length_B: Tensor,  # int32; the last row of b stands at position context_length[b] - 1
    scale: float,
    value_size: int = 0,  # V of pages with one side; those with two have V = H
    window: int = 0,  # keys that a row sees at most, its own among them; 0: all
    sinks_N: Tensor | None = None,  # fp32
) -> Tensor:
    """out [T, N, V]. The reference: one sequence, one block of positions, one chunk at a time."""
    _check(q_TNH, pages, layer, page_table_BW, query_start_B1, context_length_B)
    values = _check_form(q_TNH, pages, value_size, window, sinks_N)
    starts, contexts = query_start_B1.tolist(), context_length_B.tolist()
    _check_indices(q_TNH.shape[0], pages, page_table_BW, starts, contexts)
    look = Look(scale, window, sinks_N)
    out_TNV = q_TNH.new_empty(*q_TNH.shape[:2], values)
    for b, context in enumerate(contexts):
        rows = slice(starts[b], starts[b + 1])
        if rows.start == rows.stop:
            continue
        key_GKH, value_GKV = _gather(pages, layer, page_table_BW[b], context, values)
        out_TNV[rows] = _attend(q_TNH[rows], key_GKH, value_GKV, context, look)
    return out_TNV


def _gather(
    pages: Tensor, layer: int, page_table_W: Tensor, context: int, values: int
) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence in fp32, zeros up to a whole number of chunks."""
    _, _, sides, groups, slots, head = pages.shape
    used = page_table_W[: -(-context // slots)].long()
    kept_CGKH = pages[used, layer].permute(1, 2, 0, 3, 4).reshape(sides, groups, -1, head)
    length = -(-context // CHUNK) * CHUNK
    padded_CGKH = kept_CGKH.new_zeros(sides, groups, length, head, dtype=torch.float32)
    padded_CGKH[:, :, :context] = kept_CGKH[:, :, :context]
    return padded_CGKH[0], padded_CGKH[-1, ..., :values]


def _attend(q_RNH: Tensor, key_GKH: Tensor, value_GKV: Tensor, context: int, look: Look) -> Tensor:
    """All rows R of one sequence. A row's place in its block is a function of its position."""
    rows, heads, head = q_RNH.shape
    groups, _, values = value_GKV.shape
    first = context - rows
    start = first // BLOCK * BLOCK
    stop = -(-context // BLOCK) * BLOCK
    padded = q_RNH.new_zeros(stop - start, groups, heads // groups, head, dtype=torch.float32)
    padded[first - start : context - start] = q_RNH.unflatten(1, (groups, -1))
    out = padded.new_empty(*padded.shape[:3], values)
    for block in range(0, stop - start, BLOCK):
        positions = torch.arange(start + block, start + block + BLOCK, device=q_RNH.device)
        q_GRH = padded[block : block + BLOCK].transpose(0, 1).flatten(1, 2).contiguous()
        positions_R = positions.repeat_interleave(heads // groups)
        out_GRV = _attend_block(q_GRH, key_GKH, value_GKV, positions_R, look)
        out[block : block + BLOCK] = out_GRV.unflatten(1, (BLOCK, -1)).transpose(0, 1)
    return out[first - start : context - start].flatten(1, 2).to(q_RNH.dtype)


def _attend_block(
    q_GRH: Tensor, key_GKH: Tensor, value_GKV: Tensor, positions_R: Tensor, look: Look
) -> Tensor:
    peak, sums = _before_all_keys(q_GRH, value_GKV.shape[2], look.sinks_N)
    keys = min(int(positions_R[-1]) + 1, key_GKH.shape[1])
    for first in range(look.first_chunk(int(positions_R[0])), keys, CHUNK):
        key_GCH = key_GKH[:, first : first + CHUNK].contiguous()
        value_GCX = torch.nn.functional.pad(value_GKV[:, first : first + CHUNK], (0, 1), value=1.0)
        scores = torch.stack([q @ key.T for q, key in zip(q_GRH, key_GCH, strict=True)])
        distance_RC = positions_R[:, None] - torch.arange(first, first + CHUNK, device=q_GRH.device)
        hidden = distance_RC < 0
        if look.window:
            hidden = hidden | (distance_RC >= look.window)
        scores = (scores * look.scale).masked_fill(hidden, -torch.inf)
        above = torch.maximum(peak, scores.amax(-1, keepdim=True))
        # A row that has seen nothing yet has no peak; any number serves, for all its weights are 0.
        level = above.masked_fill(above == -torch.inf, 0.0)
        weights = exponential(scores - level).masked_fill(hidden, 0.0)
        added = torch.stack([w @ value for w, value in zip(weights, value_GCX, strict=True)])
        sums = sums * exponential(peak - level) + added
        peak = above
    # Adding 0 makes -0 into 0: a masked key may otherwise decide the sign of a zero.
    return sums[..., :-1] / sums[..., -1:] + 0.0


def _before_all_keys(q_GRH: Tensor, values: int, sinks_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """peak [G, R, 1] and sums [G, R, V + 1], whose last column sums the weights."""
    groups, rows, _ = q_GRH.shape
    sums = q_GRH.new_zeros(groups, rows, values + 1)
    if sinks_N is None:
        return q_GRH.new_full((groups, rows, 1), -torch.inf), sums
    sums[..., -1] = 1.0
    return sinks_N.view(groups, -1).repeat(1, BLOCK).unsqueeze(-1), sums


def paged_attention_native(
    library: Library,
    q_TNH: Tensor,
    pages: Tensor,
    layer: int,
    page_table_BW: Tensor,
    query_start_B1: Tensor,
    context_length_B: Tensor,
    scale: float,
    value_size: int = 0,
    window: int = 0,
    sinks_N: Tensor | None = None,
) -> Tensor:
    _check(q_TNH, pages, layer, page_table_BW, query_start_B1, context_length_B)
    values = _check_form(q_TNH, pages, value_size, window, sinks_N)
    q_TNH = q_TNH.contiguous()
    tokens, query_heads, _ = q_TNH.shape
    page_count, layers, sides, groups, slots, head = pages.shape
    if head % 16 or values % 16:
        refuse(f"native attention takes heads of sixteens, not {head} and {values}")
    out_TNV = q_TNH.new_empty(tokens, query_heads, values)
    shape = Shape(
        *(*page_table_BW.shape, query_heads, groups, head, slots, layers, layer, page_count),
        *(sides, held_groups(pages), values, window, half(q_TNH), scale),
    )
    library.call(
        "penstock_attention",
        q_TNH.data_ptr(),
        pages.data_ptr(),
        page_table_BW.data_ptr(),
        query_start_B1.data_ptr(),
        context_length_B.data_ptr(),
        None if sinks_N is None else sinks_N.data_ptr(),
        out_TNV.data_ptr(),
        ctypes.byref(shape),
        tokens,
        torch.get_num_threads(),
    )
    return out_TNV


def _check(
    q_TNH: Tensor,
    pages: Tensor,
    layer: int,
    page_table_BW: Tensor,
    query_start_B1: Tensor,
    context_length_B: Tensor,
) -> None:
    _, layers, sides, groups, _, head = pages.shape
    sequences = page_table_BW.shape[0]
    require(sides in (1, 2), "pages must be [P, L, C, G, S, H] with one side or two")
    held_groups(pages)
    if not 0 <= layer < layers:
        refuse(f"layer {layer} lies outside the {layers} of the pages")
    require(
        pages.dtype == q_TNH.dtype and pages.device == q_TNH.device,
        "pages and q must have one dtype and device",
    )
    require(
        q_TNH.shape[2] == head and q_TNH.shape[1] % groups == 0,
        "q must be [T, N, H] with N a multiple of the key heads",
    )
    for name, index, shape in (
        ("page_table", page_table_BW, page_table_BW.shape),
        ("query_start", query_start_B1, (sequences + 1,)),
        ("context_length", context_length_B, (sequences,)),
    ):
        if not (
            index.shape == shape
            and index.dtype == torch.int32
            and index.is_contiguous()
            and index.device == q_TNH.device
        ):
            refuse(f"{name} must be contiguous int32 {list(shape)}, where q is")


def _check_form(
    q_TNH: Tensor, pages: Tensor, value_size: int, window: int, sinks_N: Tensor | None
) -> int:
    """V."""
    sides, head = pages.shape[2], pages.shape[5]
    if not (0 < value_size <= head if sides == 1 else value_size in (0, head)):
        refuse(
            f"value_size {value_size}: pages with one side need 1 to {head} columns of their keys "
            "as values, pages with two sides have values of their own and need 0"
        )
    if window < 0:
        refuse(f"window {window}: it must be 0, for none, or a number of keys")
    require(
        sinks_N is None
        or sinks_N.shape == (q_TNH.shape[1],)
        and sinks_N.dtype == torch.float32
        and sinks_N.is_contiguous()
        and sinks_N.device == q_TNH.device,
        "sinks must be contiguous fp32 [N], where q is",
    )
    return value_size or head


def _check_indices(
    tokens: int, pages: Tensor, page_table_BW: Tensor, starts: list[int], contexts: list[int]
) -> None:
    """What attention.c checks before it touches a page."""
    require(starts[0] == 0 and starts[-1] == tokens, f"attention: {REFUSALS[4]}")
    slots = pages.shape[4]
    table = page_table_BW.tolist()
    for b, context in enumerate(contexts):
        require(0 <= starts[b + 1] - starts[b] <= context, f"attention: {REFUSALS[4]}")
        used = -(-context // slots)
        require(used <= page_table_BW.shape[1], f"attention: {REFUSALS[3]}")
        outside = any(not 0 <= page < pages.shape[0] for page in table[b][:used])
        require(not outside, f"attention: {REFUSALS[1]}")
