"""The demo model as it is trained: a Llama decoder in plain torch.

Knows the shape of the network and the names Hugging Face gives its weights. Knows nothing of
data, optimisers or serving; the engine that serves the checkpoint has its own model.

Legend: B rows, S positions, D model size, N query heads, G key/value heads, H head size,
F feed-forward size, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; the defaults are the shipped model (5.5 million weights)."""

    layers: int = 6
    hidden: int = 256
    feed_forward: int = 704
    query_heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    vocabulary: int = 4096
    # A base this large keeps the slowest rotary pairs under half a turn at 32,768 positions.
    rope_theta: float = 500000.0
    norm_epsilon: float = 1e-5
    max_positions: int = 32768


class RMSNorm(nn.Module):
    """x / rms(x) * weight, as Llama does it."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_BSD: Tensor) -> Tensor:
        wide = x_BSD.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight).to(x_BSD.dtype)


def rotary_tables(shape: Shape, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [positions, head_size], the second half repeating the first."""
    exponents = torch.arange(0, shape.head_size, 2).float() / shape.head_size
    angles = torch.outer(torch.arange(positions).float(), shape.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BNSH: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) by its position's angle."""
    first, second = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * cos_SH + torch.cat((-second, first), dim=-1) * sin_SH


class Attention(nn.Module):
    """Causal grouped-query attention over one row."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width_NH = shape.query_heads * shape.head_size
        width_GH = shape.kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, width_NH, bias=False)
        self.k_proj = nn.Linear(shape.hidden, width_GH, bias=False)
        self.v_proj = nn.Linear(shape.hidden, width_GH, bias=False)
        self.o_proj = nn.Linear(width_NH, shape.hidden, bias=False)

    def forward(self, x_BSD: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
        rows, positions, _ = x_BSD.shape
        heads = (rows, positions, -1, self.shape.head_size)
        q_BNSH = self.q_proj(x_BSD).view(heads).transpose(1, 2)
        k_BGSH = self.k_proj(x_BSD).view(heads).transpose(1, 2)
        v_BGSH = self.v_proj(x_BSD).view(heads).transpose(1, 2)
        q_BNSH = rotate(q_BNSH, cos_SH, sin_SH).to(v_BGSH.dtype)
        k_BGSH = rotate(k_BGSH, cos_SH, sin_SH).to(v_BGSH.dtype)
        group = self.shape.query_heads // self.shape.kv_heads
        out_BNSH = functional.scaled_dot_product_attention(
            q_BNSH,
            k_BGSH.repeat_interleave(group, dim=1),
            v_BGSH.repeat_interleave(group, dim=1),
            is_causal=True,
        )
        return self.o_proj(out_BNSH.transpose(1, 2).reshape(rows, positions, -1))


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class Layer(nn.Module):
    """One decoder layer, norms before each half."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x_BSD: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos_SH, sin_SH)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


class Decoder(nn.Module):
    """Embedding, layers and last norm; the embedding also scores the vocabulary (tied)."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_epsilon)
        self._start(torch.Generator().manual_seed(seed))

    def _start(self, generator: torch.Generator) -> None:
        """Draw the first weights: outputs of each residual half start at zero."""
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                spread = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=spread, generator=generator)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V] for the token after each position."""
        x_BSD = self.embed_tokens(tokens_BS)
        cos_SH, sin_SH = rotary_tables(self.shape, tokens_BS.shape[1])
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_SH, sin_SH)
        return functional.linear(self.norm(x_BSD), self.embed_tokens.weight)

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """Mean cross entropy in nats per token."""
        logits_BSV = self(tokens_BS)
        return functional.cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten())
