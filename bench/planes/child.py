"""A child process of `bench kv`: one end of one method, told what to do by lines of JSON.

Between commands it turns its own loop, so a worker's loop here sleeps and wakes as a worker's does.
"""

import json
import os
import select
from collections.abc import Iterator
from typing import Any, Protocol

Words = dict[str, Any]


class End(Protocol):
    """One end. `do` answers a command, or later by `say`."""

    def hello(self) -> Words: ...

    def do(self, words: Words) -> Words | None: ...

    def turn(self) -> float:
        """Everything that is due; returns the seconds it may sleep."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep until a command, something of its own, or the time."""
        ...


class Commands:
    """Lines from stdin, without ever waiting for one."""

    def __init__(self) -> None:
        self._pending = b""
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)

    def wait(self, seconds: float) -> None:
        self._poll.poll(None if seconds == float("inf") else seconds * 1000)

    def take(self) -> Iterator[Words]:
        if not self._poll.poll(0):
            return
        received = os.read(0, 1 << 20)
        if not received:
            os._exit(0)  # the bench is gone; nothing here is worth an orderly end
        *lines, self._pending = (self._pending + received).split(b"\n")
        yield from (json.loads(line) for line in lines)


def say(words: Words) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def drive(end: End, commands: Commands) -> None:
    """Until stdin ends."""
    say(end.hello())
    while True:
        seconds = end.turn()
        if seconds > 0:
            end.wait(seconds)
        for words in commands.take():
            answer = end.do(words)
            if answer is not None:
                say(answer)
