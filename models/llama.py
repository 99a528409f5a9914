"""Llama for inference: packed weights, kernels, pages. Knows no request and no sampling.

The last layer runs attention and feed-forward for the wanted rows only; K and V are stored for all.
No row depends on which other rows are there, so this changes no bit of the wanted ones.

T tokens in the batch, R wanted rows, D model size, N query heads, G key heads, H head size,
F feed-forward size, E = (N + 2 G) H, M positions, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from ..kernels.linear import PackedLinear
from .batch import Batch
from .config import ModelConfig, Rope

Take = Callable[[str], Tensor]


def rotary_tables(rope: Rope, head_size: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [M, H / 2] in fp32.

    Powers and cosines are taken in fp64 and rounded, so that the tables agree between machines;
    the angle is the fp32 product that Hugging Face (and so training) uses.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64) / head_size
    frequencies = rope.theta**-exponents
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        frequencies = _llama3_frequencies(frequencies, rope)
    angles_MH2 = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies.float())
    return angles_MH2.double().cos().float(), angles_MH2.double().sin().float()


def _llama3_frequencies(frequencies: Tensor, rope: Rope) -> Tensor:
    """Slow pairs are slowed by `factor`, fast ones are kept, those between are mixed."""
    turns = rope.original_positions * frequencies / (2 * math.pi)
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / rope.factor


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm_D: Tensor
    qkv: PackedLinear
    output: PackedLinear
    feed_forward_norm_D: Tensor
    gate_up: PackedLinear
    down: PackedLinear


class LlamaForCausalLM:
    """One checkpoint's weights, ready to run."""

    def __init__(self, config: ModelConfig, take: Take, kernels: Kernels) -> None:
        self.config = config
        self.kernels = kernels
        self.scale = config.head_size**-0.5
        self.embedding_VD = take("model.embed_tokens.weight")
        self.layers = [self._layer(f"model.layers.{at}.", take) for at in range(config.layers)]
        self.norm_D = take("model.norm.weight")
        head_VD = self.embedding_VD if config.tied else take("lm_head.weight")
        self.head = kernels.pack_linear(head_VD)
        device = self.embedding_VD.device
        cosine, sine = rotary_tables(config.rope, config.head_size, config.context_length)
        self.cosine_MH2, self.sine_MH2 = cosine.to(device), sine.to(device)

    @staticmethod
    def tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor the checkpoint must hold."""
        hidden, feed_forward = config.hidden, config.feed_forward
        query, key = config.query_heads * config.head_size, config.kv_heads * config.head_size
        attention = [("q", query, hidden), ("k", key, hidden), ("v", key, hidden)]
        attention += [("o", hidden, query)]
        mlp = [("gate", feed_forward, hidden), ("up", feed_forward, hidden)]
        mlp += [("down", hidden, feed_forward)]
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (config.vocabulary, hidden),
            "model.norm.weight": (hidden,),
        }
        if not config.tied:
            shapes["lm_head.weight"] = (config.vocabulary, hidden)
        for at in range(config.layers):
            prefix = f"model.layers.{at}."
            shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
            shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
            for block, biased, parts in (
                ("self_attn", config.attention_bias, attention),
                ("mlp", config.mlp_bias, mlp),
            ):
                for part, outputs, inputs in parts:
                    shapes[f"{prefix}{block}.{part}_proj.weight"] = (outputs, inputs)
                    if biased:
                        shapes[f"{prefix}{block}.{part}_proj.bias"] = (outputs,)
        return shapes

    @staticmethod
    def ignored(config: ModelConfig) -> tuple[str, ...]:
        """Tensors a checkpoint may hold besides: a tied head is the embedding once more."""
        return ("lm_head.weight",) if config.tied else ()

    @staticmethod
    def packed_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the linear layers as they are run."""
        query, key = config.query_heads * config.head_size, config.kv_heads * config.head_size
        return (
            (query + 2 * key, config.hidden),
            (config.hidden, query),
            (2 * config.feed_forward, config.hidden),
            (config.hidden, config.feed_forward),
            (config.vocabulary, config.hidden),
        )

    def _layer(self, prefix: str, take: Take) -> Layer:
        def packed(block: str, parts: str, biased: bool) -> PackedLinear:
            names = [f"{prefix}{block}.{part}_proj" for part in parts.split()]
            weight_OI = torch.cat([take(f"{name}.weight") for name in names])
            bias_O = torch.cat([take(f"{name}.bias") for name in names]) if biased else None
            return self.kernels.pack_linear(weight_OI, bias_O)

        attention_bias, mlp_bias = self.config.attention_bias, self.config.mlp_bias
        return Layer(
            input_norm_D=take(f"{prefix}input_layernorm.weight"),
            qkv=packed("self_attn", "q k v", attention_bias),
            output=packed("self_attn", "o", attention_bias),
            feed_forward_norm_D=take(f"{prefix}post_attention_layernorm.weight"),
            gate_up=packed("mlp", "gate up", mlp_bias),
            down=packed("mlp", "down", mlp_bias),
        )

    def forward(self, batch: Batch, pages: Tensor) -> Tensor:
        """Store K and V of all tokens; return hidden_RD of the wanted rows, normed for `logits`."""
        epsilon = self.config.norm_epsilon
        kernels = self.kernels
        residual_TD = torch.nn.functional.embedding(batch.token_T, self.embedding_VD)
        x_TD = kernels.rms_norm(residual_TD, self.layers[0].input_norm_D, epsilon)
        query_start_B1 = batch.query_start_B1
        for at, layer in enumerate(self.layers):
            q_TNH = self._rotated(layer.qkv(x_TD), batch, pages, at)
            if at == len(self.layers) - 1 and batch.wanted_R is not None:
                if not len(batch.wanted_R):
                    return residual_TD[:0]
                # From here on T is R.
                q_TNH = q_TNH.index_select(0, batch.wanted_R)
                residual_TD = residual_TD.index_select(0, batch.wanted_R)
                query_start_B1 = batch.wanted_start_B1
            mixed_TNH = kernels.paged_attention(
                q_TNH,
                pages,
                at,
                batch.page_table_BW,
                query_start_B1,
                batch.context_length_B,
                self.scale,
            )
            x_TD = layer.output(mixed_TNH.flatten(1))
            x_TD = kernels.add_rms_norm(x_TD, residual_TD, layer.feed_forward_norm_D, epsilon)
            x_TD = layer.down(kernels.silu_mul(layer.gate_up(x_TD)))
            last = at == len(self.layers) - 1
            norm_D = self.norm_D if last else self.layers[at + 1].input_norm_D
            x_TD = kernels.add_rms_norm(x_TD, residual_TD, norm_D, epsilon)
        return x_TD

    def _rotated(self, qkv_TE: Tensor, batch: Batch, pages: Tensor, layer: int) -> Tensor:
        return self.kernels.rotate_and_store(
            qkv_TE,
            self.cosine_MH2,
            self.sine_MH2,
            batch.position_T,
            pages,
            layer,
            batch.page_T,
            batch.slot_T,
            self.config.query_heads,
        )

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Next-token logits [R, V] in fp32."""
        return self.head(hidden_RD).float()
