"""The shortest sequence that does what a hand-over of one page does, without us.

A word goes to the reader, the reader moves one page, a word comes back: over the same kind of
ZeroMQ sockets as a Mailbox's (`zmq`), or all of it as NIXL's own notifications (`nixl`). The words
are as long as the messages they stand for. Both ends spin, or both sleep until a word comes.
"""

import os
import time
from typing import Any

import zmq

from ...protocol.link import configure
from .bare import ASLEEP, SPINNING, BareNixl
from .child import Commands, Words

PUBLISHED, RELEASED = b"p" * 120, b"r" * 12


class Sequence:
    """`moves`: "nixl" or "nothing" between the words; `words`: "zmq" or "nixl"."""

    def __init__(self, spec: Words, commands: Commands) -> None:
        self._commands = commands
        self._holder = spec["side"] == "holder"
        self._spin, self._moves, self._speech = spec["spin"], spec["moves"], spec["words"]
        uses_nixl = "nixl" in (self._moves, self._speech)
        self._nixl = BareNixl(spec, commands) if uses_nixl else None
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.ROUTER)
        self._outbox = self._context.socket(zmq.DEALER)
        for one in (self._inbox, self._outbox):
            configure(one)
        self._port = self._inbox.bind_to_random_port("tcp://127.0.0.1")
        self._other = ""
        self._answering = False

    def hello(self) -> Words:
        nixl = self._nixl.hello() if self._nixl else {}
        return {**nixl, "path": "bare", "port": self._port}

    def wait(self, seconds: float) -> None:
        zmq.select([0, self._inbox], [], [], None if seconds == ASLEEP else seconds)

    def turn(self) -> float:
        if not self._answering:
            return ASLEEP
        if self._spin:
            os.sched_yield()  # ZeroMQ's threads need a core too
        if self._heard():
            self._move()
            self._speak(RELEASED)
        return SPINNING if self._spin else ASLEEP

    def do(self, words: Words) -> Words | None:
        match words["do"]:
            case "meet":
                self._outbox.connect(f"tcp://127.0.0.1:{words['port']}")
                if self._nixl:
                    self._other = words["agent"]
                    self._nixl.meet(words)
                return {}
            case "answer":
                self._answering = not self._answering
                return {}
            case "ask":
                return {"seconds": [self._round() for _ in range(words["times"])]}
        raise ValueError(f"no command {words['do']!r}")

    def _round(self) -> float:
        began = time.monotonic()
        self._speak(PUBLISHED)
        while not self._heard():
            if self._spin:
                os.sched_yield()
            else:  # NIXL completes some reads only while their holder polls
                zmq.select([self._inbox], [], [], None if self._moves == "nothing" else 0.0005)
        return time.monotonic() - began

    def _speak(self, word: bytes) -> None:
        if self._speech == "zmq":
            self._outbox.send_multipart([b"header", word])
        elif self._holder:  # the reader's word goes with its read
            assert self._nixl
            self._nixl.agent.send_notif(self._other, word)

    def _heard(self) -> bool:
        notified: Any = self._nixl.agent.get_new_notifs() if self._nixl else {}
        if self._speech == "nixl":
            return bool(notified)
        try:
            self._inbox.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _move(self) -> None:
        if self._nixl and self._moves == "nixl":
            self._nixl.move([0], [0], RELEASED if self._speech == "nixl" else b"")
