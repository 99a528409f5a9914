"""Multi-token prediction (MTP): one more layer that guesses the token after the next.

    h'_p = layer(eh_proj [norm(embedding(t_{p+1})) | norm(h_p)])
    logits of t_{p+2} = head(norm(h'_p))

h_p is what the decoder gives for position p (`Decoder.forward`), t_{p+1} the token that follows it.
The layer attends to what it stored itself at positions 0..p, in a page layer of its own. Embedding
and head are the decoder's; the checkpoint holds copies of them, which are not read. It is a
drafter: what it guesses is verified, so it decides no token. Source: DeepSeek-AI, "DeepSeek-V3",
arXiv 2412.19437, section 2.2.

T tokens in the batch, R wanted rows, D model size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.choice import Kernels
from .batch import Batch
from .checkpoint import Checkpoint
from .config import ModelConfig
from .decoder import Decoder, DecoderLayer
from .fields import ModelError
from .linears import linear_shapes, packed_linear
from .parts import Shapes, Source
from .weights import Weights


class AheadLayer:
    """One such layer's weights, packed; `at` counts them from 0."""

    def __init__(
        self, decoder: Decoder, config: ModelConfig, source: Source, kernels: Kernels, at: int = 0
    ) -> None:
        prefix = _prefix(config, at)
        self.decoder = decoder
        self.kernels = kernels
        self.epsilon = config.norm_epsilon
        self.token_norm_D = source.tensor(f"{prefix}enorm.weight")
        self.hidden_norm_D = source.tensor(f"{prefix}hnorm.weight")
        self.joined = packed_linear(source, kernels, [f"{prefix}eh_proj"])
        plan = config.blueprint.ahead[at]
        self.layer = DecoderLayer(plan, config, source, prefix, kernels, decoder.rotary)
        self.norm_D = source.tensor(f"{prefix}shared_head.norm.weight")

    @staticmethod
    def shapes(config: ModelConfig, at: int = 0) -> Shapes:
        prefix, hidden = _prefix(config, at), config.hidden
        return {
            f"{prefix}enorm.weight": (hidden,),
            f"{prefix}hnorm.weight": (hidden,),
            **linear_shapes(f"{prefix}eh_proj", hidden, 2 * hidden),
            **DecoderLayer.shapes(config.blueprint.ahead[at], config, prefix),
            f"{prefix}shared_head.norm.weight": (hidden,),
        }

    def forward(self, hidden_TD: Tensor, batch: Batch, pages: Tensor, layer: int) -> Tensor:
        """Store all T positions in the pages' layer; return hidden_RD of the wanted, for `logits`.

        hidden_TD and `batch` speak of positions p; token_T holds the tokens that follow them.
        """
        kernels, epsilon = self.kernels, self.epsilon
        token_TD = torch.nn.functional.embedding(batch.token_T, self.decoder.embedding_VD)
        sides = (
            kernels.rms_norm(token_TD, self.token_norm_D, epsilon),
            kernels.rms_norm(hidden_TD, self.hidden_norm_D, epsilon),
        )
        residual_TD = self.joined(torch.cat(sides, dim=-1))
        x_TD = kernels.rms_norm(residual_TD, self.layer.attention_norm_D, epsilon)
        x_TD = self.layer.attention(x_TD, batch, pages, layer, only_wanted=True)
        if batch.wanted_R is not None:
            residual_TD = residual_TD.index_select(0, batch.wanted_R)  # from here on T is R
        if not len(x_TD):
            return x_TD
        x_TD = kernels.add_rms_norm(x_TD, residual_TD, self.layer.feed_forward_norm_D, epsilon)
        return kernels.add_rms_norm(
            self.layer.feed_forward(x_TD), residual_TD, self.norm_D, epsilon
        )

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits [R, V] of the token after the next, in fp32."""
        return self.decoder.logits(hidden_RD)


@dataclass(frozen=True, slots=True)
class Ahead:
    """The layers there are, and a sentence about them for people."""

    layers: tuple[AheadLayer, ...]
    why: str


def load_ahead(
    folder: Path,
    decoder: Decoder,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Ahead:
    """Read what the folder holds beside `decoder`. Raises ModelError where it holds a part of it.

    Checkpoints made without these layers keep config.json's number of them: then there are none.
    """
    config = decoder.config
    planned = range(len(config.blueprint.ahead))
    if not planned:
        return Ahead((), "config.json names no layer of multi-token prediction")
    checkpoint = Checkpoint(folder)
    wanted = {
        name: shape for at in planned for name, shape in AheadLayer.shapes(config, at).items()
    }
    held = {name for name in wanted if name in checkpoint.weights}
    if not held:
        return Ahead(
            (), "config.json names multi-token prediction, but the checkpoint holds no tensor of it"
        )
    unfit = [
        name
        for name, shape in wanted.items()
        if name not in held or checkpoint.weights[name].shape != shape
    ]
    if unfit:
        raise ModelError(
            f"{folder}: multi-token prediction: {len(unfit)} tensors are missing or have another "
            f"shape than config.json means, {', '.join(unfit[:5])} among them"
        )
    with torch.inference_mode():
        source = Weights(checkpoint, dtype, device, wanted=wanted)
        layers = tuple(AheadLayer(decoder, config, source, kernels, at) for at in planned)
    return Ahead(layers, f"{len(layers)} layer(s) of multi-token prediction are loaded")


def _prefix(config: ModelConfig, at: int) -> str:
    blueprint = config.blueprint
    return blueprint.names.layer.format(len(blueprint.layers) + at)
