"""`transformers` generate as a contender. Imports nothing of ours.

python transformers_script.py MODEL THREADS      one Work as JSON per line on standard input
"""

import json
import random
import sys
import time
from typing import Any

import torch
import transformers


def say(**words: object) -> None:
    print(json.dumps({"penstock bench": words}), flush=True)


def main(model: str, threads: int) -> None:
    torch.set_num_threads(threads)
    engine: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16
    ).eval()
    say(version=f"transformers {transformers.__version__}")
    for line in sys.stdin:
        work = json.loads(line)
        chance = random.Random(work["seed"])
        prompts = torch.tensor(
            [
                chance.choices(range(3, work["vocabulary"]), k=work["prompt"])
                for _ in range(work["batch"])
            ]
        )
        began = time.perf_counter()
        with torch.inference_mode():
            answers = engine.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=work["tokens"],
                max_new_tokens=work["tokens"],
                cache_implementation="static",
                disable_compile=True,  # its compilation takes minutes for every shape on a CPU
                pad_token_id=0,
            )
        seconds = time.perf_counter() - began
        assert answers.shape[1] == work["prompt"] + work["tokens"]
        say(seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
