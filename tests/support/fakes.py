"""Seams for tests: a network of mailboxes, a plane over dictionaries, an engine of hashes.

The fake engine keeps in every page the tokens whose K and V would be there, and checks before each
draw that the pages hold exactly the sequence's prefix: a wrong, stale or missing block is seen.
"""

import hashlib
from collections import deque

from penstock.engine.step import Drawn, Step, StepResult
from penstock.kvtransfer.plane import Completion, PlaneError
from penstock.protocol import codec
from penstock.protocol.messages import Message, Peer, TokenLogprobs
from penstock.protocol.seams import Arrival, Connected, Disconnected, Received

SLOTS = 4
VOCABULARY = 1000


class Network:
    """Delivers messages between mailboxes; links can be cut, processes can die."""

    def __init__(self):
        self.mailboxes: dict[str, Mailbox] = {}
        self.sent: list[tuple[str, str, Message]] = []
        self.incarnations = 0

    def mailbox(self, name: str) -> "Mailbox":
        self.incarnations += 1
        mailbox = Mailbox(self, Peer(name, self.incarnations, f"fake://{name}"))
        self.mailboxes[mailbox.me.endpoint] = mailbox
        for other in list(self.mailboxes.values()):
            if mailbox.me.endpoint in other.wanted:
                other.arrived.append(Connected(mailbox.me.endpoint))
        return mailbox

    def kill(self, mailbox: "Mailbox") -> None:
        del self.mailboxes[mailbox.me.endpoint]
        for other in self.mailboxes.values():
            if mailbox.me.endpoint in other.spoken | other.wanted:
                other.arrived.append(Disconnected(mailbox.me.endpoint))
                other.spoken.discard(mailbox.me.endpoint)


class Mailbox:
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


class Memory:
    """What lies in each page: {slot: token}."""

    def __init__(self, pages: int):
        self.generations = [0] * pages
        self.pages: list[dict[int, int]] = [{} for _ in range(pages)]


class FakePlane:
    """Pull over dictionaries; `hold` keeps reads open, `break_next` fails one."""

    name = "fake"
    holder_poll_seconds = 0.0005
    path = "fake"

    def __init__(self, memory: Memory, endpoint: str, everyone: dict[str, "FakePlane"]):
        self.memory = memory
        self.everyone = everyone
        self.endpoint = endpoint
        everyone[endpoint] = self
        self.peers: dict[str, Memory] = {}
        self.open: dict[int, tuple[str, list[int], list[int]]] = {}
        self.tickets = 0
        self.hold = False
        self.break_next = False
        self.abandoned: set[int] = set()
        self.loud: set[int] = set()  # tickets whose bytes may still land

    def metadata(self) -> bytes:
        return self.endpoint.encode()

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        self.peers[endpoint] = self.everyone[metadata.decode()].memory

    def remove_peer(self, endpoint: str) -> None:
        self.peers.pop(endpoint, None)

    def read(self, endpoint, remote, local, expected=None) -> int:
        if endpoint not in self.peers:
            raise PlaneError(f"unknown peer {endpoint}")
        self.tickets += 1
        self.open[self.tickets] = (endpoint, list(remote), list(local))
        return self.tickets

    def abandon(self, ticket: int) -> None:
        self.abandoned.add(ticket)

    def quiet(self, ticket: int) -> bool:
        return ticket not in self.open and ticket not in self.loud

    @property
    def busy(self) -> bool:
        return bool(self.open)

    def progress(self) -> list[Completion]:
        if self.hold:
            return []
        done = []
        for ticket, (endpoint, remote, local) in list(self.open.items()):
            del self.open[ticket]
            memory = self.peers.get(endpoint)
            if memory is None or self.break_next or ticket in self.abandoned:
                self.break_next = False
                done.append(Completion(ticket, "read failed", (), ticket not in self.loud))
                continue
            for theirs, ours in zip(remote, local, strict=True):
                self.memory.pages[ours] = dict(memory.pages[theirs])
            generations = tuple(memory.generations[page] for page in remote)
            done.append(Completion(ticket, "", generations, True))
        return done

    def close(self) -> None:
        pass


def true_token(prefix: list[int], seed: int, choice: int) -> int:
    """The one right token after this prefix."""
    text = f"{prefix}|{seed}|{choice}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") % VOCABULARY


def true_tokens(prompt: list[int], seed: int, choice: int, count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(true_token(tokens, seed, choice))
    return tokens[len(prompt) :]


class FakeEngine:
    """One step at a time, finished when asked for, unless `hold`."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self.step: Step | None = None
        self.hold = False
        self.fail_next = ""
        self.steps = 0

    @property
    def busy(self) -> bool:
        return self.step is not None

    def start(self, step: Step) -> None:
        assert self.step is None
        self.step = step

    def finished(self) -> StepResult | None:
        if self.step is None or self.hold:
            return None
        step, self.step = self.step, None
        self.steps += 1
        if self.fail_next:
            error, self.fail_next = self.fail_next, ""
            return StepResult(step, (), 0.001, error)
        return StepResult(step, tuple(self._run(part) for part in step.slices), 0.001)

    def _run(self, part) -> Drawn:
        sequence = part.sequence
        end = part.start + part.count
        for position in range(part.start, end):
            page = sequence.pages[position // SLOTS]
            self.memory.pages[page][position % SLOTS] = sequence.token_ids[position]
        held = [
            self.memory.pages[sequence.pages[position // SLOTS]].get(position % SLOTS)
            for position in range(end)
        ]
        assert held == sequence.token_ids[:end], f"pages hold {held}, not {sequence.token_ids}"
        seed = sequence.sampling.seed
        tokens = tuple(true_token(sequence.token_ids[:end], seed, one) for one in part.draw)
        wanted = sequence.sampling.logprobs >= 0
        logprobs = tuple(TokenLogprobs(-1.0) if wanted else None for _ in tokens)
        scored = ()
        if sequence.sampling.prompt_logprobs >= 0:
            last = min(end, sequence.prompt_length - 1)
            scored = tuple(TokenLogprobs(-float(one)) for one in range(part.start + 1, last + 1))
        return Drawn(tokens, logprobs, scored)
