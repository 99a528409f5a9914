"""Write a training state as a Hugging Face checkpoint.

python -m penstock.models.demo.export --state latest.pt
"""

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .architecture import Shape
from .chat import BEGIN, END, END_OF_TEXT, MARKERS, tokenizer_settings

HERE = Path(__file__).parent
PREFIX = "model."  # what Hugging Face puts before the decoder's names


def model_settings(shape: Shape) -> dict:
    """Contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": MARKERS.index(BEGIN),
        "eos_token_id": [MARKERS.index(END), MARKERS.index(END_OF_TEXT)],
        "pad_token_id": MARKERS.index(END_OF_TEXT),
    }


def generation_settings() -> dict:
    """Contents of generation_config.json."""
    return {
        "bos_token_id": MARKERS.index(BEGIN),
        "eos_token_id": [MARKERS.index(END), MARKERS.index(END_OF_TEXT)],
        "pad_token_id": MARKERS.index(END_OF_TEXT),
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights under the decoder's own names, in float32."""
    return {name.removeprefix(PREFIX): weight.float() for name, weight in load_file(path).items()}


def replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def export(weights: dict[str, Tensor], shape: Shape, tokenizer: Path, target: Path) -> None:
    """Write all files; each is moved into place whole, the weights last."""
    target.mkdir(parents=True, exist_ok=True)
    for name, settings in (
        ("config.json", model_settings(shape)),
        ("generation_config.json", generation_settings()),
        ("tokenizer_config.json", tokenizer_settings(shape.max_positions)),
    ):
        replace_text(target / name, json.dumps(settings, indent=2) + "\n")
    replace_text(target / "tokenizer.json", tokenizer.read_text(encoding="utf-8"))
    stored = {PREFIX + name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    unfinished = target / "model.safetensors.unfinished"
    save_file(stored, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # the writer makes it readable for its owner alone
    os.replace(unfinished, target / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="export a training state")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--state", default="latest.pt", help="file in the work folder")
    parser.add_argument("--target", type=Path, default=HERE / "checkpoint")
    arguments = parser.parse_args()
    state = torch.load(arguments.work / arguments.state, weights_only=True)
    export(state["model"], Shape(), arguments.work / "tokenizer.json", arguments.target)
    print(f"exported step {state['step']} to {arguments.target}")


if __name__ == "__main__":
    main()
