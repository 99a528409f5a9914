"""What makes a hand-over's word acceptable, and the count of those that were not. Pure.

A word is refused before a byte moves because of it. `Offence` names why; each is counted, and said
once per peer in the log. What honest peers say late (a lease that has ended meanwhile) is none.
"""

import logging
from array import array
from collections import Counter
from contextlib import suppress
from enum import Enum
from typing import Literal

import numpy

from ..protocol.blockhash import DIGEST_BYTES
from ..protocol.messages import Compatibility, FirstTokens, Handoff, Peer, Published
from ..protocol.seen import Seen
from .columns import CHECK_BYTES, GENERATION_BYTES, PAGE_BYTES, cut, packed
from .incoming import Incoming

FEW = 32  # numbers of which plain Python finds the smallest faster than numpy
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
    least, most = bounds(tokens)
    if least < 0 or most >= vocabulary:
        return Offence.BAD_TOKENS, f"a token id lies outside the vocabulary of {vocabulary}"
    return None


def objection_to_published(incoming: Incoming, message: Published, vocabulary: int) -> Fault | None:
    """What is wrong with this publication, whoever sent it. `objection_to_content` is for those
    of whom we know that they fit."""
    if fault := _objection_to_lengths(message):
        return fault
    first, count = message.first_block, len(message.pages) // PAGE_BYTES
    end = first + count
    if first < 0 or end > incoming.total:
        return Offence.OUT_OF_RANGE, f"blocks {first} to {end} of {incoming.total} are published"
    if count and (page := smallest(message.pages, "i")) < 0:
        return Offence.OUT_OF_RANGE, f"page {page} is published"
    if count and smallest(message.generations, "Q") < 1:
        return Offence.WRONG_GENERATION, "a page that was never granted is published"
    if message.first_tokens is not None:
        fault = _objection_to_first(incoming, message.first_tokens, end, vocabulary)
        if fault is not None:
            return fault
    return _contradiction(incoming, message)


def _objection_to_lengths(message: Published) -> Fault | None:
    pages, generations = len(message.pages), len(message.generations)
    hashes, digests = len(message.hashes), len(message.digests)
    count, rest = divmod(pages, PAGE_BYTES)
    good = not rest and generations == count * GENERATION_BYTES and hashes == count * DIGEST_BYTES
    if good and digests in (0, count * CHECK_BYTES):
        return None
    said = f"{pages} bytes of pages, {generations} of generations, {hashes} of hashes"
    return Offence.BAD_LISTS, f"{said} and {digests} of digests in one publication"


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
    start, said = message.first_block, incoming.said
    end = min(start + len(message.pages) // PAGE_BYTES, said.count)
    if start < end:
        if said.part(start, end) != cut(packed(message), 0, end - start):
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
    start, known = incoming.vetted, incoming.said.count
    incoming.vetted = known
    digests = incoming.said.digests
    if digests != (known if checked else 0):
        return Offence.BAD_LISTS, f"{known} blocks and {digests} digests were published"
    ours = incoming.content[start * DIGEST_BYTES : known * DIGEST_BYTES]
    said = incoming.said.hashes(start, known)
    if ours == said:
        return None
    byte = next(at for at, pair in enumerate(zip(ours, said, strict=True)) if pair[0] != pair[1])
    whose = "another request's or another tenant's"
    block = start + byte // DIGEST_BYTES
    return Offence.WRONG_CONTENT, f"block {block} holds other content than this prompt: {whose}"


def bounds(numbers: list[int]) -> tuple[int, int]:
    """The smallest and the largest of them."""
    if len(numbers) > FEW:
        with suppress(OverflowError):  # no token id is that large: looked at one by one
            wide = numpy.asarray(array("q", numbers))
            return int(wide.min()), int(wide.max())
    return min(numbers), max(numbers)


def smallest(column: bytes, kind: Literal["i", "Q"]) -> int:
    """Of packed int32 ("i") or uint64 ("Q") numbers."""
    numbers = memoryview(column).cast(kind)
    return min(numbers) if len(numbers) <= FEW else int(numpy.asarray(numbers).min())
