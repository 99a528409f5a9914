"""Endless documents of our own making, one function per kind, each a pure function of its random.

A document is text with chat markers where it is a chat. The same kind with the same seed gives
the same documents on every machine; a held-out seed gives documents of the same kind.
"""

from collections.abc import Callable, Iterator
from random import Random

from .arithmetic import problem
from .chat import exchange, render
from .dialogue import conversation
from .exercises import exercise
from .facts import SYSTEM_PROMPTS
from .sql import query


def arithmetic_document(random: Random) -> str:
    """Two thirds chat, the rest several plain question and answer blocks."""
    if random.random() < 0.66:
        return exchange(*problem(random))
    problems = (problem(random) for _ in range(random.randint(1, 4)))
    return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in problems)


def sql_document(random: Random) -> str:
    """Two thirds chat, the rest several plain blocks of schema, question and query."""
    if random.random() < 0.66:
        schema, question, answer = query(random)
        turns = [("user", f"Schema:\n{schema}\nQuestion: {question}"), ("assistant", answer)]
        if random.random() < 0.3:
            turns.insert(0, ("system", "Answer with one SQL query."))
        return render(turns)
    blocks = []
    for _ in range(random.randint(1, 4)):
        schema, question, answer = query(random)
        blocks.append(f"Schema:\n{schema}\nQuestion: {question}\nSQL: {answer}")
    return "\n\n".join(blocks)


def exercise_document(random: Random) -> str:
    """One request for a function, sometimes a second one after it."""
    turns = []
    if random.random() < 0.2:
        turns.append(("system", random.choice(SYSTEM_PROMPTS)))
    for _ in range(random.choice((1, 1, 2))):
        ask, answer = exercise(random)
        turns += [("user", ask), ("assistant", answer)]
    return render(turns)


def dialogue_document(random: Random) -> str:
    return render(conversation(random))


GENERATORS: dict[str, Callable[[Random], str]] = {
    "arithmetic": arithmetic_document,
    "sql": sql_document,
    "exercises": exercise_document,
    "dialogue": dialogue_document,
}


def generate(kind: str, seed: int) -> Iterator[str]:
    """Documents of one kind without end."""
    random = Random(f"{kind}:{seed}")
    make = GENERATORS[kind]
    while True:
        yield make(random)
