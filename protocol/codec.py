"""Messages as bytes: two frames, a header that says who speaks and a body that says what.

    header   b"PSTK", the revision as two bytes (big endian), msgpack of the sender's Peer
    body     msgpack of one Message

The revision stands before anything whose layout a revision may change, so that two processes of
different revisions refuse each other by name and never misread each other. Whatever bytes come
in, the only exception that leaves this file is CodecError.
"""

import msgspec

from .messages import REVISION, Message, Peer

MAGIC = b"PSTK"
PREFIX_BYTES = len(MAGIC) + 2
MAX_HEADER_BYTES = 1024
MAX_BODY_BYTES = 64 << 20  # a prompt of ten million tokens, a cache listing of three million blocks

_encoder = msgspec.msgpack.Encoder()
_peer_decoder = msgspec.msgpack.Decoder(Peer)
_message_decoder = msgspec.msgpack.Decoder(Message)

# msgspec reports bad text as UnicodeDecodeError and very deep nesting as RecursionError.
_DECODE_FAULTS = (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, MemoryError)


class CodecError(Exception):
    """These bytes are no message of this revision; the text says what is wrong with them."""


class WrongRevision(CodecError):
    """The sender speaks another revision of the protocol."""


def encode_header(sender: Peer) -> bytes:
    """The first frame. It is the same for a sender's whole life, so encode it once."""
    header = MAGIC + REVISION.to_bytes(2, "big") + _encoder.encode(sender)
    if len(header) > MAX_HEADER_BYTES:
        raise CodecError(f"header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed")
    return header


def decode_header(frame: bytes) -> Peer:
    """Who sent it. Raises CodecError, also for a sender of another revision."""
    if len(frame) > MAX_HEADER_BYTES:
        raise CodecError(f"header of {len(frame)} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if len(frame) < PREFIX_BYTES or frame[: len(MAGIC)] != MAGIC:
        raise CodecError("header does not begin as a Penstock message does")
    revision = int.from_bytes(frame[len(MAGIC) : PREFIX_BYTES], "big")
    if revision != REVISION:
        raise WrongRevision(
            f"sender speaks revision {revision}, this process speaks {REVISION}: "
            "run one version of Penstock on all machines"
        )
    try:
        return _peer_decoder.decode(frame[PREFIX_BYTES:])
    except _DECODE_FAULTS as fault:
        raise CodecError(f"header holds no Peer: {_said(fault)}") from None


def encode(message: Message) -> bytes:
    """The second frame. A message no receiver would accept is refused here already."""
    body = _encoder.encode(message)
    if len(body) > MAX_BODY_BYTES:
        raise CodecError(
            f"{type(message).__name__} of {len(body)} bytes; at most {MAX_BODY_BYTES} are allowed"
        )
    return body


def decode(frame: bytes) -> Message:
    """The message in a body frame. Raises CodecError."""
    if len(frame) > MAX_BODY_BYTES:
        raise CodecError(f"body of {len(frame)} bytes; at most {MAX_BODY_BYTES} are allowed")
    try:
        return _message_decoder.decode(frame)
    except _DECODE_FAULTS as fault:
        raise CodecError(f"body is no message: {_said(fault)}") from None


def _said(fault: BaseException) -> str:
    return f"{fault}" or type(fault).__name__
