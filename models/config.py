"""What config.json and generation_config.json of a model folder say, checked. Torch-free.

Knows field names and which of their values we can serve; knows no tensor. A value we cannot honour
is refused here, by name, before any weight is read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One entry per class in registry.py (a test holds the two together): this list is what the router,
# which has no torch, can know.
ARCHITECTURES = ("LlamaForCausalLM",)
DTYPES = ("bfloat16", "float16", "float32")


class ModelError(Exception):
    """A model folder cannot be served; the text names the file, the field and what would work."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: base, and how its frequencies are stretched for long contexts."""

    kind: str = "default"  # "default", "linear" or "llama3"
    theta: float = 10000.0
    factor: float = 1.0
    low_frequency_factor: float = 1.0  # llama3 only, as the next two
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling values the model's authors recommend; None where they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of one checkpoint."""

    architecture: str
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    context_length: int
    norm_epsilon: float
    rope: Rope
    attention_bias: bool
    mlp_bias: bool
    tied: bool  # the output head is the embedding
    dtype: str  # of the stored weights: bfloat16, float16 or float32
    begin_token_id: int | None
    end_token_ids: tuple[int, ...]  # generation_config.json's, else config.json's
    defaults: GenerationDefaults


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object with typed reads whose errors name the file and the field."""

    path: Path
    values: dict[str, Any]
    prefix: str = ""

    def fail(self, name: str, wanted: str) -> ModelError:
        found = json.dumps(self.values.get(name))
        return ModelError(f"{self.path}: {self.prefix}{name} is {found}, but {wanted}")

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and not null."""
        return next(
            (self.values[name] for name in names if self.values.get(name) is not None), None
        )

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(name, "a positive integer is needed")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(name, "a positive number is needed")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "true or false is needed")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        value = self.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
            raise self.fail(name, "a token id or a list of token ids is needed")
        return tuple(ids)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of a model folder."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return values


def read_config(folder: Path) -> ModelConfig:
    """Read and check config.json and, where there is one, generation_config.json."""
    config = Fields(folder / "config.json", read_json(folder / "config.json"))
    path = folder / "generation_config.json"
    generation = Fields(path, read_json(path) if path.exists() else {})
    architecture = _architecture(config)
    _refuse_unsupported(config)
    query_heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", query_heads)
    if query_heads % kv_heads:
        raise config.fail("num_key_value_heads", f"it must divide the {query_heads} query heads")
    hidden = config.integer("hidden_size")
    head_size = config.integer("head_dim", hidden // query_heads)
    if head_size % 2:
        raise config.fail("head_dim", "rotary embedding needs an even head size")
    begin_ids = config.token_ids("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocabulary=config.integer("vocab_size"),
        hidden=hidden,
        feed_forward=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers"),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context_length=config.integer("max_position_embeddings"),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        rope=_rope(config),
        attention_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
        tied=config.flag("tie_word_embeddings"),
        dtype=_dtype(config),
        begin_token_id=begin_ids[0] if begin_ids else None,
        end_token_ids=generation.token_ids("eos_token_id") or config.token_ids("eos_token_id"),
        defaults=_generation_defaults(generation),
    )


def _architecture(config: Fields) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise config.fail("architectures", f"only {', '.join(ARCHITECTURES)} can be served")
    return names[0]


def _refuse_unsupported(config: Fields) -> None:
    """Fields of kindred models that would change the numbers if they were overlooked."""
    if config.get("hidden_act") not in (None, "silu", "swish"):
        raise config.fail("hidden_act", 'only "silu" can be served')
    for name in ("quantization_config", "sliding_window"):
        if config.get(name) is not None:
            raise config.fail(name, "checkpoints with it cannot be served; null would work")


def _dtype(config: Fields) -> str:
    name = config.get("dtype", "torch_dtype") or "float32"
    if name not in DTYPES:
        field = "dtype" if config.get("dtype") is not None else "torch_dtype"
        raise config.fail(field, f"only {', '.join(DTYPES)} can be served")
    return name


def _rope(config: Fields) -> Rope:
    """Both layouts: `rope_parameters` with its theta inside, or `rope_theta` + `rope_scaling`."""
    name = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    values = config.get(name) or {}
    if not isinstance(values, dict):
        raise config.fail(name, "a JSON object or null is needed")
    scaling = Fields(config.path, values, prefix=f"{name}.")
    theta = scaling.number("rope_theta", config.number("rope_theta", 10000.0))
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.fail("partial_rotary_factor", "only whole heads (1.0) can be rotated")
    kind = scaling.get("rope_type", "type") or "default"
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(kind, theta, scaling.number("factor"))
    if kind != "llama3":
        field = "rope_type" if scaling.get("rope_type") is not None else "type"
        raise scaling.fail(field, 'only "default", "linear" and "llama3" can be served')
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.fail("high_freq_factor", "it must be above low_freq_factor")
    original = scaling.integer("original_max_position_embeddings")
    return Rope(kind, theta, scaling.number("factor"), low, high, original)


def _generation_defaults(generation: Fields) -> GenerationDefaults:
    """Greedy models (do_sample false) still list values; those are what vLLM uses as well."""

    def optional(name: str) -> float | None:
        value = generation.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise generation.fail(name, "a number is needed")
        return value

    top_k = optional("top_k")
    return GenerationDefaults(
        temperature=optional("temperature"),
        top_p=optional("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=optional("min_p"),
        repetition_penalty=optional("repetition_penalty"),
    )
