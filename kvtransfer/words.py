"""What makes a hand-over's word acceptable, and the count of those that were not. Pure.

A word is refused before a byte moves because of it. `Offence` names why; each is counted, and said
once per peer in the log. What honest peers say late (a lease that has ended meanwhile) is none.
"""

import logging
from collections import Counter
from enum import Enum

from ..protocol.messages import Compatibility, FirstTokens, Handoff, Peer, Published
from ..protocol.seen import Seen
from .incoming import Incoming

MOST_RENEWED = 4096  # leases in one Renew
MOST_PEERS_SAID = 4096

log = logging.getLogger("penstock.handover")


class Offence(Enum):
    """Why a word was refused. The values are names of counters."""

    FOREIGN_LEASE = "lease of another peer"
    NO_SUCH_LEASE = "lease never given out"
    PAST_INCARNATION = "word of another incarnation"
    NOT_ASKED = "answer nobody asked for"
    MISFIT = "workers that do not fit"
    BAD_LISTS = "lists that do not belong together"
    OUT_OF_RANGE = "blocks or pages out of range"
    WRONG_GENERATION = "impossible generation"
    WRONG_CONTENT = "content of another prompt or tenant"
    CONTRADICTION = "said before, and differently"
    BAD_TOKENS = "tokens or choices out of range"


Fault = tuple[Offence, str]  # why, and the sentence


class Refusals:
    """Counts refused words by reason; logs the first of each peer and reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._said = Seen(MOST_PEERS_SAID)

    def add(self, peer: Peer, fault: Fault) -> None:
        offence, sentence = fault
        self.counts[offence.value] += 1
        if self._said.first((peer.endpoint, offence)):
            log.warning("refused a word of %s at %s: %s", peer.name, peer.endpoint, sentence)


def mismatch(holder: Compatibility, reader: Compatibility) -> str:
    """The first field in which two workers differ, with both values; "" if they fit."""
    for name in Compatibility.__struct_fields__:
        ours, theirs = getattr(holder, name), getattr(reader, name)
        if ours != theirs:
            return f"{name} differs: holder has {ours!r}, reader has {theirs!r}"
    return ""


def objection_to_handoff(handoff: Handoff, vocabulary: int) -> Fault | None:
    """What is wrong with this hand-over, whoever sent it."""
    tokens, choices = handoff.prefill.token_ids, handoff.prefill.choices
    if not tokens or not choices:
        return Offence.BAD_LISTS, "a hand-over without tokens or choices"
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        return Offence.BAD_TOKENS, f"a token id lies outside the vocabulary of {vocabulary}"
    return None


def objection_to_published(incoming: Incoming, message: Published, vocabulary: int) -> Fault | None:
    """What is wrong with this publication, whoever sent it. `objection_to_content` is for those
    of whom we know that they fit."""
    count, first = len(message.pages), message.first_block
    end = first + count
    columns = (message.generations, message.hashes, message.digests)
    lengths = tuple(map(len, columns))
    if lengths not in ((count, count, 0), (count, count, count)):
        said = f"{count} pages, {lengths[0]} generations, {lengths[1]} hashes"
        return Offence.BAD_LISTS, f"{said} and {lengths[2]} digests in one publication"
    if first < 0 or end > incoming.total:
        return Offence.OUT_OF_RANGE, f"blocks {first} to {end} of {incoming.total} are published"
    if count and min(message.pages) < 0:
        return Offence.OUT_OF_RANGE, f"page {min(message.pages)} is published"
    if count and min(message.generations) < 1:
        return Offence.WRONG_GENERATION, "a page that was never granted is published"
    if message.first_tokens is not None:
        fault = _objection_to_first(incoming, message.first_tokens, end, vocabulary)
        if fault is not None:
            return fault
    return _contradiction(incoming, message)


def _objection_to_first(
    incoming: Incoming, first: FirstTokens, end: int, vocabulary: int
) -> Fault | None:
    columns = (first.choices, first.token_ids, first.finish, first.logprobs)
    if len({len(column) for column in columns}) > 1:
        return Offence.BAD_LISTS, "first tokens in lists of different lengths"
    known = set(incoming.handoff.prefill.choices)
    if not known.issuperset(first.choices) or len(set(first.choices)) < len(first.choices):
        return Offence.BAD_TOKENS, "first tokens of choices that were not asked for"
    if first.token_ids and not 0 <= min(first.token_ids) <= max(first.token_ids) < vocabulary:
        return Offence.BAD_TOKENS, f"a first token lies outside the vocabulary of {vocabulary}"
    if "" in first.finish and end < incoming.total:
        return Offence.BAD_LISTS, f"first tokens with block {end} of {incoming.total}"
    return None


def _contradiction(incoming: Incoming, message: Published) -> Fault | None:
    """Publications are repeated when a word may be lost; a repeat says what was said before."""
    start = message.first_block
    end = min(start + len(message.pages), len(incoming.remote_pages))
    repeated = max(0, end - start)
    for said, again in (
        (incoming.remote_pages, message.pages),
        (incoming.generations, message.generations),
        (incoming.said_hashes, message.hashes),
        (incoming.digests, message.digests),
    ):
        if said[start:end] != again[:repeated]:
            return Offence.CONTRADICTION, "a block is published again, and differently"
    first, now = incoming.first_tokens, message.first_tokens
    if first is not None and now is not None:
        before = (first.choices, first.token_ids, first.finish)
        if before != (now.choices, now.token_ids, now.finish):
            return Offence.CONTRADICTION, "the first tokens are said again, and differently"
    return None


def objection_to_content(incoming: Incoming, checked: bool) -> Fault | None:
    """The first block, of those not looked at yet, that is not a block of this prompt.

    A block's hash chains model, numeric class, tenant salt and every token before. In checked mode
    each block has a digest, and in no other.
    """
    start, known = incoming.vetted, len(incoming.said_hashes)
    incoming.vetted = known
    digests = len(incoming.digests)
    if digests != (known if checked else 0):
        return Offence.BAD_LISTS, f"{known} blocks and {digests} digests were published"
    ours = [*incoming.hashes, incoming.tail][start:known]
    if ours == incoming.said_hashes[start:known]:
        return None
    said = incoming.said_hashes[start:known]
    block = next(index for index in range(known - start) if ours[index] != said[index])
    whose = "another request's or another tenant's"
    sentence = f"block {start + block} holds other content than this prompt: {whose}"
    return Offence.WRONG_CONTENT, sentence
