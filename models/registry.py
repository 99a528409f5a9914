"""How a model folder becomes a ready model."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.choice import Kernels
from .checkpoint import Checkpoint
from .config import ModelConfig, read_config
from .decoder import Decoder
from .shards import WHOLE, Shards
from .weights import Progress, Weights

Model = Decoder


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and what identifies its weights."""

    model: Model
    config: ModelConfig
    digest: str


def load_model(
    folder: Path,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    shards: Shards = WHOLE,
    head: bool = True,
) -> Loaded:
    """Read, check and pack one checkpoint, or some shards of it; raises ModelError."""
    config = read_config(folder)
    checkpoint = Checkpoint(folder)
    wanted = Decoder.shapes(config)
    checkpoint.check(wanted, Decoder.ignored(config))
    with torch.inference_mode():
        source = Weights(checkpoint, dtype, device, progress, wanted)
        model = Decoder(config, source, kernels, shards, head)
    return Loaded(model, config, checkpoint.digest())
