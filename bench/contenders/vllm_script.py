"""vLLM on a CPU as a contender. Run by an interpreter that has it; imports nothing of ours.

python vllm_script.py MODEL THREADS      one Work as JSON per line on standard input
"""

import json
import os
import random
import sys
import time


def say(**words: object) -> None:
    print(json.dumps({"penstock bench": words}), flush=True)


def main(model: str, threads: int) -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ.setdefault(
        "VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    )
    import vllm  # pyright: ignore[reportMissingImports]

    engine = vllm.LLM(
        model=model,
        dtype="bfloat16",
        max_model_len=4096,
        max_num_seqs=64,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    say(version=f"vllm {vllm.__version__}")
    for line in sys.stdin:
        work = json.loads(line)
        chance = random.Random(work["seed"])
        prompts = [
            {"prompt_token_ids": chance.choices(range(3, work["vocabulary"]), k=work["prompt"])}
            for _ in range(work["batch"])
        ]
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=work["tokens"], ignore_eos=True, detokenize=False
        )
        began = time.perf_counter()
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert all(len(one.outputs[0].token_ids) == work["tokens"] for one in answers)
        say(seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
