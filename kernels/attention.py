"""Causal attention over paged keys and values, exact in each row.

    out = sum_i w_i v_i / sum_i w_i,  w_i = exp(scale q.k_i - max_j scale q.k_j),  i, j <= position

The bits of a row depend on its q and on the keys and values of its own prefix: not on the batch,
the number of query rows in the step, threads, page ids or W. The order is fixed: keys in chunks of
64 counted from position 0, merged chunk after chunk by online softmax (Milakov and Gimelshein,
arXiv 1805.02867; Dao et al., FlashAttention, arXiv 2205.14135):

    peak' = max(peak, scores of the chunk);  decay = exp(peak - peak')
    total' = total decay + sum w;            sums' = sums decay + sum w v

A masked key has weight exactly 0 and cannot be the peak, so it changes nothing; slots behind the
context are not read. One condition: values of later tokens of the same step must be finite, for 0
times infinity is no zero.

Orders inside a chunk. Native: a score is one chain of fused multiply-adds along H, an output one
chain along the keys; the total is kept in lanes, folded at the end. For bf16 with AVX512_BF16 both
chains go by pairs (vdpbf16ps) and the weights are rounded to bf16 before the product and the
total. Torch: a matrix product of one fixed shape per (key head, chunk), in which the place of a
row is its position modulo 16. These are two numeric classes.

P pages, L layers, G key heads, S slots per page, H head size, N query heads, T tokens, B
sequences, W pages per sequence at most; pages [P, L, 2, G, S, H].
"""

import ctypes

import torch

from .elementary import exponential
from .native import REFUSALS, Library, half, require

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
                *("slots", "layers", "layer", "pages", "half"),
            )
        ),
        ("scale", ctypes.c_float),
    ]


def paged_attention(
    q_TNH: Tensor,
    pages: Tensor,
    layer: int,
    page_table_BW: Tensor,  # int32; entries behind a sequence's context are not looked at
    query_start_B1: Tensor,  # int32 [B + 1]: b's rows are query_start[b]..query_start[b + 1]
    context_length_B: Tensor,  # int32; the last row of b stands at position context_length[b] - 1
    scale: float,
) -> Tensor:
    """out [T, N, H]. The reference: one sequence, one block of positions, one chunk at a time."""
    _check(q_TNH, pages, layer, page_table_BW, query_start_B1, context_length_B)
    starts, contexts = query_start_B1.tolist(), context_length_B.tolist()
    _check_indices(q_TNH.shape[0], pages, page_table_BW, starts, contexts)
    out_TNH = torch.empty_like(q_TNH)
    for b, context in enumerate(contexts):
        rows = slice(starts[b], starts[b + 1])
        if rows.start == rows.stop:
            continue
        key_GKH, value_GKH = _gather(pages, layer, page_table_BW[b], context)
        out_TNH[rows] = _attend(q_TNH[rows], key_GKH, value_GKH, context, scale)
    return out_TNH


def _gather(pages: Tensor, layer: int, page_table_W: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence in fp32, zeros up to a whole number of chunks."""
    _, _, _, groups, slots, head = pages.shape
    used = page_table_W[: -(-context // slots)].long()
    kept_CGKH = pages[used, layer].permute(1, 2, 0, 3, 4).reshape(2, groups, -1, head)
    length = -(-context // CHUNK) * CHUNK
    padded_CGKH = kept_CGKH.new_zeros(2, groups, length, head, dtype=torch.float32)
    padded_CGKH[:, :, :context] = kept_CGKH[:, :, :context]
    return padded_CGKH[0], padded_CGKH[1]


def _attend(
    q_RNH: Tensor, key_GKH: Tensor, value_GKH: Tensor, context: int, scale: float
) -> Tensor:
    """All rows R of one sequence. A row's place in its block is a function of its position."""
    rows, heads, head = q_RNH.shape
    groups = key_GKH.shape[0]
    first = context - rows
    start = first // BLOCK * BLOCK
    stop = -(-context // BLOCK) * BLOCK
    padded = q_RNH.new_zeros(stop - start, groups, heads // groups, head, dtype=torch.float32)
    padded[first - start : context - start] = q_RNH.unflatten(1, (groups, -1))
    out = torch.empty_like(padded)
    for block in range(0, stop - start, BLOCK):
        positions = torch.arange(start + block, start + block + BLOCK, device=q_RNH.device)
        q_GRH = padded[block : block + BLOCK].transpose(0, 1).flatten(1, 2).contiguous()
        positions_R = positions.repeat_interleave(heads // groups)
        out_GRH = _attend_block(q_GRH, key_GKH, value_GKH, positions_R, scale)
        out[block : block + BLOCK] = out_GRH.unflatten(1, (BLOCK, -1)).transpose(0, 1)
    return out[first - start : context - start].flatten(1, 2).to(q_RNH.dtype)


def _attend_block(
    q_GRH: Tensor, key_GKH: Tensor, value_GKH: Tensor, positions_R: Tensor, scale: float
) -> Tensor:
    groups, rows, head = q_GRH.shape
    keys = min(int(positions_R[-1]) + 1, key_GKH.shape[1])
    peak = q_GRH.new_full((groups, rows, 1), -torch.inf)
    sums = q_GRH.new_zeros(groups, rows, head + 1)  # the last column sums the weights
    for first in range(0, keys, CHUNK):
        key_GCH = key_GKH[:, first : first + CHUNK].contiguous()
        value_GCX = torch.nn.functional.pad(value_GKH[:, first : first + CHUNK], (0, 1), value=1.0)
        scores = torch.stack([q @ key.T for q, key in zip(q_GRH, key_GCH, strict=True)]) * scale
        visible = torch.arange(first, first + CHUNK, device=q_GRH.device) <= positions_R[:, None]
        scores = scores.masked_fill(~visible, -torch.inf)
        above = torch.maximum(peak, scores.amax(-1, keepdim=True))
        weights = exponential(scores - above).masked_fill(~visible, 0.0)
        added = torch.stack([w @ value for w, value in zip(weights, value_GCX, strict=True)])
        sums = sums * exponential(peak - above) + added
        peak = above
    # Adding 0 makes -0 into 0: a masked key may otherwise decide the sign of a zero.
    return sums[..., :head] / sums[..., head:] + 0.0


def paged_attention_native(
    library: Library,
    q_TNH: Tensor,
    pages: Tensor,
    layer: int,
    page_table_BW: Tensor,
    query_start_B1: Tensor,
    context_length_B: Tensor,
    scale: float,
) -> Tensor:
    _check(q_TNH, pages, layer, page_table_BW, query_start_B1, context_length_B)
    q_TNH = q_TNH.contiguous()
    page_count, layers, _, groups, slots, head = pages.shape
    require(head % 16 == 0, f"native attention takes head sizes in sixteens, not {head}")
    sequences, table_width = page_table_BW.shape
    out_TNH = torch.empty_like(q_TNH)
    shape = Shape(
        *(sequences, table_width, q_TNH.shape[1], groups, head),
        *(slots, layers, layer, page_count, half(q_TNH), scale),
    )
    library.call(
        "penstock_attention",
        q_TNH.data_ptr(),
        pages.data_ptr(),
        page_table_BW.data_ptr(),
        query_start_B1.data_ptr(),
        context_length_B.data_ptr(),
        out_TNH.data_ptr(),
        ctypes.byref(shape),
        q_TNH.shape[0],
        torch.get_num_threads(),
    )
    return out_TNH


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
    require(sides == 2 and pages.is_contiguous(), "pages must be contiguous, [P, L, 2, G, S, H]")
    require(0 <= layer < layers, f"layer {layer} lies outside the {layers} of the pages")
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
        require(
            index.shape == shape
            and index.dtype == torch.int32
            and index.is_contiguous()
            and index.device == q_TNH.device,
            f"{name} must be contiguous int32 {list(shape)}, where q is",
        )


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
