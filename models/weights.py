"""A checkpoint's weights as a model takes them: by name, whole or in part, in the run's dtype.

Whatever the files hold (formats.py), what comes out are floating-point tensors in memory of their
own on the device; only the bytes of a part are read (filling.py).
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .filling import Box, Filler, shape_of
from .formats import Mxfp4, Shape, Weight
from .memory import MOST_KEPT, Arena

# Bytes done, bytes in all, and what is being read ("model.layers.7"). A part counts with its own
# bytes only, so `in all` falls where a rank reads its slices.
Progress = Callable[[int, int, str], None]


class Weights:
    """The tensors of one checkpoint, read when they are asked for. Safe between threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        wanted: Iterable[str] | None = None,
    ) -> None:
        """`wanted`: the names that will be asked for, for `progress`; None: all."""
        self._weights = checkpoint.weights
        self._dtype = dtype
        self._device = torch.device(device)
        # Between a small checkpoint's tensors little memory is kept, or it would be much beside it.
        self._arena = Arena(min(MOST_KEPT, checkpoint.total_bytes // 8))
        self._filler = Filler(checkpoint.files, self._device)
        names = self._weights if wanted is None else wanted
        self._told = _Told(sum(_size(self._weights[name]) for name in names), progress)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor, in this dtype or the run's. Raises ModelError."""
        return self._taken(name, _whole(self._weights[name]), dtype)

    def part(
        self, name: str, dimension: int, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """tensor(name) from start to stop along one dimension. Raises ModelError."""
        box = list(_whole(self._weights[name]))
        if not 0 <= start <= stop <= box[dimension][1]:
            raise ValueError(f"{name}: {start} to {stop} is not within {box[dimension]}")
        box[dimension] = (start, stop)
        return self._taken(name, tuple(box), dtype)

    def joined(self, names: Sequence[str], dtype: torch.dtype | None = None) -> Tensor:
        """These tensors one after the other along dimension 0, without a further copy."""
        if len(names) == 1:
            return self.tensor(names[0], dtype)
        boxes = [_whole(self._weights[name]) for name in names]
        height = sum(box[0][1] for box in boxes)
        out = self._empty((height, *shape_of(boxes[0])[1:]), dtype)
        places = out.split([box[0][1] for box in boxes])
        for name, box, place in zip(names, boxes, places, strict=True):
            self._fill(name, box, place)
        return out

    def _taken(self, name: str, box: Box, dtype: torch.dtype | None) -> Tensor:
        shape = shape_of(box)
        if isinstance(self._weights[name], Mxfp4):  # as it is stored: an expert's rows are long
            out = self._empty((shape[0], shape[2], shape[1]), dtype).transpose(1, 2)
        else:
            out = self._empty(shape, dtype)
        self._fill(name, box, out)
        return out

    def _empty(self, shape: Shape, dtype: torch.dtype | None) -> Tensor:
        dtype = dtype or self._dtype
        if self._device.type == "cpu":
            return self._arena.empty(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _fill(self, name: str, box: Box, out: Tensor) -> None:
        weight = self._weights[name]
        self._told.begins(name, weight, box)
        self._filler.fill(weight, box, out, partial(self._told.read, _group(name)))


class _Told:
    """Counts bytes for the progress that people see."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._total = total
        self._done = 0
        self._begun: set[str] = set()

    def begins(self, name: str, weight: Weight, box: Box) -> None:
        """So much of this weight will be read."""
        size = _size(weight)
        share = prod(shape_of(box)) / (prod(weight.shape) or 1)
        with self._lock:
            if name not in self._begun:
                self._begun.add(name)
                self._total -= size
            self._total += round(size * share)

    def read(self, group: str, size: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done = min(self._done + size, self._total)  # blocks that are cut count twice
            self._progress(self._done, self._total, group)


def _whole(weight: Weight) -> Box:
    return tuple((0, size) for size in weight.shape)


def _size(weight: Weight) -> int:
    return sum(stored.stop - stored.start for stored in weight.parts)


def _group(name: str) -> str:
    """model.layers.7.mlp.up_proj.weight: model.layers.7; lm_head.weight: lm_head."""
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: number + 1]) or name
