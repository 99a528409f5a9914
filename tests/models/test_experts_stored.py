"""Quantised checkpoints of the families that publish them give the numbers they stand for."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.bench.reference.measure import Pages, sequence_of
from penstock.kernels.choice import choose
from penstock.models.mtp import load_ahead
from penstock.models.registry import load_model
from support.latent_model import SIZES
from support.small_model import write_model
from support.stored_weights import dequantised

BLOCK = (16, 32)
LARGEST = 448.0  # of e4m3
FOUR_BITS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    **{"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
}


def logits(folder: Path) -> Tensor:
    loaded = load_model(folder, choose("cpu"), torch.float32)
    pages = Pages(loaded)
    with torch.inference_mode():
        found = pages.logits(sequence_of(list(range(3, 33))), [30])
    pages.close()
    return found


def quantised_twin(
    folder: Path, twin: Path, stored: dict[str, Tensor], how: dict[str, Any]
) -> Path:
    config = json.loads((folder / "config.json").read_text())
    twin.mkdir()
    (twin / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    save_file(stored, twin / "model.safetensors")
    return twin


def to_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and per block the scale that makes its largest element e4m3's largest."""
    rows, columns = (-(-size // block) for size, block in zip(weight.shape, BLOCK, strict=True))
    scales = torch.empty(rows, columns)
    codes = torch.empty(weight.shape)
    for row in range(rows):
        for column in range(columns):
            place = (
                slice(row * BLOCK[0], (row + 1) * BLOCK[0]),
                slice(column * BLOCK[1], (column + 1) * BLOCK[1]),
            )
            scales[row, column] = weight[place].abs().max() / LARGEST
            codes[place] = weight[place] / scales[row, column]
    return codes.to(torch.float8_e4m3fn), scales


def test_deepseek_with_fp8_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    write_model(folder, **SIZES, num_nextn_predict_layers=1)
    plain, stored = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        plain[name] = stored[name] = tensor
        if name.startswith("model.layers") and tensor.ndim == 2 and "mlp.gate." not in name:
            codes, scales = to_blocks(tensor)
            stored[name], stored[f"{name}_scale_inv"] = codes, scales
            plain[name] = dequantised(codes, scales, BLOCK)
    save_file(plain, folder / "model.safetensors")
    how = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    twin = quantised_twin(folder, tmp_path / "fp8", stored, how)
    assert torch.equal(logits(twin), logits(folder))
    loaded = load_model(twin, choose("cpu"), torch.float32)
    ahead = load_ahead(twin, loaded.model, choose("cpu"), torch.float32)
    assert not ahead.layers and "no tensor" in ahead.why  # write_model draws none


def test_gpt_oss_with_mxfp4_experts(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    write_model(folder, **GPT_OSS)
    plain = load_file(folder / "model.safetensors")
    stored = dict(plain)
    values = torch.tensor(FOUR_BITS + [-one for one in FOUR_BITS])
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = plain[name].shape
        codes = torch.randint(0, 16, (count, outputs, inputs // 32, 32), dtype=torch.uint8)
        scales = torch.randint(120, 126, (count, outputs, inputs // 32), dtype=torch.uint8)
        stored[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        stored[f"{name}_scales"] = scales
        del stored[name]
        wide = values[codes.long()] * torch.exp2(scales.float() - 127)[..., None]
        plain[name] = wide.flatten(-2).transpose(1, 2).contiguous()
    save_file(plain, folder / "model.safetensors")
    twin = quantised_twin(folder, tmp_path / "mxfp4", stored, {"quant_method": "mxfp4"})
    assert torch.equal(logits(twin), logits(folder))
