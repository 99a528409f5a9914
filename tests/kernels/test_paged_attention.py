"""Attention against its formula, and the exactness it promises: a row's bits are its prefix's."""

import platform
from dataclasses import dataclass

import pytest
import torch

from penstock.kernels import choice, native
from penstock.kernels.choice import Kernels, choose

Tensor = torch.Tensor

# bf16 results are rounded to 8 bits; native weights are too. Relative to the largest value.
TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 2e-6}


@dataclass
class Sequence:
    query_RNH: Tensor  # the rows of this step, the last of the context
    key_CGH: Tensor
    value_CGH: Tensor

    @property
    def context(self) -> int:
        return self.key_CGH.shape[0]


def sequence(
    rows: int, context: int, dtype: torch.dtype, head: int = 64, groups: int = 2, ratio: int = 2
) -> Sequence:
    return Sequence(
        torch.randn(rows, groups * ratio, head).to(dtype),
        torch.randn(context, groups, head).to(dtype),
        torch.randn(context, groups, head).to(dtype),
    )


def attend(
    kernels: Kernels,
    sequences: list[Sequence],
    slots: int = 16,
    spare_pages: int = 3,
    spare_entries: int = 2,
    garbage: float = torch.nan,
    layers: int = 2,
) -> list[Tensor]:
    """Lay the sequences into pages at random, in the last layer; what is unused holds garbage."""
    first = sequences[0].key_CGH
    needs = [-(-s.context // slots) for s in sequences]
    groups, head = first.shape[1:]
    count = sum(needs) + spare_pages
    pages = torch.full((count, layers, 2, groups, slots, head), garbage, dtype=first.dtype)
    order = torch.randperm(count)
    table = torch.full((len(sequences), max(needs, default=0) + spare_entries), -7)
    taken = 0
    for row, (s, need) in enumerate(zip(sequences, needs, strict=True)):
        mine = order[taken : taken + need]
        taken += need
        table[row, :need] = mine
        token = torch.arange(s.context)
        page, slot = mine[token // slots], token % slots
        pages[:, layers - 1, 0].transpose(1, 2)[page, slot] = s.key_CGH
        pages[:, layers - 1, 1].transpose(1, 2)[page, slot] = s.value_CGH
    rows = [s.query_RNH.shape[0] for s in sequences]
    starts = torch.tensor([0, *rows]).cumsum(0).int()
    out = kernels.paged_attention(
        torch.cat([s.query_RNH for s in sequences]),
        pages,
        layers - 1,
        table.int(),
        starts,
        torch.tensor([s.context for s in sequences], dtype=torch.int32),
        head**-0.5,
    )
    return list(out.split(rows))


def formula(s: Sequence) -> Tensor:
    """Softmax attention in fp64: [R, N, H]."""
    rows, heads, head = s.query_RNH.shape
    ratio = heads // s.key_CGH.shape[1]
    key_CNH = s.key_CGH.double().repeat_interleave(ratio, dim=1)
    value_CNH = s.value_CGH.double().repeat_interleave(ratio, dim=1)
    scores_NRC = torch.einsum("rnh,cnh->nrc", s.query_RNH.double(), key_CNH) * head**-0.5
    position_R1 = torch.arange(s.context - rows, s.context)[:, None]
    scores_NRC.masked_fill_(torch.arange(s.context) > position_R1, -torch.inf)
    return torch.einsum("nrc,cnh->rnh", scores_NRC.softmax(-1), value_CNH)


def assert_close(out: torch.Tensor, s: Sequence) -> None:
    expected = formula(s)
    error = (out.double() - expected).abs().max() / s.value_CGH.abs().max()
    assert error < TOLERANCE[out.dtype]


@pytest.mark.parametrize(("head", "slots"), [(32, 16), (64, 32), (128, 64), (16, 8), (80, 16)])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8, 7])
def test_formula_native(native_kernels, dtype, head, slots, ratio):
    shapes = [(1, 1), (5, 5), (1, 64), (3, 65), (70, 200), (1, 129)]
    batch = [sequence(r, c, dtype, head, groups=2, ratio=ratio) for r, c in shapes]
    for s, out in zip(batch, attend(native_kernels, batch, slots), strict=True):
        assert_close(out, s)


@pytest.mark.parametrize(("head", "ratio"), [(32, 4), (64, 1), (128, 8)])
def test_formula_torch(dtype, head, ratio):
    batch = [sequence(r, c, dtype, head, ratio=ratio) for r, c in [(1, 1), (20, 70), (1, 130)]]
    for s, out in zip(batch, attend(choose("cpu", "torch"), batch), strict=True):
        assert_close(out, s)


def test_bits_do_not_depend_on_chunking(kernels, dtype):
    context = 150
    whole = sequence(context, context, dtype)
    (expected,) = attend(kernels, [whole])
    for cut in ([1] * 3 + [147], [7, 100, 1, 42], [64, 64, 22], [149, 1]):
        done = 0
        for rows in cut:
            done += rows
            part = Sequence(
                whole.query_RNH[done - rows : done],
                whole.key_CGH[:done],
                whole.value_CGH[:done],
            )
            (out,) = attend(kernels, [part])
            assert torch.equal(out, expected[done - rows : done]), (cut, done)


def test_bits_do_not_depend_on_batch_pages_or_threads(kernels, dtype):
    mine = sequence(9, 100, dtype)
    (expected,) = attend(kernels, [mine])
    others = [sequence(1, 40, dtype), sequence(33, 77, dtype), sequence(1, 1, dtype)]
    threads = torch.get_num_threads()
    try:
        for count, slots, place in ((1, 16, 3), (2, 32, 0), (2, 64, 2)):
            torch.set_num_threads(count)
            batch = [*others[:place], mine, *others[place:]]
            out = attend(kernels, batch, slots, spare_pages=count, spare_entries=place)[place]
            assert torch.equal(out, expected), (count, slots, place)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30, 0.0])
def test_garbage_in_unused_slots_does_not_leak(kernels, dtype, garbage):
    batch = [sequence(3, 19, dtype), sequence(1, 65, dtype), sequence(2, 2, dtype)]
    clean = attend(kernels, batch, garbage=0.0)
    for one, other in zip(clean, attend(kernels, batch, garbage=garbage), strict=True):
        assert torch.equal(one, other)


def test_a_later_key_does_not_change_an_earlier_row(kernels, dtype):
    s = sequence(80, 80, dtype)
    (before,) = attend(kernels, [s])
    s.key_CGH[50:] = torch.nan
    s.value_CGH[50:] = 1e30
    (after,) = attend(kernels, [s])
    assert torch.equal(before[:50], after[:50])


@pytest.mark.parametrize("context", [1, 63, 64, 65, 200])
def test_equal_scores_give_the_mean(kernels, dtype, context):
    s = sequence(1, context, dtype)
    s.query_RNH.zero_()
    (out,) = attend(kernels, [s])
    mean = s.value_CGH.double().mean(0).repeat_interleave(2, dim=0)
    assert (out[0].double() - mean).abs().max() < TOLERANCE[dtype] * 4
    s.value_CGH[:] = 1.25
    (out,) = attend(kernels, [s])
    assert (out == 1.25).all()


def test_huge_scores_pick_one_key(kernels, dtype):
    s = sequence(1, 150, dtype)
    s.query_RNH[:] = 1e15
    s.key_CGH[:] = -1e15
    s.key_CGH[70] = 1e15
    (out,) = attend(kernels, [s])
    assert torch.equal(out[0], s.value_CGH[70].repeat_interleave(2, dim=0))


def test_a_nan_in_the_prefix_is_not_hidden(kernels, dtype):
    s = sequence(10, 80, dtype)
    s.key_CGH[75] = torch.nan
    (out,) = attend(kernels, [s])
    assert not out[:5].isnan().any()
    assert out[5:].isnan().all()


def test_empty_batches(kernels, dtype):
    assert attend(kernels, [sequence(0, 0, dtype)])[0].shape == (0, 4, 64)
    batch = [sequence(0, 0, dtype), sequence(2, 5, dtype), sequence(0, 33, dtype)]
    assert_close(attend(kernels, batch)[1], batch[1])


def call(kernels: Kernels, **changes):
    index = {
        "table": torch.tensor([[0, 1]], dtype=torch.int32),
        "starts": torch.tensor([0, 2], dtype=torch.int32),
        "contexts": torch.tensor([20], dtype=torch.int32),
    } | {name: torch.tensor(value, dtype=torch.int32) for name, value in changes.items()}
    pages = torch.zeros(2, 1, 2, 2, 16, 32)
    q = torch.zeros(2, 4, 32)
    return kernels.paged_attention(
        q, pages, 0, index["table"], index["starts"], index["contexts"], 1.0
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"table": [[0, 2]]}, "page id"),
        ({"table": [[-1, 1]]}, "page id"),
        ({"table": [[0, 2**31 - 1]]}, "page id"),
        ({"contexts": [33]}, "position"),
        ({"contexts": [2**31 - 1]}, "position"),
        ({"contexts": [1]}, "query rows"),
        ({"contexts": [-5]}, "query rows"),
        ({"starts": [0, 3]}, "query rows"),
        ({"starts": [1, 2]}, "query rows"),
        ({"starts": [0, 5, 2], "contexts": [20, 20], "table": [[0, 1], [0, 1]]}, "query rows"),
    ],
)
def test_what_lies_outside_is_refused(kernels, changes, sentence):
    assert call(kernels).shape == (2, 4, 32)
    with pytest.raises(ValueError, match=sentence):
        call(kernels, **changes)


def test_entries_behind_the_context_are_not_looked_at(kernels):
    assert call(kernels, contexts=[16], table=[[1, 99]]).isfinite().all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
def test_the_code_without_avx512(native_kernels, dtype):
    """Another class of numbers, the same promises; this processor runs it as well."""
    lesser = choice._native(native.load("-march=haswell"), asked=True)
    assert lesser.digest != native_kernels.digest
    batch = [sequence(9, 100, dtype, 80), sequence(1, 65, dtype, 80)]
    outputs = attend(lesser, batch)
    for s, out in zip(batch, outputs, strict=True):
        assert_close(out, s)
    assert torch.equal(attend(lesser, batch[1:])[0], outputs[1])
