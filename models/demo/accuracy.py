"""How often a greedy answer to a held-out question of our own generators is exactly right.

Bits per byte hide whether digits are right: most of a worked sum is its fixed form.
"""

from collections.abc import Callable, Iterator
from random import Random

from tokenizers import Tokenizer

from . import arithmetic, sql
from .architecture import Decoder
from .arithmetic_stories import story
from .chat import ASSISTANT, render
from .corpus import HELD_OUT_SEED
from .samples import continue_greedily

QUESTIONS = 12  # of each kind
TOKENS = 180  # the longest worked answer is shorter


def sql_question(random: Random) -> tuple[str, str]:
    schema, question, answer = sql.query(random)
    return f"Schema:\n{schema}\nQuestion: {question}", answer


KINDS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "addition": arithmetic.addition,
    "subtraction": arithmetic.subtraction,
    "multiplication": arithmetic.multiplication,
    "division": arithmetic.division,
    "story": story,
    "sql": sql_question,
}


def result(answer: str) -> str:
    """What counts: the text after the last mark, or all of it where there is no mark."""
    return answer.split("#### ")[-1].strip()


def right_answers(model: Decoder, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """(kind, right answers out of QUESTIONS)."""
    for kind, make in KINDS.items():
        random, right = Random(f"{kind}:{HELD_OUT_SEED}"), 0
        for _ in range(QUESTIONS):
            question, expected = make(random)
            prompt = render([("user", question)]) + ASSISTANT
            given = continue_greedily(model, tokenizer, prompt, TOKENS)
            right += result(given) == result(expected)
        yield kind, right
