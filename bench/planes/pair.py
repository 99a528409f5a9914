"""Two processes that move pages one way or another, and the bench's half of both."""

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any

import zmq

from ...kvtransfer import ucx
from ...kvtransfer.open import CHOICES
from ..cluster import command
from .child import Words

TCP_ONLY = {"UCX_TLS": "tcp"}
# What UCX sets by itself; said because a variable of ours would be inherited otherwise.
UNTUNED = {"UCX_TCP_TX_SEG_SIZE": "8k", "UCX_TCP_RX_SEG_SIZE": "64k"}
UNTUNED |= {"UCX_TCP_SNDBUF": "auto", "UCX_TCP_RCVBUF": "auto"}
QUIET = {"NIXL_LOG_LEVEL": "WARN", "UCX_LOG_LEVEL": "error"}


class PairError(Exception):
    """A process of a pair ended, or did not move what it should have."""


@dataclass(frozen=True, slots=True)
class Method:
    """How pages are moved: by which plane or peer, in which environment."""

    name: str
    plane: str  # of ours, or a kind of bare
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.plane in CHOICES


METHODS = {
    method.name: method
    for method in (
        Method("memcpy", "memcpy"),
        Method("bare nixl", "bare nixl", ucx.DEFAULTS | QUIET),
        Method("bare nixl-tcp", "bare nixl", ucx.DEFAULTS | QUIET | TCP_ONLY),
        Method("bare nixl-tcp, untuned", "bare nixl", QUIET | UNTUNED | TCP_ONLY),
        Method("bare socket", "bare socket"),
        Method("nixl", "nixl"),
        Method("nixl-tcp", "nixl", TCP_ONLY),
        Method("shm", "shm"),
        Method("tcp", "tcp"),
        Method("zmq", "zmq"),
        Method("zmq-curve", "zmq"),
    )
    if method.plane not in ("shm", "tcp", "zmq", "nixl") or method.plane in CHOICES
}
KEY = [half.decode() for half in zmq.curve_keypair()]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one operation, and where its ends run."""

    page_bytes: int
    page_count: int  # in each pool
    pages: int  # of one operation
    slots: int = 16  # tokens per page
    spin: bool = False
    checked: bool = False
    hosts: tuple[str, str] = ("127.0.0.1", "127.0.0.1")  # holder, reader
    inside: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # command prefixes

    @property
    def bytes(self) -> int:
        return self.page_bytes * self.pages


@dataclass(frozen=True, slots=True)
class Sample:
    """One operation: seconds of wall and CPU time, of both ends together."""

    seconds: float
    cpu: float


@dataclass(frozen=True, slots=True)
class HandOver:
    """One hand-over; all times in seconds."""

    seconds: float  # first publication to the release received
    complete: float  # first publication to the reader's end of it
    exposed: float  # last publication to the reader's end
    cpu: float
    holder_gap: float
    reader_gap: float
    pages: int
    descriptors: int


class Child:
    """One process and its lines."""

    def __init__(self, spec: Words, environment: dict[str, str], inside: tuple[str, ...]) -> None:
        words = command("unused")[:-2]
        self.process = subprocess.Popen(
            [*inside, *words, f"{__package__}.end", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    def ask(self, do: str, **words: Any) -> Words:
        self.tell(do, **words)
        return self.answer()

    def tell(self, do: str, **words: Any) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PairError("a process of the pair ended; its error stands above") from None

    def answer(self) -> Words:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise PairError("a process of the pair ended; its error stands above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended before, and somebody was told
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pair:
    """A holder and a reader (memcpy: a reader alone). Both start at once; `meet` waits for them."""

    def __init__(self, method: Method, shape: Shape, **more: Any) -> None:
        self.method, self.shape = method, shape
        self.path = ""
        self._number = 0
        key = KEY if method.name == "zmq-curve" or shape.hosts[0] != "127.0.0.1" else []
        spec = {
            "plane": method.plane,
            "page_bytes": shape.page_bytes,
            "page_count": shape.page_count,
            "slots": shape.slots,
            "spin": shape.spin,
            "checked": shape.checked,
            "key": key,
            "curve": method.name == "zmq-curve",
            **more,
        }
        sides = ["reader"] if method.plane == "memcpy" else ["reader", "holder"]
        self._children: dict[str, Child] = {}
        for side in sides:
            at = 0 if side == "holder" else 1
            self._children[side] = Child(
                {**spec, "side": side, "host": shape.hosts[at]},
                method.environment,
                shape.inside[at],
            )
        self.reader = self._children["reader"]

    @property
    def holder(self) -> Child:
        return self._children["holder"]

    @property
    def pids(self) -> dict[str, int]:
        return {side: child.process.pid for side, child in self._children.items()}

    def meet(self) -> "Pair":
        hellos = {side: child.answer() for side, child in self._children.items()}
        self.path = hellos["reader"]["path"]
        if "holder" in hellos:
            self.holder.ask("meet", **hellos["reader"])
            self.reader.ask("meet", **hellos["holder"])
        return self

    def warm(self, whole: bool = True) -> None:
        """Every page once: connections are made and both pools are mapped."""
        for start in range(0, self.shape.page_count, self.shape.pages):
            self.read(0, start=start)
        if self.method.ours and whole:
            self.hand_over(0)

    def read(self, seed: int, **more: int) -> Sample:
        """The plane, or the peer, alone."""
        holder = self._children.get("holder")
        if holder:
            holder.ask("serve")
        answer = self.reader.ask("read", count=self.shape.pages, seed=seed, **more)
        cpu = holder.ask("rest")["cpu"] if holder else 0.0
        self.path = answer.get("path", self.path)
        return Sample(answer["seconds"], answer["cpu"] + cpu)

    def burst(self, handovers: int, flight: int, seed: int) -> Sample:
        """So many operations, `flight` of them at once, until the last has ended: through the
        whole protocol, or a peer's."""
        words = {"count": self.shape.pages, "handovers": handovers, "flight": flight}
        if not self.method.ours:
            holder = self._children.get("holder")
            if holder:
                holder.ask("serve")
            answer = self.reader.ask("burst", **words, seed=seed)
            cpu = holder.ask("rest")["cpu"] if holder else 0.0
            return Sample(answer["seconds"], answer["cpu"] + cpu)
        self.reader.ask("take", **words, seed=seed + 1)
        number, self._number = self._number + 1, self._number + handovers
        self.holder.tell("burst", **words, seed=seed, slots=self.shape.slots, number=number)
        held, read = self.holder.answer(), self.reader.answer()
        self.path = read["path"]
        return Sample(held["seconds"], held["cpu"] + read["cpu"])

    def hand_over(self, seed: int, parts: int = 1, period: float = 0.0) -> HandOver:
        """The whole protocol. Pages are reserved before the first publication, as they are where
        a prompt takes longer to compute than a message to travel."""
        count = self.shape.pages
        self._number += 1
        words = {"count": count, "slots": self.shape.slots, "number": self._number}
        self.reader.ask("expect", count=count, seed=seed + 1 if seed >= 0 else seed)
        self.holder.ask("open", **words, seed=seed)
        self.reader.answer()  # reserved
        self.holder.tell("publish", parts=parts, period=period)
        held, read = self.holder.answer(), self.reader.answer()
        self.path = read["path"]
        return HandOver(
            held["released"] - held["first"],
            read["completed"] - held["first"],
            read["completed"] - held["last"],
            held["cpu"] + read["cpu"],
            held["gap"],
            read["gap"],
            read["pages"],
            read["descriptors"],
        )

    def close(self) -> None:
        for child in self._children.values():
            child.close()
