"""How fast pages move: the planes against memcpy and against NIXL without us.

    python -m penstock.bench.kv [--rounds 9] [--sizes 16,64,256,1024,4096] [--json FILE]

Every figure of one table comes from one run in which the methods take turns, so that a busy
machine slows all of them. Pages are scattered, 16 MB per operation, the holder is a process of
its own, and the bytes are compared after each operation, outside the time. `nixl-tcp` is the nixl
plane held to TCP, as it would be between hosts; CPU is both processes', per GB.
"""

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import zmq

from ..kvtransfer import ucx
from ..kvtransfer.host_memory import HostMemory
from ..kvtransfer.open import open_plane
from ..kvtransfer.plane import Plane, PlaneSettings

POOL_BYTES = 64 << 20
OPERATION_BYTES = 16 << 20
METHODS = ("memcpy", "bare nixl", "nixl", "nixl-tcp", "zmq", "zmq-curve", "shm")
KEYS = zmq.curve_keypair()


@dataclass(frozen=True, slots=True)
class Figure:
    method: str
    path: str
    page_bytes: int
    median: float  # GB/s
    best: float
    cpu_seconds_per_gb: float


def fill(memory: HostMemory) -> None:
    words = numpy.frombuffer(memory.pages, dtype=numpy.uint64)
    words[:] = numpy.arange(len(words), dtype=numpy.uint64)


def scattered(page_bytes: int, seed: int) -> tuple[list[int], list[int]]:
    random = numpy.random.default_rng(seed)
    count, total = OPERATION_BYTES // page_bytes, POOL_BYTES // page_bytes
    return (
        random.permutation(total)[:count].tolist(),
        random.permutation(total)[:count].tolist(),
    )


# The holder: a process that serves one plane and page size at a time, and sleeps otherwise.


class BareNixl:
    """NIXL as its own documentation uses it, without progress thread: no plane of ours."""

    def __init__(self, memory: HostMemory, name: str) -> None:
        self.layout = memory.memory
        self.agent: Any = ucx.load().agent(name)
        region = [[self.layout.pages_address, self.layout.total_bytes, 0]]
        self.registered = self.agent.register_memory(numpy.array(region, numpy.uint64), "DRAM")

    def prepare(self, agent: str, address: int) -> Any:
        size = self.layout.page_bytes
        row = [[address, size, 0, size, self.layout.page_count]]
        return self.agent.prep_xfer_dlist(agent, numpy.array(row, numpy.uint64), "DRAM")

    def add(self, agent: str, metadata: bytes, address: int) -> None:
        self.agent.add_remote_agent(metadata)
        self.ours = self.prepare("NIXL_INIT_AGENT", self.layout.pages_address)
        self.theirs = self.prepare(agent, address)

    def read(self, remote: list[int], local: list[int]) -> None:
        ours, theirs = numpy.array(local, numpy.int32), numpy.array(remote, numpy.int32)
        transfer = self.agent.make_prepped_xfer("READ", self.ours, ours, self.theirs, theirs)
        state = self.agent.transfer(transfer)
        while state != "DONE":
            state = self.agent.check_xfer_state(transfer)
        transfer.release()


def settings_for(method: str, memory: HostMemory, name: str) -> PlaneSettings:
    return PlaneSettings(memory.memory, name, curve=KEYS if method == "zmq-curve" else None)


def hold(method: str, sizes: list[int]) -> int:
    step: dict[int, Callable[[], object]] = {}
    words: dict[int, list[object]] = {}
    kept: list[object] = []
    for size in sizes:
        memory = HostMemory(size, POOL_BYTES // size)
        fill(memory)
        name = f"holder-{os.getpid()}-{size}"
        if method == "bare nixl":
            bare = BareNixl(memory, name)
            step[size] = bare.agent.get_new_notifs
            address = memory.memory.pages_address
            words[size] = [name, bare.agent.get_agent_metadata().hex(), address]
        else:
            plane = open_plane(method.partition("-")[0], settings_for(method, memory, name))
            step[size] = plane.progress
            words[size] = [plane.metadata().hex()]
        kept.append(memory)
    print(json.dumps(words), flush=True)
    serving = 0
    while True:
        if select.select([0], [], [], 0 if serving else None)[0]:
            received = os.read(0, 64)
            if not received:
                os._exit(0)  # the reader is done with us; nothing here is worth an orderly end
            serving = int(received.split()[-1])
            print(serving, flush=True)
        if serving:
            step[serving]()
            time.sleep(0)


# The reader


class Holding:
    """A holder's process and our half of each of its planes."""

    def __init__(self, method: str, sizes: list[int]) -> None:
        self.method = method
        environment = {**os.environ, **({"UCX_TLS": "tcp"} if method == "nixl-tcp" else {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.bench.kv", "--hold", method]
            + ["--sizes", ",".join(str(size >> 10) for size in sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdin and self.process.stdout
        self.words = {int(k): v for k, v in json.loads(self.process.stdout.readline()).items()}
        self.planes: dict[int, Plane | BareNixl] = {}

    def connect(self, size: int, memory: HostMemory) -> None:
        words, name = self.words[size], f"reader-{self.method}-{os.getpid()}-{size}"
        if self.method == "bare nixl":
            bare = BareNixl(memory, name)
            bare.add(words[0], bytes.fromhex(words[1]), words[2])
            self.planes[size] = bare
            return
        settings = settings_for(self.method, memory, name)
        if self.method == "nixl-tcp":
            # UCX reads this when the agent is made; it is put back for the others.
            before = os.environ.get("UCX_TLS")
            os.environ["UCX_TLS"] = "tcp"
            plane = open_plane("nixl", settings)
            os.environ.pop("UCX_TLS") if before is None else os.environ.update(UCX_TLS=before)
        else:
            plane = open_plane(self.method.partition("-")[0], settings)
        plane.add_peer("holder", 1, bytes.fromhex(words[0]))
        self.planes[size] = plane

    def serve(self, size: int) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(b"%d\n" % size)
        self.process.stdin.flush()
        self.process.stdout.readline()

    def read(self, size: int, remote: list[int], local: list[int]) -> None:
        plane = self.planes[size]
        if isinstance(plane, BareNixl):
            plane.read(remote, local)
            return
        plane.read("holder", remote, local)
        while not (ended := plane.progress()):
            if self.method.startswith("zmq"):
                time.sleep(0)  # on two cores its threads and the holder need one of them
        if ended[0].failed:
            raise RuntimeError(f"{self.method}: {ended[0].failed}")

    def path(self, size: int) -> str:
        plane = self.planes[size]
        return "bare NIXL, lanes as chosen" if isinstance(plane, BareNixl) else plane.path

    def cpu(self) -> float:
        return cpu_seconds(self.process.pid)


def cpu_seconds(pid: int) -> float:
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def copy_here(source: HostMemory, target: HostMemory, remote: list[int], local: list[int]) -> None:
    size = source.memory.page_bytes
    ours, theirs = target.pages, source.pages
    for a, b in zip(local, remote, strict=True):
        ours[a * size : a * size + size] = theirs[b * size : b * size + size]


def verify(source: HostMemory, target: HostMemory, remote: list[int], local: list[int]) -> None:
    size = source.memory.page_bytes
    theirs = numpy.frombuffer(source.pages, numpy.uint64).reshape(-1, size // 8)
    ours = numpy.frombuffer(target.pages, numpy.uint64).reshape(-1, size // 8)
    if not (ours[local] == theirs[remote]).all():
        raise RuntimeError("the bytes differ")
    ours[:] = 0


def measure(methods: list[str], sizes: list[int], rounds: int) -> list[Figure]:
    holders = {method: Holding(method, sizes) for method in methods if method != "memcpy"}
    figures: list[Figure] = []
    for size in sizes:
        source, target = (HostMemory(size, POOL_BYTES // size) for _ in range(2))
        fill(source)
        for holder in holders.values():
            holder.connect(size, target)
        speeds: dict[str, list[float]] = {method: [] for method in methods}
        busy: dict[str, float] = dict.fromkeys(methods, 0.0)
        for turn in range(rounds + 2):  # two to warm up: connections, page faults
            for method in methods:
                remote, local = scattered(size, turn)
                holder = holders.get(method)
                if holder:
                    holder.serve(size)
                cpu = -time.process_time() - (holder.cpu() if holder else 0)
                began = time.perf_counter()
                if holder:
                    holder.read(size, remote, local)
                else:
                    copy_here(source, target, remote, local)
                seconds = time.perf_counter() - began
                cpu += time.process_time() + (holder.cpu() if holder else 0)
                if holder:
                    holder.serve(0)
                verify(source, target, remote, local)
                if turn >= 2:
                    speeds[method].append(OPERATION_BYTES / seconds / 1e9)
                    busy[method] += cpu
        for method in methods:
            path = holders[method].path(size) if method in holders else "this process"
            figures.append(_figure(method, path, size, speeds[method], busy[method]))
    for holder in holders.values():
        assert holder.process.stdin
        holder.process.stdin.close()
        holder.process.wait()
    return figures


def _figure(method: str, path: str, size: int, speeds: list[float], busy: float) -> Figure:
    moved = len(speeds) * OPERATION_BYTES / 1e9
    return Figure(method, path, size, statistics.median(speeds), max(speeds), busy / moved)


def table(figures: list[Figure]) -> str:
    sizes = sorted({figure.page_bytes for figure in figures})
    lines = ["GB/s median (best), CPU s/GB".ljust(30) + "".join(f"{s >> 10:>18}K" for s in sizes)]
    for method in dict.fromkeys(figure.method for figure in figures):
        cells = [
            f"{f.median:.1f} ({f.best:.1f}) {f.cpu_seconds_per_gb:.2f}".rjust(19)
            for f in figures
            if f.method == method
        ]
        lines.append(method.ljust(30) + "".join(cells))
    paths = {figure.method: figure.path for figure in figures}
    return "\n".join(lines + [""] + [f"{method}: {path}" for method, path in paths.items()])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench kv", description="GB/s of the transfer planes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default="16,64,256,1024,4096", help="page sizes in KB")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", default="", help="write the figures to this file too")
    parser.add_argument("--hold", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = [int(size) << 10 for size in options.sizes.split(",")]
    if options.hold:
        return hold(options.hold, sizes)
    load = os.getloadavg()[0]
    figures = measure(options.methods.split(","), sizes, options.rounds)
    print(table(figures))
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {os.cpu_count()} CPUs")
    if options.json:
        machine = {"machine": platform.platform(), "cpus": os.cpu_count(), "load_before": load}
        with open(options.json, "w") as file:
            json.dump({**machine, "figures": [asdict(figure) for figure in figures]}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
