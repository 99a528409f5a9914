"""Windows, sinks and latent pages: against their formula, and exact in each row."""

from dataclasses import dataclass

import pytest
import torch

from penstock.kernels.choice import Kernels

Tensor = torch.Tensor

TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 2e-6}
SLOTS = 16


@dataclass
class Case:
    """One sequence, all of its queries, and what its layer does with them."""

    q_CNH: Tensor
    key_CGH: Tensor
    value_CGV: Tensor
    latent: bool = False
    window: int = 0
    sinks_N: Tensor | None = None

    def run(self, kernels: Kernels, cut: list[int] | None = None, first: int = 0) -> Tensor:
        """Rows from `first` on, in steps of these sizes, beside a sequence of one token."""
        context, _, head = self.key_CGH.shape
        used = -(-context // SLOTS)
        pages, table = self.pages(used)
        outputs = []
        done = first
        for rows in cut or [context - first]:
            done += rows
            q = torch.cat((self.q_CNH[done - rows : done], self.q_CNH[:1]))
            out = kernels.paged_attention(
                q,
                pages,
                0,
                table.expand(2, -1).contiguous(),
                torch.tensor([0, rows, rows + 1], dtype=torch.int32),
                torch.tensor([done, 1], dtype=torch.int32),
                head**-0.5,
                self.value_CGV.shape[2] if self.latent else 0,
                self.window,
                self.sinks_N,
            )
            outputs.append(out[:rows])
        assert done == context
        return torch.cat(outputs)

    def pages(self, used: int) -> tuple[Tensor, Tensor]:
        context, groups, head = self.key_CGH.shape
        sides = 1 if self.latent else 2
        shape = (used + 2, 1, sides, groups, SLOTS, head)
        pages = torch.full(shape, torch.nan, dtype=self.key_CGH.dtype)
        order = torch.randperm(used + 2)[:used]
        token = torch.arange(context)
        where = (order[token // SLOTS], token % SLOTS)
        pages[:, 0, 0].transpose(1, 2)[where] = self.key_CGH
        if not self.latent:
            pages[:, 0, 1].transpose(1, 2)[where] = self.value_CGV
        return pages, order.int()[None]

    def formula(self) -> Tensor:
        """Softmax attention in fp64, the sink as one more key whose value is 0: [C, N, V]."""
        context, heads, head = self.q_CNH.shape
        ratio = heads // self.key_CGH.shape[1]
        key_CNH = self.key_CGH.double().repeat_interleave(ratio, dim=1)
        value_CNV = self.value_CGV.double().repeat_interleave(ratio, dim=1)
        scores = torch.einsum("rnh,cnh->nrc", self.q_CNH.double(), key_CNH) * head**-0.5
        distance = torch.arange(context)[:, None] - torch.arange(context)
        hidden = (distance < 0) | (distance >= (self.window or context))
        scores.masked_fill_(hidden, -torch.inf)
        sinks_N = torch.full((heads,), -torch.inf) if self.sinks_N is None else self.sinks_N
        sink = sinks_N.double()[:, None, None].expand(-1, context, 1)
        weights = torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1]
        return torch.einsum("nrc,cnv->rnv", weights, value_CNV)

    def check(self, out: Tensor) -> None:
        error = (out.double() - self.formula()).abs().max() / self.value_CGV.abs().max()
        assert error < TOLERANCE[out.dtype]


def grouped(dtype: torch.dtype, context: int = 150, window: int = 0, sinks: bool = False) -> Case:
    return Case(
        torch.randn(context, 6, 32).to(dtype),
        torch.randn(context, 2, 32).to(dtype),
        torch.randn(context, 2, 32).to(dtype),
        window=window,
        sinks_N=torch.tensor([3.0, -1.0, 0.0, 8.0, -torch.inf, 1.0]) if sinks else None,
    )


def latent(
    dtype: torch.dtype, context: int = 150, head: int = 96, values: int = 64, heads: int = 5
) -> Case:
    key = torch.randn(context, 1, head).to(dtype)
    return Case(torch.randn(context, heads, head).to(dtype), key, key[..., :values], latent=True)


WINDOWS = [1, 2, 15, 63, 64, 65, 100, 150, 1000]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sinks", [False, True])
def test_windows_and_sinks(kernels, dtype, window, sinks):
    case = grouped(dtype, window=window, sinks=sinks)
    case.check(case.run(kernels))


def test_sinks_alone(kernels, dtype):
    case = grouped(dtype, sinks=True)
    case.check(case.run(kernels))


def test_a_sink_that_takes_all_leaves_nothing(kernels, dtype):
    case = grouped(dtype)
    case.sinks_N = torch.full((6,), 1e4)
    assert case.run(kernels).abs().max() < 1e-40


@pytest.mark.parametrize(("head", "values"), [(96, 64), (576, 512), (48, 16), (64, 64)])
def test_latent(kernels, dtype, head, values):
    case = latent(dtype, 90, head, values)
    case.check(case.run(kernels))


@pytest.mark.parametrize("heads", [128, 99, 16])
def test_many_heads_of_one_group(native_kernels, dtype, heads):
    """More than one unit holds, cut in halves where that goes."""
    case = latent(dtype, 40, 48, 32, heads)
    case.check(case.run(native_kernels))


CUTS = ([1] * 3 + [147], [7, 100, 1, 42], [64, 64, 22], [149, 1], [70, 80])


@pytest.mark.parametrize(
    "case",
    [
        lambda dtype: grouped(dtype, window=1),
        lambda dtype: grouped(dtype, window=40),
        lambda dtype: grouped(dtype, window=64, sinks=True),
        lambda dtype: grouped(dtype, window=100),
        lambda dtype: grouped(dtype, sinks=True),
        latent,
    ],
)
def test_bits_do_not_depend_on_the_cut_or_threads(kernels, dtype, case):
    """Rows of one unit walk chunks of which some of them see nothing; alone they skip them."""
    case = case(dtype)
    expected = case.run(kernels)
    for cut in CUTS:
        assert torch.equal(case.run(kernels, cut), expected), cut
    torch.set_num_threads(2)  # the fixture sets it back
    assert torch.equal(case.run(kernels, [140, 9, 1]), expected)


def test_heads_cut_for_idle_threads_have_the_same_bits(native_kernels, dtype):
    case = latent(dtype, heads=16)
    expected = case.run(native_kernels, [149, 1])
    for threads in (2, 4):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(native_kernels, [149, 1]), expected), threads


def test_the_keys_before_the_window_change_nothing(kernels, dtype):
    """Huge but finite: whole chunks of them are skipped, and in part of one they are masked."""
    case = grouped(dtype, window=30)
    expected = case.run(kernels, first=130)
    case.key_CGH[:101] = 1e30
    case.value_CGV[:101] = -1e30
    assert torch.equal(case.run(kernels, first=130), expected)


def test_a_window_as_long_as_the_context_is_none(kernels, dtype):
    case = grouped(dtype)
    expected = case.run(kernels)
    case.window = 150
    assert torch.equal(case.run(kernels), expected)


def test_a_sink_of_minus_infinity_is_none(kernels, dtype):
    case = grouped(dtype)
    expected = case.run(kernels)
    case.sinks_N = torch.full((6,), -torch.inf)
    case.check(case.run(kernels))
    torch.testing.assert_close(case.run(kernels), expected)


@pytest.mark.parametrize(
    ("sides", "form", "sentence"),
    [
        (1, {}, "value_size 0: pages with one side"),
        (1, {"value_size": 33}, "value_size 33: pages with one side"),
        (2, {"value_size": 16}, "value_size 16: .* values of their own"),
        (2, {"window": -1}, "window -1: "),
        (2, {"sinks_N": torch.zeros(3)}, "sinks must be contiguous fp32"),
        (2, {"sinks_N": torch.zeros(4).double()}, "sinks must be contiguous fp32"),
    ],
)
def test_forms_that_are_none_are_refused(kernels, sides, form, sentence):
    pages = torch.zeros(2, 1, sides, 1, 16, 32)
    index = [torch.tensor(value, dtype=torch.int32) for value in ([[0, 1]], [0, 2], [20])]
    with pytest.raises(ValueError, match=sentence):
        kernels.paged_attention(torch.zeros(2, 4, 32), pages, 0, *index, 1.0, **form)
