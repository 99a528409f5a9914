"""Valid frames, damaged at random: the codec reads a message or raises its one error."""

import random
import tracemalloc
from typing import get_args

import msgspec
import pytest

from penstock.protocol import codec
from penstock.protocol.codec import CodecError
from penstock.protocol.messages import Message, Peer, Renew
from support.message_samples import MESSAGES

ROUNDS = 8
MUTATIONS = 15_000  # a round
HUGE = (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")  # array, map, text, bytes, extension


def mutate(chance: random.Random, body: bytes, other: bytes) -> bytes:
    """One to four wounds: bits, bytes, cuts, doublings, foreign parts, huge lengths, depth."""
    frame = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(frame) + 1)
        match chance.randrange(8):
            case 0 if frame:
                frame[at % len(frame)] ^= 1 << chance.randrange(8)
            case 1:
                del frame[at:]
            case 2:
                del frame[at : at + chance.randint(1, 8)]
            case 3:
                frame[at:at] = chance.randbytes(chance.randint(1, 8))
            case 4:
                frame[at:at] = other[: chance.randrange(len(other))]
            case 5:
                frame[at:at] = chance.choice(HUGE) + chance.randbytes(4)
            case 6:
                frame[at:at] = bytes([chance.choice((0x91, 0x81, 0xC0))]) * chance.choice((1, 3000))
            case _:
                frame[at:at] = frame[at : at + 32]
    return bytes(frame)


def is_nan(frame: bytes) -> bool:
    """A float may stand in it, and one that is no number equals nothing."""
    return b"\xca" in frame or b"\xcb" in frame


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_damaged_message_is_a_message_or_a_codec_error(seed: int) -> None:
    chance = random.Random(seed)
    bodies = [codec.encode(message) for message in MESSAGES]
    read = refused = 0
    for _ in range(MUTATIONS):
        frame = mutate(chance, chance.choice(bodies), chance.choice(bodies))
        try:
            message = codec.decode(frame)
        except CodecError as error:
            assert str(error)
            refused += 1
        else:
            assert isinstance(message, get_args(Message))
            assert codec.decode(codec.encode(message)) == message or is_nan(frame)
            read += 1
    assert refused > read > 0


def test_a_damaged_header_is_a_peer_or_a_codec_error() -> None:
    chance = random.Random(99)
    header = codec.encode_header(Peer("decode-0", 1 << 61, "tcp://10.0.0.1:5557"))
    for _ in range(MUTATIONS):
        try:
            peer = codec.decode_header(mutate(chance, header, header))
        except CodecError as error:
            assert str(error)
        else:
            assert isinstance(peer, Peer)


def test_lengths_that_lie_cost_no_memory() -> None:
    """A frame of a few bytes names lists, maps and texts of billions."""
    tracemalloc.start()
    for tag in ("prefill", "published", "renew", "tokens", "hello", "status", "refused"):
        for huge in HUGE:
            head = b"\x98" + msgspec.msgpack.encode(tag)
            for before in range(6):
                frame = head + b"\x01" * before + huge + b"\xff\xff\xff\xf0" + b"\x01" * 64
                with pytest.raises(CodecError):
                    codec.decode(frame)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20


def test_what_is_decoded_is_bounded_by_its_frame() -> None:
    """Some tens of bytes of memory for each byte that came, and no more."""
    body = msgspec.msgpack.encode(["renew", [1 << 40] * 100_000, [-1] * 100_000])
    tracemalloc.start()
    message = codec.decode(body)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(message, Renew) and most < 64 * len(body)
