"""The two ends of a hand-over as workers hold them, with an engine that computes nothing.

Mailbox, page pool, Holder or Reader, and plane are the production ones, and their loops sleep and
wake by the workers' own rules. The holder's pages are sealed under the prompt's block hashes, which
the reader compares; bytes are verified after each hand-over, outside the time.
"""

import os
import select
import time
from typing import Any

from ...decode.worker import PULLING_POLL_SECONDS
from ...kvtransfer.digests import digests_for
from ...kvtransfer.holder import Holder, Lease
from ...kvtransfer.host_memory import HostMemory
from ...kvtransfer.incoming import Allowance, Incoming, ReaderSettings
from ...kvtransfer.moves import Event, ReadState
from ...kvtransfer.open import open_plane
from ...kvtransfer.plane import PlaneSettings
from ...kvtransfer.reader import Reader
from ...kvtransfer.targets import page_indices, runs
from ...protocol import blockhash
from ...protocol.clusterkey import ClusterKey
from ...protocol.loop import Gaps
from ...protocol.messages import REVISION, Compatibility, FirstTokens, Prefill, Sampling
from ...protocol.pages import PagePool
from ...protocol.seams import Arrival, Disconnected, Received
from ...protocol.sockets import Mailbox
from .child import Commands, Words, say
from .pages import chosen, fill, scattered, touch, verify

MODEL, NUMERIC_CLASS = "bench", "bench"
LEASE_SECONDS = 10.0
READ_SECONDS = 120.0  # a benchmark waits for slow planes rather than to give them up
FOREVER = float("inf")


class Worker:
    """What both ends share: memory, pool, mailbox, plane, and their loop's longest gap."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        self.spec, self._commands = spec, commands
        self.memory = HostMemory(spec["page_bytes"], spec["page_count"])
        self.pool = PagePool(self.memory.generations)
        key = ClusterKey(*spec["key"]) if spec["key"] else None
        name = f"{spec['side']}-{os.getpid()}"
        self.mailbox = Mailbox(name, spec["host"], key=key if spec["host"] != "127.0.0.1" else None)
        settings = PlaneSettings(
            self.memory.memory,
            name,
            spec["host"],
            curve=key.curve if key and spec["curve"] else None,
        )
        self.plane = open_plane(spec["plane"], settings)
        self.compatibility = Compatibility(
            revision=REVISION,
            model=MODEL,
            numeric_class=NUMERIC_CLASS,
            dtype="bytes",
            layout="bench",
            page_bytes=spec["page_bytes"],
            plane=self.plane.name,
            checked=spec["checked"],
        )
        self._spin = spec["spin"]
        self._cpu = 0.0
        self.gaps = Gaps()

    def hello(self) -> Words:
        me = self.mailbox.me
        return {
            "endpoint": me.endpoint,
            "incarnation": me.incarnation,
            "metadata": self.plane.metadata().hex(),
            "path": self.plane.path,
        }

    def wait(self, seconds: float) -> None:
        if self._spin:
            os.sched_yield()  # ZeroMQ's threads need a core too
        else:
            wake = self.plane.wake
            self.mailbox.wait(min(seconds, 3600.0), (0,) if wake < 0 else (0, wake))

    def start_clock(self) -> None:
        self.gaps.take()
        self._cpu = time.process_time()

    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def arrivals(self, now: float) -> None:
        for arrival in self.mailbox.receive():
            self.take(arrival, now)

    def take(self, arrival: Arrival, now: float) -> None:
        raise NotImplementedError

    def leave_free(self, count: int, seed: int) -> list[int]:
        """A pool in which exactly these scattered pages can be taken, and nothing is cached.

        `seed` < 0: a pool that was never used, where pages are granted in order.
        """
        total = self.pool.page_count
        for holder in [("ballast", page) for page in range(total)]:
            self.pool.release(holder)
        self.pool.take("all", total)
        self.pool.release("all")
        if seed < 0:
            return list(range(count))
        free = scattered(total, count, seed)
        for page in range(total):
            self.pool.take(("ballast", page), 1)
        for page in free:
            self.pool.release(("ballast", page))
        return free


def prompt(words: Words, reader: str, router: Any) -> Prefill:
    """A prompt no other hand-over has, of as many full blocks as pages are wanted."""
    tokens = [words["number"]] * (words["count"] * words["slots"])
    sampling = Sampling(seed=1, max_tokens=2)
    number = words["number"]
    return Prefill(
        number, 1, router, "bench", "", tokens, len(tokens), [0], sampling, decode_at=reader
    )


class HolderEnd(Worker):
    """Opens a lease, publishes in parts, and tells when the reader released it."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        super().__init__(spec, commands)
        fill(self.memory)
        self.holder = Holder(
            self.pool,
            self.mailbox,
            self.plane,
            self.compatibility,
            LEASE_SECONDS,
            digests=digests_for(self.compatibility, self.memory.memory),
        )
        self._reader = ""
        self._serving = False
        self._lease: Lease | None = None
        self._pages: list[int] = []
        self._parts: list[tuple[float, int]] = []  # due, up to which page
        self._published = [0.0, 0.0]  # first and last

    def turn(self) -> float:
        began = time.monotonic()
        self.arrivals(began)
        self.plane.progress()
        if self._parts:
            self._publish_due(began)
        due = self.holder.turn(began)
        if self.holder.ended:
            self._ended()
        if self.holder.has_published or self._serving:
            due = min(due, began + self.plane.holder_poll_seconds)
        if self._parts:
            due = min(due, self._parts[0][0])
        now = time.monotonic()
        self.gaps.note(now - began)
        if self._serving and self.plane.holder_poll_seconds < FOREVER and self.plane.wake < 0:
            time.sleep(0)
            return 0.0  # a plane alone is measured beside bare NIXL, whose holder polls too
        return max(0.0, due - now)

    def take(self, arrival: Arrival, now: float) -> None:
        match arrival:
            case Received(sender, message):
                self.holder.take(sender, message, now)  # type: ignore[arg-type]
            case Disconnected(endpoint):
                self.holder.reader_lost(endpoint)

    def do(self, words: Words) -> Words | None:
        match words["do"]:
            case "meet":
                self._reader = words["endpoint"]
                return {}
            case "serve":
                self._serving = True
                self.start_clock()
                return {}
            case "rest":
                self._serving = False
                return {"cpu": self.cpu()}
            case "open":
                self._open(words)
                return {}
            case "publish":
                return self._publish(words)
        raise ValueError(f"no command {words['do']!r}")

    def _open(self, words: Words) -> None:
        self.leave_free(words["count"], words["seed"])
        prefill = prompt(words, self._reader, self.mailbox.me)
        root = blockhash.root(MODEL, NUMERIC_CLASS, "")
        hashes = blockhash.extend(root, prefill.token_ids, words["slots"])
        pages = self.pool.take("prompt", words["count"])
        assert pages is not None
        self.pool.seal_blocks(pages, hashes)
        self._pages = pages
        self._lease = self.holder.open(prefill, 0, time.monotonic())

    def _publish(self, words: Words) -> None:
        """In so many parts, one each `period` seconds; the first at once where there is one."""
        count, parts = len(self._pages), words["parts"]
        period = words["period"]
        now = time.monotonic()
        self._parts = [
            (now + period * (part + 1), count * (part + 1) // parts) for part in range(parts)
        ]
        if parts == 1:
            self._parts = [(now, count)]
        self._published = [0.0, 0.0]
        self.start_clock()

    def _publish_due(self, now: float) -> None:
        while self._parts and self._parts[0][0] <= now:
            assert self._lease
            _, end = self._parts.pop(0)
            first = None if self._parts else FirstTokens([0], [1], [""], [None])
            self._published[1] = time.monotonic()
            self._published[0] = self._published[0] or self._published[1]
            self.holder.publish(self._lease, self._pages[len(self._lease.pages) : end], first)

    def _ended(self) -> None:
        now = time.monotonic()
        lease = self.holder.ended.pop()
        if lease.ended_by is not Event.RELEASED:
            raise RuntimeError(f"the lease ended: {lease.ended_by}")
        self.pool.release("prompt")
        first, last = self._published
        say(
            {
                "first": first,
                "last": last,
                "released": now,
                "cpu": self.cpu(),
                "gap": self.gaps.take(),
            }
        )


class ReaderEnd(Worker):
    """Admits, reads and checks; tells when pages are reserved and when all of them came."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        super().__init__(spec, commands)
        touch(self.memory)
        settings = ReaderSettings(
            spec["slots"],
            spec["page_bytes"],
            renew_every=LEASE_SECONDS / 4,
            read_seconds=READ_SECONDS,
        )
        self.reader = Reader(
            self.pool,
            self.mailbox,
            self.plane,
            self.compatibility,
            settings,
            digests=digests_for(self.compatibility, self.memory.memory),
        )
        self._holder: Words = {}
        self._waiting = False  # for a hand-over whose pages are not reserved yet

    def turn(self) -> float:
        began = time.monotonic()
        self.arrivals(began)
        due = self.reader.turn(Allowance(8), began)
        now = time.monotonic()
        if self.reader.complete:
            self._complete(self.reader.complete.pop(), now)
        if self.reader.lost:
            raise RuntimeError(f"the hand-over was lost: {self.reader.lost[0].reason}")
        self.gaps.note(now - began)
        if self._waiting:
            self._look_reserved()
        if self.reader.open_reads:
            due = began + PULLING_POLL_SECONDS
        return max(0.0, due - now)

    def take(self, arrival: Arrival, now: float) -> None:
        match arrival:
            case Received(sender, message):
                self.reader.take(sender, message, now)  # type: ignore[arg-type]
            case Disconnected(endpoint):
                self.reader.holder_lost(endpoint)

    def do(self, words: Words) -> Words | None:
        match words["do"]:
            case "meet":
                self._holder = words
                return {}
            case "read":
                return self._read(words)
            case "expect":
                self.leave_free(words["count"], words["seed"])
                self._waiting = True
                return {}
        raise ValueError(f"no command {words['do']!r}")

    def _look_reserved(self) -> None:
        states = [one.state for one in self.reader.incoming.values()]
        if states == [ReadState.PULLING]:
            self._waiting = False
            self.start_clock()
            say({"reserved": time.monotonic()})

    def _read(self, words: Words) -> Words:
        """The plane alone: one read, polled without pause."""
        endpoint = self._holder["endpoint"]
        metadata = bytes.fromhex(self._holder["metadata"])
        self.plane.add_peer(endpoint, self._holder["incarnation"], metadata)
        remote, local = chosen(self.pool.page_count, words)
        self.start_clock()
        began = time.monotonic()
        self.plane.read(endpoint, remote, local)
        while not (ended := self.plane.progress()):
            if self.plane.wake >= 0:
                select.select([self.plane.wake], [], [], 0.001)
            elif self.plane.name == "zmq":
                time.sleep(0)  # on two cores its threads and its holder may need this one
        seconds, cpu = time.monotonic() - began, self.cpu()
        if ended[0].failed:
            raise RuntimeError(ended[0].failed)
        verify(self.memory, local, remote)
        return {"seconds": seconds, "cpu": cpu, "path": self.plane.path}

    def _complete(self, incoming: Incoming, now: float) -> None:
        cpu, gap = self.cpu(), self.gaps.take()
        size = self.memory.memory.page_count
        remote = incoming.said.pages(0, incoming.total).tolist()
        stretches = runs(
            page_indices(remote, size, "remote"),
            page_indices(incoming.pages, size, "local"),
        )
        verify(self.memory, incoming.pages, remote)
        self.pool.release(incoming.pool_holder)
        say(
            {
                "completed": now,
                "cpu": cpu,
                "gap": gap,
                "pages": len(incoming.pages),
                "descriptors": len(stretches),
                "path": self.plane.path,
            }
        )
