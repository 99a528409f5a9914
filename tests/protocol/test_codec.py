"""Every message survives the codec; no bytes bring anything out of it but CodecError."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.protocol import codec
from penstock.protocol.codec import CodecError
from penstock.protocol.messages import REVISION, Cancel, Message, Peer, Refused
from support.message_samples import MESSAGES

PEER = Peer("router-0", (1 << 63) - 1, "tcp://127.0.0.1:5557")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    assert codec.decode(codec.encode(message)) == message


def test_header_round_trip() -> None:
    assert codec.decode_header(codec.encode_header(PEER)) == PEER


def test_another_revision_is_refused_by_number() -> None:
    header = bytearray(codec.encode_header(PEER))
    header[4:6] = (REVISION + 1).to_bytes(2, "big")
    with pytest.raises(CodecError, match=f"revision {REVISION + 1}, this process speaks"):
        codec.decode_header(bytes(header))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_truncation_is_a_codec_error(message: Message) -> None:
    body = codec.encode(message)
    for length in range(len(body)):
        with pytest.raises(CodecError):
            codec.decode(body[:length])


def test_every_truncated_header_is_a_codec_error() -> None:
    header = codec.encode_header(PEER)
    for length in range(len(header)):
        with pytest.raises(CodecError):
            codec.decode_header(header[:length])


def test_unknown_tag_is_named() -> None:
    with pytest.raises(CodecError, match="explode"):
        codec.decode(msgspec.msgpack.encode(["explode", 1]))


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(CodecError, match="trailing"):
        codec.decode(codec.encode(Cancel(1, 0)) + b"\x00")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodecError, match="at most 1024"):
        codec.decode_header(codec.encode_header(PEER) + bytes(1024))
    with pytest.raises(CodecError, match="at most 1024"):
        codec.encode_header(Peer("x" * 2000, 1, ""))
    monkeypatch.setattr(codec, "MAX_BODY_BYTES", 100)
    with pytest.raises(CodecError, match="Refused of .* at most 100"):
        codec.encode(Refused("x" * 200))
    with pytest.raises(CodecError, match="at most 100"):
        codec.decode(bytes(101))


@pytest.mark.parametrize(
    "frame",
    [
        b"\x93\xa5renew\xdd\x0f\xff\xff\xff\x01",  # a list of 268 million that is not there
        b"\x94\xa5renew\x90\x90" + b"\x91" * 100_000 + b"\x90",  # nested too deep
        b"\x92\xa7refused\xa2\xff\xfe",  # no UTF-8
    ],
    ids=["huge", "deep", "text"],
)
def test_hostile_frames(frame: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(frame)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes(frame: bytes) -> None:
    for decode in (codec.decode, codec.decode_header):
        try:
            decode(frame)
        except CodecError as error:
            assert str(error)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(MESSAGES), st.integers(0, 10_000), st.integers(0, 255))
def test_one_changed_byte(message: Message, position: int, value: int) -> None:
    body = bytearray(codec.encode(message))
    body[position % len(body)] = value
    try:
        decoded = codec.decode(bytes(body))
    except CodecError:
        return
    assert isinstance(decoded, Message)


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from(["prefill", "tokens", "hello", "status", "published", "nothing"]),
)
def test_well_formed_msgpack_of_the_wrong_shape(value: object, tag: str) -> None:
    for frame in (msgspec.msgpack.encode(value), msgspec.msgpack.encode([tag, value, value])):
        try:
            decoded = codec.decode(frame)
        except CodecError as error:
            assert str(error)
        else:  # it happened to fit: then it is a message like any other
            assert isinstance(decoded, Message)
            again = codec.encode(decoded)
            assert codec.encode(codec.decode(again)) == again
