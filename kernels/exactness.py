"""Ask this machine whether its kernels are exact: a row's bits must not depend on its neighbours.

Each operation is run over the same rows in several cuts (all at once, one by one, 7 and the rest,
...) and must give the same bits; attention besides over placements of its pages. Then each is run
with one thread and with as many as torch has now: where that changes bits, threads are part of the
numeric class. The caller says which linear layers and which kinds of attention and of experts its
model runs.
About a second; run it once at start, before other threads compute, since it sets torch's thread
count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .choice import Kernels
from .experts import ExpertWeights
from .routing import Routing

Tensor = torch.Tensor
PAST, ROWS = 100, 64
CUTS = ((1, 63), (2, 62), (1,) * 8 + (56,), (5, 3, 16, 40), (33, 31), (7, 57))
LARGEST_WEIGHT = 1 << 22  # elements; a larger weight is probed with fewer outputs, its depth kept

# From the numbers of rows of each step to the output of all rows.
Operation = Callable[[tuple[int, ...]], Tensor]
Draw = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]
# Stores keys and values of some tokens and gives their queries: the tokens, cosine, sine and
# positions, pages, page and slot of each.
Store = Callable[[slice, Tensors, Tensor, Tensors], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One kind of attention, as a model's layers run it."""

    query_heads: int
    groups: int  # key heads
    head: int  # columns of a key
    value_size: int = 0  # latent: the values are so many columns of the keys; 0: they are stored
    window: int = 0
    sinks: bool = False
    head_norm: bool = False

    def __str__(self) -> str:
        words = ["attention", f"{self.query_heads} x {self.head}"]
        words += [f"latent {self.value_size}"] if self.value_size else [f"on {self.groups}"]
        words += [f"window {self.window}"] if self.window else []
        words += ["sinks"] if self.sinks else []
        words += ["head norm"] if self.head_norm else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """One kind of experts, as a model's layers run it."""

    count: int
    hidden: int
    size: int
    sigmoid: bool  # scores of an fp32 router

    def __str__(self) -> str:
        return f"experts {self.count} x {self.size}"


ATTENTION = AttentionShape(query_heads=8, groups=2, head=64)


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
    attentions: tuple[AttentionShape, ...] = (ATTENTION,),
    slots: int = 16,
    device: torch.device | str = "cpu",
    mixtures: tuple[MixtureShape, ...] = (),
) -> Report:
    start = time.monotonic()
    operations = _operations(kernels, dtype, linears, attentions, mixtures, slots, device)
    whole = {name: operation((ROWS,)) for name, operation in operations.items()}
    inexact = tuple(
        name
        for name, operation in operations.items()
        if not all(torch.equal(operation(cut), whole[name]) for cut in CUTS)
    )
    by_threads = _by_threads(operations, whole)
    seconds = time.monotonic() - start
    return Report(inexact, by_threads, tuple(operations), torch.get_num_threads(), seconds)


def _operations(
    kernels: Kernels,
    dtype: torch.dtype,
    linears: tuple[tuple[int, int], ...],
    attentions: tuple[AttentionShape, ...],
    mixtures: tuple[MixtureShape, ...],
    slots: int,
    device: torch.device | str,
) -> dict[str, Operation]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    weight_D = draw(1000)
    operations: dict[str, Operation] = {
        "rms_norm": _by_rows(lambda x: kernels.rms_norm(x, weight_D, 1e-5), draw(ROWS, 1000)),
        "silu_mul": _by_rows(kernels.silu_mul, draw(ROWS, 2 * 333)),
    }
    for shape in dict.fromkeys(attentions):
        run = _latent if shape.value_size else _grouped
        operations[str(shape)] = run(kernels, draw, shape, slots)
        if rank := shape.value_size:
            operations[f"heads {rank}"] = _heads(kernels, draw, rank)
    for mixture in dict.fromkeys(mixtures):
        operations[str(mixture)] = _mixture(kernels, draw, mixture)
    for outputs, inputs in dict.fromkeys(linears):
        weight = draw(max(1, min(outputs, LARGEST_WEIGHT // inputs)), inputs)
        packed = kernels.pack_linear(weight)
        operations[f"linear {outputs} x {inputs}"] = _by_rows(packed, draw(ROWS, inputs))
    return operations


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


def _heads(kernels: Kernels, draw: Draw, rank: int) -> Operation:
    """The two products of latent attention that are made head by head, on few heads."""
    absorb, expand = kernels.pack_heads(draw(3, rank, 64)), kernels.pack_heads(draw(3, 48, rank))
    return _by_rows(lambda x_TNI: expand(absorb(x_TNI)), draw(ROWS, 3, 64))


def _mixture(kernels: Kernels, draw: Draw, shape: MixtureShape) -> Operation:
    """Router, choice and experts; few experts, of which large ones are alone for a token."""
    hidden, size = shape.hidden, shape.size
    count, chosen = (3, 2) if hidden * size <= LARGEST_WEIGHT else (2, 1)
    routing = Routing(chosen, "sigmoid" if shape.sigmoid else "softmax")
    router_weight = draw(shape.count, hidden)
    router = kernels.pack_linear(router_weight.float() if shape.sigmoid else router_weight)
    experts = kernels.pack_experts(
        (
            ExpertWeights(*(draw(*sides) * hidden**-0.5 for sides in weights))
            for weights in [((size, hidden), (size, hidden), (hidden, size))] * count
        ),
        count,
    )

    def run(x_TD: Tensor) -> Tensor:
        logits_TE = router(x_TD.float() if shape.sigmoid else x_TD)[:, :count].float()
        return experts(x_TD, *kernels.route(logits_TE.contiguous(), None, routing))

    return _by_rows(run, draw(ROWS, hidden))


def _grouped(kernels: Kernels, draw: Draw, shape: AttentionShape, slots: int) -> Operation:
    heads, groups, head = shape.query_heads, shape.groups, shape.head
    qkv_TE = draw(PAST + ROWS, (heads + 2 * groups) * head)
    norms = (draw(head), draw(head), 1e-5) if shape.head_norm else ()

    def store(rows: slice, tables: Tensors, pages: Tensor, places: Tensors) -> Tensor:
        qkv = qkv_TE[rows].clone()
        return kernels.rotate_and_store(qkv, *tables, pages, 0, *places, heads, *norms)

    return _attention(kernels, draw, shape, slots, head, store)


def _latent(kernels: Kernels, draw: Draw, shape: AttentionShape, slots: int) -> Operation:
    rank = shape.value_size
    compressed_TX = draw(PAST + ROWS, shape.head)
    q_TNH = draw(PAST + ROWS, shape.query_heads, shape.head)
    norm_R = draw(rank)

    def store(rows: slice, tables: Tensors, pages: Tensor, places: Tensors) -> Tensor:
        compressed = compressed_TX[rows].clone()
        kernels.store_latent(compressed, norm_R, 1e-5, *tables, pages, 0, *places, True)
        rotated = kernels.rotate(q_TNH[rows, :, rank:], *tables, True)
        return torch.cat((q_TNH[rows, :, :rank], rotated), dim=-1)

    return _attention(kernels, draw, shape, slots, shape.head - rank, store)


def _attention(
    kernels: Kernels, draw: Draw, shape: AttentionShape, slots: int, rotated: int, store: Store
) -> Operation:
    """A sequence of PAST tokens that grows by ROWS, beside another; pages move with the cut."""
    used = -(-(PAST + ROWS) // slots)
    sides, groups = (1, 1) if shape.value_size else (2, shape.groups)
    sinks_N = draw(shape.query_heads).float() if shape.sinks else None
    some = draw(used + 1, 1, sides, groups, slots, shape.head)
    powers = torch.arange(rotated // 2) / -rotated
    angles = torch.outer(torch.arange(PAST + ROWS), 1e4 ** (2 * powers)).to(some.device)
    form = (shape.head**-0.5, shape.value_size, shape.window, sinks_N)

    def run(cut: tuple[int, ...]) -> Tensor:
        order = torch.roll(torch.arange(used + 1), len(cut)).int().to(some.device)
        pages = torch.full_like(some, torch.nan)
        table = order[:used].expand(2, -1).contiguous()
        outputs, done = [], 0
        for rows in (PAST, *cut):
            token = torch.arange(done, done + rows, device=some.device)
            places = (order[token // slots], (token % slots).int())
            tables = (angles.cos(), angles.sin(), token.int())
            q = store(slice(done, done + rows), tables, pages, places)
            done += rows
            starts = torch.tensor([0, 1, 1 + rows], dtype=torch.int32, device=some.device)
            contexts = torch.tensor([17, done], dtype=torch.int32, device=some.device)
            q = torch.cat((q[:1], q))
            outputs.append(kernels.paged_attention(q, pages, 0, table, starts, contexts, *form)[1:])
        return torch.cat(outputs)

    return run
