"""What is compared: something that loads a checkpoint once and then answers batches of prompts."""

from dataclasses import dataclass
from typing import Protocol


class ContenderError(Exception):
    """A contender could not start, or ended; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Work:
    """A batch of random prompts, each answered greedily to its full length."""

    batch: int
    prompt: int  # tokens
    tokens: int  # of each answer
    vocabulary: int
    seed: int  # another seed, another prompt: nobody finds anything in a cache


class Contender(Protocol):
    """One process (or a tree of them), loaded and ready."""

    name: str

    @property
    def pid(self) -> int: ...

    def run(self, work: Work) -> float:
        """Seconds for the whole batch."""
        ...
