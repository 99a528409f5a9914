"""What a worker's leader and its followers say to each other, over one stream each.

leader                          follower
Setup                    ->                    at once
                         <-     Loaded         the weights are there
Pages and a descriptor   ->                    both join the group
                         <-     Ready
a step's batch           ->                    Counts, then its int32 words
                         <-     Done           the pages are written

Refused comes in place of Loaded or Ready. Words are msgpack with their length before them.
"""

import os
import socket
import struct
from typing import TypeVar

import msgspec
import numpy

from .batch import Counts

_LENGTH = struct.Struct("<I")
_COUNTS = struct.Struct("<4I")
MOST_BYTES = 1 << 20  # of a word


class Setup(msgspec.Struct, frozen=True, tag=True):
    """What a follower needs to load its shards; all of it was chosen by the leader."""

    model: str
    dtype: str
    kernels: str
    threads: int
    page_slots: int
    rank: int
    ranks: int
    shards: int
    meeting: str  # the file through which the group finds together
    seconds: float  # that an exchange may take


class Loaded(msgspec.Struct, frozen=True, tag=True):
    kernels: str  # their digest: ranks of other kernels would not give the class's bits


class Pages(msgspec.Struct, frozen=True, tag=True):
    """Comes with the descriptor of the memory file."""

    count: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    pass


class Refused(msgspec.Struct, frozen=True, tag=True):
    reason: str


class Done(msgspec.Struct, frozen=True, tag=True):
    error: str = ""


Word = Setup | Loaded | Pages | Ready | Refused | Done
AnyWord = TypeVar("AnyWord", Setup, Loaded, Pages, Ready, Done)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Word)


class Ended(Exception):
    """The other end is closed."""


class Unwilling(Exception):
    """The other end said why it cannot."""


class Line:
    """One end of the stream."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def close(self) -> None:
        self._channel.close()

    def limit(self, seconds: float) -> None:
        """From now on a word that does not come, or go, for so long ends the stream."""
        self._channel.settimeout(seconds)

    def send(self, word: Word, descriptor: int = -1) -> None:
        """Raises Ended."""
        payload = _encoder.encode(word)
        given = [] if descriptor < 0 else [descriptor]
        try:
            socket.send_fds(self._channel, [_LENGTH.pack(len(payload))], given)
            self._channel.sendall(payload)
        except OSError as error:
            raise Ended(str(error)) from None

    def receive(self, kind: type[AnyWord]) -> AnyWord:
        """The next word, which must be of this kind. Raises Ended or Unwilling."""
        return self._word(kind, self._exactly(_LENGTH.size))

    def receive_with_file(self, kind: type[AnyWord]) -> tuple[AnyWord, int]:
        """The same, and the descriptor that comes with it."""
        try:
            first, descriptors, _, _ = socket.recv_fds(self._channel, _LENGTH.size, 1)
        except OSError as error:
            raise Ended(str(error)) from None
        if not descriptors:
            raise Ended("a word came without its descriptor")
        os.set_inheritable(descriptors[0], False)
        rest = self._exactly(_LENGTH.size - len(first))
        return self._word(kind, first + rest), descriptors[0]

    def _word(self, kind: type[AnyWord], length: bytes) -> AnyWord:
        (size,) = _LENGTH.unpack(length)
        if size > MOST_BYTES:
            raise Ended(f"a word of {size} bytes is none")
        word = _decoder.decode(self._exactly(size))
        if isinstance(word, Refused):
            raise Unwilling(word.reason)
        if not isinstance(word, kind):
            raise Ended(f"{type(word).__name__} came where {kind.__name__} was due")
        return word

    def send_batch(self, counts: Counts, words: numpy.ndarray) -> None:
        """Raises Ended."""
        header = _COUNTS.pack(counts.tokens, counts.sequences, counts.rows, counts.width)
        try:
            self._channel.sendall(header)
            self._channel.sendall(words.data)
        except OSError as error:
            raise Ended(str(error)) from None

    def receive_batch(self) -> tuple[Counts, numpy.ndarray]:
        """int32 words in memory of their own. Raises Ended."""
        counts = Counts(*_COUNTS.unpack(self._exactly(_COUNTS.size)))
        words = numpy.empty(sum(counts.sizes), dtype=numpy.int32)
        self._fill(words.data.cast("B"))
        return counts, words

    def _exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, view: memoryview) -> None:
        while view:
            try:
                count = self._channel.recv_into(view)
            except OSError as error:
                raise Ended(str(error)) from None
            if not count:
                raise Ended("the other end is closed")
            view = view[count:]
