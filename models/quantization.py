"""How config.json says that a checkpoint's weights are quantised. Torch-free.

Only the storage of weights is honoured: they are dequantised when they are read, and activations
stay in the run's dtype, so what config.json says about the activations of the original kernels
(activation_scheme, input_activations) changes nothing here.
"""

from dataclasses import dataclass
from typing import Any

from .fields import Fields

FIELD = "quantization_config"
WORKS = (
    'only "fp8" (e4m3), "compressed-tensors" of the format "float-quantized" and "mxfp4" can be '
    "served; the checkpoint that is not quantised would work"
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How quantised weights lie in the files."""

    kind: str  # "fp8" or "mxfp4"
    scale: str = ""  # fp8: a weight's scale has its name and this after it
    # fp8: rows and columns that share a scale; None: the scale's own shape tells, which is one for
    # the whole weight or one per row.
    block: tuple[int, int] | None = None


def read_quantization(config: Fields) -> Quantization | None:
    """None for a checkpoint that is not quantised. Raises ModelError, naming quant_method."""
    if config.get(FIELD) is None:
        return None
    fields = config.inner(FIELD)
    match fields.get("quant_method"):
        case "fp8":
            return _fp8(fields)
        case "compressed-tensors":
            return _compressed(fields)
        case "mxfp4":
            return Quantization("mxfp4")
    raise fields.fail("quant_method", WORKS)


def _fp8(fields: Fields) -> Quantization:
    fields.only("fmt", "e4m3")
    fields.only("weight_per_tensor", True)
    if fields.get("weight_block_size") is None:
        return Quantization("fp8", "_scale")
    return Quantization("fp8", "_scale_inv", _block(fields, "weight_block_size"))


def _compressed(fields: Fields) -> Quantization:
    """https://github.com/vllm-project/compressed-tensors: groups of layers, each with a scheme."""
    fields.only("format", "float-quantized")
    fields.only("kv_cache_scheme")
    fields.only("transform_config", {})
    groups = fields.inner("config_groups")
    found = {_scheme(groups.inner(name)) for name in groups.values}
    if len(found) != 1:
        raise fields.fail("config_groups", "groups that all store weights in one way are needed")
    return found.pop()


def _scheme(group: Fields) -> Quantization:
    group.only("format", "float-quantized")
    weights = group.inner("weights")
    for name, needed in (("type", "float"), ("num_bits", 8)):
        if weights.get(name) != needed:
            raise weights.fail(name, f"only {needed!r} can be served")
    weights.only("symmetric", True)
    weights.only("strategy", "tensor", "channel", "block")
    block = weights.get("strategy") == "block"
    return Quantization("fp8", "_scale", _block(weights, "block_structure") if block else None)


def _block(fields: Fields, name: str) -> tuple[int, int]:
    value: Any = fields.get(name)
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in value)
    ):
        raise fields.fail(name, "a list of two positive integers is needed: rows, columns")
    return value[0], value[1]
