"""Linear layers by their names in the checkpoint; several that read the same input run as one.

I inputs, O outputs.
"""

from collections.abc import Sequence

from ..kernels.choice import Kernels
from ..kernels.linear import PackedLinear
from .parts import ONCE, Cuts, Shapes, Source


def linear_shapes(name: str, outputs: int, inputs: int, biased: bool = False) -> Shapes:
    """What the checkpoint must hold for one linear layer."""
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    if biased:
        shapes[f"{name}.bias"] = (outputs,)
    return shapes


def output_cuts(name: str) -> Cuts:
    """Each shard computes some of the layer's outputs."""
    return {f"{name}.weight": 0, f"{name}.bias": 0}


def input_cuts(name: str) -> Cuts:
    """Each shard reads some of the layer's inputs; their outputs are summed."""
    return {f"{name}.weight": 1, f"{name}.bias": ONCE}


def packed_linear(
    source: Source, kernels: Kernels, names: Sequence[str], biased: bool = False
) -> PackedLinear:
    """These layers stacked along their outputs, in this order."""
    weight_OI = source.joined([f"{name}.weight" for name in names])
    bias_O = source.joined([f"{name}.bias" for name in names]) if biased else None
    return kernels.pack_linear(weight_OI, bias_O)
