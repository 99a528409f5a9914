"""An interpolated n-gram model over bytes: what the demo model has to beat.

Witten-Bell smoothing: with N occurrences of a context and T different bytes seen after it,

    p(byte | context) = (count(context byte) + T * p(byte | shorter context)) / (N + T)

down to one chance in 256. Contexts of up to `order` bytes are numbers in base 257, counted by
sorting; nothing of it needs more than numpy.
"""

from dataclasses import dataclass

import numpy
from numpy import ndarray

START = 256  # stands before the first byte of a document


@dataclass(frozen=True, slots=True)
class Level:
    """Counts for contexts of one length; keys are sorted."""

    events: ndarray  # context * 257 + byte
    event_counts: ndarray
    contexts: ndarray
    context_counts: ndarray  # N
    successors: ndarray  # T


def symbols(documents: list[str], order: int) -> ndarray:
    """Bytes of all documents, each document after `order` start marks."""
    parts = []
    for document in documents:
        parts.append(numpy.full(order, START, dtype=numpy.uint64))
        parts.append(numpy.frombuffer(document.encode(), dtype=numpy.uint8).astype(numpy.uint64))
    return numpy.concatenate(parts)


def context_keys(stream: ndarray, length: int) -> ndarray:
    """For every position, the `length` symbols before it as one number; 0 where there are fewer."""
    keys = numpy.zeros(len(stream), dtype=numpy.uint64)
    for back in range(length, 0, -1):
        shifted = numpy.zeros_like(stream)
        shifted[back:] = stream[:-back]
        keys = keys * numpy.uint64(257) + shifted
    return keys


def lookup(keys: ndarray, values: ndarray, wanted: ndarray) -> ndarray:
    """Value of each wanted key, 0 where the key is absent."""
    places = numpy.minimum(numpy.searchsorted(keys, wanted), len(keys) - 1)
    return numpy.where(keys[places] == wanted, values[places], 0)


class NGram:
    """Byte n-gram with contexts of up to `order` bytes (at most 6, so that keys fit 64 bits)."""

    def __init__(self, documents: list[str], order: int = 5) -> None:
        self.order = order
        stream = symbols(documents, order)
        real = stream != START
        self.levels = [self._count(stream, real, length) for length in range(order + 1)]

    @staticmethod
    def _count(stream: ndarray, real: ndarray, length: int) -> Level:
        contexts = context_keys(stream, length)[real]
        events = contexts * numpy.uint64(257) + stream[real]
        event_keys, event_counts = numpy.unique(events, return_counts=True)
        # Events are sorted, so those of one context stand together.
        context_of_event = event_keys // numpy.uint64(257)
        context_keys_, first = numpy.unique(context_of_event, return_index=True)
        successors = numpy.diff(numpy.append(first, len(event_keys)))
        return Level(
            event_keys,
            event_counts,
            context_keys_,
            numpy.add.reduceat(event_counts, first),
            successors,
        )

    def bits(self, documents: list[str]) -> tuple[float, int]:
        """Total bits for the documents, and their bytes."""
        stream = symbols(documents, self.order)
        real = stream != START
        chance = numpy.full(int(real.sum()), 1 / 256)
        for length, level in enumerate(self.levels):
            contexts = context_keys(stream, length)[real]
            events = contexts * numpy.uint64(257) + stream[real]
            count = lookup(level.events, level.event_counts, events)
            total = lookup(level.contexts, level.context_counts, contexts)
            kinds = lookup(level.contexts, level.successors, contexts)
            known = total > 0  # an unseen context leaves the shorter one's chance as it is
            mixed = (count + kinds * chance) / numpy.maximum(total + kinds, 1)
            chance = numpy.where(known, mixed, chance)
        return float(-numpy.log2(chance).sum()), int(real.sum())
