"""The mixture of experts: a router, the experts it chooses, and one that every token visits.

Each expert's linears see its own rows, and a token's outputs are summed in the order of its choice
(kernels/experts.py), so a row's bits do not depend on its company.

T tokens in the batch, K experts per token, E experts, D model size, F hidden size of one expert.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from ..kernels.experts import Activation, ExpertWeights
from ..kernels.routing import Routing
from .blueprint import Dense, Experts
from .config import ModelConfig
from .dense import DensePart
from .linears import linear_shapes
from .parts import Cuts, Linears, Shapes, Shard, Source


class ExpertsPart:
    """One layer's weights, packed."""

    def __init__(
        self, plan: Experts, config: ModelConfig, source: Source, prefix: str, kernels: Kernels
    ) -> None:
        router = f"{prefix}.{plan.names.router}"
        # DeepSeek's sigmoid scores, all near one another, come from an fp32 product; where a
        # softmax is taken, authors' code leaves the logits in the model's dtype.
        self.router_dtype = torch.float32 if plan.scoring == "sigmoid" else None
        self.router = kernels.pack_linear(
            source.tensor(f"{router}.weight", self.router_dtype),
            source.tensor(f"{router}.bias", self.router_dtype) if plan.bias else None,
        )
        self.correction_E: Tensor | None = None
        if plan.correction:
            self.correction_E = source.tensor(f"{prefix}.{plan.names.correction}", torch.float32)
        self.route = kernels.route
        self.routing = Routing(
            chosen=plan.chosen,
            scoring=plan.scoring,
            normalised=plan.normalised,
            scale=plan.scale,
            groups=plan.groups,
            chosen_groups=plan.chosen_groups,
        )
        weights = _stacked(plan, source, prefix) if plan.stacked else _named(plan, source, prefix)
        activation = Activation(plan.activation, plan.alpha, plan.limit)
        self.count, self.own = plan.count, plan.own
        self.experts = kernels.pack_experts(weights, len(plan.own), activation)
        self.shared: DensePart | None = None
        if plan.shared_size:
            name = f"{prefix}.{plan.names.shared}"
            self.shared = DensePart(_shared(plan), config, source, name, kernels)

    @property
    def load_E(self) -> Tensor:
        """Tokens each of our own experts has seen since the start, int64."""
        return self.experts.load_E

    @staticmethod
    def shapes(plan: Experts, config: ModelConfig, prefix: str) -> Shapes:
        names, hidden = plan.names, config.hidden
        shapes = linear_shapes(f"{prefix}.{names.router}", plan.count, hidden, plan.bias)
        if plan.correction:
            shapes[f"{prefix}.{names.correction}"] = (plan.count,)
        if plan.stacked:
            shapes |= _stacked_shapes(plan, hidden, prefix)
        else:
            for at in range(plan.count):
                for name in (names.gate, names.up):
                    shapes |= linear_shapes(f"{prefix}.{name.format(at)}", plan.size, hidden)
                shapes |= linear_shapes(f"{prefix}.{names.down.format(at)}", hidden, plan.size)
        if plan.shared_size:
            shapes |= DensePart.shapes(_shared(plan), config, f"{prefix}.{names.shared}")
        return shapes

    @staticmethod
    def packed(plan: Experts, config: ModelConfig) -> Linears:
        """The shared expert's; router and experts are asked about together (exactness.py)."""
        return DensePart.packed(_shared(plan), config) if plan.shared_size else ()

    @staticmethod
    def divided(plan: Experts, shard: Shard) -> Experts:
        held = shard.size("experts", plan.count)
        shared = shard.size("columns of the shared expert", plan.shared_size)
        return replace(plan, first=shard.index * held, held=held, shared_size=shared)

    @staticmethod
    def cuts(plan: Experts, prefix: str) -> Cuts:
        """Experts are taken by their numbers; the router is read whole."""
        return DensePart.cuts(_shared(plan), f"{prefix}.{plan.names.shared}")

    def __call__(self, x_TD: Tensor) -> Tensor:
        logits_TE = self.router(x_TD if self.router_dtype is None else x_TD.to(self.router_dtype))
        expert_TK, weight_TK = self.route(logits_TE.float(), self.correction_E, self.routing)
        if len(self.own) < self.count:
            expert_TK = _numbered_here(expert_TK, self.own)
        out_TD = self.experts(x_TD, expert_TK, weight_TK)
        return out_TD if self.shared is None else out_TD.add_(self.shared(x_TD))


def _numbered_here(expert_TK: Tensor, own: range) -> Tensor:
    """Numbers counted from our first expert; -1: another shard computes it."""
    local_TK = expert_TK - own.start
    return local_TK.masked_fill_((local_TK < 0) | (local_TK >= len(own)), -1)


def _shared(plan: Experts) -> Dense:
    return Dense(size=plan.shared_size)


def _named(plan: Experts, source: Source, prefix: str) -> Iterator[ExpertWeights]:
    """Each expert's tensors by its number; one expert is in memory at a time."""
    for at in plan.own:
        gate, up, down = (
            source.tensor(f"{prefix}.{name.format(at)}.weight")
            for name in (plan.names.gate, plan.names.up, plan.names.down)
        )
        yield ExpertWeights(gate, up, down)


def _stacked(plan: Experts, source: Source, prefix: str) -> Iterator[ExpertWeights]:
    """Slices of tensors that hold all experts, transposed; the columns of gate and up alternate."""
    gate_up, down = f"{prefix}.{plan.names.gate}", f"{prefix}.{plan.names.down}"
    own = plan.own
    gate_up_bias_EX = source.part(f"{gate_up}_bias", 0, own.start, own.stop)
    down_bias_ED = source.part(f"{down}_bias", 0, own.start, own.stop)
    for place, at in enumerate(own):
        columns_XD = source.part(gate_up, 0, at, at + 1)[0].T
        yield ExpertWeights(
            columns_XD[::2].contiguous(),
            columns_XD[1::2].contiguous(),
            source.part(down, 0, at, at + 1)[0].T.contiguous(),
            gate_up_bias_EX[place, ::2],
            gate_up_bias_EX[place, 1::2],
            down_bias_ED[place],
        )


def _stacked_shapes(plan: Experts, hidden: int, prefix: str) -> Shapes:
    gate_up, down = f"{prefix}.{plan.names.gate}", f"{prefix}.{plan.names.down}"
    return {
        gate_up: (plan.count, hidden, 2 * plan.size),
        f"{gate_up}_bias": (plan.count, 2 * plan.size),
        down: (plan.count, plan.size, hidden),
        f"{down}_bias": (plan.count, hidden),
    }
