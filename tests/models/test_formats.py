"""Stored formats mean the numbers that their definitions, and transformers, say they mean."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.kernels.choice import choose
from penstock.models.fields import Fields, ModelError
from penstock.models.formats import exponents, fp4_numbers, fp8_numbers
from penstock.models.quantization import Quantization, read_quantization
from penstock.models.registry import load_model
from penstock.models.weights import Weights
from support.small_model import write_model
from support.stored_weights import FP8, MXFP4, dequantised, fp8, write

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True},
            "input_activations": {"type": "float", "num_bits": 8, "dynamic": True},
        }
    },
}


def quantization(values: Any) -> Quantization | None:
    return read_quantization(Fields(Path("config.json"), {"quantization_config": values}))


@pytest.mark.parametrize("count", [127, 256])  # without NaN and with it
def test_every_fp8_code(count: int) -> None:
    codes = torch.arange(count, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(fp8_numbers(codes).nan_to_num(7.5), expected.nan_to_num(7.5))
    negative = codes[:127] | 0x80
    assert torch.equal(fp8_numbers(negative), -expected[:127])


def test_every_fp4_code_and_exponent() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    numbers = fp4_numbers(codes, torch.ones(16))
    values = torch.tensor(E2M1 + [-value for value in E2M1])
    for byte in range(256):
        low, high = values[byte & 15], values[byte >> 4]
        assert numbers[2 * byte] == low and numbers[2 * byte + 1] == high
    found = exponents(torch.arange(255, dtype=torch.uint8))
    assert found.tolist() == [2.0 ** (code - 127) for code in range(255)]


@pytest.mark.parametrize("shape", [(256, 384), (130, 200), (1, 7), (300, 64)])
@pytest.mark.parametrize("block", [(128, 128), (32, 64), (1, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_blocks(
    tmp_path: Path, shape: tuple[int, int], block: tuple[int, int], dtype: torch.dtype
) -> None:
    codes = fp8(*shape)
    scales = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    stored = {"a.weight": codes, "a.weight_scale_inv": scales, "b.weight": torch.rand(3)}
    checkpoint = write(tmp_path, stored, FP8 | {"weight_block_size": list(block)})
    checkpoint.check({"a.weight": shape, "b.weight": (3,)})
    expected = dequantised(codes, scales, block).to(dtype)
    assert torch.equal(Weights(checkpoint, dtype).tensor("a.weight"), expected)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_fp8_equals_transformers(tmp_path: Path, scale_dtype: torch.dtype) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = fp8(256, 384, 2)
    scales = torch.rand(2, 2, 3).to(scale_dtype)
    stored = {"w": codes, "w_scale_inv": scales}
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    got = Weights(write(tmp_path, stored, FP8), torch.bfloat16).tensor("w")
    assert torch.equal(got, theirs)


@pytest.mark.parametrize("shape", [(), (1,), (200, 1), (200,)])
def test_fp8_per_tensor_and_per_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    codes, scale = fp8(200, 96), torch.rand(shape)
    stored = {"x.weight": codes, "x.weight_scale": scale, "x.input_scale": torch.rand(1)}
    wide = scale.reshape(-1, 1)
    for number, config in enumerate(({"quant_method": "fp8"}, COMPRESSED)):
        checkpoint = write(tmp_path / str(number), stored, config)
        checkpoint.check({"x.weight": (200, 96)})
        weights = Weights(checkpoint, torch.bfloat16)
        assert torch.equal(weights.tensor("x.weight"), (codes.float() * wide).bfloat16())
        part = weights.part("x.weight", 0, 150, 190)
        assert torch.equal(part, (codes.float() * wide)[150:190].bfloat16())


def mxfp4(experts: int, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8)
    return codes, torch.randint(110, 140, (experts, rows, groups), dtype=torch.uint8)


def test_mxfp4_equals_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    codes, scales = mxfp4(3, 70, 5)
    theirs = convert_moe_packed_tensors(codes, scales, dtype=torch.bfloat16)
    checkpoint = write(tmp_path, {"m.up_blocks": codes, "m.up_scales": scales}, MXFP4)
    checkpoint.check({"m.up": (3, 160, 70)})
    weights = Weights(checkpoint, torch.bfloat16)
    whole = weights.tensor("m.up")
    assert torch.equal(whole, theirs) and whole[0].T.is_contiguous()
    for dimension, start, stop in ((0, 1, 3), (1, 32, 96), (1, 50, 51), (2, 7, 69)):
        part = weights.part("m.up", dimension, start, stop)
        assert torch.equal(part, theirs.narrow(dimension, start, stop - start))


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        ({"w": fp8(8, 8)}, FP8, "w is FP8 and needs w_scale_inv, which is missing"),
        ({"w": fp8(8, 8)}, None, "not floating point: w is F8_E4M3"),
        ({"w": fp8(8, 8), "w_scale_inv": torch.rand(2, 1)}, FP8, r"need \[1, 1\]"),
        ({"w": torch.rand(8, 8), "w_scale_inv": torch.rand(1, 1)}, FP8, "unexpected: w_scale_inv"),
        ({"w_blocks": mxfp4(1, 2, 1)[0]}, MXFP4, "needs w_scales, which is missing"),
        (dict(zip(("w_blocks", "w_scales"), mxfp4(1, 2, 1), strict=True)), None, "missing: w;"),
        (
            {"w_blocks": mxfp4(1, 2, 1)[0], "w_scales": mxfp4(1, 3, 1)[1]},
            MXFP4,
            r"U8 \[1, 3, 1\]; U8 \[experts",
        ),
        ({"w": torch.ones(8, 8, dtype=torch.int64)}, None, "not floating point: w is I64"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        write(tmp_path, tensors, config).check({"w": (8, 8)})


def test_what_config_says_of_formats() -> None:
    assert quantization(None) is None
    assert quantization(FP8) == Quantization("fp8", "_scale_inv", (128, 128))
    assert quantization({"quant_method": "fp8"}) == Quantization("fp8", "_scale")
    assert quantization(MXFP4) == Quantization("mxfp4")
    assert quantization(COMPRESSED) == Quantization("fp8", "_scale")
    weights = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 64]}
    groups = {"config_groups": {"g": {"weights": weights}}}
    assert quantization(COMPRESSED | groups) == Quantization("fp8", "_scale", (128, 64))


INTEGERS = {"config_groups": {"g": {"weights": {"type": "int", "num_bits": 8}}}}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"quant_method": "awq"}, r'quantization_config.quant_method is "awq", but only "fp8"'),
        ({"bits": 4}, "quant_method is null"),
        (FP8 | {"fmt": "e5m2"}, "quantization_config.fmt"),
        (FP8 | {"weight_block_size": [128]}, "list of two positive integers"),
        (COMPRESSED | {"format": "pack-quantized"}, "format"),
        (COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (COMPRESSED | INTEGERS, "g.weights.type"),
    ],
)
def test_other_formats_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        quantization(values)


def test_an_fp8_checkpoint_runs_as_the_weights_it_means(tmp_path: Path) -> None:
    """From config.json to the linear layers of the model."""
    plain, quantised = tmp_path / "plain", tmp_path / "quantised"
    for folder in (plain, quantised):
        folder.mkdir()
    shapes = {"hidden_size": 128, "intermediate_size": 200, "num_attention_heads": 2}
    config = json.loads((write_model(plain, "bfloat16", **shapes) / "config.json").read_text())
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        codes = fp8(*tensors[name].shape)
        scales = 0.01 * torch.rand(-(-codes.shape[0] // 128), -(-codes.shape[1] // 128))
        tensors |= {name: codes, f"{name}_scale_inv": scales}
    write(quantised, tensors, FP8)
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": FP8}))
    for name in [name for name in tensors if f"{name}_scale_inv" in tensors]:
        scales = tensors.pop(f"{name}_scale_inv")
        tensors[name] = dequantised(tensors[name], scales, (128, 128)).bfloat16()
    save_file(tensors, plain / "model.safetensors")
    kernels = choose("cpu", "torch")
    one, other = (load_model(folder, kernels, torch.bfloat16) for folder in (plain, quantised))
    x_TD = torch.randn(5, 128).bfloat16()
    with torch.inference_mode():
        for mine, theirs in zip(one.model.layers, other.model.layers, strict=True):
            assert torch.equal(mine.feed_forward(x_TD), theirs.feed_forward(x_TD))
    assert one.digest != other.digest
