"""Which class serves which architecture, and how a model folder becomes a ready model."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.choice import Kernels
from .checkpoint import Checkpoint, Progress
from .config import ModelConfig, read_config
from .llama import LlamaForCausalLM

# The keys are config.ARCHITECTURES.
CLASSES = {"LlamaForCausalLM": LlamaForCausalLM}
Model = LlamaForCausalLM


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
) -> Loaded:
    """Read, check and pack one checkpoint; raises ModelError."""
    config = read_config(folder)
    checkpoint = Checkpoint(folder)
    model_class = CLASSES[config.architecture]
    checkpoint.check(model_class.tensors(config), model_class.ignored(config))
    with torch.inference_mode():
        model = model_class(config, checkpoint.load(dtype, device, progress), kernels)
    return Loaded(model, config, checkpoint.digest())
