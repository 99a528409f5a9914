"""Packed linear layers: right, independent of the number of rows, free of the caller's weight."""

import gc
import weakref

import pytest
import torch

from penstock.kernels.linear import filled_up, pack_linear


@pytest.mark.parametrize(("outputs", "inputs"), [(7, 5), (151, 77), (1024, 256), (256, 3072)])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_are_right_and_alone(dtype, outputs, inputs, biased):
    weight, x = torch.randn(outputs, inputs).to(dtype), torch.randn(130, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    linear = pack_linear(weight, bias)
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


def test_what_onednn_lacks_says_so():
    linear = pack_linear(torch.randn(4, 3, dtype=torch.float64))
    assert linear.how == "torch"
    assert linear(torch.zeros(1, 3, dtype=torch.float64)).shape == (1, 4)
