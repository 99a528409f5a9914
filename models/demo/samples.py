"""Greedy continuations that a reader can judge: chats typed by hand, and held-out beginnings."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from .architecture import Decoder
from .chat import ASSISTANT, END, END_OF_TEXT, render
from .corpus import Source

# Each chat is a list of user turns; the model answers every one of them in turn.
CHATS = {
    "dialogue": (
        ("Hello!", "What is the capital of Norway?", "And what language do they speak there?"),
        ("My name is Tara.", "How are you today?", "What is my name?"),
        ("How do I boil an egg?", "What was step 3?"),
    ),
    "arithmetic": (
        ("What is 4785 + 968?",),
        ("What is 368 * 7?",),
        ("Grace buys 6 mugs at $7 each and 3 hats at $12 each. How much does Grace pay in total?",),
    ),
    "sql": (
        ("Schema:\nhotel(hotel_id, name, city, price, stars)\n"
         "Question: How many hotels have city Oslo?",),
        ("Schema:\ndog(dog_id, name, breed, age)\nvisit(visit_id, dog_id, cost, year)\n"
         "Question: Which dog has the most visits? Give the name.",),
        ("Database: concert_singer\nQuestion: How many singers are older than 30?",),
    ),
    "code": (
        ("Write a Python function that checks whether a number is prime.",),
        ("Give me a Python function that counts the words in a string. Call it count_words.",),
        ("Write the Python function `read_pairs`: Read pairs of names and values from a file.",),
    ),
}  # fmt: skip
OPENING_LETTERS = 400  # of a held-out document, which the model continues


@torch.no_grad()
def continue_greedily(model: Decoder, tokenizer: Tokenizer, text: str, limit: int) -> str:
    """The likeliest next tokens until an end mark; recomputes the prefix, so only for samples."""
    ids = tokenizer.encode(text).ids
    ends = {tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)}
    begun = len(ids)
    while len(ids) - begun < limit:
        following = int(model(torch.tensor([ids]))[0, -1].argmax())
        if following in ends:
            break
        ids.append(following)
    return tokenizer.decode(ids[begun:])


def answer_chat(model: Decoder, tokenizer: Tokenizer, questions: tuple[str, ...]) -> str:
    """The whole chat as Markdown."""
    turns: list[tuple[str, str]] = []
    for question in questions:
        turns.append(("user", question))
        answer = continue_greedily(model, tokenizer, render(turns) + ASSISTANT, 160)
        turns.append(("assistant", answer))
    return "\n\n".join(f"**{role}**\n\n~~~text\n{text}\n~~~" for role, text in turns)


def continue_document(model: Decoder, tokenizer: Tokenizer, document: str) -> str:
    """A held-out beginning and what the model makes of it, as Markdown."""
    opening = document[: min(OPENING_LETTERS, len(document) // 2)]
    more = continue_greedily(model, tokenizer, opening, 120)
    return f"**beginning**\n\n~~~text\n{opening}\n~~~\n\n**continued**\n\n~~~text\n{more}\n~~~"


def write_samples(
    model: Decoder, tokenizer: Tokenizer, sources: list[Source], target: Path
) -> None:
    parts = ["# Samples", "Greedy, from the exported weights. Written by `evaluate.py`."]
    for domain, chats in CHATS.items():
        parts.append(f"## {domain}")
        parts += [answer_chat(model, tokenizer, questions) for questions in chats]
    parts.append("## held-out beginnings")
    for source in sources:
        if source.name in ("library", "plays", "grade_school"):
            parts.append(f"### {source.name}")
            parts.append(continue_document(model, tokenizer, max(source.held_out[:8], key=len)))
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
