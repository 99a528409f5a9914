"""Between two mailboxes: a proxy that loses, doubles, delays and so reorders whole messages.

A TCP proxy could not: ZeroMQ's stream breaks where bytes are missing. This one speaks ZeroMQ on
both sides. A process listens at one loopback address and is told to its peers under another, where
the proxy listens at the same port and passes on what it lets through.
"""

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import zmq

from ...protocol.addresses import format_endpoint, parse_endpoint

TOLD = "127.0.0.2"  # where peers believe everybody to be
SHORTEST_WAIT, LONGEST_WAIT = 1, 200  # milliseconds


@dataclass(frozen=True, slots=True)
class Weather:
    """Shares of all messages (0 to 1), and the longest delay in seconds."""

    lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    longest_delay: float = 0.0


class Proxy:
    """Stands before every endpoint it is given, on a thread of its own, until closed."""

    def __init__(self, endpoints: Iterable[str], weather: Weather, seed: int) -> None:
        """`endpoints` as they are told: tcp://127.0.0.2:PORT; each is passed on to 127.0.0.1."""
        self.counts: Counter[str] = Counter()
        self.weather = weather  # may change while it runs
        self._random = random.Random(seed)
        self._context = zmq.Context()
        self._ways: dict[zmq.Socket, zmq.Socket] = {}  # where it comes in: where it goes out
        self._later: list[tuple[float, int, zmq.Socket, list[bytes]]] = []
        self._number = 0
        self._closing = threading.Event()
        for endpoint in endpoints:
            _, port = parse_endpoint(endpoint)
            inbox = self._context.socket(zmq.ROUTER)
            inbox.bind(format_endpoint(TOLD, port))
            onward = self._context.socket(zmq.DEALER)
            onward.connect(format_endpoint("127.0.0.1", port))
            self._ways[inbox] = onward
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        for inbox in self._ways:
            poller.register(inbox, zmq.POLLIN)
        while not self._closing.is_set():
            for inbox, _ in poller.poll(self._milliseconds()):
                self._take(self._ways[inbox], inbox.recv_multipart()[1:])
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, _, onward, frames = heapq.heappop(self._later)
                onward.send_multipart(frames)

    def _milliseconds(self) -> int:
        if not self._later:
            return LONGEST_WAIT
        until = round((self._later[0][0] - time.monotonic()) * 1e3)
        return min(max(SHORTEST_WAIT, until), LONGEST_WAIT)

    def _take(self, onward: zmq.Socket, frames: list[bytes]) -> None:
        weather, chance = self.weather, self._random.random
        self.counts["seen"] += 1
        if chance() < weather.lost:
            self.counts["lost"] += 1
            return
        copies = 2 if chance() < weather.doubled else 1
        self.counts["doubled"] += copies - 1
        for _ in range(copies):
            if chance() < weather.delayed:
                self.counts["delayed"] += 1
                self._number += 1
                at = time.monotonic() + chance() * weather.longest_delay
                heapq.heappush(self._later, (at, self._number, onward, frames))
            else:
                onward.send_multipart(frames)
