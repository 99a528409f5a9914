"""The holder of the device-to-device test: pages on a GPU, rewritten by slow kernels on request.

Started as `device_holder.py PAGES`. Lines of JSON on stdin, one answer each: `metadata`; `rewrite`
(raise the generations of some pages, start kernels that write them late, wait for the order of the
engine's steps, answer the generations); `exit`. Was never run: no GPU was there.
"""

import json
import os
import select
import sys

import torch

from penstock.engine.device_order import DeviceOrder
from penstock.engine.paged_memory import PagedMemory, PageLayout
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import Plane, PlaneSettings

LAYOUT = PageLayout(layers=8, sides=2, groups=4, slots=32, head=64, dtype=torch.bfloat16)
BUSY = 2048  # side of the matrices that keep the device busy before a page is written


def content(page: int, generation: int) -> float:
    """What every element of a page holds: exact in bfloat16, another one each time."""
    return float((page * 31 + generation * 7) % 251)


class Holder:
    """Pages on the device, and the plane that lends them."""

    def __init__(self, pages: int) -> None:
        self.memory = PagedMemory(LAYOUT, pages, "cuda:0")
        self.order = DeviceOrder(self.memory.device)
        name = f"holder-{os.getpid()}"
        self.plane: Plane = open_plane("nixl", PlaneSettings(self.memory.description, name))
        self._busy = torch.ones(BUSY, BUSY, device="cuda:0")

    def rewrite(self, pages: list[int]) -> list[int]:
        """As a step does it: generations first, then late writes, then publish."""
        told = []
        for page in pages:
            self.memory.generations[page] += 1
            told.append(self.memory.generations[page])
        delayed = self._busy
        for _ in range(20):
            delayed = (delayed @ self._busy) / BUSY  # ones again
        for page, generation in zip(pages, told, strict=True):
            self.memory.pages_PLCGSH[page] = content(page, generation) * delayed[0, 0]
        self.order.publish()
        return told


def main(pages: int) -> int:
    holder = Holder(pages)
    pending = b""
    while True:
        holder.plane.progress()
        if not select.select([0], [], [], 0.0002)[0]:
            continue
        received = os.read(0, 1 << 16)
        if not received:
            os._exit(1)  # the test is gone
        pending += received
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            command = json.loads(line)
            answer: dict[str, object] = {}
            match command["do"]:
                case "metadata":
                    answer["metadata"] = holder.plane.metadata().hex()
                case "rewrite":
                    answer["generations"] = holder.rewrite(command["pages"])
                case "exit":
                    holder.plane.close()
                    holder.memory.close()
            print(json.dumps(answer), flush=True)
            if command["do"] == "exit":
                return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
