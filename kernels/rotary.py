"""Rotary position embedding of q and k, and the store of k and v into the pages.

    low, high = the halves of a head;  angle = that of the token's position
    out = (low * cos - high * sin, high * cos + low * sin)

computed in fp32 and rounded once to the model's dtype. The pairing of halves is Hugging Face's;
there the tables and both products are rounded to bf16 before the sum, here they are not, which is
nearer to the formula. Source: Su et al., "RoFormer", arXiv 2104.09864.

T tokens in the batch, E = (N + 2 G) H in the order q, k, v, N query heads, G key heads, H head
size, M positions in the tables, pages [P, L, 2, G, S, H].
"""

import ctypes

import torch

from .native import REFUSALS, Library, half, require

Tensor = torch.Tensor


class Shape(ctypes.Structure):
    """RotaryShape of rotary.c."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("tokens", "query_heads", "groups", "head", "row_stride"),
            *("table_rows", "pages", "layers", "layer", "slots"),
        )
    ]


def rotate_and_store(
    qkv_TE: Tensor,
    cosine_MH2: Tensor,  # [M, H / 2], fp32
    sine_MH2: Tensor,
    positions_T: Tensor,  # int32, as are page_T and slot_T
    pages: Tensor,
    layer: int,
    page_T: Tensor,
    slot_T: Tensor,
    query_heads: int,
) -> Tensor:
    """q rotated, [T, N, H]; k and v of token t go to pages[page_T[t], layer, :, :, slot_T[t]]."""
    _check(qkv_TE, cosine_MH2, sine_MH2, positions_T, pages, layer, page_T, slot_T, query_heads)
    for index, size, code in (
        (positions_T, cosine_MH2.shape[0], 3),
        (page_T, pages.shape[0], 1),
        (slot_T, pages.shape[4], 2),
    ):
        outside = bool(((index < 0) | (index >= size)).any())
        require(not outside, f"rotate: {REFUSALS[code]}")
    groups, head = pages.shape[3], pages.shape[5]
    heads_TXH = qkv_TE.unflatten(-1, (query_heads + 2 * groups, head))
    q_TNH, k_TGH, v_TGH = heads_TXH.split([query_heads, groups, groups], dim=1)
    cosine_T1X = cosine_MH2[positions_T.long()].unsqueeze(1)
    sine_T1X = sine_MH2[positions_T.long()].unsqueeze(1)
    where = (page_T.long(), slot_T.long())
    layer_PCGSH = pages[:, layer]
    layer_PCGSH[:, 0].transpose(1, 2)[where] = _rotate(k_TGH, cosine_T1X, sine_T1X)
    layer_PCGSH[:, 1].transpose(1, 2)[where] = v_TGH
    return _rotate(q_TNH, cosine_T1X, sine_T1X)


def _rotate(heads_TXH: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    low, high = heads_TXH.float().chunk(2, dim=-1)
    rotated = torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)
    return rotated.to(heads_TXH.dtype)


def rotate_and_store_native(
    library: Library,
    qkv_TE: Tensor,
    cosine_MH2: Tensor,
    sine_MH2: Tensor,
    positions_T: Tensor,
    pages: Tensor,
    layer: int,
    page_T: Tensor,
    slot_T: Tensor,
    query_heads: int,
) -> Tensor:
    _check(qkv_TE, cosine_MH2, sine_MH2, positions_T, pages, layer, page_T, slot_T, query_heads)
    qkv_TE = qkv_TE.contiguous()
    tokens, width = qkv_TE.shape
    page_count, layers, _, groups, slots, head = pages.shape
    q_TNH = qkv_TE.new_empty(tokens, query_heads, head)
    shape = Shape(
        *(tokens, query_heads, groups, head, width),
        *(cosine_MH2.shape[0], page_count, layers, layer, slots),
    )
    library.call(
        "penstock_rotate",
        qkv_TE.data_ptr(),
        cosine_MH2.data_ptr(),
        sine_MH2.data_ptr(),
        positions_T.data_ptr(),
        page_T.data_ptr(),
        slot_T.data_ptr(),
        pages.data_ptr(),
        q_TNH.data_ptr(),
        ctypes.byref(shape),
        half(qkv_TE),
        torch.get_num_threads(),
    )
    return q_TNH


def _check(
    qkv_TE: Tensor,
    cosine_MH2: Tensor,
    sine_MH2: Tensor,
    positions_T: Tensor,
    pages: Tensor,
    layer: int,
    page_T: Tensor,
    slot_T: Tensor,
    query_heads: int,
) -> None:
    tokens, width = qkv_TE.shape
    _, layers, sides, groups, _, head = pages.shape
    table = (cosine_MH2.shape[0], head // 2)
    require(sides == 2 and pages.is_contiguous(), "pages must be contiguous, [P, L, 2, G, S, H]")
    require(0 <= layer < layers, f"layer {layer} lies outside the {layers} of the pages")
    require(
        pages.dtype == qkv_TE.dtype and pages.device == qkv_TE.device,
        "pages and qkv must have one dtype and device",
    )
    require(width == (query_heads + 2 * groups) * head, "qkv must be (N + 2 G) H wide")
    for name, table_MH2 in (("cosine", cosine_MH2), ("sine", sine_MH2)):
        require(
            table_MH2.shape == table
            and table_MH2.dtype == torch.float32
            and table_MH2.is_contiguous()
            and table_MH2.device == qkv_TE.device,
            f"{name} must be a contiguous fp32 table [M, H / 2], where qkv is",
        )
    for name, index in (("positions", positions_T), ("page", page_T), ("slot", slot_T)):
        require(
            index.shape == (tokens,)
            and index.dtype == torch.int32
            and index.is_contiguous()
            and index.device == qkv_TE.device,
            f"{name} must be contiguous int32 [T], where qkv is",
        )
