"""The two moments of a step at which a device and transfers meet: always, also when it raises."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.engine.device_order import (
    FLUSH_OPTIONS,
    RDMA_SUPPORTED,
    WRITES_ORDERING,
    DeviceOrder,
    DeviceOrderError,
    must_flush,
)
from penstock.engine.paged_memory import PagedMemory, PageLayout
from penstock.engine.runner import Runner
from penstock.engine.step import Slice, Step
from penstock.kernels.choice import choose
from penstock.models.registry import load_model
from support.small_model import make_sequence, write_model


class Recorded(DeviceOrder):
    """Says what happened, and what the pages held at that moment."""

    def __init__(self, pages_PLCGSH: Tensor) -> None:
        super().__init__(pages_PLCGSH.device)
        self._pages = pages_PLCGSH
        self.told: list[tuple[str, bool]] = []

    def arrived(self) -> None:
        super().arrived()
        self.told.append(("arrived", bool(self._pages.any())))

    def publish(self) -> None:
        super().publish()
        self.told.append(("publish", bool(self._pages.any())))


def test_a_step_lets_arrivals_in_first_and_publishes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(write_model(tmp_path), choose("cpu"), torch.float32)
    memory = PagedMemory(PageLayout(2, 2, 2, 8, 16, torch.float32), 4)
    order = Recorded(memory.pages_PLCGSH)
    runner = Runner(loaded.model, memory.pages_PLCGSH, order)
    sequence = make_sequence([1, 2, 3], pages=[2], temperature=0.0)
    runner.run(Step((Slice(sequence, 0, 3, (0,)),)))
    assert order.told == [("arrived", False), ("publish", True)]
    memory.pages_PLCGSH.zero_()
    order.told.clear()

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no draw today")

    monkeypatch.setattr(runner.sampler, "draw", broken)
    with pytest.raises(RuntimeError, match="no draw today"):
        runner.run(Step((Slice(sequence, 0, 3, (0,)),)))
    # Its pages are written, and will be given to somebody else as soon as the step has failed.
    assert order.told == [("arrived", False), ("publish", True)]
    memory.close()


class Driver:
    """As much of libcuda as is asked."""

    def __init__(self, **attributes: int) -> None:
        self._attributes = {
            RDMA_SUPPORTED: attributes.get("supported", 1),
            WRITES_ORDERING: attributes.get("ordering", 100),
            FLUSH_OPTIONS: attributes.get("options", 1),
        }
        self._status = attributes.get("status", 0)

    def cuDeviceGet(self, handle: Any, device: int) -> int:
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_int))[0] = device
        return self._status

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self._attributes[attribute]
        return 0


@pytest.mark.parametrize(
    ("attributes", "flush"),
    [
        ({}, False),
        ({"ordering": 200}, False),
        ({"supported": 0, "ordering": 0}, False),
        ({"ordering": 0}, True),
    ],
)
def test_writes_are_flushed_where_the_device_does_not_order_them(
    attributes: dict[str, int], flush: bool
) -> None:
    assert must_flush(Driver(**attributes), 0) is flush


def test_a_device_that_can_do_neither_is_refused() -> None:
    with pytest.raises(DeviceOrderError, match="cuda:3 neither orders nor flushes"):
        must_flush(Driver(ordering=0, options=0), 3)
    with pytest.raises(DeviceOrderError, match="status 100"):
        must_flush(Driver(status=100), 0)
