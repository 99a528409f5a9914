"""What the plane tests share: peers as real processes, a reader that is pumped, deadlines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import Completion, PlaneError, PlaneSettings
from support.plane_peer import pattern

PAGE_BYTES = 12 << 10  # no power of two: parts and pages never meet by luck
PAGE_COUNT = 2700  # 33 MB: not read in one call of progress
DEADLINE = 20.0
SCRIPT = Path(__file__).with_name("plane_peer.py")


def until(condition: Callable[[], bool], step: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        step()
        assert time.monotonic() < end, f"{what} did not happen in {DEADLINE} s"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class PeerProcess:
    """A holder in another process."""

    def __init__(self, plane: str, seed: int, keys: tuple[bytes, bytes] | None) -> None:
        arguments = [plane, str(PAGE_BYTES), str(PAGE_COUNT), str(seed)]
        arguments += [key.decode() for key in keys or ()]
        self.seed = seed
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def tell(self, do: str, **words: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        self.tell(do, **words)
        return self.answer()

    def metadata(self) -> bytes:
        return bytes.fromhex(self.ask("metadata")["metadata"])

    def expected(self, page: int, generation: int = 0) -> bytes:
        return pattern(self.seed, page, generation, PAGE_BYTES)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


class World:
    """A reader in this process, and the peers started for one test."""

    def __init__(self, plane: str, bytes_per_post: int = 256 << 10) -> None:
        self.choice = plane
        self.plane_name = plane.partition("-")[0]
        self.keys = zmq.curve_keypair() if plane.endswith("-curve") else None
        self.memory = HostMemory(PAGE_BYTES, PAGE_COUNT)
        name = f"reader-{os.getpid()}-{time.monotonic_ns()}"
        settings = PlaneSettings(
            self.memory.memory, name, bytes_per_post=bytes_per_post, curve=self.keys
        )
        self.plane = open_plane(self.plane_name, settings)
        self.completions: list[Completion] = []
        self.peers: list[PeerProcess] = []

    def peer(self, seed: int = 7) -> PeerProcess:
        peer = PeerProcess(self.plane_name, seed, self.keys)
        self.peers.append(peer)
        return peer

    def pump(self) -> None:
        """One turn of the loop. Yields the processor, since the peers share it."""
        self.completions += self.plane.progress()
        time.sleep(0)

    def of(self, ticket: int) -> list[Completion]:
        return [completion for completion in self.completions if completion.ticket == ticket]

    def settle(self, ticket: int) -> Completion:
        until(lambda: bool(self.of(ticket)), self.pump, f"the end of read {ticket}")
        return self.of(ticket)[0]

    def read(self, endpoint: str, remote: list[int], local: list[int]) -> Completion:
        return self.settle(self.plane.read(endpoint, remote, local))

    def read_or_refusal(self, endpoint: str, remote: list[int], local: list[int]) -> str:
        """How a read fails: at once or as a completion. "" where it does not."""
        try:
            return self.read(endpoint, remote, local).failed
        except PlaneError as error:
            return str(error)

    def local(self, page: int) -> bytes:
        return bytes(self.memory.page(page))

    def poison(self) -> None:
        self.memory.pages[:] = b"\xee" * len(self.memory.pages)

    def poisoned(self, pages: list[int]) -> bool:
        return all(self.local(page) == b"\xee" * PAGE_BYTES for page in pages)

    def close(self) -> None:
        for peer in self.peers:
            if peer.process.poll() is None:
                peer.signal(signal.SIGCONT)
            peer.kill()
        self.plane.close()
        self.memory.close()
