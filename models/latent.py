"""Multi-head latent attention (MLA), absorbed: heads attend to the compressed vectors themselves.

    c_t = [norm(down x_t) | rotated]          what a page keeps: R + Z numbers per token, all heads'
    score(n, t, s) = (W_UK[n]^T q_plain[n, t]) . c_s[:R] + q_rotated[n, t] . c_s[R:]
    out[n, t] = W_UV[n] sum_s weight(n, t, s) c_s[:R]

W_UK and W_UV are the halves of kv_b_proj: moved from the keys and values, of which there are many,
to the query and the output. Prompts run in this form too, so that a position has one set of bits.
Source: DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, section 2.1 and appendix C.

T tokens in the batch, D model size, N heads, Q query rank, R rank of keys and values, P plain
columns of a query head, Z rotated ones, V columns of a value.
"""

from dataclasses import replace

from torch import Tensor

from ..kernels.choice import Kernels
from .batch import Batch
from .blueprint import LatentAttention
from .config import ModelConfig
from .linears import input_cuts, linear_shapes, output_cuts, packed_linear
from .parts import Cuts, Linears, Rotary, Shapes, Shard, Source

# Of the norms on compressed vectors: the authors' code does not pass rms_norm_eps to them.
EPSILON = 1e-6


class LatentPart:
    """One layer's weights, packed."""

    def __init__(
        self,
        plan: LatentAttention,
        config: ModelConfig,
        source: Source,
        prefix: str,
        kernels: Kernels,
        rotary: Rotary,
    ) -> None:
        self.plan = plan
        self.kernels = kernels
        self.rotary = rotary
        query = f"{prefix}.{_query_name(plan)}"
        names = [query, f"{prefix}.kv_a_proj_with_mqa"]
        self.down = packed_linear(source, kernels, names, plan.bias)
        if plan.query_rank:
            self.query_norm_Q = source.tensor(f"{prefix}.q_a_layernorm.weight")
            self.query_up = packed_linear(source, kernels, [f"{prefix}.q_b_proj"])
        self.norm_R = source.tensor(f"{prefix}.kv_a_layernorm.weight")
        sizes = (plan.plain_size, plan.value_size)
        up_NXR = source.tensor(f"{prefix}.kv_b_proj.weight").unflatten(0, (-1, sum(sizes)))
        key_NPR, value_NVR = up_NXR.split(sizes, dim=1)
        self.absorb = kernels.pack_heads(key_NPR.transpose(1, 2))
        self.expand = kernels.pack_heads(value_NVR)
        self.output = packed_linear(source, kernels, [f"{prefix}.o_proj"], plan.bias)

    @staticmethod
    def shapes(plan: LatentAttention, config: ModelConfig, prefix: str) -> Shapes:
        heads, hidden = plan.query_heads, config.hidden
        query, width = _query_width(plan), plan.kv_rank + plan.rotary_size
        shapes = {
            **linear_shapes(f"{prefix}.kv_a_proj_with_mqa", width, hidden, plan.bias),
            f"{prefix}.kv_a_layernorm.weight": (plan.kv_rank,),
            **linear_shapes(
                f"{prefix}.kv_b_proj", heads * (plan.plain_size + plan.value_size), plan.kv_rank
            ),
            **linear_shapes(f"{prefix}.o_proj", hidden, heads * plan.value_size, plan.bias),
        }
        if plan.query_rank:
            shapes |= linear_shapes(f"{prefix}.q_a_proj", plan.query_rank, hidden, plan.bias)
            shapes[f"{prefix}.q_a_layernorm.weight"] = (plan.query_rank,)
            shapes |= linear_shapes(f"{prefix}.q_b_proj", query, plan.query_rank)
        else:
            shapes |= linear_shapes(f"{prefix}.q_proj", query, hidden, plan.bias)
        return shapes

    @staticmethod
    def packed(plan: LatentAttention, config: ModelConfig) -> Linears:
        query, width = _query_width(plan), plan.kv_rank + plan.rotary_size
        output = (config.hidden, plan.query_heads * plan.value_size)
        if plan.query_rank:
            down = (plan.query_rank + width, config.hidden)
            return down, (query, plan.query_rank), output
        return (query + width, config.hidden), output

    @staticmethod
    def divided(plan: LatentAttention, shard: Shard) -> LatentAttention:
        return replace(plan, query_heads=shard.size("query heads", plan.query_heads))

    @staticmethod
    def cuts(plan: LatentAttention, prefix: str) -> Cuts:
        """What compresses is read whole: every shard has the latent of every token."""
        heads = "q_b_proj" if plan.query_rank else "q_proj"
        cuts = output_cuts(f"{prefix}.{heads}") | output_cuts(f"{prefix}.kv_b_proj")
        return cuts | input_cuts(f"{prefix}.o_proj")

    def __call__(
        self, x_TD: Tensor, batch: Batch, pages: Tensor, layer: int, only_wanted: bool
    ) -> Tensor:
        compressed_TX = self.down(x_TD)
        self._store(compressed_TX, batch, pages, layer)
        position_T, query_start_B1 = batch.position_T, batch.query_start_B1
        if only_wanted and batch.wanted_R is not None:
            if not len(batch.wanted_R):
                return x_TD[:0]
            # From here on T counts the wanted rows.
            compressed_TX = compressed_TX.index_select(0, batch.wanted_R)
            position_T = position_T.index_select(0, batch.wanted_R)
            query_start_B1 = batch.wanted_start_B1
        mixed_TNR = self.kernels.paged_attention(
            self._query(compressed_TX, position_T),
            pages,
            layer,
            batch.page_table_BW,
            query_start_B1,
            batch.context_length_B,
            self.plan.scale,
            value_size=self.plan.kv_rank,
        )
        return self.output(self.expand(mixed_TNR).flatten(1))

    def _store(self, compressed_TX: Tensor, batch: Batch, pages: Tensor, layer: int) -> None:
        width = self.plan.kv_rank + self.plan.rotary_size
        self.kernels.store_latent(
            compressed_TX[:, -width:],
            self.norm_R,
            EPSILON,
            self.rotary.cosine_MX2,
            self.rotary.sine_MX2,
            batch.position_T,
            pages,
            layer,
            batch.page_T,
            batch.slot_T,
            self.rotary.interleaved,
        )

    def _query(self, compressed_TX: Tensor, position_T: Tensor) -> Tensor:
        """[T, N, R + Z], as the pages' vectors are laid out."""
        plan, rotary = self.plan, self.rotary
        if plan.query_rank:
            query_TQ = compressed_TX[:, : plan.query_rank]
            query_TE = self.query_up(self.kernels.rms_norm(query_TQ, self.query_norm_Q, EPSILON))
        else:
            query_TE = compressed_TX[:, : _query_width(plan)]
        query_TNX = query_TE.unflatten(1, (plan.query_heads, -1))
        q_TNX = query_TE.new_empty(len(query_TE), plan.query_heads, plan.kv_rank + plan.rotary_size)
        q_TNX[..., : plan.kv_rank] = self.absorb(query_TNX[..., : plan.plain_size])
        q_TNX[..., plan.kv_rank :] = self.kernels.rotate(
            query_TNX[..., plan.plain_size :],
            rotary.cosine_MX2,
            rotary.sine_MX2,
            position_T,
            rotary.interleaved,
        )
        return q_TNX


def _query_name(plan: LatentAttention) -> str:
    return "q_a_proj" if plan.query_rank else "q_proj"


def _query_width(plan: LatentAttention) -> int:
    return plan.query_heads * (plan.plain_size + plan.rotary_size)
