"""A worker among several routers."""

from penstock.protocol.membership import Membership
from penstock.protocol.messages import Message, Peer, Status, WorkerState
from penstock.protocol.pages import PagePool
from penstock.protocol.seams import Arrival, Connected
from support.workers import worker

ONE, OTHER = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"


class Words:
    """A transport that keeps what is said."""

    me = Peer("w", 1, "tcp://127.0.0.1:3")

    def __init__(self) -> None:
        self.said: list[tuple[str, Message]] = []

    def connect(self, endpoint: str) -> None:
        pass

    def forget(self, endpoint: str) -> None:
        pass

    def send(self, endpoint: str, message: Message) -> None:
        self.said.append((endpoint, message))

    def receive(self) -> list[Arrival]:
        return []


def test_a_router_that_joins_makes_no_stuck_worker_look_well_to_the_others():
    words, pool = Words(), PagePool([0] * 4)
    description = worker("w", "decode").description
    membership = Membership(words, [ONE, OTHER], description, pool, 1.0)
    membership.link(Connected(ONE), WorkerState())
    membership.beat(0.0, WorkerState, dict, "engine: a step has been running for 90 s")
    pages = pool.take("somebody", 1)
    assert pages is not None
    pool.seal(pages[0], b"a block, 16 long")
    words.said.clear()
    membership.link(Connected(OTHER), WorkerState())
    (news,) = [message for endpoint, message in words.said if endpoint == ONE]
    assert isinstance(news, Status) and news.cached_added == [b"a block, 16 long"]
    assert news.stuck == "engine: a step has been running for 90 s"
