"""Multi-head and grouped attention over pages of keys and values.

Query, key and value run as one linear layer. The last layer computes its output for the wanted
rows only; keys and values are stored for all. No row depends on which other rows are there, so
this changes no bit of the wanted ones.

T tokens in the batch, R wanted rows, D model size, N query heads, G key heads, H head size,
E = (N + 2 G) H.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from .batch import Batch
from .blueprint import GroupedAttention
from .config import ModelConfig
from .linears import input_cuts, linear_shapes, output_cuts, packed_linear
from .parts import Cuts, Linears, Rotary, Shapes, Shard, Source


class GroupedPart:
    """One layer's weights, packed."""

    def __init__(
        self,
        plan: GroupedAttention,
        config: ModelConfig,
        source: Source,
        prefix: str,
        kernels: Kernels,
        rotary: Rotary,
    ) -> None:
        self.plan = plan
        self.kernels = kernels
        self.rotary = rotary
        self.epsilon = config.norm_epsilon
        names = [f"{prefix}.{name}_proj" for name in "qkv"]
        self.qkv = packed_linear(source, kernels, names, plan.bias)
        self.output = packed_linear(source, kernels, [f"{prefix}.o_proj"], plan.output_bias)
        self.query_norm_H = source.tensor(f"{prefix}.q_norm.weight") if plan.head_norm else None
        self.key_norm_H = source.tensor(f"{prefix}.k_norm.weight") if plan.head_norm else None
        self.sinks_N = source.tensor(f"{prefix}.sinks", torch.float32) if plan.sinks else None

    @staticmethod
    def shapes(plan: GroupedAttention, config: ModelConfig, prefix: str) -> Shapes:
        query, key = plan.query_heads * plan.head_size, plan.kv_heads * plan.head_size
        shapes = {
            **linear_shapes(f"{prefix}.q_proj", query, config.hidden, plan.bias),
            **linear_shapes(f"{prefix}.k_proj", key, config.hidden, plan.bias),
            **linear_shapes(f"{prefix}.v_proj", key, config.hidden, plan.bias),
            **linear_shapes(f"{prefix}.o_proj", config.hidden, query, plan.output_bias),
        }
        if plan.head_norm:
            shapes[f"{prefix}.q_norm.weight"] = (plan.head_size,)
            shapes[f"{prefix}.k_norm.weight"] = (plan.head_size,)
        if plan.sinks:
            shapes[f"{prefix}.sinks"] = (plan.query_heads,)
        return shapes

    @staticmethod
    def packed(plan: GroupedAttention, config: ModelConfig) -> Linears:
        query, key = plan.query_heads * plan.head_size, plan.kv_heads * plan.head_size
        return (query + 2 * key, config.hidden), (config.hidden, query)

    @staticmethod
    def divided(plan: GroupedAttention, shard: Shard) -> GroupedAttention:
        return replace(
            plan,
            query_heads=shard.size("query heads", plan.query_heads),
            kv_heads=shard.size("key heads", plan.kv_heads),
        )

    @staticmethod
    def cuts(plan: GroupedAttention, prefix: str) -> Cuts:
        cuts = {f"{prefix}.sinks": 0} | input_cuts(f"{prefix}.o_proj")
        for name in "qkv":
            cuts |= output_cuts(f"{prefix}.{name}_proj")
        return cuts

    def __call__(
        self, x_TD: Tensor, batch: Batch, pages: Tensor, layer: int, only_wanted: bool
    ) -> Tensor:
        q_TNH = self._rotated(self.qkv(x_TD), batch, pages, layer)
        query_start_B1 = batch.query_start_B1
        if only_wanted and batch.wanted_R is not None:
            if not len(batch.wanted_R):
                return x_TD[:0]
            # From here on T is R.
            q_TNH = q_TNH.index_select(0, batch.wanted_R)
            query_start_B1 = batch.wanted_start_B1
        mixed_TNH = self.kernels.paged_attention(
            q_TNH,
            pages,
            layer,
            batch.page_table_BW,
            query_start_B1,
            batch.context_length_B,
            self.plan.scale,
            window=self.plan.window,
            sinks_N=self.sinks_N,
        )
        return self.output(mixed_TNH.flatten(1))

    def _rotated(self, qkv_TE: Tensor, batch: Batch, pages: Tensor, layer: int) -> Tensor:
        return self.kernels.rotate_and_store(
            qkv_TE,
            self.rotary.cosine_MX2,
            self.rotary.sine_MX2,
            batch.position_T,
            pages,
            layer,
            batch.page_T,
            batch.slot_T,
            self.plan.query_heads,
            self.query_norm_H,
            self.key_norm_H,
            self.epsilon,
        )
