"""What the planes are measured against: the same pages moved by a few lines without us.

memcpy copies within one process. The bare socket sends pages from where they lie and scatters them
where they belong. Bare NIXL reads prepared lists as its documentation shows, with the holder
polling. None of them knows a generation, a lease or a failure.
"""

import os
import select
import socket
import struct
import time
from typing import Any

import numpy

from ...kvtransfer.host_memory import HostMemory
from .child import Commands, Words
from .pages import chosen, fill, touch, verify

COUNT = struct.Struct("<I")
VECTORS = 512  # buffers per call; the system takes 1024
SPINNING = 0.0
ASLEEP = float("inf")


class Bare:
    """Both ends' memory and commands; a method adds how bytes move."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        self.side = spec["side"]
        self.memory = HostMemory(spec["page_bytes"], spec["page_count"])
        (fill if self.side == "holder" else touch)(self.memory)
        self._commands = commands
        self._serving = False
        self._cpu = 0.0

    def hello(self) -> Words:
        return {"path": "bare"}

    def meet(self, words: Words) -> None:
        """What the other end said."""

    def move(self, remote: list[int], local: list[int]) -> None:
        raise NotImplementedError

    def progress(self) -> float:
        """The holder's part while it serves; returns the seconds it may sleep."""
        return ASLEEP

    def turn(self) -> float:
        return self.progress() if self._serving else ASLEEP

    def wait(self, seconds: float) -> None:
        self._commands.wait(seconds)

    def do(self, words: Words) -> Words | None:
        match words["do"]:
            case "meet":
                self.meet(words)
                return {}
            case "serve":
                self._serving, self._cpu = True, time.process_time()
                return {}
            case "rest":
                self._serving = False
                return {"cpu": time.process_time() - self._cpu}
            case "read":
                return self._read(words)
            case "burst":
                return self._burst(words)
        raise ValueError(f"no command {words['do']!r}")

    def _read(self, words: Words) -> Words:
        remote, local = chosen(self.memory.memory.page_count, words)
        cpu, began = time.process_time(), time.monotonic()
        self.move(remote, local)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        verify(self.memory, local, remote)
        return {"seconds": seconds, "cpu": cpu}

    def _burst(self, words: Words) -> Words:
        """As many reads as there are hand-overs, on pages that no two of them share."""
        count, total = words["count"], words["count"] * words["handovers"]
        remote, local = chosen(self.memory.memory.page_count, {**words, "count": total})
        parts = [slice(at, at + count) for at in range(0, total, count)]
        cpu, began = time.process_time(), time.monotonic()
        self.move_all([(remote[part], local[part]) for part in parts], words["flight"])
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        verify(self.memory, local, remote)
        return {"seconds": seconds, "cpu": cpu}

    def move_all(self, moves: list[tuple[list[int], list[int]]], flight: int) -> None:
        """All of them; `flight` at once, where a method can."""
        for remote, local in moves:
            self.move(remote, local)


class Memcpy(Bare):
    """One process, two memories, one copy per page."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        super().__init__(spec, commands)
        self._source = HostMemory(spec["page_bytes"], spec["page_count"])
        fill(self._source)

    def move(self, remote: list[int], local: list[int]) -> None:
        size = self.memory.memory.page_bytes
        ours, theirs = self.memory.pages, self._source.pages
        for a, b in zip(local, remote, strict=True):
            ours[a * size : a * size + size] = theirs[b * size : b * size + size]


class Socket(Bare):
    """One TCP connection; the holder sleeps until it is asked, and blocks while it sends."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        super().__init__(spec, commands)
        self._connection: socket.socket | None = None
        if self.side == "holder":
            self._listening = socket.create_server((spec["host"], 0))

    def hello(self) -> Words:
        if self.side == "reader":
            return {"path": "bare"}
        host, port = self._listening.getsockname()[:2]
        return {"path": "bare", "host": host, "port": port}

    def meet(self, words: Words) -> None:
        if self.side == "holder":
            return  # it accepts when it is asked
        self._connection = socket.create_connection((words["host"], words["port"]))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wait(self, seconds: float) -> None:
        waited = self._connection or self._listening if self.side == "holder" else None
        select.select([0, *([waited] if waited else [])], [], [])

    def progress(self) -> float:
        if self._connection is None:
            if not select.select([self._listening], [], [], 0)[0]:
                return ASLEEP
            self._connection = self._listening.accept()[0]
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if select.select([self._connection], [], [], 0)[0]:
            head = self._receive(COUNT.size)
            count = COUNT.unpack(head)[0] if head else 0
            asked = numpy.frombuffer(self._receive(4 * count), dtype=numpy.int32)
            self._send([self.memory.page(page) for page in asked.tolist()])
        return ASLEEP

    def move(self, remote: list[int], local: list[int]) -> None:
        assert self._connection
        asked = numpy.array(remote, dtype=numpy.int32).tobytes()
        self._connection.sendall(COUNT.pack(len(remote)) + asked)
        self._scatter([self.memory.page(page) for page in local])

    def _receive(self, length: int) -> bytes:
        assert self._connection
        return self._connection.recv(length, socket.MSG_WAITALL) if length else b""

    def _send(self, views: list[memoryview]) -> None:
        assert self._connection
        _each(views, self._connection.sendmsg)

    def _scatter(self, views: list[memoryview]) -> None:
        assert self._connection
        receive = self._connection.recvmsg_into
        _each(views, lambda part: receive(part, 0, socket.MSG_WAITALL)[0])


def _each(views: list[memoryview], call: Any) -> None:
    """All the views through a call that takes some of them and says how many bytes it did."""
    at, skip = 0, 0
    while at < len(views):
        part = views[at : at + VECTORS]
        part[0] = part[0][skip:]
        moved = call(part) + skip
        if moved == skip:
            raise ConnectionError("the other end is gone")
        while at < len(views) and moved >= len(views[at]):
            moved -= len(views[at])
            at += 1
        skip = moved


class BareNixl(Bare):
    """One agent without progress thread, and one prepared list per side."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        super().__init__(spec, commands)
        # Straight from the library: what we set of its environment comes from the bench, or not.
        from nixl import _api  # pyright: ignore[reportAttributeAccessIssue]

        self._name = f"bare-{self.side}-{os.getpid()}"
        config = _api.nixl_agent_config(enable_prog_thread=False, backends=[])
        self.agent: Any = _api.nixl_agent(self._name, config)
        self.agent.create_backend("UCX", {})
        at = self.memory.memory
        region = numpy.array([[at.pages_address, at.total_bytes, 0]], numpy.uint64)
        self._registered = self.agent.register_memory(region, "DRAM")

    def hello(self) -> Words:
        metadata = self.agent.get_agent_metadata().hex()
        address = self.memory.memory.pages_address
        return {"path": "bare", "agent": self._name, "metadata": metadata, "address": address}

    def _prepare(self, agent: str, address: int) -> Any:
        at = self.memory.memory
        row = numpy.array([[address, at.page_bytes, 0, at.page_bytes, at.page_count]], numpy.uint64)
        return self.agent.prep_xfer_dlist(agent, row, "DRAM")

    def meet(self, words: Words) -> None:
        self.agent.add_remote_agent(bytes.fromhex(words["metadata"]))
        self._ours = self._prepare("NIXL_INIT_AGENT", self.memory.memory.pages_address)
        self._theirs = self._prepare(words["agent"], words["address"])

    def progress(self) -> float:
        self.agent.get_new_notifs()
        time.sleep(0)
        return SPINNING

    def move(self, remote: list[int], local: list[int], word: bytes = b"") -> None:
        transfer = self._made(remote, local, word)
        state = self.agent.transfer(transfer)
        while state != "DONE":
            state = self.agent.check_xfer_state(transfer)
        transfer.release()

    def move_all(self, moves: list[tuple[list[int], list[int]]], flight: int) -> None:
        left, posted = moves[::-1], []
        while left or posted:
            while left and len(posted) < flight:
                transfer = self._made(*left.pop(), b"")
                if self.agent.transfer(transfer) == "DONE":
                    transfer.release()
                else:
                    posted.append(transfer)
            for transfer in [one for one in posted if self.agent.check_xfer_state(one) == "DONE"]:
                posted.remove(transfer)
                transfer.release()

    def _made(self, remote: list[int], local: list[int], word: bytes) -> Any:
        ours, theirs = numpy.array(local, numpy.int32), numpy.array(remote, numpy.int32)
        return self.agent.make_prepped_xfer(
            "READ", self._ours, ours, self._theirs, theirs, notif_msg=word
        )


KINDS: dict[str, type[Bare]] = {"memcpy": Memcpy, "bare socket": Socket, "bare nixl": BareNixl}
