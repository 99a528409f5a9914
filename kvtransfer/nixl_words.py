"""What NIXL planes tell each other: metadata, and the notifications of the gather path. Pure.

A notification is one message. Whatever is not one, or is too long, decodes to None: the receiver
counts and drops it.
"""

import msgspec

MOST_PAGES_PER_ASK = 8192
MOST_BYTES = 64 << 10  # of a notification; UCX slows down much beyond


class Staging(msgspec.Struct, frozen=True, array_like=True):
    """Where a holder packs pages: `slots` times `slot_bytes`, and one sequence (u64) per slot."""

    address: int
    slot_bytes: int
    slots: int
    sequences_address: int


class Metadata(msgspec.Struct, frozen=True, array_like=True, tag="nixl-3"):
    agent: str
    device: str
    pages_address: int
    page_bytes: int
    page_count: int
    generations_address: int
    token: bytes  # an ask must repeat it: metadata goes to authenticated peers only
    staging: Staging | None
    nixl: bytes


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Reader to holder: pack these pages (int32, little-endian), a slotful at a time.

    The slotfuls are `number`, `number` + 1 and so on; the last one may be shorter. The numbers are
    the reader's own, and never used twice.
    """

    token: bytes
    number: int
    pages: bytes
    nixl: bytes  # the reader's agent, so that it can be answered


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """Reader to holder: these slotfuls are no longer needed, or never will be."""

    token: bytes
    numbers: list[int]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """Holder to reader: packed. It stays so for as long as the slot's sequence is this one."""

    number: int
    slot: int
    sequence: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Holder to reader: nothing of an ask is packed, and why. `number` is its first."""

    number: int
    reason: str


Words = Ask | Done | Ready | Refused
_DECODER = msgspec.msgpack.Decoder(Words)
encode = msgspec.msgpack.Encoder().encode


def decode(notification: bytes) -> Words | None:
    if len(notification) > MOST_BYTES:
        return None
    try:
        return _DECODER.decode(notification)
    except (msgspec.MsgspecError, UnicodeError):
        return None
