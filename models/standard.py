"""The fields of config.json that nearly all families share, read once, for the families' files.

Absent fields take the default of the family's own code (a keyword here where families differ),
because checkpoints are published with such fields left out. Torch-free.
"""

import math
from dataclasses import replace

from .blueprint import Blueprint, Dense, GroupedAttention, Layer, PageShape, Rope
from .fields import Fields

# Fields of kindred models that change the numbers -> the values that leave them as they are. null,
# or no such field, is always fine.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "partial_rotary_factor": (1, 1.0),
    "rotary_pct": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "alibi": (False,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": ([],),
    "attention_chunk_size": (),
    "dual_chunk_attention_config": (),
    "use_mrope": (False,),
}


def refuse_unhonoured(fields: Fields, *honoured: str) -> None:
    """By name; `honoured` are fields of NEUTRAL that the family's file reads itself."""
    for name, neutral in NEUTRAL.items():
        if name not in honoured:
            fields.only(name, *neutral)


def grouped_attention(
    fields: Fields,
    *,
    kv_heads: int = 0,
    head_size: int = 0,
    bias: bool = False,
    output_bias: bool = False,
    head_norm: bool = False,
) -> GroupedAttention:
    """`kv_heads`, `head_size`: the family's defaults; 0: all heads, and D / N.

    Key heads that are null, not absent, are all heads in every family.
    """
    query_heads = fields.integer("num_attention_heads")
    absent = kv_heads if "num_key_value_heads" not in fields.values else 0
    groups = fields.integer("num_key_value_heads", absent or query_heads)
    if query_heads % groups:
        raise fields.fail("num_key_value_heads", f"it must divide the {query_heads} query heads")
    hidden = fields.integer("hidden_size")
    head = fields.integer("head_dim", head_size or hidden // query_heads)
    if head % 2:
        raise fields.fail("head_dim", "rotary embedding needs an even head size")
    return GroupedAttention(
        query_heads=query_heads,
        kv_heads=groups,
        head_size=head,
        scale=head**-0.5,
        bias=bias,
        output_bias=output_bias,
        head_norm=head_norm,
    )


def dense(fields: Fields, bias: bool = False) -> Dense:
    return Dense(size=fields.integer("intermediate_size"), bias=bias)


def chosen_experts(fields: Fields, default: int, most: int) -> int:
    """Per token, of the `most` that it may choose from."""
    chosen = fields.integer("num_experts_per_tok", default)
    if chosen > most:
        raise fields.fail("num_experts_per_tok", f"a token has {most} experts to choose from")
    return chosen


def grouped_pages(attention: GroupedAttention) -> PageShape:
    return PageShape(2, attention.kv_heads, attention.head_size)


def uniform(fields: Fields, layer: Layer) -> tuple[Layer, ...]:
    """The same layer everywhere."""
    return (layer,) * fields.integer("num_hidden_layers")


def dense_blueprint(fields: Fields, attention: GroupedAttention, feed_forward: Dense) -> Blueprint:
    """A decoder of equal layers with grouped attention over the usual names."""
    return Blueprint(
        layers=uniform(fields, Layer(attention, feed_forward)),
        rope=rope(fields, attention.head_size),
        page=grouped_pages(attention),
    )


def context_length(fields: Fields) -> int:
    """Positions; with YaRN at least those it stretches to, which config.json may leave unsaid."""
    whole = fields.integer("max_position_embeddings")
    scaling = _scaling(fields)
    if scaling.get("rope_type", "type") != "yarn":
        return whole
    original = _original_positions(fields, scaling)
    return max(whole, int(scaling.number("factor", whole / original) * original))


def window(fields: Fields, default: int) -> int:
    """`sliding_window`; 0 where it is null, or as long as the context. Absent: the default."""
    if "sliding_window" in fields.values and fields.get("sliding_window") is None:
        return 0
    size = fields.integer("sliding_window", default)
    return 0 if size >= context_length(fields) else size


def windowed_layers(fields: Fields) -> tuple[bool, ...]:
    """Per layer whether its window holds: Qwen's use_sliding_window with max_window_layers.

    `layer_types`, where it is given, says it by name.
    """
    count = fields.integer("num_hidden_layers")
    kinds = fields.get("layer_types")
    used = fields.flag("use_sliding_window")
    if kinds is None:
        first = fields.integer("max_window_layers", 28, least=0)
        return tuple(used and at >= first for at in range(count))
    known = ("full_attention", "sliding_attention")
    listed = isinstance(kinds, list) and len(kinds) == count
    if not listed or any(kind not in known for kind in kinds):
        raise fields.fail("layer_types", f"{count} entries are needed, each {' or '.join(known)}")
    if "sliding_attention" in kinds and not used:
        raise fields.fail("layer_types", '"sliding_attention" needs use_sliding_window')
    return tuple(kind == "sliding_attention" for kind in kinds)


def windowed(fields: Fields, attention: GroupedAttention) -> tuple[GroupedAttention, ...]:
    """The attention of each layer, by `windowed_layers`."""
    chosen = windowed_layers(fields)
    if not any(chosen):
        return (attention,) * len(chosen)
    narrow = replace(attention, window=window(fields, 4096))
    return tuple(narrow if one else attention for one in chosen)


def windowed_blueprint(
    fields: Fields, attention: GroupedAttention, feed_forward: Dense
) -> Blueprint:
    """As dense_blueprint, with Qwen's windows."""
    layers = tuple(Layer(one, feed_forward) for one in windowed(fields, attention))
    return replace(dense_blueprint(fields, attention, feed_forward), layers=layers)


def rope(fields: Fields, size: int, theta: float = 10000.0, interleaved: bool = False) -> Rope:
    """Both layouts: `rope_parameters` with its theta inside, or `rope_theta` + `rope_scaling`.

    `theta` is the family's default, `size` the number of rotated columns.
    """
    scaling = _scaling(fields)
    theta = scaling.number("rope_theta", fields.number("rope_theta", theta))
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.fail("partial_rotary_factor", "only whole heads (1.0) can be rotated")
    scaling.only("mrope_section")
    for name, value in scaling.values.items():
        if isinstance(value, dict):
            raise scaling.fail(name, "one rotary embedding for all layers is needed")
    kind = scaling.get("rope_type", "type") or "default"
    plain = Rope(size=size, interleaved=interleaved, theta=theta)
    if kind == "default":
        return plain
    if kind not in STRETCHED:
        field = "rope_type" if scaling.get("rope_type") is not None else "type"
        listed = ", ".join(f'"{one}"' for one in ("default", *STRETCHED))
        raise scaling.fail(field, f"only {listed} can be served")
    return STRETCHED[kind](fields, scaling, plain)


def _scaling(fields: Fields) -> Fields:
    name = "rope_parameters" if fields.get("rope_parameters") is not None else "rope_scaling"
    return fields.inner(name)


def _linear(fields: Fields, scaling: Fields, plain: Rope) -> Rope:
    return replace(plain, kind="linear", factor=scaling.number("factor"))


def _llama3(fields: Fields, scaling: Fields, plain: Rope) -> Rope:
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.fail("high_freq_factor", "it must be above low_freq_factor")
    return replace(
        plain,
        kind="llama3",
        factor=scaling.number("factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_positions=_original_positions(fields, scaling),
    )


def _yarn(fields: Fields, scaling: Fields, plain: Rope) -> Rope:
    """The attention factor, where it is not given, follows from the factor and the two mscales."""
    original = _original_positions(fields, scaling)
    whole = fields.integer("max_position_embeddings")
    factor = scaling.number("factor", whole / original)
    scale, over_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    given = scaling.get("attention_factor")
    if given is not None:
        attention_factor = scaling.number("attention_factor")
    elif scale and over_all:
        attention_factor = yarn_magnitude(factor, scale) / yarn_magnitude(factor, over_all)
    else:
        attention_factor = yarn_magnitude(factor)
    return replace(
        plain,
        kind="yarn",
        factor=factor,
        original_positions=original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.flag("truncate", True),
        attention_factor=attention_factor,
    )


STRETCHED = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """How much larger scores must become when the context is `factor` times as long."""
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def _original_positions(fields: Fields, scaling: Fields) -> int:
    """As transformers: beside max_position_embeddings, else within, else the whole context."""
    name = "original_max_position_embeddings"
    whole = fields.integer("max_position_embeddings")
    return fields.integer(name, scaling.integer(name, whole))
