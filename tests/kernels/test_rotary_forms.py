"""Rotation with head norms, by itself, and on the way into latent pages."""

import pytest
import torch

from penstock.kernels.choice import Kernels
from penstock.kernels.native import REFUSALS

Tensor = torch.Tensor

TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float32: 1e-6}
POSITIONS, PAGES, SLOTS, LAYER = 50, 5, 16, 1
EPSILON = 1e-5


def tables(columns: int) -> tuple[Tensor, Tensor]:
    angle = torch.outer(torch.arange(50.0), 10000 ** (-torch.arange(0, columns, 2) / columns))
    return angle.cos(), angle.sin()


def turned(x_TNX: Tensor, positions_T: Tensor, interleaved: bool = False) -> Tensor:
    """By complex numbers, in fp64."""
    cosine, sine = tables(x_TNX.shape[-1])
    x = x_TNX.double()
    low, high = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    product = torch.complex(low, high) * torch.complex(cosine, sine)[positions_T.long()][:, None]
    sides = (product.real, product.imag)
    return torch.stack(sides, -1).flatten(-2) if interleaved else torch.cat(sides, -1)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()


def close(out: Tensor, expected: Tensor) -> bool:
    return (
        float((out.double() - expected).abs().max() / expected.abs().max()) < TOLERANCE[out.dtype]
    )


class Step:
    """Where a few tokens stand, and where they go."""

    def __init__(self, tokens: int = 9) -> None:
        place = torch.randperm(PAGES * SLOTS)[:tokens]
        self.page, self.slot = (place // SLOTS).int(), (place % SLOTS).int()
        self.positions = torch.randint(0, POSITIONS, (tokens,)).int()

    def cut(self, rows: slice) -> "Step":
        part = Step(0)
        part.page, part.slot = self.page[rows], self.slot[rows]
        part.positions = self.positions[rows]
        return part

    def written(self, pages: Tensor) -> Tensor:
        """[T, sides, G, H]; nothing else was."""
        out = pages[self.page.long(), LAYER, :, :, self.slot.long()]
        assert int((~pages.isnan()).sum()) == out.numel()
        return out


def grouped(
    kernels: Kernels, step: Step, qkv: Tensor, pages: Tensor, norms: tuple[Tensor, ...]
) -> Tensor:
    places = (step.page, step.slot)
    angles = (*tables(64), step.positions)
    return kernels.rotate_and_store(qkv, *angles, pages, LAYER, *places, 6, *norms, EPSILON)


def test_heads_are_normed_before_they_are_rotated(kernels, dtype):
    step, qkv = Step(), torch.randn(9, 10 * 64).to(dtype) * 3
    norms = (torch.randn(64).to(dtype), torch.randn(64).to(dtype))
    pages = torch.full((PAGES, 2, 2, 2, SLOTS, 64), torch.nan, dtype=dtype)
    q = grouped(kernels, step, qkv, pages, norms)
    heads = qkv.unflatten(-1, (10, 64))
    assert close(q, turned(normed(heads[:, :6], norms[0]), step.positions))
    written = step.written(pages)
    assert close(written[:, 0], turned(normed(heads[:, 6:8], norms[1]), step.positions))
    assert torch.equal(written[:, 1], heads[:, 8:])
    for rows in (slice(0, 1), slice(4, 9)):
        again = torch.full_like(pages, torch.nan)
        part = step.cut(rows)
        assert torch.equal(grouped(kernels, part, qkv[rows], again, norms), q[rows])
        assert torch.equal(part.written(again), written[rows])


def test_a_normed_head_is_the_norm_and_then_the_rotation(kernels, dtype):
    """Fused or not, the same bits: norms are rounded to the dtype before they are rotated."""
    step, qkv = Step(), torch.randn(9, 10 * 64).to(dtype)
    q_norm, k_norm = torch.randn(64).to(dtype), torch.randn(64).to(dtype)
    fused, apart = torch.full((2, PAGES, 2, 2, 2, SLOTS, 64), torch.nan, dtype=dtype)
    q = grouped(kernels, step, qkv, fused, (q_norm, k_norm))
    for first, last, weight in ((0, 6 * 64, q_norm), (6 * 64, 8 * 64, k_norm)):
        heads = qkv[:, first:last].reshape(-1, 64)
        qkv[:, first:last] = kernels.rms_norm(heads, weight, EPSILON).view(9, -1)
    places = (step.page, step.slot)
    angles = (*tables(64), step.positions)
    plain = kernels.rotate_and_store(qkv, *angles, apart, LAYER, *places, 6)
    assert torch.equal(q, plain)
    assert torch.equal(step.written(fused), step.written(apart))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("columns", [2, 32, 64])
def test_rotate_columns_of_a_wider_tensor(kernels, dtype, interleaved, columns):
    step, wide = Step(), torch.randn(9, 3, 100).to(dtype)
    x = wide[..., 100 - columns :]
    out = kernels.rotate(x, *tables(columns), step.positions, interleaved)
    assert out.is_contiguous()
    assert close(out, turned(x, step.positions, interleaved))
    one = kernels.rotate(x[3:4], *tables(columns), step.positions[3:4], interleaved)
    assert torch.equal(one, out[3:4])
    across = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(kernels.rotate(across, *tables(columns), step.positions, interleaved), out)


def latent(
    kernels: Kernels, step: Step, x: Tensor, norm: Tensor, pages: Tensor, interleaved: bool
) -> None:
    angles = (*tables(x.shape[1] - len(norm)), step.positions)
    places = (step.page, step.slot, interleaved)
    kernels.store_latent(x, norm, EPSILON, *angles, pages, LAYER, *places)


@pytest.mark.parametrize("interleaved", [False, True])
def test_store_latent(kernels, dtype, interleaved):
    step, norm = Step(), torch.randn(64).to(dtype)
    x = torch.randn(9, 200).to(dtype)[:, 50:146]  # 64 + 32 columns of a wider tensor
    pages = torch.full((PAGES, 2, 1, 1, SLOTS, 96), torch.nan, dtype=dtype)
    latent(kernels, step, x, norm, pages, interleaved)
    written = step.written(pages)[:, 0, 0]
    assert close(written[:, :64], normed(x[:, :64], norm))
    assert close(written[:, None, 64:], turned(x[:, None, 64:], step.positions, interleaved))
    assert torch.equal(written[:, :64], kernels.rms_norm(x[:, :64].contiguous(), norm, EPSILON))
    again = torch.full_like(pages, torch.nan)
    part = step.cut(slice(2, 3))
    latent(kernels, part, x[2:3], norm, again, interleaved)
    assert torch.equal(part.written(again)[:, 0, 0], written[2:3])


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("page", 5, 1), ("page", -1, 1), ("slot", 16, 2), ("slot", -1, 2)]
    + [("positions", 50, 3), ("positions", -1, 3)],
)
def test_store_latent_refuses_before_it_writes(kernels, name, value, code):
    step = Step()
    getattr(step, name)[-1] = value
    pages = torch.full((PAGES, 2, 1, 1, SLOTS, 96), torch.nan)
    with pytest.raises(ValueError, match=REFUSALS[code]):
        latent(kernels, step, torch.zeros(9, 96), torch.ones(64), pages, False)
    assert pages.isnan().all()


@pytest.mark.parametrize("position", [-1, 50])
def test_rotate_refuses_positions_without_angles(kernels, position):
    positions = torch.tensor([0, position], dtype=torch.int32)
    with pytest.raises(ValueError, match=REFUSALS[3]):
        kernels.rotate(torch.zeros(2, 1, 32), *tables(32), positions)


def test_shapes_that_do_not_fit_are_refused(kernels):
    step = Step()
    pages = torch.zeros(PAGES, 2, 1, 1, SLOTS, 96)
    for width, rank, sentence in ((80, 64, "as wide"), (96, 96, "leave columns")):
        with pytest.raises(ValueError, match=sentence):
            latent(kernels, step, torch.zeros(9, width), torch.ones(rank), pages, False)
    with pytest.raises(ValueError, match="cosine must be"):
        kernels.rotate(torch.zeros(9, 1, 32), *tables(64), step.positions)
    with pytest.raises(ValueError, match="in pairs"):
        kernels.rotate(torch.zeros(9, 1, 33), *tables(32), step.positions)
    grouped_pages = torch.zeros(PAGES, 2, 2, 2, SLOTS, 64)
    with pytest.raises(ValueError, match=r"a norm must be contiguous \[64\]"):
        norms = (torch.ones(32), torch.ones(64))
        grouped(kernels, step, torch.zeros(9, 10 * 64), grouped_pages, norms)
