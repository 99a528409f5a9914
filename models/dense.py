"""The gated feed-forward part: down(silu(gate(x)) * up(x)), gate and up as one linear layer.

T tokens in the batch, D model size, F feed-forward size.
"""

from dataclasses import replace

from torch import Tensor

from ..kernels.choice import Kernels
from ..kernels.linear import PackedLinear
from .blueprint import Dense
from .config import ModelConfig
from .linears import input_cuts, linear_shapes, output_cuts, packed_linear
from .parts import Cuts, Linears, Shapes, Shard, Source


class DensePart:
    """One layer's weights, packed."""

    def __init__(
        self, plan: Dense, config: ModelConfig, source: Source, prefix: str, kernels: Kernels
    ) -> None:
        def packed(*names: str) -> PackedLinear:
            full = [f"{prefix}.{name}" for name in names]
            return packed_linear(source, kernels, full, plan.bias)

        self.silu_mul = kernels.silu_mul
        self.gate_up = packed("gate_proj", "up_proj")
        self.down = packed("down_proj")

    @staticmethod
    def shapes(plan: Dense, config: ModelConfig, prefix: str) -> Shapes:
        return {
            **linear_shapes(f"{prefix}.gate_proj", plan.size, config.hidden, plan.bias),
            **linear_shapes(f"{prefix}.up_proj", plan.size, config.hidden, plan.bias),
            **linear_shapes(f"{prefix}.down_proj", config.hidden, plan.size, plan.bias),
        }

    @staticmethod
    def packed(plan: Dense, config: ModelConfig) -> Linears:
        return (2 * plan.size, config.hidden), (config.hidden, plan.size)

    @staticmethod
    def divided(plan: Dense, shard: Shard) -> Dense:
        return replace(plan, size=shard.size("feed-forward columns", plan.size))

    @staticmethod
    def cuts(plan: Dense, prefix: str) -> Cuts:
        outputs = output_cuts(f"{prefix}.gate_proj") | output_cuts(f"{prefix}.up_proj")
        return outputs | input_cuts(f"{prefix}.down_proj")

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.down(self.silu_mul(self.gate_up(x_TD)))
