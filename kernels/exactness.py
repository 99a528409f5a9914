"""Ask this machine whether its kernels are exact: a row's bits must not depend on its neighbours.

Each operation is run over the same rows in several cuts (all at once, one by one, 7 and the rest,
...) and must give the same bits; attention besides over two placements of its pages. Then each is
run with one thread and with as many as torch has now: where that changes bits, threads are part of
the numeric class. About a second; run it once at start, before other threads compute, since it
sets torch's thread count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .choice import Kernels

Tensor = torch.Tensor
ROWS = 64
CUTS = ((1, 63), (2, 62), (1,) * 8 + (56,), (5, 3, 16, 40), (33, 31), (7, 57))
LARGEST_WEIGHT = 1 << 22  # elements; a larger weight is probed with fewer outputs, its depth kept

# From the numbers of rows of each step to the output of all rows.
Operation = Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class Report:
    inexact: tuple[str, ...]  # operations whose rows depend on the cut
    by_threads: tuple[str, ...]  # operations whose bits depend on the number of threads
    checked: tuple[str, ...]
    threads: int
    seconds: float

    @property
    def sentence(self) -> str:
        rows = f"NOT row-exact: {', '.join(self.inexact)}" if self.inexact else "row-exact"
        threads = (
            f"bits depend on the thread count ({self.threads} now) in {', '.join(self.by_threads)}"
            if self.by_threads
            else f"1 and {self.threads} threads give the same bits"
        )
        return f"{len(self.checked)} operations {rows}; {threads} ({self.seconds:.1f} s)"


def probe(
    kernels: Kernels,
    dtype: torch.dtype,
    linears: tuple[tuple[int, int], ...] = ((1536, 1024), (1024, 3072)),  # (outputs, inputs)
    query_heads: int = 8,
    groups: int = 2,
    head: int = 64,
    slots: int = 16,
    device: torch.device | str = "cpu",
) -> Report:
    start = time.monotonic()
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    weight_D = draw(1000)
    operations = {
        "rms_norm": _by_rows(lambda x: kernels.rms_norm(x, weight_D, 1e-5), draw(ROWS, 1000)),
        "silu_mul": _by_rows(kernels.silu_mul, draw(ROWS, 2 * 333)),
        "attention": _attention(kernels, draw, query_heads, groups, head, slots),
    }
    for outputs, inputs in dict.fromkeys(linears):
        weight = draw(max(1, min(outputs, LARGEST_WEIGHT // inputs)), inputs)
        packed = kernels.pack_linear(weight)
        operations[f"linear {outputs} x {inputs}"] = _by_rows(packed, draw(ROWS, inputs))
    whole = {name: operation((ROWS,)) for name, operation in operations.items()}
    inexact = tuple(
        name
        for name, operation in operations.items()
        if not all(torch.equal(operation(cut), whole[name]) for cut in CUTS)
    )
    by_threads = _by_threads(operations, whole)
    seconds = time.monotonic() - start
    return Report(inexact, by_threads, tuple(operations), torch.get_num_threads(), seconds)


def _by_threads(operations: dict[str, Operation], whole: dict[str, Tensor]) -> tuple[str, ...]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tuple(
            name
            for name, operation in operations.items()
            if not torch.equal(operation((ROWS,)), whole[name])
        )
    finally:
        torch.set_num_threads(threads)


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Operation:
    return lambda cut: torch.cat([function(part.clone()) for part in x.split(list(cut))])


def _attention(
    kernels: Kernels,
    draw: Callable[..., Tensor],
    query_heads: int,
    groups: int,
    head: int,
    slots: int,
) -> Operation:
    """A sequence that grows to past + ROWS tokens, beside another; pages move with the cut."""
    past = 100
    context = past + ROWS
    used = -(-context // slots)
    q_TNH = draw(ROWS, query_heads, head)
    kept = draw(used, 1, 2, groups, slots, head)

    def run(cut: tuple[int, ...]) -> Tensor:
        index = torch.tensor
        device = q_TNH.device
        order = torch.roll(torch.arange(used + 1), len(cut))  # the last entry is a page of others
        pages = torch.full((used + 1, *kept.shape[1:]), torch.nan, dtype=kept.dtype, device=device)
        pages[order[:used].to(device)] = kept
        outputs, done = [], 0
        for rows in cut:
            done += rows
            q = torch.cat((q_TNH[:1], q_TNH[done - rows : done]))
            table = order[:used].int().to(device).expand(2, -1).contiguous()
            starts = index([0, 1, 1 + rows], dtype=torch.int32, device=device)
            contexts = index([17, past + done], dtype=torch.int32, device=device)
            out = kernels.paged_attention(q, pages, 0, table, starts, contexts, head**-0.5)
            outputs.append(out[1:])
        return torch.cat(outputs)

    return run
