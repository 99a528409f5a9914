"""Rotary position embedding, and the store of what attention will read into the pages.

    low, high = the two sides of a pair;  angle = that of the token's position and of the pair
    out = (low * cos - high * sin, high * cos + low * sin)

computed in fp32 and rounded once to the model's dtype. The pairs of X columns are (i, i + X / 2),
as in Hugging Face's Llama; there the tables and both products are rounded to bf16 before the sum,
here they are not, which is nearer to the formula. Interleaved pairs are (2i, 2i + 1), and stay
where they are. Source: Su et al., "RoFormer", arXiv 2104.09864.

Heads of q and k may be normalised before (Qwen3), each by itself, by the formula of norm.py.

T tokens in the batch, E = (N + 2 G) H in the order q, k, v, N query heads, G key heads, H head
size, X rotated columns, M positions in the tables. Pages are [P, L, 2, G, S, H], or
[P, L, 1, 1, S, R + X] for latent attention: R compressed columns, then X rotated ones.
"""

import ctypes

import torch

from .native import REFUSALS, Library, half, held_groups, refuse, require
from .norm import rms_norm

Tensor = torch.Tensor


class StoreShape(ctypes.Structure):
    """StoreShape of rotary.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("tokens", "query_heads", "groups", "head", "row_stride"),
                *("table_rows", "pages", "layers", "layer", "slots"),
                *("held", "interleaved", "half"),
            )
        ),
        ("epsilon", ctypes.c_float),
    ]


class RotateShape(ctypes.Structure):
    """RotateShape of rotary.c; strides in elements."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("tokens", "heads", "columns", "token_stride", "head_stride"),
            *("table_rows", "interleaved", "half"),
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
    q_norm_H: Tensor | None = None,  # in the dtype of qkv
    k_norm_H: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """q rotated, [T, N, H]; k and v of token t go to pages[page_T[t], layer, :, :, slot_T[t]]."""
    _check_store(qkv_TE, pages, layer, page_T, slot_T, query_heads, (q_norm_H, k_norm_H))
    _check_tables(qkv_TE, pages.shape[5], cosine_MH2, sine_MH2, positions_T)
    _check_indices(pages, page_T, slot_T, positions_T, cosine_MH2)
    groups, head = pages.shape[3], pages.shape[5]
    heads_TXH = qkv_TE.unflatten(-1, (query_heads + 2 * groups, head))
    q_TNH, k_TGH, v_TGH = heads_TXH.split([query_heads, groups, groups], dim=1)
    q_TNH = q_TNH if q_norm_H is None else rms_norm(q_TNH, q_norm_H, epsilon)
    k_TGH = k_TGH if k_norm_H is None else rms_norm(k_TGH, k_norm_H, epsilon)
    tables = (cosine_MH2, sine_MH2, positions_T)
    where = (page_T.long(), slot_T.long())
    layer_PCGSH = pages[:, layer]
    layer_PCGSH[:, 0].transpose(1, 2)[where] = _rotated(k_TGH, *tables)
    layer_PCGSH[:, 1].transpose(1, 2)[where] = v_TGH
    return _rotated(q_TNH, *tables)


def rotate(
    x_TNX: Tensor,
    cosine_MX2: Tensor,  # [M, X / 2], fp32
    sine_MX2: Tensor,
    positions_T: Tensor,  # int32
    interleaved: bool = False,
) -> Tensor:
    """All columns rotated, [T, N, X]; x may be columns of a wider tensor."""
    _check_tables(x_TNX, x_TNX.shape[2], cosine_MX2, sine_MX2, positions_T)
    _check_positions(positions_T, cosine_MX2)
    return _rotated(x_TNX, cosine_MX2, sine_MX2, positions_T, interleaved)


def store_latent(
    compressed_TX: Tensor,  # [T, R + X]; may be columns of a wider tensor
    norm_R: Tensor,
    epsilon: float,
    cosine_MX2: Tensor,  # [M, X / 2], fp32
    sine_MX2: Tensor,
    positions_T: Tensor,  # int32, as are page_T and slot_T
    pages: Tensor,  # [P, L, 1, 1, S, R + X]
    layer: int,
    page_T: Tensor,
    slot_T: Tensor,
    interleaved: bool = False,
) -> None:
    """The first R columns are normalised and the last X rotated, on the way into the pages."""
    rank = norm_R.shape[0]
    _check_latent(compressed_TX, norm_R, pages, layer, page_T, slot_T)
    rotated_T1X = compressed_TX[:, None, rank:]
    _check_tables(rotated_T1X, rotated_T1X.shape[2], cosine_MX2, sine_MX2, positions_T)
    _check_indices(pages, page_T, slot_T, positions_T, cosine_MX2)
    kept_TX = torch.cat(
        (
            rms_norm(compressed_TX[:, :rank], norm_R, epsilon),
            _rotated(rotated_T1X, cosine_MX2, sine_MX2, positions_T, interleaved)[:, 0],
        ),
        dim=-1,
    )
    pages[:, layer, 0, 0][page_T.long(), slot_T.long()] = kept_TX


def _rotated(
    heads_TNX: Tensor,
    cosine_MX2: Tensor,
    sine_MX2: Tensor,
    positions_T: Tensor,
    interleaved: bool = False,
) -> Tensor:
    cosine = cosine_MX2[positions_T.long()].unsqueeze(1)
    sine = sine_MX2[positions_T.long()].unsqueeze(1)
    x = heads_TNX.float()
    low, high = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    sides = (low * cosine - high * sine, high * cosine + low * sine)
    joined = torch.stack(sides, dim=-1).flatten(-2) if interleaved else torch.cat(sides, dim=-1)
    return joined.to(heads_TNX.dtype)


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
    q_norm_H: Tensor | None = None,
    k_norm_H: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    _check_store(qkv_TE, pages, layer, page_T, slot_T, query_heads, (q_norm_H, k_norm_H))
    _check_tables(qkv_TE, pages.shape[5], cosine_MH2, sine_MH2, positions_T)
    qkv_TE = qkv_TE.contiguous()
    tokens, width = qkv_TE.shape
    page_count, layers, _, groups, slots, head = pages.shape
    q_TNH = qkv_TE.new_empty(tokens, query_heads, head)
    shape = StoreShape(
        *(tokens, query_heads, groups, head, width),
        *(cosine_MH2.shape[0], page_count, layers, layer, slots),
        *(held_groups(pages), 0, half(qkv_TE), epsilon),
    )
    library.call(
        "penstock_rotate_and_store",
        qkv_TE.data_ptr(),
        cosine_MH2.data_ptr(),
        sine_MH2.data_ptr(),
        positions_T.data_ptr(),
        page_T.data_ptr(),
        slot_T.data_ptr(),
        pages.data_ptr(),
        q_TNH.data_ptr(),
        None if q_norm_H is None else q_norm_H.data_ptr(),
        None if k_norm_H is None else k_norm_H.data_ptr(),
        ctypes.byref(shape),
        torch.get_num_threads(),
    )
    return q_TNH


def rotate_native(
    library: Library,
    x_TNX: Tensor,
    cosine_MX2: Tensor,
    sine_MX2: Tensor,
    positions_T: Tensor,
    interleaved: bool = False,
) -> Tensor:
    tokens, heads, columns = x_TNX.shape
    _check_tables(x_TNX, columns, cosine_MX2, sine_MX2, positions_T)
    x_TNX = x_TNX if x_TNX.stride(2) == 1 else x_TNX.contiguous()
    out_TNX = x_TNX.new_empty(tokens, heads, columns)
    shape = RotateShape(
        *(tokens, heads, columns, x_TNX.stride(0), x_TNX.stride(1)),
        *(cosine_MX2.shape[0], int(interleaved), half(x_TNX)),
    )
    library.call(
        "penstock_rotate",
        x_TNX.data_ptr(),
        cosine_MX2.data_ptr(),
        sine_MX2.data_ptr(),
        positions_T.data_ptr(),
        out_TNX.data_ptr(),
        ctypes.byref(shape),
        torch.get_num_threads(),
    )
    return out_TNX


def store_latent_native(
    library: Library,
    compressed_TX: Tensor,
    norm_R: Tensor,
    epsilon: float,
    cosine_MX2: Tensor,
    sine_MX2: Tensor,
    positions_T: Tensor,
    pages: Tensor,
    layer: int,
    page_T: Tensor,
    slot_T: Tensor,
    interleaved: bool = False,
) -> None:
    rank, width = norm_R.shape[0], compressed_TX.shape[1]
    _check_latent(compressed_TX, norm_R, pages, layer, page_T, slot_T)
    _check_tables(compressed_TX, width - rank, cosine_MX2, sine_MX2, positions_T)
    if compressed_TX.stride(1) != 1:
        compressed_TX = compressed_TX.contiguous()
    page_count, layers, _, _, slots, _ = pages.shape
    shape = StoreShape(
        *(compressed_TX.shape[0], rank, 1, width, compressed_TX.stride(0), cosine_MX2.shape[0]),
        *(page_count, layers, layer, slots, 1, int(interleaved), half(compressed_TX), epsilon),
    )
    library.call(
        "penstock_store_latent",
        compressed_TX.data_ptr(),
        norm_R.data_ptr(),
        cosine_MX2.data_ptr(),
        sine_MX2.data_ptr(),
        positions_T.data_ptr(),
        page_T.data_ptr(),
        slot_T.data_ptr(),
        pages.data_ptr(),
        ctypes.byref(shape),
        torch.get_num_threads(),
    )


def _check_store(
    qkv_TE: Tensor,
    pages: Tensor,
    layer: int,
    page_T: Tensor,
    slot_T: Tensor,
    query_heads: int,
    norms: tuple[Tensor | None, ...],
) -> None:
    _, _, sides, groups, _, head = pages.shape
    require(sides == 2, "pages must be [P, L, 2, G, S, H]")
    require(qkv_TE.shape[1] == (query_heads + 2 * groups) * head, "qkv must be (N + 2 G) H wide")
    _check_places(qkv_TE, pages, layer, page_T, slot_T)
    for norm in norms:
        _check_norm(qkv_TE, norm, head)


def _check_latent(
    compressed_TX: Tensor, norm_R: Tensor, pages: Tensor, layer: int, page_T: Tensor, slot_T: Tensor
) -> None:
    width = compressed_TX.shape[1]
    require(
        pages.shape[2:4] == (1, 1) and pages.shape[5] == width,
        "pages must be [P, L, 1, 1, S, R + X], as wide as what is stored",
    )
    require(norm_R.shape[0] < width, "the norm must leave columns to rotate")
    _check_places(compressed_TX, pages, layer, page_T, slot_T)
    _check_norm(compressed_TX, norm_R, norm_R.shape[0])


def _check_places(x_TE: Tensor, pages: Tensor, layer: int, page_T: Tensor, slot_T: Tensor) -> None:
    held_groups(pages)
    if not 0 <= layer < pages.shape[1]:
        refuse(f"layer {layer} lies outside the {pages.shape[1]} of the pages")
    require(
        pages.dtype == x_TE.dtype and pages.device == x_TE.device,
        "pages and what is stored must have one dtype and device",
    )
    _check_index("page", page_T, x_TE)
    _check_index("slot", slot_T, x_TE)


def _check_tables(
    x: Tensor, columns: int, cosine_MX2: Tensor, sine_MX2: Tensor, positions_T: Tensor
) -> None:
    """x is what is rotated: [T, ...], the last `columns` of it."""
    if columns % 2:
        refuse(f"{columns} columns cannot be rotated in pairs")
    for name, table in (("cosine", cosine_MX2), ("sine", sine_MX2)):
        if not (
            table.shape == (cosine_MX2.shape[0], columns // 2)
            and table.dtype == torch.float32
            and table.is_contiguous()
            and table.device == x.device
        ):
            refuse(
                f"{name} must be a contiguous fp32 table [M, {columns // 2}], where its tokens are"
            )
    _check_index("positions", positions_T, x)


def _check_index(name: str, index_T: Tensor, x: Tensor) -> None:
    if not (
        index_T.shape == x.shape[:1]
        and index_T.dtype == torch.int32
        and index_T.is_contiguous()
        and index_T.device == x.device
    ):
        refuse(f"{name} must be contiguous int32 [T], where its tokens are")


def _check_norm(x: Tensor, norm: Tensor | None, size: int) -> None:
    if norm is not None and not (
        norm.shape == (size,)
        and norm.dtype == x.dtype
        and norm.is_contiguous()
        and norm.device == x.device
    ):
        refuse(f"a norm must be contiguous [{size}] in the dtype of what it norms, where that is")


def _check_positions(positions_T: Tensor, cosine: Tensor) -> None:
    _check_range(positions_T, cosine.shape[0], 3)


def _check_indices(
    pages: Tensor, page_T: Tensor, slot_T: Tensor, positions_T: Tensor, cosine: Tensor
) -> None:
    """What rotary.c checks before it writes anything."""
    _check_positions(positions_T, cosine)
    _check_range(page_T, pages.shape[0], 1)
    _check_range(slot_T, pages.shape[4], 2)


def _check_range(index_T: Tensor, size: int, code: int) -> None:
    outside = bool(((index_T < 0) | (index_T >= size)).any())
    require(not outside, f"rotate: {REFUSALS[code]}")
