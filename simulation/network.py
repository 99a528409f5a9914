"""The orderly network: words arrive at once and in order, unless a test says otherwise. Pure.

It implements `protocol/seams.Transport` for any number of processes of one simulation. `links.py`
makes it as bad as a seed wants.
"""

from collections import deque

from ..protocol import codec
from ..protocol.messages import Message, Peer
from ..protocol.seams import Arrival, Connected, Disconnected, Received

SCHEME = "sim://"


def endpoint_of(name: str) -> str:
    return f"{SCHEME}{name}"


class Network:
    """Delivers messages between mailboxes; links can be cut, processes can die."""

    def __init__(self) -> None:
        self.mailboxes: dict[str, Mailbox] = {}
        self.sent: list[tuple[str, str, Message]] = []
        self.incarnations = 0

    def mailbox(self, name: str) -> "Mailbox":
        """The mailbox of a process that starts now."""
        self.incarnations += 1
        mailbox = Mailbox(self, Peer(name, self.incarnations, endpoint_of(name)))
        self.mailboxes[mailbox.me.endpoint] = mailbox
        for other in list(self.mailboxes.values()):
            if mailbox.me.endpoint in other.wanted:
                other.arrived.append(Connected(mailbox.me.endpoint))
        return mailbox

    def kill(self, mailbox: "Mailbox") -> None:
        """The process is gone; those who had a link to it are told."""
        endpoint = mailbox.me.endpoint
        del self.mailboxes[endpoint]
        for other in self.mailboxes.values():
            if endpoint in other.spoken or endpoint in other.wanted:
                other.arrived.append(Disconnected(endpoint))
                other.spoken.discard(endpoint)


class Mailbox:
    """One process's end of all its links."""

    def __init__(self, network: Network, me: Peer):
        self.network = network
        self.me = me
        self.arrived: deque[Arrival] = deque()
        self.wanted: set[str] = set()
        self.spoken: set[str] = set()
        self.muted: set[type] = set()  # kinds of messages that get lost on the way out

    def connect(self, endpoint: str) -> None:
        self.wanted.add(endpoint)
        if endpoint in self.network.mailboxes:
            self.arrived.append(Connected(endpoint))

    def send(self, endpoint: str, message: Message) -> None:
        self.spoken.add(endpoint)
        self.network.sent.append((self.me.endpoint, endpoint, message))
        target = self.network.mailboxes.get(endpoint)
        if target is None:
            self.arrived.append(Disconnected(endpoint))
        elif type(message) not in self.muted:
            target.arrived.append(Received(self.me, codec.decode(codec.encode(message))))

    def receive(self) -> list[Arrival]:
        arrivals = list(self.arrived)
        self.arrived.clear()
        return arrivals

    def forget(self, endpoint: str) -> None:
        self.spoken.discard(endpoint)
        self.wanted.discard(endpoint)
