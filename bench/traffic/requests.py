"""What a soak asks: a finite set of requests of every kind, each with one right answer.

A `Case` says what is asked; an `Asked` says how it is asked this time: streamed or whole, by which
tenant, and whether the client leaves before the end. None of that may change a token. Everything
is drawn from a seed, and every case names its own seed, because without one the router draws one.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SHARE_STREAMED = 0.55
SHARE_OWN_TENANT = 0.4  # nothing of the prompt is cached for it
SHARE_SHARED_TENANT = 0.2
SHARE_LEAVING = 0.1
MOST_EVENTS_BEFORE_LEAVING = 40
MOST_SECONDS_BEFORE_LEAVING = 1.5

LIBRARY = "\n".join(
    f"def step_{number}(value):\n    return value * {number} + {number % 7}\n"
    for number in range(76)
)
BEGINNINGS = (
    "def main(argv):\n    ",
    "SELECT name FROM",
    "class Queue:\n    def __init__(self):",
    "17 + 25 =",
    "import os\n\n\ndef walk(folder):\n",
    "The capital of",
)
QUESTIONS = (
    "What is 17 + 25? Show the steps.",
    "What is the capital of Norway?",
    "How many singers are there?",
    "Write a function that adds two numbers.",
)
STOPS = (["\n"], ["return", "SELECT"], ["e", "zz"], ["."])

Chance = random.Random
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One request whose right answer does not depend on when and how it is asked."""

    number: int
    kind: str
    path: str
    body: Body

    @property
    def name(self) -> str:
        return f"{self.number} {self.kind}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One asking of a case. A client that leaves does so after so many events of a stream, or
    so many seconds."""

    case: Case
    stream: bool
    salt: str
    leave_events: int = 0  # 0 = does not leave for that
    leave_seconds: float = 0.0  # 0 = does not leave for that

    @property
    def body(self) -> Body:
        more: Body = {"cache_salt": self.salt} if self.salt else {}
        if self.stream:
            more |= {"stream": True, "stream_options": {"include_usage": True}}
        return self.case.body | more

    @property
    def leaves(self) -> bool:
        return self.leave_events > 0 or self.leave_seconds > 0.0


def cases(seed: int, count: int) -> list[Case]:
    """`count` requests, every kind in turn."""
    kinds = list(KINDS)
    found = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        chance = random.Random(f"{seed} case {number}")
        path, body = KINDS[kind](chance)
        body = {"seed": chance.getrandbits(48), "return_token_ids": True} | body
        found.append(Case(number, kind, path, body))
    return found


def asked(case: Case, chance: Chance) -> Asked:
    """How it is asked this time."""
    stream = chance.random() < SHARE_STREAMED
    tenant, salt = chance.random(), ""
    if tenant < SHARE_OWN_TENANT:
        salt = f"tenant {chance.getrandbits(40):x}"
    elif tenant < SHARE_OWN_TENANT + SHARE_SHARED_TENANT:
        salt = "the other tenant"
    if chance.random() >= SHARE_LEAVING:
        return Asked(case, stream, salt)
    if stream and chance.random() < 0.7:
        events = chance.randint(1, MOST_EVENTS_BEFORE_LEAVING)
        return Asked(case, stream, salt, leave_events=events)
    seconds = chance.uniform(0.01, MOST_SECONDS_BEFORE_LEAVING)
    return Asked(case, stream, salt, leave_seconds=seconds)


# --- the kinds ------------------------------------------------------------------------------------


def _completion(**fields: Any) -> tuple[str, Body]:
    return COMPLETIONS, fields


def _warm(chance: Chance) -> float:
    return round(chance.uniform(0.5, 1.3), 2)


def _greedy(chance: Chance) -> tuple[str, Body]:
    length = chance.randint(1, 60)
    return _completion(prompt=chance.choice(BEGINNINGS), temperature=0, max_tokens=length)


def _plain(chance: Chance) -> tuple[str, Body]:
    """Text alone: the shortest way through the router."""
    body = _completion(prompt=chance.choice(BEGINNINGS), temperature=_warm(chance), max_tokens=50)
    return body[0], body[1] | {"return_token_ids": False}


def _seeded(chance: Chance) -> tuple[str, Body]:
    filters = chance.choice(({"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.05}, {}))
    length, prompt = chance.randint(5, 120), chance.choice(BEGINNINGS)
    return _completion(prompt=prompt, temperature=_warm(chance), max_tokens=length, **filters)


def _choices(chance: Chance) -> tuple[str, Body]:
    number, length = chance.randint(2, 4), chance.randint(10, 90)
    prompt = chance.choice(BEGINNINGS)
    return _completion(prompt=prompt, n=number, temperature=1.0, max_tokens=length)


def _logprobs(chance: Chance) -> tuple[str, Body]:
    number, temperature = chance.randint(0, 4), chance.choice((0, 0.9))
    prompt = chance.choice(BEGINNINGS)
    return _completion(prompt=prompt, logprobs=number, temperature=temperature, max_tokens=40)


def _stop(chance: Chance) -> tuple[str, Body]:
    keep, prompt = chance.random() < 0.5, chance.choice(BEGINNINGS)
    more = {"stop": chance.choice(STOPS), "include_stop_str_in_output": keep}
    return _completion(prompt=prompt, temperature=0.8, max_tokens=120, **more)


def _penalties(chance: Chance) -> tuple[str, Body]:
    more = {"presence_penalty": 0.7, "frequency_penalty": 1.1, "repetition_penalty": 1.2}
    more |= {"stop_token_ids": list(range(200, 1200)), "min_tokens": chance.randint(1, 30)}
    return _completion(prompt=chance.choice(BEGINNINGS), temperature=0.8, max_tokens=80, **more)


def _chat(chance: Chance) -> tuple[str, Body]:
    messages = [{"role": "user", "content": chance.choice(QUESTIONS)}]
    if chance.random() < 0.5:
        messages.insert(0, {"role": "system", "content": LIBRARY[: chance.randint(1, 2000)]})
    body: Body = {"messages": messages, "temperature": chance.choice((0, 0.8)), "max_tokens": 60}
    if chance.random() < 0.4:
        body |= {"logprobs": True, "top_logprobs": chance.randint(0, 3)}
    return CHAT, body


def _long_prompt(chance: Chance) -> tuple[str, Body]:
    """Some share a prefix, some differ from the first token on."""
    own = "" if chance.random() < 0.6 else f"# {chance.getrandbits(40)}\n"
    prompt = own + LIBRARY[: chance.randint(1200, len(LIBRARY))]
    length, temperature = chance.randint(1, 40), chance.choice((0, 0.9))
    return _completion(prompt=prompt, temperature=temperature, max_tokens=length)


def _long_choices(chance: Chance) -> tuple[str, Body]:
    prompt = f"# {chance.getrandbits(40)}\n" + LIBRARY[: chance.randint(800, 2800)]
    number = chance.randint(2, 3)
    return _completion(prompt=prompt, n=number, temperature=0.8, max_tokens=60, logprobs=1)


def _long_answer(chance: Chance) -> tuple[str, Body]:
    length, prompt = chance.randint(150, 400), chance.choice(BEGINNINGS)
    return _completion(prompt=prompt, temperature=_warm(chance), max_tokens=length, ignore_eos=True)


def _scored(chance: Chance) -> tuple[str, Body]:
    prompt, length = LIBRARY[: chance.randint(200, 2500)], chance.randint(0, 2)
    return _completion(prompt=prompt, echo=True, logprobs=1, temperature=0, max_tokens=length)


def _two_prompts(chance: Chance) -> tuple[str, Body]:
    prompts = chance.sample(BEGINNINGS, 2)
    return _completion(prompt=prompts, temperature=_warm(chance), max_tokens=50)


def _token_ids(chance: Chance) -> tuple[str, Body]:
    ids = chance.choices(range(300, 2000), k=chance.randint(1, 700))
    return _completion(prompt=ids, temperature=_warm(chance), max_tokens=60)


KINDS: dict[str, Callable[[Chance], tuple[str, Body]]] = {
    "greedy": _greedy,
    "long prompt": _long_prompt,
    "seeded": _seeded,
    "chat": _chat,
    "long answer": _long_answer,
    "choices": _choices,
    "plain": _plain,
    "long choices": _long_choices,
    "logprobs": _logprobs,
    "token ids": _token_ids,
    "stop": _stop,
    "scored": _scored,
    "penalties": _penalties,
    "two prompts": _two_prompts,
}
