"""The experts of one layer: each sees its own tokens, each token sums its experts by rank.

    hidden = activation(gate x + b, up x + b);  y = down hidden + b       per (token, expert)
    out    = sum over ranks k of weight_k y_k, in fp32, in the order of k, rounded once

    silu       round(gate / (1 + exp(-gate))) up
    clamped    gate' = min(gate, limit), up' = clamp(up, -limit, limit);
               (up' + 1) gate' / (1 + exp(-alpha gate'))                   (gpt-oss)

gate, up, hidden and y are rounded to the model's dtype. A row's bits depend on its own x, choice
and weights: not on the other tokens, how they spread over the experts, or how a prompt is cut.
Native: one call per layer (experts.c), weights in units of 64 outputs (grouped.h). Torch: a packed
linear per expert and projection. `load_E` counts the tokens each expert has seen. The id -1 stands
for an expert that another shard computes: nothing is added for it.

T tokens in the batch, K experts per token, E experts, D model size, F hidden size of one expert.
"""

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .activation import silu_mul
from .elementary import exponential
from .linear import PackedLinear, pack_linear
from .native import Library, half, require
from .units import BLOCK, UNIT, fill_units, unit_shape

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert as the checkpoint means it; biases are there for all experts or for none."""

    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor
    gate_bias_F: Tensor | None = None
    up_bias_F: Tensor | None = None
    down_bias_D: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    kind: str = "silu"  # or "clamped", with the two numbers
    alpha: float = 0.0
    limit: float = 0.0


class Shape(ctypes.Structure):
    """ExpertsShape of experts.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("tokens", "chosen", "experts", "inputs", "size", "half", "activation")
        ),
        *((name, ctypes.c_float) for name in ("alpha", "limit")),
    ]


class Experts:
    """expert_TK (int32) and weight_TK (fp32) are what `route` gives."""

    how = "torch"

    def __init__(
        self, weights: Iterable[ExpertWeights], count: int, activation: Activation
    ) -> None:
        require(activation.kind in ACTIVATIONS, f"experts: no activation {activation.kind!r}")
        self.count = count
        self.activation = activation
        self.packed: list[tuple[PackedLinear, PackedLinear]] = []
        for one in weights:
            gate_up_bias = None
            if one.gate_bias_F is not None and one.up_bias_F is not None:
                gate_up_bias = torch.cat((one.gate_bias_F, one.up_bias_F))
            gate_up = pack_linear(torch.cat((one.gate_FD, one.up_FD)), gate_up_bias)
            self.packed.append((gate_up, pack_linear(one.down_DF, one.down_bias_D)))
            self.load_E = torch.zeros(count, dtype=torch.int64, device=one.down_DF.device)
        require(len(self.packed) == count, f"experts: {len(self.packed)} of {count} were given")

    def __call__(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        tokens, chosen = expert_TK.shape
        expert_X = expert_TK.flatten().long() + 1  # 0: another shard's
        require(not (expert_X < 0).any(), "experts: an expert's id lies outside the layer")
        counts_X = torch.bincount(expert_X, minlength=self.count + 1)
        require(len(counts_X) == self.count + 1, "experts: an expert's id lies outside the layer")
        self.load_E += counts_X[1:]
        _, *pairs = expert_X.argsort(stable=True).split(counts_X.tolist())
        activate = ACTIVATIONS[self.activation.kind]
        answer_XD = x_TD.new_zeros(tokens * chosen, x_TD.shape[1])
        for pair, (gate_up, down) in zip(pairs, self.packed, strict=True):
            if len(pair):
                hidden = activate(gate_up(x_TD[pair // chosen]), self.activation)
                answer_XD[pair] = down(hidden)
        weighted_TKD = answer_XD.view(tokens, chosen, x_TD.shape[1]).float() * weight_TK.unsqueeze(
            -1
        )
        out_TD = weighted_TKD[:, 0]
        for rank in range(1, chosen):
            out_TD = out_TD + weighted_TKD[:, rank]
        return out_TD.to(x_TD.dtype)


def _clamped(gate_up_T2F: Tensor, activation: Activation) -> Tensor:
    gate_TF, up_TF = gate_up_T2F.float().chunk(2, dim=-1)
    gate_TF = gate_TF.clamp(max=activation.limit)
    up_TF = up_TF.clamp(-activation.limit, activation.limit)
    gated_TF = gate_TF / (1.0 + exponential(-activation.alpha * gate_TF))
    return ((up_TF + 1.0) * gated_TF).to(gate_up_T2F.dtype)


ACTIVATIONS: dict[str, Callable[[Tensor, Activation], Tensor]] = {
    "silu": lambda gate_up_T2F, _: silu_mul(gate_up_T2F),
    "clamped": _clamped,
}


class NativeExperts:
    """As Experts; the weights are copied, expert by expert, into two tensors of all experts."""

    how = "native"

    def __init__(
        self,
        library: Library,
        weights: Iterable[ExpertWeights],
        count: int,
        activation: Activation,
    ) -> None:
        require(activation.kind in ACTIVATIONS, f"experts: no activation {activation.kind!r}")
        self.library = library
        self.count = count
        self.activation = activation
        self.load_E = torch.zeros(count, dtype=torch.int64)
        self.gate_up_bias: Tensor | None = None
        self.down_bias: Tensor | None = None
        given = 0
        for at, one in enumerate(weights):
            if at == 0:
                self._allocate(one)
            self._keep(at, one)
            given += 1
        require(given == count, f"experts: {given} of {count} were given")

    def _allocate(self, one: ExpertWeights) -> None:
        self.size, self.inputs = one.gate_FD.shape
        self.half = half(one.gate_FD)
        require(
            self.size % 2 == 0 and self.inputs % 2 == 0,
            f"native experts take even sizes, not {self.size} x {self.inputs}",
        )
        gate_up = _interleaved(one.gate_FD, one.up_FD)
        self.gate_up = _room(self.count, gate_up)
        self.down = _room(self.count, one.down_DF)
        if one.gate_bias_F is not None:
            self.gate_up_bias = torch.zeros(self.count, -(-len(gate_up) // UNIT) * UNIT)
            self.down_bias = torch.zeros(self.count, -(-self.inputs // UNIT) * UNIT)

    def _keep(self, at: int, one: ExpertWeights) -> None:
        require(
            one.gate_FD.shape == one.up_FD.shape == (self.size, self.inputs)
            and one.down_DF.shape == (self.inputs, self.size),
            "experts: all must have the sizes of the first",
        )
        fill_units(self.gate_up[at], _interleaved(one.gate_FD, one.up_FD))
        fill_units(self.down[at], one.down_DF)
        if self.gate_up_bias is None or self.down_bias is None:
            return
        if one.gate_bias_F is None or one.up_bias_F is None or one.down_bias_D is None:
            raise ValueError("experts: biases are there for all or for none")
        bias = _interleaved(one.gate_bias_F.float(), one.up_bias_F.float())
        self.gate_up_bias[at, : len(bias)] = bias
        self.down_bias[at, : self.inputs] = one.down_bias_D

    def __call__(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        x_TD = x_TD.contiguous()
        tokens, chosen = expert_TK.shape
        require(
            x_TD.shape == (tokens, self.inputs) and half(x_TD) == self.half,
            "experts: x must be [T, D] in the weights' dtype",
        )
        require(
            expert_TK.dtype == torch.int32
            and weight_TK.dtype == torch.float32
            and weight_TK.shape == expert_TK.shape
            and expert_TK.is_contiguous()
            and weight_TK.is_contiguous(),
            "experts: a choice is contiguous int32 and fp32 [T, K]",
        )
        out_TD = torch.empty_like(x_TD)
        shape = Shape(
            *(tokens, chosen, self.count, self.inputs, self.size, self.half),
            *(self.activation.kind == "clamped", self.activation.alpha, self.activation.limit),
        )
        self.library.call(
            "penstock_experts",
            x_TD.data_ptr(),
            expert_TK.data_ptr(),
            weight_TK.data_ptr(),
            self.gate_up.data_ptr(),
            self.down.data_ptr(),
            None if self.gate_up_bias is None else self.gate_up_bias.data_ptr(),
            None if self.down_bias is None else self.down_bias.data_ptr(),
            out_TD.data_ptr(),
            self.load_E.data_ptr(),
            ctypes.byref(shape),
            torch.get_num_threads(),
        )
        return out_TD


def pack_experts(
    weights: Iterable[ExpertWeights], count: int, activation: Activation = Activation()
) -> Experts:
    """Takes one expert after another, so that a generator need not hold them all."""
    return Experts(weights, count, activation)


def pack_experts_native(
    library: Library,
    weights: Iterable[ExpertWeights],
    count: int,
    activation: Activation = Activation(),
) -> NativeExperts:
    return NativeExperts(library, weights, count, activation)


def _interleaved(gate_FX: Tensor, up_FX: Tensor) -> Tensor:
    """Blocks of 16 rows of gate and of up in turn; missing rows are zeros."""
    more = -len(gate_FX) % (UNIT // 2)
    padding = (0, 0) * (gate_FX.dim() - 1) + (0, more)
    blocks = (
        torch.nn.functional.pad(one, padding).unflatten(0, (-1, BLOCK)) for one in (gate_FX, up_FX)
    )
    return torch.stack(tuple(blocks), dim=1).flatten(0, 2)


def _room(count: int, weight_OI: Tensor) -> Tensor:
    return torch.empty(count, *unit_shape(weight_OI), dtype=torch.int32)
