"""Random schedules: a fixed set of seeds holds every invariant, and planted bugs are found."""

import logging
from dataclasses import replace

import pytest

from penstock.decode.worker import DecodeWorker
from penstock.kvtransfer.reader import Reader
from penstock.protocol.pages import PagePool
from penstock.protocol.seen import Seen
from penstock.router.inbox import Inbox
from support.schedules import play

CHUNK = 15


@pytest.fixture(autouse=True)
def silent():
    """Every loss and failure is logged, and schedules are made of them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, 150, CHUNK))
@pytest.mark.parametrize("level", [0, 1])
def test_schedules_hold_every_invariant(level, first):
    for seed in range(first, first + CHUNK):
        play(level, seed)


def trust_generations(monkeypatch):
    """The reader takes whatever generation it reads for the published one."""
    completed = Reader._completed

    def trusting(self, completion, now):
        incoming = self._by_ticket.get(completion.ticket)
        if incoming is not None and completion.ticket in incoming.reads:
            start, end, _ = incoming.reads[completion.ticket]
            published = tuple(incoming.generations[start:end])
            completion = replace(completion, generations=published)
        completed(self, completion, now)

    monkeypatch.setattr(Reader, "_completed", trusting)


def free_pages_under_reads(monkeypatch):
    """The pool grants pages again that a given-up read may still write."""
    let_go = PagePool._let_go

    def hasty(self, page):
        inbound, self._inbound[page] = self._inbound[page], 0
        let_go(self, page)
        self._inbound[page] = inbound

    monkeypatch.setattr(PagePool, "_let_go", hasty)


def forget_broken_links(monkeypatch):
    """The router does not know that a worker who says Hello again forgot its work."""
    joined = Inbox._joined

    def forgetful(self, sender, message, now):
        if self._fleet.knows(sender):
            self._fleet.hello(sender, message, now)
        else:
            joined(self, sender, message, now)

    monkeypatch.setattr(Inbox, "_joined", forgetful)


def drop_under_a_step(monkeypatch):
    """A cancelled sequence's pages are let go although a step still writes them."""
    drop = DecodeWorker._drop

    class Idle:
        busy = False

    def hasty(self, request, attempt, choice):
        engine, self._engine = self._engine, Idle()
        drop(self, request, attempt, choice)
        self._engine = engine

    monkeypatch.setattr(DecodeWorker, "_drop", hasty)


def take_words_twice(monkeypatch):
    """Workers do not remember what they have begun."""
    monkeypatch.setattr(Seen, "first", lambda self, key: True)


@pytest.mark.parametrize(
    "level, plant, finding",
    [
        (0, trust_generations, "pages hold"),
        (0, free_pages_under_reads, "another read may still land|granted again"),
        (0, forget_broken_links, "hung"),
        (0, drop_under_a_step, "changed under its step"),
        (1, take_words_twice, "twice in one step"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, level, plant, finding):
    plant(monkeypatch)
    with pytest.raises(Exception, match=finding):
        for seed in range(400):
            play(level, seed)
