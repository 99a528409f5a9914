"""The network of a schedule: links that are slow, break one way, and (by level) do worse.

    level 0   what the Transport seam promises: order per link, delays, breaks that the sender is
              told of, partitions that hold words back
    level 1   and words that arrive twice, the second time late, even at a process started since
    level 2   and words that are lost in silence, or overtaken by later ones

Each link draws from a generator of its own, so that a seed gives the same schedule whatever order
a worker sends its words in.
"""

import heapq
import random
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import structs

from ..kvtransfer.columns import pack, packed
from ..protocol import codec
from ..protocol.messages import Message, Peer, Published, Renew
from ..protocol.seams import Arrival, Connected, Disconnected, Received
from .chance import Chance, Crashed
from .network import Mailbox, Network, endpoint_of

NOBODY = ""  # the source of words that no link carries any more


class Word(NamedTuple):
    """A message under way to one end; the smallest is delivered first."""

    due: int  # turn
    order: int
    source: str  # endpoint, or NOBODY: then no break of a link can lose it
    sender: Peer
    body: bytes


@dataclass(slots=True)
class Link:
    """One direction between two endpoints."""

    dice: random.Random
    last_due: int = 0  # nothing that keeps the order may arrive before this
    cut_until: int = 0  # turn
    silent: bool = False  # the cut loses words instead of holding them back


@dataclass(slots=True)
class Odds:
    """What happens to each word, drawn once per schedule."""

    slowest: int  # turns
    twice: float
    lost: float
    overtaken: float


class Forgery(NamedTuple):
    """A confused holder: one block of a lease is always said to be another page."""

    block: int
    page: int
    generation: int
    content: bytes
    digests: list[int]  # one in checked mode, else none

    def applied(self, said: Published) -> Published:
        at = self.block - said.first_block
        forged = pack([self.page], [self.generation], [self.content], self.digests)
        columns = packed(said)
        if not 0 <= at < len(said.pages) // len(forged[0]):
            return said
        changed = [
            column[: at * len(one)] + one + column[(at + 1) * len(one) :]
            for column, one in zip(columns, forged, strict=True)
        ]
        names = ("pages", "generations", "hashes", "digests")
        return structs.replace(said, **dict(zip(names, changed, strict=True)))


class LinkMailbox(Mailbox):
    """One process's end of its links. `wanted` links come back by themselves."""

    def __init__(self, links: "Links", me: Peer):
        super().__init__(links, me)
        self.links = links
        self.up: set[str] = set()
        self.back: list[tuple[int, str]] = []  # links that broke, and the turn they return in
        self.waiting: dict[str, list[bytes]] = {}  # words for wanted links that are not up
        self.due: list[Word] = []  # a heap
        self.fuse: int | None = None  # words until this process crashes
        self.renewed: dict[int, Peer] = {}  # leases of the renewals it received, and whose

    def ready(self, turn: int) -> bool:
        """Would `receive` bring anything?"""
        if self.arrived or (self.due and self.due[0].due <= turn):
            return True
        return bool(self.back) and any(when <= turn for when, _ in self.back)

    @property
    def idle(self) -> bool:
        return not (self.due or self.arrived or self.back)

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
        if self.links.ends.get(self.me.endpoint) is not self:
            return  # the dead are silent
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Crashed(self.me.name)
        self.links.post(self, endpoint, message)

    def receive(self) -> list[Arrival]:
        return self.links.collect(self)

    def forget(self, endpoint: str) -> None:
        self.wanted.discard(endpoint)


class Links(Network):
    """All links of one schedule."""

    def __init__(self, chance: Chance):
        super().__init__()
        self.chance = chance
        self.ends: dict[str, LinkMailbox] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.strays: dict[str, list[Word]] = {}
        self.forged: dict[int, Forgery] = {}  # by lease
        self._order = 0
        rng, level = chance.rng, chance.level
        self.odds = Odds(
            rng.choice([0, 2, 6, 40]),
            rng.choice([0.01, 0.05]) if level >= 1 else 0.0,
            rng.choice([0.002, 0.01, 0.03]) if level >= 2 else 0.0,
            rng.choice([0.01, 0.05]) if level >= 2 else 0.0,
        )

    @property
    def quiet(self) -> bool:
        return all(end.idle for end in self.ends.values())

    def link(self, source: str, destination: str) -> Link:
        key = (source, destination)
        link = self.links.get(key)
        if link is None:
            link = self.links[key] = Link(self.chance.dice(f"{source} {destination}"))
        return link

    def is_cut(self, one: str, other: str) -> bool:
        """Does a partition stand between two endpoints, in either direction?"""
        turn = self.chance.turn
        links = (self.links.get((one, other)), self.links.get((other, one)))
        return any(link is not None and link.cut_until > turn for link in links)

    # --- processes and links -------------------------------------------------------------------

    def mailbox(self, name: str) -> LinkMailbox:
        self.incarnations += 1
        endpoint = endpoint_of(name)
        end = LinkMailbox(self, Peer(name, self.incarnations, endpoint))
        end.due = self.strays.pop(endpoint, [])
        heapq.heapify(end.due)
        self.ends[endpoint] = end
        for other in self.ends.values():
            if endpoint in other.wanted:
                other.raise_link(endpoint)
        return end

    def kill(self, mailbox: Mailbox) -> None:
        """What it said still arrives; what was said to it does not, but for doubles."""
        end = self.ends.pop(mailbox.me.endpoint)
        self.strays[end.me.endpoint] = [word for word in end.due if word.source == NOBODY]
        for other in self.ends.values():
            other.drop_link(end.me.endpoint)

    def break_link(self, source: str, destination: str) -> bool:
        """One direction: the sender is told, what was under way is lost. False: there is none."""
        end = self.ends.get(source)
        if end is None or destination not in end.up:
            return False
        if target := self.ends.get(destination):
            target.due = [word for word in target.due if word.source != source]
            heapq.heapify(target.due)
        end.drop_link(destination)
        if destination in end.wanted and destination in self.ends:
            end.back.append((self.chance.turn + self.chance.rng.randint(1, 5), destination))
        return True

    def cut(self, source: str, destination: str, until: int) -> None:
        """Nothing gets through in this direction before that turn; nobody is told."""
        link = self.link(source, destination)
        link.cut_until = until
        link.silent = self.chance.level >= 2 and self.chance.rng.random() < 0.5

    def heal(self) -> None:
        """Every partition ends."""
        for link in self.links.values():
            link.cut_until = 0

    # --- words ---------------------------------------------------------------------------------

    def post(self, end: LinkMailbox, endpoint: str, message: Message) -> None:
        if isinstance(message, Published) and message.lease in self.forged:
            message = self.forged[message.lease].applied(message)
        body = codec.encode(message)
        self.chance.word(f"{end.me.name}/{end.me.incarnation}", endpoint, message, body)
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
        turn = self.chance.turn
        arrived: list[Arrival] = []
        while end.due and end.due[0].due <= turn:
            word = heapq.heappop(end.due)
            message = codec.decode(word.body)
            arrived.append(Received(word.sender, message))
            if isinstance(message, Renew):
                end.renewed.update(dict.fromkeys(message.leases, word.sender))
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
        target = self.ends.get(endpoint)
        if target is None:
            return
        chance, link = self.chance, self.link(sender.endpoint, endpoint)
        due = chance.turn
        if not chance.calm:
            dice, odds = link.dice, self.odds
            if odds.lost and dice.random() < odds.lost:
                chance.fault("word lost", endpoint)
                return
            if link.cut_until > due:
                if link.silent:
                    chance.fault("word lost in a partition", endpoint)
                    return
                due = link.cut_until
            due = max(due + dice.randint(0, odds.slowest), link.last_due)
            if odds.twice and dice.random() < odds.twice:
                chance.fault("word doubled", endpoint)
                late = due + dice.choice([0, 1, 5, 30, 300])
                self._push(target, late, NOBODY, sender, body)
            if odds.overtaken and dice.random() < odds.overtaken:
                chance.fault("word overtaken", endpoint)
                late = due + dice.choice([1, 3, 10, 100, 400])
                self._push(target, late, sender.endpoint, sender, body)
                return
        link.last_due = due = max(due, link.last_due)
        self._push(target, due, sender.endpoint, sender, body)

    def _push(self, target: LinkMailbox, due: int, source: str, sender: Peer, body: bytes) -> None:
        self._order += 1
        heapq.heappush(target.due, Word(due, self._order, source, sender, body))
