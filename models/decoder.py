"""The one decoder: embedding, layers of norm, attention, norm, feed-forward, last norm, head.

Knows the blueprint, no family, no request and no sampling. What a layer does between its norms is
done by the parts that the blueprint plans.

T tokens in the batch, R wanted rows, D model size, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from ..kernels.linear import PackedLinear
from .batch import Batch
from .blueprint import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GroupedAttention,
    LatentAttention,
    Layer,
)
from .config import ModelConfig
from .dense import DensePart
from .experts import ExpertsPart
from .grouped import GroupedPart
from .latent import LatentPart
from .linears import linear_shapes
from .overlap import overlapped
from .parts import (
    AttentionClass,
    AttentionPart,
    FeedForwardClass,
    FeedForwardPart,
    Linears,
    Rotary,
    Shapes,
    Shard,
    Source,
)
from .rotary import rotary
from .shards import WHOLE, ShardedAttention, ShardedFeedForward, Shards, built, key_heads

# A new part is one line: its plan in blueprint.py -> the class that runs it.
ATTENTION_PARTS: dict[type[Attention], AttentionClass] = {
    GroupedAttention: GroupedPart,
    LatentAttention: LatentPart,
}
FEED_FORWARD_PARTS: dict[type[FeedForward], FeedForwardClass] = {
    Dense: DensePart,
    Experts: ExpertsPart,
}


def attention(
    plan: Attention,
    config: ModelConfig,
    source: Source,
    prefix: str,
    kernels: Kernels,
    rotary: Rotary,
    shards: Shards,
) -> AttentionPart:
    kind = ATTENTION_PARTS[type(plan)]
    if shards.count == 1:
        return kind(plan, config, source, prefix, kernels, rotary)
    parts = built(kind, plan, config, source, prefix, shards, kernels, rotary)
    return ShardedAttention(parts, [key_heads(plan, shard) for shard in shards.own], shards)


def feed_forward(
    plan: FeedForward,
    config: ModelConfig,
    source: Source,
    prefix: str,
    kernels: Kernels,
    shards: Shards,
) -> FeedForwardPart:
    kind = FEED_FORWARD_PARTS[type(plan)]
    if shards.count == 1:
        return kind(plan, config, source, prefix, kernels)
    parts = built(kind, plan, config, source, prefix, shards, kernels)
    return ShardedFeedForward(parts, shards)


class DecoderLayer:
    """Two parts and the norms before them. `prefix` is that of the layer's tensors."""

    def __init__(
        self,
        plan: Layer,
        config: ModelConfig,
        source: Source,
        prefix: str,
        kernels: Kernels,
        rotary: Rotary,
        shards: Shards = WHOLE,
    ) -> None:
        names = config.blueprint.names
        self.attention_norm_D = source.tensor(f"{prefix}{names.attention_norm}.weight")
        self.attention = attention(
            *(plan.attention, config, source, f"{prefix}{names.attention}", kernels),
            *(rotary, shards),
        )
        self.feed_forward_norm_D = source.tensor(f"{prefix}{names.feed_forward_norm}.weight")
        self.feed_forward = feed_forward(
            plan.feed_forward, config, source, f"{prefix}{names.feed_forward}", kernels, shards
        )

    @staticmethod
    def shapes(plan: Layer, config: ModelConfig, prefix: str) -> Shapes:
        names = config.blueprint.names
        attention, feed_forward = plan.attention, plan.feed_forward
        return {
            f"{prefix}{names.attention_norm}.weight": (config.hidden,),
            **ATTENTION_PARTS[type(attention)].shapes(attention, config, prefix + names.attention),
            f"{prefix}{names.feed_forward_norm}.weight": (config.hidden,),
            **FEED_FORWARD_PARTS[type(feed_forward)].shapes(
                feed_forward, config, prefix + names.feed_forward
            ),
        }

    @staticmethod
    def divided(plan: Layer, shard: Shard) -> Layer:
        """What one shard has of the layer. Raises ModelError naming what does not divide."""
        return Layer(
            ATTENTION_PARTS[type(plan.attention)].divided(plan.attention, shard),
            FEED_FORWARD_PARTS[type(plan.feed_forward)].divided(plan.feed_forward, shard),
        )

    @staticmethod
    def packed(plan: Layer, config: ModelConfig) -> Linears:
        return (
            *ATTENTION_PARTS[type(plan.attention)].packed(plan.attention, config),
            *FEED_FORWARD_PARTS[type(plan.feed_forward)].packed(plan.feed_forward, config),
        )


class Decoder:
    """One checkpoint's weights, or some shards of them, ready to run.

    Where `shards` says so, `forward` meets the other shards' holders at every layer: all must be
    given the same batches. Only one of them needs the head.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: Source,
        kernels: Kernels,
        shards: Shards = WHOLE,
        head: bool = True,
    ) -> None:
        blueprint, names = config.blueprint, config.blueprint.names
        self.config = config
        self.kernels = kernels
        self.embedding_VD = source.tensor(f"{names.embedding}.weight")
        self.rotary = rotary(blueprint.rope, config.context_length, self.embedding_VD.device)
        self.layers = overlapped(
            lambda at: DecoderLayer(
                *(blueprint.layers[at], config, source, names.layer.format(at)),
                *(kernels, self.rotary, shards),
            ),
            len(blueprint.layers),
        )
        self.norm_D = source.tensor(f"{names.norm}.weight")
        self.head: PackedLinear | None = None
        if head:
            head_VD = self.embedding_VD if config.tied else source.tensor(f"{names.head}.weight")
            self.head = kernels.pack_linear(head_VD)

    @staticmethod
    def divided(config: ModelConfig, shards: int) -> ModelConfig:
        """The plans of one of so many shards. Raises ModelError naming what does not divide."""
        if shards == 1:
            return config
        layers = config.blueprint.layers
        pieces = tuple(DecoderLayer.divided(plan, Shard(0, shards)) for plan in layers)
        return replace(config, blueprint=replace(config.blueprint, layers=pieces))

    @staticmethod
    def shapes(config: ModelConfig) -> Shapes:
        """Name and shape of each tensor the checkpoint must hold."""
        names = config.blueprint.names
        shapes = {
            **linear_shapes(names.embedding, config.vocabulary, config.hidden),
            f"{names.norm}.weight": (config.hidden,),
        }
        if not config.tied:
            shapes |= linear_shapes(names.head, config.vocabulary, config.hidden)
        for at, plan in enumerate(config.blueprint.layers):
            shapes |= DecoderLayer.shapes(plan, config, names.layer.format(at))
        return shapes

    @property
    def expert_load(self) -> dict[int, Tensor]:
        """Of each layer with experts: tokens that each expert has seen since the start, int64 [E].

        Of a rank, the experts it holds. The running step may add to these tensors; a copy is a
        snapshot.
        """
        loads: dict[int, Tensor] = {}
        for at, layer in enumerate(self.layers):
            whole = layer.feed_forward
            parts = whole.parts if isinstance(whole, ShardedFeedForward) else (whole,)
            held = [part.load_E for part in parts if isinstance(part, ExpertsPart)]
            if held:
                loads[at] = held[0] if len(held) == 1 else torch.cat(held)
        return loads

    @staticmethod
    def ignored(config: ModelConfig) -> tuple[str, ...]:
        """Tensors a checkpoint may hold besides: a tied head is the embedding once more."""
        head = (f"{config.blueprint.names.head}.weight",) if config.tied else ()
        return head + config.blueprint.ignored

    @staticmethod
    def packed(config: ModelConfig) -> Linears:
        """(outputs, inputs) of the linear layers as they are run, each once."""
        every = [
            one for plan in config.blueprint.layers for one in DecoderLayer.packed(plan, config)
        ]
        return tuple(dict.fromkeys((*every, (config.vocabulary, config.hidden))))

    def forward(self, batch: Batch, pages: Tensor) -> Tensor:
        """Store all tokens in the pages; return hidden_RD of the wanted rows, for `logits`.

        From the last layer's attention on, only the wanted rows are computed.
        """
        epsilon, kernels = self.config.norm_epsilon, self.kernels
        residual_TD = torch.nn.functional.embedding(batch.token_T, self.embedding_VD)
        x_TD = kernels.rms_norm(residual_TD, self.layers[0].attention_norm_D, epsilon)
        for at, layer in enumerate(self.layers):
            last = at == len(self.layers) - 1
            x_TD = layer.attention(x_TD, batch, pages, at, only_wanted=last)
            if last and batch.wanted_R is not None:
                if not len(x_TD):
                    return x_TD
                residual_TD = residual_TD.index_select(0, batch.wanted_R)  # from here on T is R
            x_TD = kernels.add_rms_norm(x_TD, residual_TD, layer.feed_forward_norm_D, epsilon)
            x_TD = layer.feed_forward(x_TD)
            norm_D = self.norm_D if last else self.layers[at + 1].attention_norm_D
            x_TD = kernels.add_rms_norm(x_TD, residual_TD, norm_D, epsilon)
        return x_TD

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Next-token logits [R, V] in fp32."""
        if self.head is None:
            raise ValueError("this rank has no head; the leader computes logits")
        return self.head(hidden_RD).float()
