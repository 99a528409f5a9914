"""DeepSeek-V3, V3.1, R1, and Kimi-K2, which is the same architecture with other sizes.

Latent attention everywhere, the first layers dense, the others with experts chosen by sigmoid
scores within groups, and a layer of multi-token prediction behind the last.
"""

from ..blueprint import Blueprint, Experts, LatentAttention, Layer, PageShape, Rope
from ..fields import Fields
from ..standard import chosen_experts, dense, refuse_unhonoured, rope, yarn_magnitude


def read(fields: Fields) -> Blueprint:
    refuse_unhonoured(fields)
    fields.only("topk_method", "noaux_tc")
    fields.only("scoring_func", "sigmoid")
    fields.only("moe_layer_freq", 1)
    turns = rope(
        fields,
        fields.integer("qk_rope_head_dim", 64),
        interleaved=fields.flag("rope_interleave", True),
    )
    attention = _attention(fields, turns)
    experts = Layer(attention, _experts(fields))
    count = fields.integer("num_hidden_layers")
    only_dense = min(fields.integer("first_k_dense_replace", 3, least=0), count)
    ahead = fields.integer("num_nextn_predict_layers", 0, least=0)
    return Blueprint(
        layers=(Layer(attention, dense(fields)),) * only_dense + (experts,) * (count - only_dense),
        rope=turns,
        page=PageShape(1, 1, attention.kv_rank + attention.rotary_size),
        ahead=(experts,) * ahead,
        ignored=tuple(f"model.layers.{at}." for at in range(count, count + ahead)),
    )


def _attention(fields: Fields, turns: Rope) -> LatentAttention:
    plain = fields.integer("qk_nope_head_dim", 128)
    # V3's config.json names a rank for the query; null, as in V2-Lite, is one whole projection.
    query_rank = fields.integer("q_lora_rank", 0)
    if fields.flag("attention_bias") and not query_rank:
        raise fields.fail("attention_bias", "with q_lora_rank null only false can be served")
    return LatentAttention(
        query_heads=fields.integer("num_attention_heads"),
        query_rank=query_rank,
        kv_rank=fields.integer("kv_lora_rank", 512),
        plain_size=plain,
        rotary_size=turns.size,
        value_size=fields.integer("v_head_dim", 128),
        scale=(plain + turns.size) ** -0.5 * _magnitude(fields, turns) ** 2,
        bias=fields.flag("attention_bias"),
    )


def _magnitude(fields: Fields, turns: Rope) -> float:
    """A stretched context multiplies q and k, and so scores by the square."""
    name = "rope_parameters" if fields.get("rope_parameters") is not None else "rope_scaling"
    over_all = fields.inner(name).get("mscale_all_dim")
    if turns.kind == "default" or not over_all:
        return 1.0
    return yarn_magnitude(turns.factor, over_all)


def _experts(fields: Fields) -> Experts:
    count = fields.integer("n_routed_experts", 256)
    groups, chosen_groups = fields.integer("n_group", 8), fields.integer("topk_group", 4)
    if count % groups or (groups > 1 and count // groups < 2):
        raise fields.fail("n_group", f"equal groups of at least two of {count} experts are needed")
    if chosen_groups > groups:
        raise fields.fail("topk_group", f"at most the {groups} groups of n_group are needed")
    size = fields.integer("moe_intermediate_size", 2048)
    return Experts(
        count=count,
        chosen=chosen_experts(fields, 8, count // groups * chosen_groups),
        size=size,
        shared_size=size * fields.integer("n_shared_experts", 1, least=0),
        scoring="sigmoid",
        normalised=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", 2.5),
        groups=groups,
        chosen_groups=chosen_groups,
        correction=True,
    )
