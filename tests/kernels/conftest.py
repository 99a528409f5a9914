"""A test that takes `kernels` runs once per implementation; native needs a C compiler."""

from collections.abc import Iterator

import pytest
import torch

from penstock.kernels.choice import Kernels, choose
from penstock.kernels.native import NativeUnavailable


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return named(request.param)


@pytest.fixture
def native_kernels() -> Kernels:
    return named("native")


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def same_numbers_one_thread() -> Iterator[None]:
    """Tests that ask about threads set their own number."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def named(implementation: str) -> Kernels:
    try:
        return choose("cpu", implementation)
    except NativeUnavailable as reason:
        pytest.skip(str(reason))
