"""The network of random schedules: links that keep order, are slow, and break one way.

It promises what `protocol/seams.Transport` promises and no more. Each link draws from a generator
of its own, so that a seed gives the same schedule whatever order a worker sends its words in.
"""

import random
from collections import deque
from dataclasses import dataclass, field

from penstock.protocol import codec
from penstock.protocol.messages import Message, Peer
from penstock.protocol.seams import Arrival, Connected, Disconnected, Received

from .fakes import Mailbox, Network

LOG_LINES = 400


@dataclass(slots=True)
class Chance:
    """What the parts of one schedule share: its dice, its time in turns, its log."""

    seed: int
    level: int
    rng: random.Random
    turn: int = 0
    calm: bool = True  # nothing bad happens while this holds
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))

    def note(self, line: str) -> None:
        self.log.append(f"{self.turn:5d} {line}")

    def happens(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability


@dataclass(frozen=True, slots=True)
class Word:
    """A message under way."""

    due: int
    sender: Peer
    body: bytes


class LinkMailbox(Mailbox):
    """One process's end of its links. `wanted` links come back by themselves."""

    def __init__(self, links: "Links", me: Peer):
        super().__init__(links, me)
        self.links = links
        self.up: set[str] = set()
        self.back: list[tuple[int, str]] = []  # links that broke, and the turn they return in
        self.waiting: dict[str, list[bytes]] = {}  # words for wanted links that are not up

    def connect(self, endpoint: str) -> None:
        self.wanted.add(endpoint)
        if endpoint in self.links.ends:
            self.raise_link(endpoint)

    def raise_link(self, endpoint: str) -> None:
        if endpoint not in self.up:
            self.up.add(endpoint)
            self.arrived.append(Connected(endpoint))

    def drop_link(self, endpoint: str) -> None:
        if endpoint in self.up:
            self.up.discard(endpoint)
            self.arrived.append(Disconnected(endpoint))

    def send(self, endpoint: str, message: Message) -> None:
        if self.links.ends.get(self.me.endpoint) is self:  # the dead are silent
            self.links.post(self, endpoint, message)

    def receive(self) -> list[Arrival]:
        return self.links.collect(self)

    def forget(self, endpoint: str) -> None:
        self.wanted.discard(endpoint)
        self.up.discard(endpoint)
        self.waiting.pop(endpoint, None)
        self.back = [one for one in self.back if one[1] != endpoint]
        self.links.under_way.pop((self.me.endpoint, endpoint), None)


class Links(Network):
    """One queue per sender and destination; from level 1 on some words come a second time."""

    def __init__(self, chance: Chance):
        super().__init__()
        self.chance = chance
        self.ends: dict[str, LinkMailbox] = {}
        self.under_way: dict[tuple[str, str], deque[Word]] = {}
        self.again: list[tuple[str, Word]] = []  # destination, and what it hears a second time
        self._slowest = chance.rng.choice([0, 2, 6, 40])  # turns
        self._twice = 0.03 if chance.level >= 1 else 0.0
        self._dice: dict[tuple[str, str], random.Random] = {}

    @property
    def quiet(self) -> bool:
        busy = any(end.arrived or end.back for end in self.ends.values())
        return not (self.under_way or self.again or busy)

    def mailbox(self, name: str) -> LinkMailbox:
        self.incarnations += 1
        end = LinkMailbox(self, Peer(name, self.incarnations, f"fake://{name}"))
        self.ends[end.me.endpoint] = end
        for other in self.ends.values():
            if end.me.endpoint in other.wanted:
                other.raise_link(end.me.endpoint)
        return end

    def kill(self, mailbox: Mailbox) -> None:
        """What it said still arrives; what was said to it does not."""
        endpoint = mailbox.me.endpoint
        del self.ends[endpoint]
        self.under_way = {key: words for key, words in self.under_way.items() if key[1] != endpoint}
        for other in self.ends.values():
            other.drop_link(endpoint)

    def break_link(self, source: str, destination: str) -> None:
        """One direction: the sender is told, what was under way is lost."""
        end = self.ends.get(source)
        if end is None or destination not in end.up:
            return
        self.chance.note(f"BREAK {source} -> {destination}")
        self.under_way.pop((source, destination), None)
        end.drop_link(destination)
        if destination in end.wanted and destination in self.ends:
            end.back.append((self.chance.turn + self.chance.rng.randint(1, 5), destination))

    def post(self, end: LinkMailbox, endpoint: str, message: Message) -> None:
        self.chance.note(f"{end.me.name}/{end.me.incarnation} -> {endpoint} {str(message)[:230]}")
        body = codec.encode(message)
        if endpoint not in self.ends:
            end.up.discard(endpoint)
            if endpoint not in end.wanted:
                end.arrived.append(Disconnected(endpoint))
        elif endpoint in end.wanted and endpoint not in end.up:
            end.waiting.setdefault(endpoint, []).append(body)
        else:
            end.up.add(endpoint)
            self._queue(end.me, endpoint, body)

    def collect(self, end: LinkMailbox) -> list[Arrival]:
        """Everything that is due at this end; words that waited go out where a link came up."""
        turn, me = self.chance.turn, end.me.endpoint
        arrived: list[Arrival] = []
        for key, words in [one for one in self.under_way.items() if one[0][1] == me]:
            while words and words[0].due <= turn:
                word = words.popleft()
                arrived.append(Received(word.sender, codec.decode(word.body)))
            if not words:
                del self.under_way[key]
        for item in [one for one in self.again if one[0] == me and one[1].due <= turn]:
            self.again.remove(item)
            arrived.append(Received(item[1].sender, codec.decode(item[1].body)))
        for item in [one for one in end.back if one[0] <= turn]:
            end.back.remove(item)
            if item[1] in self.ends and item[1] in end.wanted:
                end.raise_link(item[1])
        events = list(end.arrived)
        end.arrived.clear()
        for event in events:
            if isinstance(event, Connected):
                for body in end.waiting.pop(event.endpoint, []):
                    self._queue(end.me, event.endpoint, body)
        return arrived + events

    def _queue(self, sender: Peer, endpoint: str, body: bytes) -> None:
        key, due = (sender.endpoint, endpoint), self.chance.turn
        if not self.chance.calm:
            dice = self._dice.setdefault(key, random.Random(f"{self.chance.seed} {key}"))
            due += dice.randint(0, self._slowest)
            if dice.random() < self._twice:
                late = due + dice.choice([0, 1, 5, 30, 300])
                self.again.append((endpoint, Word(late, sender, body)))
        self.under_way.setdefault(key, deque()).append(Word(due, sender, body))
