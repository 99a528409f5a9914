"""Mailboxes and other processes for one test, closed and killed behind it."""

from collections.abc import Iterator

import pytest

from penstock.protocol.sockets import Mailbox
from support.mailboxes import Open, Other, Start


@pytest.fixture
def open_mailbox() -> Iterator[Open]:
    opened: list[Mailbox] = []

    def make(name: str, **options: object) -> Mailbox:
        opened.append(Mailbox(name, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for mailbox in opened:
        mailbox.close()


@pytest.fixture
def start_other() -> Iterator[Start]:
    started: list[Other] = []

    def start(port: int = 0, mode: str = "listening") -> Other:
        started.append(Other(port, mode))
        return started[-1]

    yield start
    for other in started:
        if other.process.returncode is None:
            other.kill()
