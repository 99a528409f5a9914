"""One way of getting a checkpoint's bytes, once, in a process of its own: what it took.

    python -m penstock.bench.loading_once METHOD FOLDER THREADS

Prints one line of JSON: seconds, CPU seconds, and bytes of memory (before, at most, at the end).
"""

import dataclasses
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..kernels.choice import Kernels, choose
from ..kernels.linear import PackedLinear
from ..models.checkpoint import Checkpoint
from ..models.registry import load_model
from ..models.weights import Weights

BUFFER = 8 << 20
Found = dict[str, float]


def read(folder: Path) -> Found:
    """Every file from its beginning, into one buffer that is used again: the file system's rate."""
    buffer = memoryview(bytearray(BUFFER))
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return {}


def kept(folder: Path) -> Found:
    """The same into memory that stays: what no loader does without, and the least it can do."""
    memory = []
    for file in sorted(folder.glob("*.safetensors")):
        place = torch.empty(file.stat().st_size, dtype=torch.uint8).numpy().data
        done = 0
        with open(file, "rb", buffering=0) as opened:
            while count := opened.readinto(place[done : done + BUFFER]):
                done += count
        memory.append(place)
    return {"end": resident("VmRSS")}


def safetensors_own(folder: Path) -> Found:
    """safetensors' load_file, each tensor copied out of the map."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = safetensors.torch.load_file(file)
        tensors |= {name: tensor.clone() for name, tensor in found.items()}
    return {"end": resident("VmRSS")}


def tensors(folder: Path) -> Found:
    """Our tensors, not packed."""
    checkpoint = Checkpoint(folder)
    weights = Weights(checkpoint, torch.bfloat16)
    held = [weights.tensor(name) for name in checkpoint.weights]
    return {"end": resident("VmRSS"), "tensors": len(held)}


def load(folder: Path) -> Found:
    """The whole of load_model: read, packed, and the digest that names the weights."""
    packing = Packing(choose("cpu", "auto"))
    held = load_model(folder, packing.kernels, torch.bfloat16)
    end = resident("VmRSS")
    began = time.perf_counter()
    Checkpoint(folder).digest()
    digest = time.perf_counter() - began
    return {"end": end, "packing": packing.seconds, "digest": digest, "layers": len(held.digest)}


METHODS: dict[str, Callable[[Path], Found]] = {
    "read": read,
    "read, kept": kept,
    "safetensors": safetensors_own,
    "tensors": tensors,
    "load": load,
}


class Packing:
    """Kernels that tell how much CPU time linear layers took to pack."""

    def __init__(self, kernels: Kernels) -> None:
        self._pack = kernels.pack_linear
        self._lock = threading.Lock()
        self.seconds = 0.0
        self.kernels = dataclasses.replace(kernels, pack_linear=self._timed)

    def _timed(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> PackedLinear:
        began = time.thread_time()
        packed = self._pack(weight_OI, bias_O)
        with self._lock:
            self.seconds += time.thread_time() - began
        return packed


def resident(field: str) -> int:
    """Bytes of this process's memory; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def main(arguments: list[str]) -> int:
    method, folder, threads = arguments
    if int(threads):
        torch.set_num_threads(int(threads))
    weight = torch.randn(64, 64).bfloat16()  # what torch sets up once is not the loader's
    torch.nn.functional.linear(weight, weight)
    choose("cpu", "auto")
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found = METHODS[method](Path(folder))
    digest = found.get("digest", 0.0)  # measured once more, after the end
    told = {
        "seconds": time.perf_counter() - wall - digest,
        "cpu_seconds": time.process_time() - cpu - digest,
        "peak": resident("VmHWM") - before,
        "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
    }
    print(json.dumps(found | told | {"end": max(0.0, found.get("end", before) - before)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
