"""A Step becomes the flat tensors of a forward pass.

All of a step's indices are written into one int32 buffer and reach the device in one copy; on a CPU
the tensors are views of that buffer, so a Batch is valid until the next one is built.

T tokens, B sequences (slices), W pages per sequence at most, R wanted rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from types import MappingProxyType

import numpy
import torch
from torch import Tensor

from ..models.batch import Batch
from .sequence import Sequence
from .step import Slice, Step

NOTHING: Mapping[Sequence, int] = MappingProxyType({})


def reported_rows(part: Slice) -> int:
    """Rows of a slice whose next token is a prompt token that the client wants reported."""
    if part.sequence.sampling.prompt_logprobs < 0:
        return 0
    return max(0, min(part.count, part.sequence.prompt_length - 1 - part.start))


def wanted_rows(part: Slice) -> int:
    """How many of a slice's last rows need logits: all to report the prompt, one to draw from."""
    if reported_rows(part):
        return part.count
    return 1 if part.draw else 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What the sizes of a batch's tensors follow from; W of the page table is `width`."""

    tokens: int
    sequences: int
    rows: int
    width: int

    @property
    def sizes(self) -> list[int]:
        """int32 words of each tensor, in the buffer's order."""
        tokens, sequences = [self.tokens] * 4, [self.sequences + 1] * 2
        return [*tokens, *sequences, self.sequences, self.rows, self.sequences * self.width]


def batch_of(words: Tensor, counts: Counts) -> Batch:
    """Views of the buffer, which may be longer than the batch needs."""
    sizes = counts.sizes
    parts: tuple[Tensor, ...] = words[: sum(sizes)].split(sizes)
    return Batch(
        token_T=parts[0],
        position_T=parts[1],
        page_T=parts[2],
        slot_T=parts[3],
        query_start_B1=parts[4],
        wanted_start_B1=parts[5],
        context_length_B=parts[6],
        wanted_R=None if counts.rows == counts.tokens else parts[7],
        page_table_BW=parts[8].view(counts.sequences, counts.width),
    )


class BatchBuilder:
    """Holds the buffer between steps, since allocating costs more than filling.

    `counts` and `words` (int32) are those of the batch that was built last, as another process
    needs them for `batch_of`.
    """

    counts: Counts
    words: numpy.ndarray

    def __init__(self, page_slots: int, device: torch.device | str = "cpu") -> None:
        self.page_slots = page_slots
        self.device = torch.device(device)
        self._resize(1 << 14)

    def _resize(self, size: int) -> None:
        pinned = self.device.type == "cuda"
        self.host = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self.buffer = self.host.numpy()

    def build(self, step: Step, drawn: Mapping[Sequence, int] = NOTHING) -> Batch:
        """`drawn`: the tokens of the step before, for the slices that follow it."""
        slices = step.slices
        sequences = len(slices)
        counts = [part.count for part in slices]
        contexts = [part.start + part.count for part in slices]
        tokens = sum(counts)
        width = -(-max(contexts) // self.page_slots)
        wanted = [wanted_rows(part) for part in slices]
        rows = sum(wanted)
        self.counts = Counts(tokens, sequences, rows, width)
        sizes = self.counts.sizes
        ends = list(accumulate(sizes))
        if ends[-1] > len(self.buffer):
            self._resize(2 * ends[-1])
        views = [self.buffer[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        token, position, page, slot, query_start, wanted_start, context, wanted_row, table = views
        query_start[0] = wanted_start[0] = 0
        query_start[1:] = list(accumulate(counts))
        wanted_start[1:] = list(accumulate(wanted))
        context[:] = contexts
        table = table.reshape(sequences, width)
        self._fill_tokens(slices, drawn, token, position, query_start)
        self._fill_pages(slices, table)
        sequence_of = numpy.repeat(numpy.arange(sequences), counts)
        numpy.remainder(position, self.page_slots, out=slot)
        page[:] = table[sequence_of, position // self.page_slots]
        if page.min(initial=0) < 0:
            raise ValueError("a sequence has fewer pages than the tokens it is to compute")
        if rows != tokens:
            _fill_wanted(wanted_row, wanted, query_start)
        self.words = self.buffer[: ends[-1]]
        return batch_of(self._moved(ends[-1]), self.counts)

    def _fill_tokens(
        self,
        slices: tuple[Slice, ...],
        drawn: Mapping[Sequence, int],
        token: numpy.ndarray,
        position: numpy.ndarray,
        query_start: numpy.ndarray,
    ) -> None:
        if len(token) == len(slices):  # decode: one token each
            token[:] = [
                drawn[part.sequence] if part.follows else part.sequence.token_ids[part.start]
                for part in slices
            ]
            position[:] = [part.start for part in slices]
            return
        for part, start in zip(slices, query_start.tolist(), strict=False):
            stop = start + part.count
            token[start:stop] = part.sequence.token_ids[part.start : part.start + part.count]
            position[start:stop] = numpy.arange(part.start, part.start + part.count)

    def _fill_pages(self, slices: tuple[Slice, ...], table_BW: numpy.ndarray) -> None:
        width = table_BW.shape[1]
        row_lists = []
        for part in slices:
            # A copy at once: the loop may add a page meanwhile, for a later step. A page reserved
            # ahead is not looked at; one too few shows as -1.
            pages = part.sequence.pages[:width]
            row_lists.append(pages + [-1] * (width - len(pages)))
        flat = table_BW.reshape(-1)
        flat[:] = numpy.fromiter(chain.from_iterable(row_lists), numpy.int32, len(flat))

    def _moved(self, count: int) -> Tensor:
        moved = self.host[:count]
        if self.device.type != "cpu":
            moved = moved.to(self.device, non_blocking=True)
        return moved


def _fill_wanted(wanted_row: numpy.ndarray, wanted: list[int], query_start: numpy.ndarray) -> None:
    """The last `wanted[b]` rows of each sequence."""
    stops = query_start[1:].tolist()
    chosen = [range(stop - count, stop) for stop, count in zip(stops, wanted, strict=True)]
    wanted_row[:] = list(chain.from_iterable(chosen))
