"""What config.json and generation_config.json of a model folder say, checked. Torch-free.

Knows the fields of every decoder; those of one family are read by its file in families/. A value we
cannot honour is refused here or there, by name, before any weight is read.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .blueprint import Blueprint
from .fields import Fields, read_json
from .quantization import read_quantization
from .standard import context_length

# A new family is one line: the architecture, as config.json names it -> its file in families/.
FAMILIES: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "GptOssForCausalLM": "gpt_oss",
}
DTYPES = ("bfloat16", "float16", "float32")


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
    context_length: int
    norm_epsilon: float
    tied: bool  # the output head is the embedding
    dtype: str  # of the stored weights: bfloat16, float16 or float32
    begin_token_id: int | None
    end_token_ids: tuple[int, ...]  # generation_config.json's, else config.json's
    defaults: GenerationDefaults
    blueprint: Blueprint


def read_config(folder: Path) -> ModelConfig:
    """Read and check config.json and, where there is one, generation_config.json."""
    config = Fields(folder / "config.json", read_json(folder / "config.json"))
    path = folder / "generation_config.json"
    generation = Fields(path, read_json(path) if path.exists() else {})
    architecture = _architecture(config)
    read_quantization(config)  # refuses what the weights cannot be read from
    begin_ids = config.token_ids("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocabulary=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        context_length=context_length(config),
        norm_epsilon=config.number("rms_norm_eps"),
        tied=config.flag("tie_word_embeddings"),
        dtype=_dtype(config),
        begin_token_id=begin_ids[0] if begin_ids else None,
        end_token_ids=generation.token_ids("eos_token_id") or config.token_ids("eos_token_id"),
        defaults=_generation_defaults(generation),
        blueprint=_blueprint(architecture, config),
    )


def _architecture(config: Fields) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise config.fail("architectures", f"only {', '.join(FAMILIES)} can be served")
    return names[0]


def _blueprint(architecture: str, config: Fields) -> Blueprint:
    """Only the family in use is imported."""
    folder = __name__.rpartition(".")[0]
    family = importlib.import_module(f"{folder}.families.{FAMILIES[architecture]}")
    return family.read(config)


def _dtype(config: Fields) -> str:
    name = config.get("dtype", "torch_dtype") or "float32"
    if name not in DTYPES:
        field = "dtype" if config.get("dtype") is not None else "torch_dtype"
        raise config.fail(field, f"only {', '.join(DTYPES)} can be served")
    return name


def _generation_defaults(generation: Fields) -> GenerationDefaults:
    """Greedy models (do_sample false) still list values; those are what vLLM uses as well."""

    def optional(name: str, wanted: str, fits: Callable[[float], bool]) -> float | None:
        value = generation.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
            raise generation.fail(name, f"{wanted} is needed")
        return value

    top_k = optional("top_k", "an integer from -1", lambda k: k >= -1 and k == int(k))
    return GenerationDefaults(
        temperature=optional("temperature", "a number from 0 to 2", lambda t: 0 <= t <= 2),
        top_p=optional("top_p", "a number above 0 and up to 1", lambda p: 0 < p <= 1),
        top_k=None if top_k is None else max(0, int(top_k)),  # -1 is "off" as well
        min_p=optional("min_p", "a number from 0 to 1", lambda p: 0 <= p <= 1),
        repetition_penalty=optional("repetition_penalty", "a number above 0", lambda r: r > 0),
    )
