"""What a holder says of a hand-over, as the reader takes it in. Pure.

Its Handoff names the prompt: what each block must hold follows from that alone. Its publications
say which pages hold the blocks; they come in parts, may be repeated, and may miss one another.
"""

from ..protocol import blockhash
from ..protocol.messages import Compatibility, Handoff, Peer, Published
from .columns import PAGE_BYTES, packed
from .incoming import Incoming
from .words import Fault, objection_to_published


def begun(handoff: Handoff, holder: Peer, now: float, hashes: list[bytes], tail: bytes) -> Incoming:
    """A hand-over of which nothing is published yet, of a prompt with these hashes."""
    content = b"".join((*hashes, tail))
    total = len(content) // blockhash.DIGEST_BYTES
    return Incoming(handoff, holder, now, hashes, content, total)


def hashes_of(
    handoff: Handoff, compatibility: Compatibility, page_slots: int
) -> tuple[list[bytes], bytes]:
    """Of the prompt's full blocks, and of the partial one behind them."""
    prefill = handoff.prefill
    tokens = prefill.token_ids
    root = blockhash.root(compatibility.model, compatibility.numeric_class, prefill.cache_salt)
    hashes = blockhash.extend(root, tokens, page_slots)
    return hashes, blockhash.tail(root, hashes, tokens, page_slots)


def take_in(incoming: Incoming, message: Published, vocabulary: int, now: float) -> Fault | None:
    """More of what is said of its blocks; the fault where that cannot be."""
    fault = objection_to_published(incoming, message, vocabulary)
    if fault is not None:
        return fault
    known = incoming.said.count
    if message.first_block > known:
        return None  # something between was lost; the next Renew brings it again
    fresh = known - message.first_block
    incoming.said.add(packed(message), fresh)
    if message.first_tokens is not None:
        incoming.first_tokens = message.first_tokens
        incoming.last_published = incoming.last_published or now
    if fresh < len(message.pages) // PAGE_BYTES:  # what was only said again is no progress
        incoming.progressed = now
    return None
