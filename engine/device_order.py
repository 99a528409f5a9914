"""Where the order of a device's work and of transfers meets: two moments of every step.

Pages are written by kernels and by planes, and read by both. Two things must hold:

    publish    what a step wrote is in memory before anybody hears of it (a peer may read at once),
               and before its pages can be given to somebody else
    arrival    what a plane brought is visible to the step that reads it first

On a CPU both hold by themselves: the step has returned, and the memory is one. On CUDA kernels run
later than the call that starts them, so the end of a step is an event behind its last kernel, and
is waited for. Copies over NVLink are seen by kernels started after their completion; what a network
card writes into device memory (GPUDirect) need not be, where the device does not order such writes,
and there it is flushed first. The CUDA half of this file was never run (tests/gpu).
"""

import ctypes
from typing import Any

import torch

# Of the driver's interface (cuda.h).
RDMA_SUPPORTED, FLUSH_OPTIONS, WRITES_ORDERING = 116, 117, 118
ORDERED_FOR_OWNER = 100  # the device that owns the memory sees such writes in order
FLUSH_BY_HOST = 1
CURRENT_CONTEXT, TO_OWNER = 0, 100


class DeviceOrderError(Exception):
    """A device whose work cannot be ordered with transfers; the text says why."""


class DeviceOrder:
    """The two moments, for one device. Called by the engine's thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._written: Any = None
        self._driver: Any = None
        if device.type != "cuda":
            return
        torch.cuda.init()  # the driver answers nothing before
        # Blocking: the thread sleeps meanwhile, and the loop has the core.
        self._written = torch.cuda.Event(blocking=True)
        driver = ctypes.CDLL("libcuda.so.1")
        if must_flush(driver, device.index or 0):
            self._driver = driver

    def arrived(self) -> None:
        """Before a step's first kernel."""
        if self._driver is not None:
            with torch.cuda.device(self._device):
                status = self._driver.cuFlushGPUDirectRDMAWrites(CURRENT_CONTEXT, TO_OWNER)
            if status:
                raise DeviceOrderError(f"cuFlushGPUDirectRDMAWrites failed with {status}")

    def publish(self) -> None:
        """After a step's last kernel: returns when all it wrote is in memory.

        One event on the step's own stream, and not the whole device: that would wait for the
        copies of peers too.
        """
        if self._written is not None:
            self._written.record(torch.cuda.current_stream(self._device))
            self._written.synchronize()


def must_flush(driver: Any, device: int) -> bool:
    """Whether writes of a network card need a flush before this device reads them.

    Raises DeviceOrderError where they would and cannot be flushed.
    """
    if not _attribute(driver, RDMA_SUPPORTED, device):
        return False
    if _attribute(driver, WRITES_ORDERING, device) >= ORDERED_FOR_OWNER:
        return False
    if not _attribute(driver, FLUSH_OPTIONS, device) & FLUSH_BY_HOST:
        raise DeviceOrderError(
            f"cuda:{device} neither orders nor flushes writes of a network card into its memory; "
            "another device, or --device cpu, would work"
        )
    return True


def _attribute(driver: Any, attribute: int, device: int) -> int:
    handle, value = ctypes.c_int(), ctypes.c_int()
    status = driver.cuDeviceGet(ctypes.byref(handle), device)
    status = status or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    if status:
        raise DeviceOrderError(f"the driver does not describe cuda:{device}: status {status}")
    return value.value
