"""What NIXL agents cost beside the bytes (G8): starting, knowing peers, describing pages; and the
three steps that small pieces take through staging (G4), each alone.

    python -m penstock.bench.planes.nixl

The peers are planes of one other process, which makes progress all the time. "Connected" means
that a page of each was read; CPU is the reader's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy
from numpy.typing import NDArray

from ...kvtransfer import ucx
from ...kvtransfer.host_memory import HostMemory
from ...kvtransfer.nixl_lists import LOCAL, ONE, Lists, strided
from ...kvtransfer.nixl_plane import NixlPlane
from ...kvtransfer.nixl_staging import SLOT_BYTES, Slots, page_rows
from ...kvtransfer.nixl_words import Metadata
from ...kvtransfer.plane import PlaneSettings
from .pages import fill

PEERS = 72
POLL_SECONDS = 0.002  # the peers answer in their own time; busy polling would count as cost
PAGES = 500_000
PAGE_BYTES = 16 << 10
STARTS = 5
PREPARED = 200
PIECE_BYTES = 4096
POOL_PIECES = 4096
SLOTFULS = 100
READ_SECONDS = 20.0
NONE = float("inf")  # a figure to compare with


@dataclass(frozen=True, slots=True)
class Cost:
    """One figure and its bound; `reached` is `figure <= bound`."""

    name: str
    figure: float
    bound: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.figure <= self.bound


def measure() -> list[Cost]:
    """All costs, in about twenty seconds."""
    starts, metadata = _starts()
    seconds, described = _descriptors()
    added, connected, bare = _connections()
    packing, reading, unpacking = _slot_steps()
    return [
        Cost("agent and plane, start", starts * 1e3, 150, "ms"),
        Cost(f"{PEERS} peers connected, CPU", connected * 1e3, 100, "ms"),
        Cost("  of which adding them", added * 1e3, NONE, "ms"),
        Cost("  bare NIXL, the same", bare * 1e3, NONE, "ms"),
        Cost(f"descriptors of {PAGES} pages", seconds * 1e6, 10, "us"),
        Cost(f"memory of {PAGES} descriptors", described, 1024, "B"),
        Cost("metadata of a worker", metadata, 1024, "B"),
        Cost(f"a slot of {SLOT_BYTES >> 10} KB: packing 4 KB pieces", packing * 1e6, NONE, "us"),
        Cost("  bare NIXL READ of it", reading * 1e6, NONE, "us"),
        Cost("  unpacking it", unpacking * 1e6, NONE, "us"),
    ]


def table(costs: Sequence[Cost]) -> str:
    width = max(len(cost.name) for cost in costs)
    return "\n".join(
        f"{cost.name:{width}}  {cost.figure:9.1f} {cost.unit:3}{_verdict(cost)}".rstrip()
        for cost in costs
    )


def _verdict(cost: Cost) -> str:
    if cost.bound == NONE:
        return ""
    return f" at most {cost.bound:.0f}  {'reached' if cost.reached else 'MISSED'}"


def _open(name: str) -> tuple[HostMemory, NixlPlane]:
    memory = HostMemory(PAGE_BYTES, 1)
    return memory, NixlPlane(PlaneSettings(memory.memory, f"{name}-{os.getpid()}"))


def _starts() -> tuple[float, int]:
    """Median wall seconds of opening a plane, the library loaded; bytes of metadata."""
    ucx.load()
    times: list[float] = []
    length = 0
    for number in range(STARTS):
        began = time.perf_counter()
        memory, plane = _open(f"start-{number}")
        times.append(time.perf_counter() - began)
        length = len(plane.metadata())
        plane.close()
        memory.close()
    return statistics.median(times), length


def _descriptors() -> tuple[float, float]:
    """Seconds to describe PAGES pages, and resident bytes each description adds."""
    memory = HostMemory(64, PAGES)
    agent = ucx.load().agent(f"descriptors-{os.getpid()}")
    lists = Lists(agent)
    lists.register(memory.memory.pages_address, memory.memory.total_bytes)
    row = strided(memory.memory.pages_address, 64, PAGES)
    lists.prepare(LOCAL, [row])
    before, times, kept = _resident(), [], []
    for _ in range(PREPARED):
        began = time.perf_counter()
        kept.append(lists.prepare(LOCAL, [row]))
        times.append(time.perf_counter() - began)
    grown = (_resident() - before) / PREPARED
    del kept
    lists.deregister()
    lists.close()
    del agent
    memory.close()
    return statistics.median(times), grown


def _connections() -> tuple[float, float, float]:
    """CPU seconds of adding PEERS peers; that and reading a page of each; the same without us."""
    child = subprocess.Popen(
        [sys.executable, "-m", "penstock.bench.planes.nixl", "--hold", str(PEERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin and child.stdout
    memory, plane = _open("connecting")
    try:
        peers = [bytes.fromhex(words) for words in json.loads(child.stdout.readline())]
        began = time.process_time()
        for number, metadata in enumerate(peers):
            plane.add_peer(f"peer-{number}", 1, metadata)
        added = time.process_time() - began
        for number in range(len(peers)):
            _read_one_page(plane, f"peer-{number}")
        connected = time.process_time() - began
        return added, connected, _bare_connections(memory, peers)
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
        plane.close()
        memory.close()


def _bare_connections(memory: HostMemory, peers: list[bytes]) -> float:
    words = [msgspec.msgpack.decode(peer, type=Metadata) for peer in peers]
    agent = ucx.load().agent(f"bare-{os.getpid()}")
    lists = Lists(agent)
    lists.register(memory.memory.pages_address, PAGE_BYTES)
    ours = lists.prepare(LOCAL, [strided(memory.memory.pages_address, PAGE_BYTES, 1)])
    first = numpy.zeros(1, dtype=numpy.int32)
    began = time.process_time()
    for peer in words:
        agent.add_remote_agent(peer.nixl)
        theirs = lists.prepare(peer.agent, [strided(peer.pages_address, PAGE_BYTES, 1)])
        transfer = agent.make_prepped_xfer("READ", ours, first, theirs, first)
        state = agent.transfer(transfer)
        while state != "DONE":
            time.sleep(POLL_SECONDS)
            state = agent.check_xfer_state(transfer)
        transfer.release()
    return time.process_time() - began


def _read_one_page(plane: NixlPlane, endpoint: str) -> None:
    plane.read(endpoint, [0], [0])
    until = time.monotonic() + READ_SECONDS
    while not (ended := plane.progress()):
        time.sleep(POLL_SECONDS)
        if time.monotonic() > until:
            raise RuntimeError(f"a peer's page did not come in {READ_SECONDS:.0f} s")
    if ended[0].failed:
        raise RuntimeError(f"reading a peer's page failed: {ended[0].failed}")


def _slot_steps() -> tuple[float, float, float]:
    """Median seconds of packing pieces into a slot, of reading it as one, and of unpacking it."""
    memory = HostMemory(PIECE_BYTES, POOL_PIECES)
    fill(memory)
    pages = page_rows(memory.memory)
    agents = [ucx.load().agent(f"slot-{side}-{os.getpid()}") for side in ("holder", "reader")]
    holder, reader = lists = [Lists(agent) for agent in agents]
    theirs, ours = (Slots(one) for one in lists)
    name = agents[1].add_remote_agent(agents[0].get_agent_metadata())
    far = reader.prepare(name.decode(), [strided(theirs.address, SLOT_BYTES, 1)])
    near = reader.prepare(LOCAL, [strided(ours.address, SLOT_BYTES, 1)])

    def read() -> None:
        transfer = agents[1].make_prepped_xfer("READ", near, ONE, far, ONE)
        state = agents[1].transfer(transfer)
        while state != "DONE":
            agents[0].get_new_notifs()
            state = agents[1].check_xfer_state(transfer)
        transfer.release()

    times = _slotfuls(pages, theirs, ours, read)
    for one in (near, far):
        one.release()
    for one in (holder, reader):
        one.deregister()
        one.close()
    del pages
    memory.close()
    packing, reading, unpacking = (statistics.median(step) for step in zip(*times, strict=True))
    return packing, reading, unpacking


def _slotfuls(
    pages: NDArray[numpy.void], theirs: Slots, ours: Slots, read: Callable[[], None]
) -> list[tuple[float, float, float]]:
    """Seconds of the three steps, [SLOTFULS]."""
    pieces = SLOT_BYTES // PIECE_BYTES
    times: list[tuple[float, float, float]] = []
    chance = numpy.random.default_rng(1)
    for _ in range(SLOTFULS):
        chosen = chance.choice(POOL_PIECES, pieces, replace=False).astype(numpy.int32)
        at = [time.perf_counter()]
        numpy.take(pages, chosen, out=theirs.rows(0, PIECE_BYTES, pieces), mode="clip")
        at.append(time.perf_counter())
        read()
        at.append(time.perf_counter())
        numpy.put(pages, chosen, ours.rows(0, PIECE_BYTES, pieces), mode="clip")
        at.append(time.perf_counter())
        times.append((at[1] - at[0], at[2] - at[1], at[3] - at[2]))
    return times


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _hold(count: int) -> int:
    ends = [_open(f"held-{number}") for number in range(count)]
    print(json.dumps([plane.metadata().hex() for _, plane in ends]), flush=True)
    os.set_blocking(0, False)
    while True:
        try:
            if not os.read(0, 1):
                os._exit(0)  # the measuring process is done; nothing here needs an orderly end
        except BlockingIOError:
            pass
        for _, plane in ends:
            plane.progress()
        time.sleep(0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.planes.nixl", description="what NIXL agents cost")
    parser.add_argument("--hold", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hold:
        return _hold(options.hold)
    costs = measure()
    print(table(costs))
    return 0 if all(cost.reached for cost in costs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
