"""One small product per head: right, each row alone, and reading a part of a wider tensor."""

import pytest
import torch


@pytest.mark.parametrize(
    ("heads", "inputs", "outputs"), [(4, 128, 512), (3, 16, 32), (2, 6, 70), (1, 512, 128)]
)
def test_each_head_has_its_product(kernels, dtype, heads, inputs, outputs):
    weight_NOI = torch.randn(heads, outputs, inputs).to(dtype)
    product = kernels.pack_heads(weight_NOI)
    x_TNI = torch.randn(33, heads, inputs).to(dtype)
    out_TNO = product(x_TNI)
    right = torch.einsum("tni,noi->tno", x_TNI.double(), weight_NOI.double())
    tolerance = 8e-3 if dtype == torch.bfloat16 else 2e-6
    assert out_TNO.dtype == dtype
    assert (out_TNO.double() - right).abs().max() <= tolerance * right.abs().max()
    for rows in (1, 2, 3, 5, 6, 7, 12, 32):
        assert torch.equal(product(x_TNI[:rows]), out_TNO[:rows]), rows
        assert torch.equal(product(x_TNI[-rows:]), out_TNO[-rows:]), rows
    torch.set_num_threads(2)
    assert torch.equal(product(x_TNI), out_TNO)


def test_many_rows(kernels, dtype):
    product = kernels.pack_heads(torch.randn(2, 24, 16).to(dtype))
    x_TNI = torch.randn(257, 2, 16).to(dtype)
    whole = product(x_TNI)
    assert torch.equal(torch.cat([product(part) for part in x_TNI.split(100)]), whole)


def test_columns_of_a_wider_tensor(kernels, dtype):
    product = kernels.pack_heads(torch.randn(3, 20, 16).to(dtype))
    wide_TNX = torch.randn(9, 3, 24).to(dtype)
    assert torch.equal(product(wide_TNX[..., :16]), product(wide_TNX[..., :16].contiguous()))


def test_a_transposed_weight(kernels, dtype):
    weight_NIO = torch.randn(3, 16, 20).to(dtype)
    x_TNI = torch.randn(5, 3, 16).to(dtype)
    transposed = kernels.pack_heads(weight_NIO.transpose(1, 2))(x_TNI)
    assert torch.equal(transposed, kernels.pack_heads(weight_NIO.mT.contiguous())(x_TNI))


def test_no_rows(kernels, dtype):
    product = kernels.pack_heads(torch.randn(3, 20, 16).to(dtype))
    assert product(torch.empty(0, 3, 16, dtype=dtype)).shape == (0, 3, 20)


def test_what_does_not_fit_is_refused(native_kernels):
    with pytest.raises(ValueError, match="even sizes"):
        native_kernels.pack_heads(torch.randn(2, 4, 5))
    product = native_kernels.pack_heads(torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match=r"\[T, 2, 6\]"):
        product(torch.randn(3, 2, 4))
