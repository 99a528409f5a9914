"""What ends one NIXL transfer, on an agent that answers as it is told."""

from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from penstock.kvtransfer.nixl_peers import Peer
from penstock.kvtransfer.nixl_transfers import Transfers

PAGES = numpy.arange(4, dtype=numpy.int32)


class Lost(Exception):
    """The endpoint is gone."""


class Agent:
    """Posting leaves a transfer in progress; each check gives or raises the next answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.released = 0

    def make_prepped_xfer(self, *asked: Any) -> Any:
        return SimpleNamespace(release=self._release)

    def transfer(self, handle: Any) -> str:
        return "PROC"

    def check_xfer_state(self, handle: Any) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _release(self) -> None:
        self.released += 1


@pytest.mark.parametrize(
    ("end", "failed", "stuck", "lost", "released"),
    [
        ("DONE", "", False, False, 1),
        (Lost(), "tcp://peer:1 was lost while reading", False, True, 1),
        (RuntimeError("backend"), "NIXL failed: RuntimeError('backend')", True, False, 0),
    ],
    ids=["done", "lost", "another error"],
)
def test_a_transfer_is_released_only_when_it_is_known_to_have_ended(
    end: Any, failed: str, stuck: bool, lost: bool, released: int
) -> None:
    agent, peer = Agent("PROC", end), Peer("tcp://peer:1", 1, b"", None)  # type: ignore[arg-type]
    transfers = Transfers(agent, Lost)
    transfer = transfers.start(peer, None, PAGES, None, PAGES)
    assert not transfers.poll(transfer) and peer.open_transfers == 1
    assert transfers.poll(transfer) and transfers.poll(transfer), "and is not asked again"
    assert (transfer.failed, transfer.stuck, peer.lost) == (failed, stuck, lost)
    assert agent.released == released
    assert peer.open_transfers == 0
