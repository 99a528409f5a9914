"""Checkpoints written tensor by tensor, in any format, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from penstock.models.checkpoint import Checkpoint

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}


def write(
    folder: Path, tensors: dict[str, Tensor], quantization: dict[str, Any] | None = None
) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    config = {} if quantization is None else {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


def fp8(rows: int, columns: int, *stack: int) -> Tensor:
    """Random codes, all of them but NaN."""
    codes = torch.randint(0, 256, (*stack, rows, columns), dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    return codes.view(torch.float8_e4m3fn)


def dequantised(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """The formula, written out: every code by its block's scale, in fp32."""
    rows, columns = codes.shape[-2:]
    wide = scales.float().repeat_interleave(block[0], -2)[..., :rows, :]
    return codes.float() * wide.repeat_interleave(block[1], -1)[..., :columns]
