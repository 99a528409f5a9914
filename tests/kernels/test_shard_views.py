"""A shard's kernels see some key heads of pages and leave the others alone; so with experts."""

import pytest
import torch

from penstock.kernels.experts import ExpertWeights

Tensor = torch.Tensor
HEADS, GROUPS, SIZE, SLOTS, TOKENS = 8, 4, 32, 8, 37
PAGES = [3, 0, 4, 1, 2]


def places() -> tuple[Tensor, Tensor, Tensor]:
    position_T = torch.arange(TOKENS, dtype=torch.int32)
    page_T = torch.tensor(PAGES, dtype=torch.int32)[position_T.long() // SLOTS]
    return position_T, page_T, position_T % SLOTS


def stored(kernels, qkv_TE: Tensor, pages: Tensor, heads: int) -> Tensor:
    position_T, page_T, slot_T = places()
    angle = torch.linspace(0, 3, TOKENS * SIZE // 2).view(TOKENS, -1)
    tables = (angle.cos(), angle.sin(), position_T)
    return kernels.rotate_and_store(qkv_TE, *tables, pages, 1, page_T, slot_T, heads)


def attended(kernels, q_TNH: Tensor, pages: Tensor) -> Tensor:
    table_BW = torch.tensor([PAGES], dtype=torch.int32)
    start_B1 = torch.tensor([0, TOKENS], dtype=torch.int32)
    return kernels.paged_attention(q_TNH, pages, 1, table_BW, start_B1, start_B1[1:], 0.2)


def some_heads(qkv_TE: Tensor, index: int, count: int) -> Tensor:
    """Of q, k and v the heads of one of `count` shards."""
    sides = qkv_TE.unflatten(1, (-1, SIZE)).split([HEADS, GROUPS, GROUPS], dim=1)
    return torch.cat([side.chunk(count, dim=1)[index] for side in sides], dim=1).flatten(1)


@pytest.mark.parametrize("shards", [2, 4])
def test_views_of_key_heads_give_the_bits_of_all(kernels, dtype, shards):
    qkv_TE = torch.randn(TOKENS, (HEADS + 2 * GROUPS) * SIZE).to(dtype)
    pages = torch.zeros(len(PAGES), 2, 2, GROUPS, SLOTS, SIZE, dtype=dtype)
    out_TNV = attended(kernels, stored(kernels, qkv_TE, pages, HEADS), pages)
    shared = torch.full_like(pages, 9.0)
    shared[:, 1] = 0.0
    for index in range(shards):
        held = GROUPS // shards
        view = shared[:, :, :, index * held : (index + 1) * held]
        q_TNH = stored(kernels, some_heads(qkv_TE, index, shards), view, HEADS // shards)
        expected = out_TNV.chunk(shards, dim=1)[index]
        assert torch.equal(attended(kernels, q_TNH, view), expected), index
    assert torch.equal(shared[:, 1], pages[:, 1]), "both have stored the same"
    assert (shared[:, 0] == 9.0).all(), "the other layer was not touched"


@pytest.mark.parametrize("cut", ["slots", "head", "every other group", "layers"])
def test_other_views_are_refused(kernels, dtype, cut):
    pages = torch.zeros(len(PAGES), 3, 2, 8, 2 * SLOTS, 2 * SIZE, dtype=dtype)
    views = {
        "slots": pages[:, :, :, :, :SLOTS],
        "head": pages[..., :SIZE],
        "every other group": pages[:, :, :, ::2],
        "layers": pages[:, :2],
    }
    view = views[cut]
    q_TNH = torch.randn(TOKENS, 8, view.shape[5]).to(dtype)
    with pytest.raises(ValueError, match="some key heads of contiguous ones"):
        attended(kernels, q_TNH, view)


def test_an_expert_of_another_shard_adds_nothing(kernels, dtype):
    shapes = [(32, 64), (32, 64), (64, 32)]
    weights = [
        ExpertWeights(*((torch.randn(shape) * 0.3).to(dtype) for shape in shapes)) for _ in range(4)
    ]
    layer = kernels.pack_experts(iter(weights), 4)
    x_TD = torch.randn(5, 64).to(dtype)
    expert_TK = torch.tensor([[0, -1], [-1, 2], [-1, -1], [3, 1], [-1, 3]], dtype=torch.int32)
    out_TD = layer(x_TD, expert_TK, torch.full((5, 2), 0.5))
    assert layer.load_E.tolist() == [1, 1, 1, 2]
    assert not out_TD[2].any()
    own_TK = expert_TK[[0, 1, 4]].amax(dim=1, keepdim=True)
    assert torch.equal(out_TD[[0, 1, 4]], layer(x_TD[[0, 1, 4]], own_TK, torch.full((3, 1), 0.5)))
