"""A model cut into shards: what a shard reads, what it computes, and how shards are summed.

A shard is a part of every layer's heads, columns and experts, built by the same code as the whole
from a smaller plan. Each gives a partial sum of the layer's output; the sum is

    out = round(p_0 + p_1 + .. + p_(S-1)),  p_s in the model's dtype, added in fp32 in this order

whoever holds which shard. So one process with S shards and S processes with one each give the same
bits, and S belongs to the numeric class. What is not cut (norms, routers, compressed vectors) each
shard computes for itself.

T tokens in the batch, D model size, S shards, X of them held here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .blueprint import GroupedAttention
from .config import ModelConfig
from .fields import ModelError
from .parts import (
    ONCE,
    AttentionPart,
    Cuts,
    FeedForwardPart,
    Shapes,
    Shard,
    Source,
)

# The partial sums of all shards in order, given those held here: [X, T, D] -> [S, T, D].
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shards:
    """How a model is cut, and which shards this process holds; without `gather` it holds all."""

    count: int = 1
    first: int = 0
    held: int = 1
    gather: Gather | None = None

    @classmethod
    def of_rank(cls, count: int, rank: int, ranks: int, gather: Gather | None = None) -> "Shards":
        """Shards in equal runs over the ranks. Raises ModelError where they do not divide."""
        if count % ranks:
            raise ModelError(
                f"{count} shards cannot be held by {ranks} ranks; a multiple of {ranks} can"
            )
        held = count // ranks
        return cls(count, rank * held, held, gather)

    @property
    def own(self) -> list[Shard]:
        return [Shard(index, self.count) for index in range(self.first, self.first + self.held)]

    def sum(self, partials: Sequence[Tensor]) -> Tensor:
        """[T, D] out of the partial sums of the shards held here."""
        if not partials[0].numel():
            return partials[0]
        every = partials if self.gather is None else self.gather(torch.stack(tuple(partials)))
        total_TD = every[0].float()
        for partial_TD in every[1:]:
            total_TD = total_TD + partial_TD
        return total_TD.to(partials[0].dtype)


WHOLE = Shards()


class ShardSource:
    """The tensors of one shard's part."""

    def __init__(self, source: Source, shapes: Shapes, cuts: Cuts, shard: Shard) -> None:
        self._source = source
        self._shapes = shapes
        self._cuts = cuts
        self._shard = shard

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        dimension = self._cuts.get(name)
        if dimension is None:
            return self._source.tensor(name, dtype)
        if dimension == ONCE:
            whole = self._source.tensor(name, dtype)
            return whole if self._shard.index == 0 else torch.zeros_like(whole)
        size = self._shard.size(f"entries of {name}", self._shapes[name][dimension])
        start = self._shard.index * size
        return self._source.part(name, dimension, start, start + size, dtype)

    def part(
        self, name: str, dimension: int, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        if name in self._cuts:
            raise ValueError(f"{name} is cut into shards already")
        return self._source.part(name, dimension, start, stop, dtype)

    def joined(self, names: Sequence[str], dtype: torch.dtype | None = None) -> Tensor:
        if not any(name in self._cuts for name in names):
            return self._source.joined(names, dtype)
        if len(names) == 1:
            return self.tensor(names[0], dtype)
        return torch.cat([self.tensor(name, dtype) for name in names])


class ShardedAttention:
    """The attention parts of the shards held here; each has its own key heads of the pages."""

    def __init__(self, parts: Sequence[AttentionPart], heads: Sequence[slice], shards: Shards):
        self._parts = tuple(zip(parts, heads, strict=True))
        self._shards = shards

    def __call__(
        self, x_TD: Tensor, batch: Batch, pages: Tensor, layer: int, only_wanted: bool
    ) -> Tensor:
        return self._shards.sum(
            [
                part(x_TD, batch, pages[:, :, :, heads], layer, only_wanted)
                for part, heads in self._parts
            ]
        )


class ShardedFeedForward:
    """The feed-forward parts of the shards held here."""

    def __init__(self, parts: Sequence[FeedForwardPart], shards: Shards) -> None:
        self.parts = tuple(parts)
        self._shards = shards

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self._shards.sum([part(x_TD) for part in self.parts])


def key_heads(plan: Any, shard: Shard) -> slice:
    """Of the pages' key heads those of one shard; a latent vector is every shard's."""
    if not isinstance(plan, GroupedAttention):
        return slice(None)
    size = shard.size("key heads", plan.kv_heads)
    return slice(shard.index * size, (shard.index + 1) * size)


def built(
    kind: Any, plan: Any, config: ModelConfig, source: Source, prefix: str, shards: Shards, *rest
) -> list[Any]:
    """One part of class `kind` per shard held here; `rest`: what its constructor takes besides."""
    shapes, cuts = kind.shapes(plan, config, prefix), kind.cuts(plan, prefix)
    return [
        kind(
            kind.divided(plan, shard),
            config,
            ShardSource(source, shapes, cuts, shard),
            prefix,
            *rest,
        )
        for shard in shards.own
    ]
