"""The seams between decoder, parts and weights.

T tokens in the batch, R wanted rows, D model size, M positions, X rotated columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from .batch import Batch
from .config import ModelConfig
from .fields import ModelError

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # tensor name -> shape, as the checkpoint must hold it
ONCE = -1  # in place of a dimension: added to the sum of the shards, so that only the first has it
Cuts = dict[str, int]  # tensor name -> dimension that is cut into shards, or ONCE
Linears = tuple[tuple[int, int], ...]  # (outputs, inputs) of linear layers as they are run


class Source(Protocol):
    """Where a part takes its tensors from: on the run's device, in memory of their own.

    In the run's dtype, where none is named.
    """

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...

    def part(
        self, name: str, dimension: int, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """tensor(name) from start to stop along one dimension; only those bytes are read."""
        ...

    def joined(self, names: Sequence[str], dtype: torch.dtype | None = None) -> Tensor:
        """These tensors one after the other along dimension 0."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal pieces of a model."""

    index: int
    count: int

    def size(self, what: str, whole: int) -> int:
        """A shard's piece of so many. Raises ModelError naming what cannot be divided."""
        if whole % self.count:
            widths = [str(width) for width in range(1, whole + 1) if whole % width == 0]
            raise ModelError(
                f"{self.count} shards: the model's {whole} {what} cannot be divided among them; "
                f"shards that divide them: {', '.join(widths)}"
            )
        return whole // self.count


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of all positions, shared by the layers; [M, X / 2], fp32."""

    cosine_MX2: Tensor
    sine_MX2: Tensor
    interleaved: bool


class AttentionPart(Protocol):
    def __call__(
        self, x_TD: Tensor, batch: Batch, pages: Tensor, layer: int, only_wanted: bool
    ) -> Tensor:
        """Store all T tokens in the pages' layer; return [T, D], or [R, D] of the wanted rows."""
        ...


class FeedForwardPart(Protocol):
    def __call__(self, x_TD: Tensor) -> Tensor: ...


class PartClass(Protocol):
    """What the decoder asks of a part's class before there is a part."""

    def shapes(self, plan: Any, config: ModelConfig, prefix: str) -> Shapes: ...

    def packed(self, plan: Any, config: ModelConfig) -> Linears: ...

    def divided(self, plan: Any, shard: Shard) -> Any:
        """The plan of one shard. Raises ModelError naming what does not divide."""
        ...

    def cuts(self, plan: Any, prefix: str) -> Cuts:
        """Which tensors a shard reads in part; a tensor that is not named is read whole."""
        ...


class AttentionClass(PartClass, Protocol):
    """`prefix` names the part in the checkpoint, without a last dot."""

    def __call__(
        self,
        plan: Any,
        config: ModelConfig,
        source: Source,
        prefix: str,
        kernels: Kernels,
        rotary: Rotary,
    ) -> AttentionPart: ...


class FeedForwardClass(PartClass, Protocol):
    def __call__(
        self, plan: Any, config: ModelConfig, source: Source, prefix: str, kernels: Kernels
    ) -> FeedForwardPart: ...
