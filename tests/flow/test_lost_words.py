"""Any one word lost, doubled or late: every request ends right, and nothing stays behind.

Each story is played once as it is, and counted. Then it is played again for every single word that
was said in it, with just that one tampered with.
"""

from collections import Counter
from dataclasses import dataclass

import pytest

from penstock.protocol import codec
from penstock.protocol.messages import Message, Prefill, Status
from penstock.protocol.seams import Received
from penstock.simulation.cluster import Client, Cluster
from penstock.simulation.engine import true_tokens
from penstock.simulation.network import Mailbox

PROMPT = list(range(100, 130))
MOST_STATUS = 6  # of each story: one is like the other

WAYS = {"lost": None, "doubled": 0.0, "doubled late": 7.0, "late": 0.5, "very late": 7.0}


@dataclass
class Asked:
    """A client and what it must get."""

    client: Client
    prompt: list[int]
    seed: int = 7
    count: int = 12
    stopped: tuple[int, ...] = ()  # choices that the client wanted no more of
    cancelled: bool = False

    @property
    def done(self) -> bool:
        if self.cancelled or self.client.failure is not None:
            return True
        finish = enumerate(self.client.finish)
        return all(said or choice in self.stopped for choice, said in finish)

    def check(self) -> None:
        assert self.client.failure is None
        for choice, tokens in enumerate(self.client.tokens):
            right = true_tokens(self.prompt, self.seed, choice, self.count)
            unfinished = self.cancelled or choice in self.stopped
            assert tokens == (right[: len(tokens)] if unfinished else right)


class Tamper:
    """Every mailbox sends through here. The `number`-th word of `kind` is tampered with."""

    def __init__(self, kind: type = object, number: int = -1, way: str = ""):
        self.kind, self.number, self.way = kind, number, way
        self.seen: Counter[type] = Counter()
        self.late: list[tuple[float, str, Received]] = []
        self.now = 0.0

    def install(self, monkeypatch) -> None:
        send = Mailbox.send

        def tampered(mailbox, endpoint: str, message: Message) -> None:
            self.seen[type(message)] += 1
            chosen = isinstance(message, self.kind) and self.seen[self.kind] == self.number
            if not chosen or "doubled" in self.way:
                send(mailbox, endpoint, message)
            if chosen and (delay := WAYS[self.way]) is not None:
                word = Received(mailbox.me, codec.decode(codec.encode(message)))
                self.late.append((self.now + delay, endpoint, word))

        monkeypatch.setattr(Mailbox, "send", tampered)

    def deliver(self, cluster: Cluster) -> None:
        self.now = cluster.now
        for word in [one for one in self.late if one[0] <= self.now]:
            self.late.remove(word)
            if word[1] in cluster.network.mailboxes:
                cluster.network.mailboxes[word[1]].arrived.append(word[2])


class Tampered(Cluster):
    """Ten times as fast as the usual one, so that five seconds of silence are fifty turns."""

    def __init__(self, tamper: Tamper, **layout):
        self.tamper = tamper
        super().__init__(**layout)
        self.until(lambda: len(self.fleet.workers) == len(self.workers))

    def turn(self) -> None:
        self.now += 0.1
        self.tamper.deliver(self)
        for worker in list(self.workers.values()):
            worker.worker.turn(self.now)
        self.inbox.deliver(self.mailbox.receive(), self.now)
        self.inbox.tick(self.now)
        self.flow.turn(self.now)

    def clean(self) -> bool:
        """Nothing is held, on its way, or remembered."""
        return not self.flow.in_flight and all(
            worker.pool.held == 0 and worker.pool.quarantined == 0 and not worker.plane.open
            for worker in self.workers.values()
        )


def answers(cluster) -> list[Asked]:
    """Hand-overs, some of which end at once; a client that goes and one that wants less."""
    stop = true_tokens(PROMPT[:9], 3, 1, 1)[0]
    asked = [
        Asked(cluster.ask(PROMPT, n=3), PROMPT, stopped=(1,)),
        Asked(cluster.ask(PROMPT[::-1], max_tokens=1), PROMPT[::-1], count=1),
        Asked(cluster.ask(PROMPT[:8], max_tokens=2), PROMPT[:8], count=2),
        Asked(cluster.ask(PROMPT[4:], max_tokens=40), PROMPT[4:], count=40, cancelled=True),
        Asked(cluster.ask(PROMPT[:20], prompt_logprobs=0, max_tokens=3), PROMPT[:20], count=3),
    ]
    ends = cluster.ask(PROMPT[:9], seed=3, n=2, stop_token_ids=(stop,))
    cluster.until(lambda: len(asked[0].client.tokens[1]) > 2)
    cluster.flow.stop_choice(asked[0].client.request, 1)
    cluster.until(lambda: len(asked[3].client.tokens[0]) > 5)
    cluster.flow.cancel(asked[3].client.request)
    cluster.until(lambda: ends.ended)
    assert ends.tokens[1] == [stop] and ends.finish == ["length", "stop"]
    return asked


def short_ones(cluster) -> list[Asked]:
    """Prompts that the decode worker computes by itself."""
    asked = [Asked(cluster.ask(PROMPT[one:], n=one + 1), PROMPT[one:]) for one in range(3)]
    scored = cluster.ask(PROMPT, prompt_logprobs=0, max_tokens=0)
    cluster.until(lambda: scored.ended)
    assert scored.finish == ["length"] and len(scored.prompt_scores) == len(PROMPT)
    return asked


def cancelled_early(cluster) -> list[Asked]:
    """The clients go while the prompts are computed and pulled."""
    cluster.workers["decode-0"].plane.hold = True
    asked = [
        Asked(cluster.ask(range(one, 60)), list(range(one, 60)), cancelled=True) for one in (1, 2)
    ]
    cluster.run(2)
    cluster.flow.cancel(asked[0].client.request)
    cluster.run(6)
    cluster.flow.cancel(asked[1].client.request)
    cluster.workers["decode-0"].plane.hold = False
    return [*asked, Asked(cluster.ask(PROMPT), PROMPT)]


def broken_step(cluster) -> list[Asked]:
    """Steps fail, here and there: the workers say Failed."""
    asked = [Asked(cluster.ask(PROMPT, max_tokens=20), PROMPT, count=20)]
    cluster.workers["prefill-0"].engine.fail_next = "no such device"
    cluster.until(lambda: len(asked[0].client.tokens[0]) > 5)
    cluster.workers["decode-0"].engine.fail_next = "no such device"
    return asked


def new_incarnation(cluster) -> list[Asked]:
    """A decode worker leaves, another one dies; both are started again."""
    asked = [Asked(cluster.ask(PROMPT, n=2, max_tokens=30), PROMPT, count=30)]
    cluster.until(lambda: len(asked[0].client.tokens[0]) > 3)
    cluster.workers["decode-0"].worker._membership.leave()
    cluster.run(2)
    cluster.kill("decode-0")
    cluster.start("decode-0", "decode")
    cluster.until(lambda: len(asked[0].client.tokens[0]) > 9)
    cluster.kill("decode-0")
    cluster.start("decode-0", "decode")
    return asked


def inquiry(cluster) -> list[Asked]:
    """The request itself is lost: it takes a question and an answer to find out."""
    for mailbox in cluster.network.mailboxes.values():
        mailbox.muted.add(Prefill)
    asked = [Asked(cluster.ask(PROMPT, n=2), PROMPT), Asked(cluster.ask(PROMPT[:8]), PROMPT[:8])]
    for mailbox in cluster.network.mailboxes.values():
        mailbox.muted.clear()
    return asked


STORIES = {
    answers: dict(chunk=8),
    short_ones: dict(local=1000),
    cancelled_early: dict(chunk=8),
    broken_step: dict(),
    new_incarnation: dict(),
    inquiry: dict(),
}


def play(monkeypatch, story, tamper: Tamper) -> Cluster:
    with monkeypatch.context() as patched:
        tamper.install(patched)
        cluster = Tampered(tamper, **STORIES[story])
        asked = story(cluster)
        cluster.until(lambda: all(one.done for one in asked), 3000)
        for one in asked:
            one.check()
        cluster.until(lambda: cluster.clean() and not tamper.late, 3000)
    assert cluster.flow.counters.differing == 0 and cluster.inbox.faults == 0
    for worker in cluster.workers.values():
        worker.pool.check()
        assert not worker.worker.stuck
    return cluster


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_where_nothing_is_lost_nothing_is_asked(monkeypatch, story):
    counters = play(monkeypatch, story, Tamper()).flow.counters
    if story is not inquiry:
        assert counters.inquired == counters.unknown == 0
    if story in (answers, short_ones, cancelled_early):
        assert counters.replaced == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_each_word_of_a_story(monkeypatch, story, way):
    said = Tamper()
    play(monkeypatch, story, said)
    for kind, count in said.seen.items():
        for number in range(1, (min(count, MOST_STATUS) if kind is Status else count) + 1):
            try:
                play(monkeypatch, story, Tamper(kind, number, way))
            except Exception as error:
                raise AssertionError(f"{kind.__name__} {number} of {count} {way}") from error
