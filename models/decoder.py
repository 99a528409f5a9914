"""The one decoder: embedding, layers of norm, attention, norm, feed-forward, last norm, head.

Knows the blueprint, no family, no request and no sampling. What a layer does between its norms is
done by the parts that the blueprint plans.

T tokens in the batch, R wanted rows, D model size, V vocabulary.
"""

import torch
from torch import Tensor

from ..kernels.choice import Kernels
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
from .parts import AttentionClass, FeedForwardClass, Linears, Rotary, Shapes, Source
from .rotary import rotary

# A new part is one line: its plan in blueprint.py -> the class that runs it.
ATTENTION_PARTS: dict[type[Attention], AttentionClass] = {
    GroupedAttention: GroupedPart,
    LatentAttention: LatentPart,
}
FEED_FORWARD_PARTS: dict[type[FeedForward], FeedForwardClass] = {
    Dense: DensePart,
    Experts: ExpertsPart,
}


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
    ) -> None:
        names = config.blueprint.names
        self.attention_norm_D = source.tensor(f"{prefix}{names.attention_norm}.weight")
        self.attention = ATTENTION_PARTS[type(plan.attention)](
            plan.attention, config, source, f"{prefix}{names.attention}", kernels, rotary
        )
        self.feed_forward_norm_D = source.tensor(f"{prefix}{names.feed_forward_norm}.weight")
        self.feed_forward = FEED_FORWARD_PARTS[type(plan.feed_forward)](
            plan.feed_forward, config, source, f"{prefix}{names.feed_forward}", kernels
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
    def packed(plan: Layer, config: ModelConfig) -> Linears:
        return (
            *ATTENTION_PARTS[type(plan.attention)].packed(plan.attention, config),
            *FEED_FORWARD_PARTS[type(plan.feed_forward)].packed(plan.feed_forward, config),
        )


class Decoder:
    """One checkpoint's weights, ready to run."""

    def __init__(self, config: ModelConfig, source: Source, kernels: Kernels) -> None:
        blueprint, names = config.blueprint, config.blueprint.names
        self.config = config
        self.kernels = kernels
        self.embedding_VD = source.tensor(f"{names.embedding}.weight")
        self.rotary = rotary(blueprint.rope, config.context_length, self.embedding_VD.device)
        self.layers = overlapped(
            lambda at: DecoderLayer(
                *(blueprint.layers[at], config, source, names.layer.format(at)),
                *(kernels, self.rotary),
            ),
            len(blueprint.layers),
        )
        self.norm_D = source.tensor(f"{names.norm}.weight")
        head_VD = self.embedding_VD if config.tied else source.tensor(f"{names.head}.weight")
        self.head = kernels.pack_linear(head_VD)

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
        return self.head(hidden_RD).float()
