"""Packed linear layers: right, independent of the number of rows, free of the caller's weight."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from penstock.kernels import linear as linear_file
from penstock.kernels.linear import filled_up, pack_linear

HAS_PAIRS = "avx512_bf16" in Path("/proc/cpuinfo").read_text()


SHAPES = [(7, 5), (151, 77), (64, 2), (151, 78), (1024, 256), (256, 3072)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_rows_are_right_and_alone(kernels, dtype, outputs, inputs, biased):
    weight, x = torch.randn(outputs, inputs).to(dtype), torch.randn(130, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    linear = kernels.pack_linear(weight, bias)
    out = linear(x)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    tolerance = 8e-3 if dtype == torch.bfloat16 else 2e-6
    assert (out.double() - expected).abs().max() / expected.abs().max() < tolerance
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 65, 96, 97, 129):
        assert torch.equal(linear(x[-rows:]), out[-rows:]), rows
        assert torch.equal(linear(x[:rows]), out[:rows]), rows


def test_prompts_of_all_lengths_are_few_numbers_of_rows():
    """Each number has its own code in oneDNN's memory; 512 of them were 700 MB of a worker's."""
    computed = [filled_up(rows) for rows in range(1, 513)]
    assert all(rows <= filled <= rows + 31 for rows, filled in enumerate(computed, 1))
    assert len(set(computed)) == 64 + 14


def test_no_rows(dtype):
    linear = pack_linear(torch.randn(4, 3).to(dtype))
    assert linear(torch.empty(0, 3, dtype=dtype)).shape == (0, 4)


def test_the_weight_may_be_released():
    weight = torch.randn(32, 16)
    linear = pack_linear(weight)
    assert linear.how == "onednn"
    alive = weakref.ref(weight)
    del weight
    gc.collect()
    assert alive() is None
    assert linear(torch.zeros(2, 16)).eq(0).all()


@pytest.fixture
def without_bf16(monkeypatch):
    """As on a processor for which oneDNN has no bf16; this one's code is then tested everywhere."""
    monkeypatch.setattr(linear_file, "_packs", lambda weight_OI: False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_native_sums_along_the_inputs_in_order(native_kernels, without_bf16, threads):
    """One chain of fused multiply-adds per output; where bf16 is multiplied in pairs, of pairs."""
    torch.set_num_threads(threads)  # the fixture sets it back
    weight, x = torch.randn(200, 300).bfloat16(), torch.randn(23, 300).bfloat16()
    bias = torch.randn(200).bfloat16()
    linear = native_kernels.pack_linear(weight, bias)
    assert linear.how == "native"
    total = torch.zeros(23, 200)
    for i in range(300):  # products of two bf16 are exact in fp32, so that one rounding is fused
        total += x[:, i : i + 1].float() * weight[:, i].float()
    expected = (total + bias.float()).bfloat16()
    if HAS_PAIRS:
        torch.testing.assert_close(linear(x), expected, rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(linear(x), expected)
    assert torch.equal(linear(x[5:6]), linear(x)[5:6])


def test_native_takes_rows_with_gaps_and_refuses_others(native_kernels, without_bf16):
    weight, x = torch.randn(64, 32).bfloat16(), torch.randn(5, 80).bfloat16()
    linear = native_kernels.pack_linear(weight)
    assert torch.equal(linear(x[:, 8:40]), linear(x[:, 8:40].contiguous()))
    assert linear(x[:0, :32]).shape == (0, 64)
    for wrong in (x, x[:, :32].float()):
        with pytest.raises(ValueError, match=r"bf16 \[T, 32\]"):
            linear(wrong)


def test_native_leaves_odd_depths_to_torch(native_kernels, without_bf16):
    assert native_kernels.pack_linear(torch.randn(4, 3).bfloat16()).how == "torch"


def test_what_onednn_lacks_says_so():
    linear = pack_linear(torch.randn(4, 3, dtype=torch.float64))
    assert linear.how == "torch"
    assert linear(torch.zeros(1, 3, dtype=torch.float64)).shape == (1, 4)
