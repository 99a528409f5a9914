"""The one switch between implementations of the tensor operations.

    kernels = choose("cpu")  # native where a C compiler serves, else torch; .why says which
    kernels.rms_norm(x_TD, weight_D, epsilon)

"native" is the C code of this folder, for bf16 and fp32 tensors on a CPU. "torch" is plain torch
and runs anywhere. A named implementation is given or refused with a sentence, never replaced.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import (
    activation,
    attention,
    elementary,
    experts,
    heads,
    linear,
    noise,
    norm,
    rotary,
    routing,
    units,
)
from .native import Library, NativeUnavailable, load

Tensor = torch.Tensor
IMPLEMENTATIONS = ("auto", "native", "torch")


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations of one implementation; the files that define them say what each one does."""

    name: str  # "native" or "torch"
    why: str  # one sentence
    digest: str  # the kernels' part of the numeric class
    rms_norm: Callable[..., Tensor]  # (x_TD, weight_D, epsilon) -> out_TD
    add_rms_norm: Callable[..., Tensor]  # (x_TD, residual_TD, weight_D, epsilon) -> out_TD
    # (qkv_TE, cosine_MH2, sine_MH2, positions_T, pages, layer, page_T, slot_T, query_heads,
    #  q_norm_H=None, k_norm_H=None, epsilon=0.0) -> q_TNH
    rotate_and_store: Callable[..., Tensor]
    # (x_TNX, cosine_MX2, sine_MX2, positions_T, interleaved=False) -> rotated_TNX
    rotate: Callable[..., Tensor]
    # (compressed_TX, norm_R, epsilon, cosine_MX2, sine_MX2, positions_T, pages, layer, page_T,
    #  slot_T, interleaved=False)
    store_latent: Callable[..., None]
    # (q_TNH, pages, layer, page_table_BW, query_start_B1, context_length_B, scale, value_size=0,
    #  window=0, sinks_N=None) -> out_TNV
    paged_attention: Callable[..., Tensor]
    silu_mul: Callable[..., Tensor]  # (gate_up_T2F) -> out_TF
    pack_linear: Callable[..., linear.PackedLinear]  # (weight_OI, bias_O=None)
    # (logits_TE fp32, correction_E, Routing) -> expert_TK int32, weight_TK fp32
    route: Callable[..., tuple[Tensor, Tensor]]
    # (weights: Iterable[ExpertWeights], count, Activation=silu) -> (x_TD, expert_TK, weight_TK)
    # -> out_TD; .load_E counts tokens per expert
    pack_experts: Callable[..., experts.Experts | experts.NativeExperts]
    pack_heads: Callable[..., Callable[[Tensor], Tensor]]  # (weight_NOI) -> x_TNI -> out_TNO
    # (seed_B, choice_B, position_B, first, count) -> noise_BC, the same bits everywhere
    gumbel_noise: Callable[..., Tensor]
    gumbel_noise_at: Callable[..., Tensor]  # (seed_B, choice_B, position_B, token_BK) -> noise_BK


def choose(device: torch.device | str, implementation: str = "auto") -> Kernels:
    device = torch.device(device)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"kernels {implementation!r}: the choices are {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "torch":
        return _torch("plain torch was asked for", device)
    reason = f"native kernels serve CPU tensors, and the device is {device.type}"
    if device.type == "cpu":
        try:
            return _native(load(), asked=implementation == "native")
        except NativeUnavailable as error:
            reason = str(error)
    if implementation == "native":
        raise NativeUnavailable(f"native kernels were asked for, but {reason}")
    return _torch(f"plain torch serves: {reason}", device)


def _native(library: Library, asked: bool) -> Kernels:
    bind = functools.partial
    return Kernels(
        name="native",
        why="C kernels were asked for" if asked else "C kernels were compiled for this processor",
        digest=_digest("native", library.digest),
        rms_norm=bind(norm.rms_norm_native, library),
        add_rms_norm=bind(norm.add_rms_norm_native, library),
        rotate_and_store=bind(rotary.rotate_and_store_native, library),
        rotate=bind(rotary.rotate_native, library),
        store_latent=bind(rotary.store_latent_native, library),
        paged_attention=bind(attention.paged_attention_native, library),
        silu_mul=bind(activation.silu_mul_native, library),
        pack_linear=bind(linear.pack_linear_native, library),
        route=bind(routing.route_native, library),
        pack_experts=bind(experts.pack_experts_native, library),
        pack_heads=bind(heads.pack_heads_native, library),
        gumbel_noise=bind(noise.gumbel_noise_native, library),
        gumbel_noise_at=bind(noise.gumbel_noise_at_native, library),
    )


def _torch(why: str, device: torch.device) -> Kernels:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Kernels(
        name="torch",
        why=why,
        digest=_digest("torch", where),
        rms_norm=norm.rms_norm,
        add_rms_norm=norm.add_rms_norm,
        rotate_and_store=rotary.rotate_and_store,
        rotate=rotary.rotate,
        store_latent=rotary.store_latent,
        paged_attention=attention.paged_attention,
        silu_mul=activation.silu_mul,
        pack_linear=linear.pack_linear,
        route=routing.route,
        pack_experts=experts.pack_experts,
        pack_heads=heads.pack_heads,
        gumbel_noise=noise.gumbel_noise,
        gumbel_noise_at=noise.gumbel_noise_at,
    )


def _digest(*parts: str) -> str:
    """Over the named parts, torch's build and the Python files of the operations."""
    digest = hashlib.sha256("\0".join((*parts, torch.__version__)).encode())
    modules = (activation, attention, elementary, experts, heads, linear, norm, rotary, routing)
    for module in (*modules, units):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]
