"""What the socket tests share: another process with a mailbox, and waiting for what arrives."""

import subprocess
import sys
from collections.abc import Callable

from penstock.protocol import sockets
from penstock.protocol.addresses import parse_endpoint
from penstock.protocol.seams import Arrival, Received
from penstock.protocol.sockets import Mailbox

PATIENCE = 20.0  # a deadlock's end, not a measurement

Open = Callable[..., Mailbox]


def until(mailbox: Mailbox, wanted: Callable[[Arrival], bool]) -> list[Arrival]:
    """Everything that arrives up to the first wanted arrival."""
    seen: list[Arrival] = []
    clock = sockets.SystemClock()
    give_up = clock.now() + PATIENCE
    while clock.now() < give_up:
        mailbox.wait(1.0)
        seen += mailbox.receive()
        if any(wanted(arrival) for arrival in seen):
            return seen
    raise AssertionError(f"not seen within {PATIENCE} s; seen: {seen[:5]}")


def is_message(message: object) -> Callable[[Arrival], bool]:
    return lambda arrival: isinstance(arrival, Received) and arrival.message == message


def is_kind(kind: type) -> Callable[[Arrival], bool]:
    return lambda arrival: isinstance(arrival, kind)


def words(arrivals: list[Arrival]) -> list[object]:
    return [arrival.message for arrival in arrivals if isinstance(arrival, Received)]


class Other:
    """Another process with a mailbox; it writes down the reasons of the Refused it receives."""

    PROGRAM = """
import sys
from penstock.protocol.messages import Refused
from penstock.protocol.seams import Received
from penstock.protocol.sockets import Mailbox
mailbox = Mailbox("other", port=int(sys.argv[1]))
print(mailbox.me.endpoint, flush=True)
if sys.argv[2] == "deaf":
    sys.stdin.read()
while True:
    mailbox.wait(60.0)
    for arrival in mailbox.receive():
        if isinstance(arrival, Received):
            if isinstance(arrival.message, Refused):
                print(arrival.message.reason, flush=True)
            mailbox.send(arrival.sender.endpoint, arrival.message)
"""

    def __init__(self, port: int = 0, mode: str = "listening") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(port), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @property
    def port(self) -> int:
        return parse_endpoint(self.endpoint)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


Start = Callable[..., Other]
