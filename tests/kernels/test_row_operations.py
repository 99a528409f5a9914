"""Norms, activation and rotary against their formulas in fp64; rows do not know each other."""

import pytest
import torch

from penstock.kernels.native import REFUSALS

TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 1e-6}


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 17), (37, 577), (70, 1024)])
def test_rms_norm(kernels, dtype, rows, size):
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    out = kernels.rms_norm(x, weight, 1e-5)
    assert relative(out, expected) < TOLERANCE[dtype]
    for row in (0, rows - 1):
        assert torch.equal(kernels.rms_norm(x[row : row + 1], weight, 1e-5)[0], out[row])


def test_rms_norm_is_hugging_faces(kernels, dtype):
    x, weight = torch.randn(5, 256).to(dtype), torch.randn(256).to(dtype)
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = weight * (wide * inverse).to(dtype)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-6), expected, rtol=1e-2, atol=1e-6)


def test_add_rms_norm_is_the_two_steps(kernels, dtype):
    x, residual = torch.randn(2, 9, 333).to(dtype)
    weight = torch.randn(333).to(dtype)
    total = residual + x
    out = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert torch.equal(out, kernels.rms_norm(total, weight, 1e-5))


def test_norm_of_zeros_and_of_huge_rows(kernels, dtype):
    x = torch.zeros(3, 64, dtype=dtype)
    x[1] = 1e15
    out = kernels.rms_norm(x, torch.ones(64, dtype=dtype), 1e-5)
    assert (out[0] == 0).all() and (out[2] == 0).all()
    assert relative(out[1:2], torch.ones(1, 64).double()) < TOLERANCE[dtype]


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (5, 33), (64, 1000)])
def test_silu_mul(kernels, dtype, rows, size):
    gate_up = torch.randn(rows, 2 * size).to(dtype) * 4
    gate, up = gate_up.double().chunk(2, -1)
    out = kernels.silu_mul(gate_up)
    assert relative(out, gate * gate.sigmoid() * up) < TOLERANCE[dtype]
    assert torch.equal(kernels.silu_mul(gate_up[-1:]), out[-1:])


def test_an_element_does_not_know_its_place_in_the_row(kernels, dtype):
    """Whole vectors and what is left over at a row's end are computed by different code."""
    gate_T1, up_T1 = torch.randn(2, 40, 1).to(dtype) * 4
    each = kernels.silu_mul(torch.cat((gate_T1, up_T1), dim=1))
    for size in (7, 8, 15, 16, 33, 40):
        row = torch.cat((gate_T1[:size, 0], up_T1[:size, 0]))[None]
        assert torch.equal(kernels.silu_mul(row)[0], each[:size, 0]), size


def test_silu_mul_at_the_ends(kernels, dtype):
    gate = torch.tensor([0.0, -0.0, 100.0, -100.0, 1e30, -1e30, -87.5, 88.5, torch.nan]).to(dtype)
    out = kernels.silu_mul(torch.cat((gate, torch.ones_like(gate)))[None])[0]
    expected = torch.nn.functional.silu(gate.double()).to(dtype)
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-37, equal_nan=True)


class Rotary:
    """Arguments of rotate_and_store for a few tokens, and the pages they go to."""

    def __init__(self, dtype: torch.dtype, head: int = 64, slots: int = 16, tokens: int = 9):
        self.pages = torch.full((5, 2, 2, 2, slots, head), torch.nan, dtype=dtype)
        self.qkv = torch.randn(tokens, (6 + 4) * head).to(dtype)
        angle = torch.outer(torch.arange(50.0), 10000 ** (-torch.arange(0, head, 2) / head))
        self.cosine, self.sine = angle.cos(), angle.sin()
        place = torch.randperm(5 * slots)[:tokens]
        self.page, self.slot = (place // slots).int(), (place % slots).int()
        self.position = torch.randint(0, 50, (tokens,)).int()

    def run(self, kernels) -> torch.Tensor:
        tables = (self.cosine, self.sine, self.position)
        return kernels.rotate_and_store(
            self.qkv, *tables, self.pages, 1, self.page, self.slot, query_heads=6
        )

    def rotated(self) -> torch.Tensor:
        """By complex numbers: [T, 8, H] of q and k."""
        heads = self.qkv.double().unflatten(-1, (10, -1))[:, :8]
        low, high = heads.chunk(2, -1)
        table = torch.complex(self.cosine, self.sine)[self.position.long()]
        turned = torch.complex(low, high) * table[:, None]
        return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize(("head", "slots"), [(32, 16), (64, 32), (128, 64)])
def test_rotate_and_store(kernels, dtype, head, slots):
    case = Rotary(dtype, head, slots)
    q = case.run(kernels)
    expected = case.rotated()
    assert relative(q, expected[:, :6]) < TOLERANCE[dtype]
    written = case.pages[case.page.long(), 1, :, :, case.slot.long()]  # [T, 2, G, H]
    assert relative(written[:, 0], expected[:, 6:]) < TOLERANCE[dtype]
    assert torch.equal(written[:, 1].flatten(1), case.qkv[:, 8 * head :])
    assert int((~case.pages.isnan()).sum()) == written.numel()


def test_rotate_native_gives_the_bits_of_torch(native_kernels, dtype):
    from penstock.kernels.choice import choose

    case = Rotary(dtype)
    q, pages = case.run(native_kernels), case.pages.clone()
    case.pages.fill_(torch.nan)
    assert torch.equal(case.run(choose("cpu", "torch")), q)
    assert torch.equal(case.pages.nan_to_num(7.0), pages.nan_to_num(7.0))


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("page", 5, 1), ("page", -1, 1), ("slot", 16, 2), ("slot", -1, 2)]
    + [("position", 50, 3), ("position", -1, 3)],
)
def test_rotate_refuses_before_it_writes(kernels, name, value, code):
    case = Rotary(torch.float32)
    getattr(case, name)[-1] = value
    with pytest.raises(ValueError, match=REFUSALS[code]):
        case.run(kernels)
    assert case.pages.isnan().all()


def test_no_rows(kernels, dtype):
    assert (
        kernels.rms_norm(torch.empty(0, 8, dtype=dtype), torch.ones(8).to(dtype), 1e-5).shape[0]
        == 0
    )
    assert kernels.silu_mul(torch.empty(0, 8, dtype=dtype)).shape == (0, 4)
    assert Rotary(dtype, tokens=0).run(kernels).shape == (0, 6, 64)
