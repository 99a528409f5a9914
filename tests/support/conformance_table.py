"""The requests whose answers must not depend on how the cluster is laid out."""

from typing import Any

LONG = "\n".join(
    f"def step_{number}(value):\n    return value * {number} + {number % 7}\n"
    for number in range(90)
)
CHAT = [{"role": "user", "content": "What is 17 + 25? Show the steps."}]


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"prompt": "def main(argv):\n    ", "max_tokens": 24, "seed": 5, "temperature": 0}
    return "/v1/completions", body | {"return_token_ids": True} | fields


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"messages": CHAT, "max_tokens": 24, "seed": 11, "temperature": 0}
    return "/v1/chat/completions", body | {"return_token_ids": True} | fields


TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "completion, greedy": completion(),
    "completion, one token of prompt": completion(prompt="a"),
    "completion, one token of answer": completion(max_tokens=1),
    "completion, no token of answer": completion(max_tokens=0, echo=True, logprobs=1),
    "completion, seeded": completion(temperature=0.9),
    "completion, hot": completion(temperature=1.7, seed=2**62 + 3),
    "completion, top_p": completion(temperature=1.0, top_p=0.7),
    "completion, top_k": completion(temperature=1.0, top_k=5),
    "completion, min_p": completion(temperature=1.2, min_p=0.1),
    "completion, all filters": completion(temperature=1.1, top_p=0.9, top_k=50, min_p=0.02),
    "completion, presence and frequency": completion(
        temperature=0.8, presence_penalty=0.7, frequency_penalty=1.1, max_tokens=60
    ),
    "completion, repetition": completion(repetition_penalty=1.4, max_tokens=60),
    "completion, bias": completion(logit_bias={"300": 8.0, "301": -100}, temperature=1.0),
    "completion, stop string": completion(stop=["\n"], max_tokens=60),
    "completion, two stop strings kept": completion(
        stop=["e", "zz"], include_stop_str_in_output=True, max_tokens=60
    ),
    "completion, stop token ids": completion(stop_token_ids=list(range(200, 1200)), seed=3),
    "completion, min_tokens": completion(
        stop_token_ids=list(range(200, 1200)), min_tokens=9, temperature=0.7
    ),
    "completion, ignore_eos": completion(prompt="<|", ignore_eos=True, max_tokens=80),
    "completion, logprobs": completion(logprobs=4, temperature=0.9),
    "completion, echo with logprobs": completion(echo=True, logprobs=2, max_tokens=3),
    "completion, three choices": completion(n=3, temperature=1.0, max_tokens=40),
    "completion, two prompts": completion(prompt=["SELECT name FROM", "12 * 12 ="]),
    "completion, token ids": completion(prompt=[400, 401, 402, 403, 404]),
    "completion, long": completion(prompt=LONG, max_tokens=40),
    "completion, long, seeded, three choices": completion(
        prompt=LONG + "\n# end\n", n=3, temperature=0.8, max_tokens=40, logprobs=1
    ),
    "completion, long, scored": completion(prompt=LONG[:2500], echo=True, logprobs=1, max_tokens=2),
    "completion, shares a long prefix": completion(prompt=LONG[:3000] + "\nclass", temperature=0.9),
    "completion, another tenant": completion(prompt=LONG, cache_salt="other", max_tokens=8),
    "chat, greedy": chat(),
    "chat, seeded": chat(temperature=0.8),
    "chat, logprobs": chat(temperature=0.8, logprobs=True, top_logprobs=3),
    "chat, four choices": chat(temperature=1.0, n=4),
    "chat, stop": chat(stop=["."], temperature=0.5, max_tokens=60),
    "chat, system and turns": chat(
        messages=[
            {"role": "system", "content": "You answer in SQL."},
            {"role": "user", "content": "How many singers are there?"},
            {"role": "assistant", "content": "SELECT count(*) FROM singer"},
            {"role": "user", "content": "And how many concerts?"},
        ],
        temperature=0.6,
    ),
}
