"""The switch: what was named is given or refused, and what was chosen says why."""

import pytest
import torch

from penstock.kernels.choice import choose
from penstock.kernels.native import NativeUnavailable


def test_names_and_digests(native_kernels):
    plain = choose("cpu", "torch")
    assert (native_kernels.name, plain.name) == ("native", "torch")
    assert native_kernels.digest != plain.digest
    assert choose("cpu").digest == native_kernels.digest
    assert "asked for" in native_kernels.why and "compiled" in choose("cpu").why


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="auto, native, torch"):
        choose("cpu", "fast")


def test_native_is_for_the_cpu():
    with pytest.raises(NativeUnavailable, match="the device is meta"):
        choose("meta", "native")
    assert "the device is meta" in choose("meta").why


def test_other_dtypes_are_refused(native_kernels):
    x = torch.zeros(2, 8, dtype=torch.float16)
    with pytest.raises(ValueError, match="bf16 or fp32"):
        native_kernels.silu_mul(x)


def test_index_tensors_must_be_int32(kernels):
    pages, q = torch.zeros(1, 1, 2, 1, 16, 16), torch.zeros(1, 1, 16)
    index = [torch.zeros(1, 1), torch.tensor([0, 1]), torch.tensor([1])]
    with pytest.raises(ValueError, match="int32"):
        kernels.paged_attention(q, pages, 0, *index, 1.0)
