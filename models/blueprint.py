"""What a decoder is made of, as data: per layer its parts, and how the checkpoint names tensors.

A family's file (families/NAME.py) turns config.json into a Blueprint; decoder.py builds the model
from it and knows no family. Torch-free, so that the router can read a model's config.

D model size, N query heads, G key heads, H head size, F feed-forward size.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding: base, which columns turn, and how frequencies stretch for long contexts."""

    size: int  # columns of a head that are rotated
    interleaved: bool = False  # pairs are columns (2i, 2i + 1) instead of (i, i + size / 2)
    kind: str = "default"  # "default", "linear", "llama3" or "yarn"
    theta: float = 10000.0
    factor: float = 1.0
    original_positions: int = 0  # llama3 and yarn
    low_frequency_factor: float = 1.0  # llama3
    high_frequency_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: the bounds of its ramp are whole pairs
    attention_factor: float = 1.0  # yarn: cosines and sines are multiplied by it


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention:
    """Multi-head attention whose key heads serve N / G query heads each."""

    query_heads: int
    kv_heads: int
    head_size: int
    scale: float  # of the scores
    bias: bool = False  # of the q, k and v projections
    output_bias: bool = False
    head_norm: bool = False  # q and k are normed per head before they are rotated
    window: int = 0  # a position sees this many keys, itself included; 0: all before it
    sinks: bool = False  # per query head a logit that takes weight and gives no value


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """MLA: keys and values of all heads come from one compressed vector per token."""

    query_heads: int
    query_rank: int  # 0: the query is projected at once, not through a compressed vector
    kv_rank: int
    plain_size: int  # columns of a query head that are not rotated
    rotary_size: int
    value_size: int
    scale: float
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Gated feed-forward: down(silu(gate(x)) * up(x))."""

    size: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """Tensor names within the feed-forward's own name; {} is the expert's number."""

    router: str = "gate"
    correction: str = "gate.e_score_correction_bias"
    gate: str = "experts.{}.gate_proj"
    up: str = "experts.{}.up_proj"
    down: str = "experts.{}.down_proj"
    shared: str = "shared_experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Mixture of experts: a router chooses, per token, `chosen` of `count` gated feed-forwards."""

    count: int
    chosen: int
    size: int  # F of one expert
    shared_size: int = 0  # F of the expert that every token visits; 0: there is none
    scoring: str = "softmax"  # "softmax", "sigmoid" or "softmax of chosen"
    normalised: bool = False  # the chosen weights are divided by their sum
    scale: float = 1.0  # of the weights
    groups: int = 1  # of experts; only the experts of `chosen_groups` groups can be chosen
    chosen_groups: int = 1
    correction: bool = False  # a bias on the scores for the choice alone
    bias: bool = False  # of the experts and of the router
    activation: str = "silu"  # or "clamped" (kernels/experts.py), with the next two
    alpha: float = 0.0
    limit: float = 0.0
    # gate, up and down hold all experts: [E, D, 2 F] with columns of gate and up in turn, [E, F, D]
    stacked: bool = False
    names: ExpertNames = field(default_factory=ExpertNames)
    # Of a shard: the experts first .. first + held - 1 are its own; 0 held: all of them.
    first: int = 0
    held: int = 0

    @property
    def own(self) -> range:
        """Numbers of the experts that are computed here."""
        return range(self.first, self.first + (self.held or self.count))


Attention = GroupedAttention | LatentAttention
FeedForward = Dense | Experts


@dataclass(frozen=True, slots=True)
class Layer:
    attention: Attention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How the checkpoint names its tensors, without ".weight" and ".bias"; {} is the layer."""

    embedding: str = "model.embed_tokens"
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"
    attention: str = "self_attn"
    feed_forward_norm: str = "post_attention_layernorm"
    feed_forward: str = "mlp"
    norm: str = "model.norm"
    head: str = "lm_head"


@dataclass(frozen=True, slots=True)
class PageShape:
    """What one token leaves in a layer of a page: sides x groups x head elements."""

    sides: int  # 2: keys and values; 1: keys whose first columns are the values
    groups: int
    head: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    layers: tuple[Layer, ...]
    rope: Rope
    page: PageShape
    names: Names = Names()
    # Layers of multi-token prediction (mtp.py); the checkpoint numbers them on from the last layer.
    ahead: tuple[Layer, ...] = ()
    # Tensors the checkpoint may hold that nobody reads: ends of names, or, with a "." as their own
    # last character, beginnings.
    ignored: tuple[str, ...] = ()
