"""How far a model's fp32 logits are from transformers', on every way a position may be computed.

    prefill    the prompt in one step
    chunks     the prompt in steps of uneven lengths
    decode     the answer token by token, from pages
    cache hit  the prompt's first pages were filled by another sequence and are shared
    hand-over  the answer, from pages copied byte for byte into another memory, under other numbers

Every few steps compute a neighbour as well, so that rows of two sequences meet in every operation.

T tokens of prompt and answer, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.batch import BatchBuilder
from ...engine.paged_memory import PagedMemory, PageLayout
from ...engine.sequence import Sequence
from ...engine.step import Slice, Step
from ...kernels.choice import Kernels
from ...models.registry import Loaded, load_model
from ...protocol.messages import Peer, Prefill, Sampling

PARTS = ("prefill", "chunks", "decode", "cache hit", "hand-over")
SLOTS = 8
PAGES = 48
PROMPT = 41
ANSWER = 64
CHUNKS = (7, 16, 1, 17)  # the second and third begin at 7 and 23, beside a neighbour
SHARED = 3  # pages of the prompt that a cache holds
HANDED_OVER = 8  # tokens decoded after a hand-over
NEIGHBOUR = [5, 3, 8, 1, 9]
BESIDE = 3  # a step that begins at a position p has the neighbour in it where p % 4 is this


@dataclass(frozen=True, slots=True)
class Expected:
    """What transformers says: its greedy answer to the prompt, and the logits of all tokens."""

    prompt: list[int]
    answer: list[int]
    logits_TV: Tensor

    @property
    def token_ids(self) -> list[int]:
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class Parity:
    """Per part the largest difference, relative to the largest logit; and what must be equal."""

    differences: dict[str, float]
    greedy: int  # leading tokens of ANSWER that are transformers' own
    unequal: tuple[str, ...]  # parts whose bits differ from those of one step for all tokens


def expected(reference: Any) -> Expected:
    chance = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, reference.config.vocab_size, (PROMPT,), generator=chance).tolist()
    answer: list[int] = []
    with torch.inference_mode():
        step, cache = prompt, None
        for _ in range(ANSWER):
            out = reference(torch.tensor([step]), past_key_values=cache, use_cache=True)
            step, cache = [int(out.logits[0, -1].argmax())], out.past_key_values
            answer += step
        logits_TV = reference(torch.tensor([prompt + answer])).logits[0].float()
    return Expected(prompt, answer, logits_TV)


def measure(folder: Path, kernels: Kernels, wanted: Expected) -> Parity:
    """Load the folder in fp32 and compare."""
    loaded = load_model(folder, kernels, torch.float32)
    with torch.inference_mode(), closing(Pages(loaded)) as pages, closing(Pages(loaded)) as other:
        whole_TV = pages.logits(sequence_of(wanted.token_ids), [PROMPT + ANSWER])
        answer, decoded = pages.decode(wanted.prompt, ANSWER)
        found = {
            "prefill": (0, pages.logits(sequence_of(wanted.prompt), [PROMPT])),
            "chunks": (0, pages.logits(sequence_of(wanted.prompt), CHUNKS)),
            # The answer's last token is drawn and not computed.
            "decode": (PROMPT, decoded),
            "cache hit": (SHARED * SLOTS, _after_cache_hit(pages, wanted.prompt)),
            "hand-over": (PROMPT, _after_hand_over(pages, other, wanted)),
        }
    same = answer == wanted.answer
    largest = wanted.logits_TV.abs().max()
    differences, unequal = {}, []
    for part, (first, rows_RV) in found.items():
        span = slice(first, first + len(rows_RV))
        if part == "decode" and not same:
            rows_RV = whole_TV[span]  # rows after another token say nothing; `greedy` tells
        differences[part] = float((rows_RV - wanted.logits_TV[span]).abs().max() / largest)
        if not torch.equal(rows_RV, whole_TV[span]):
            unequal.append(part)
    return Parity(differences, _leading(answer, wanted.answer), tuple(unequal))


def _after_cache_hit(pages: "Pages", prompt: list[int]) -> Tensor:
    """Another sequence that begins with the same pages' tokens has filled them."""
    kept = SHARED * SLOTS
    vocabulary = pages.loaded.config.vocabulary
    first = sequence_of(prompt[:kept] + [(one + 1) % vocabulary for one in prompt[kept:]])
    pages.logits(first, [kept, PROMPT - kept])
    second = sequence_of(prompt)
    second.pages[:] = first.pages[:SHARED] + [page + 20 for page in second.pages[SHARED:]]
    return pages.logits(second, [PROMPT - kept], start=kept)


def _after_hand_over(pages: "Pages", other: "Pages", wanted: Expected) -> Tensor:
    source = sequence_of(wanted.token_ids)
    target = sequence_of(wanted.token_ids)
    target.pages[:] = [PAGES - 3 - page for page in target.pages]
    pages.logits(source, [PROMPT])
    for there, here in zip(target.pages, source.pages, strict=True):
        page = pages.memory.pages_PLCGSH[here].contiguous().view(torch.uint8)
        other.memory.pages_PLCGSH[there].view(torch.uint8).copy_(page)
    return other.logits(target, [1] * HANDED_OVER, start=PROMPT)


class Pages:
    """A model over pages of its own."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        layout = PageLayout.of(loaded.config.blueprint, SLOTS, torch.float32)
        self.memory = PagedMemory(layout, PAGES)
        self.memory.pages_PLCGSH.fill_(torch.nan)  # what nobody wrote must not be read
        self.builder = BatchBuilder(SLOTS)
        self.neighbour = sequence_of(NEIGHBOUR)
        self.neighbour.pages[:] = [PAGES - 1]

    def close(self) -> None:
        self.memory.close()

    def logits(self, sequence: Sequence, cuts: Any, start: int = 0) -> Tensor:
        """Of the tokens from `start` on, computed in steps of these lengths."""
        return torch.cat(list(self._steps(sequence, cuts, start)))

    def decode(self, prompt: list[int], count: int) -> tuple[list[int], Tensor]:
        """The greedy answer; and the logits of its tokens but the last."""
        sequence = sequence_of(prompt + [0] * count)
        row_V = self.logits(sequence, [len(prompt)])[-1]
        answer, rows = [], []
        for at in range(len(prompt), len(prompt) + count):
            answer.append(int(row_V.argmax()))
            if len(answer) < count:
                sequence.token_ids[at] = answer[-1]
                row_V = self.logits(sequence, [1], at)[0]
                rows.append(row_V)
        return answer, torch.stack(rows)

    def _steps(self, sequence: Sequence, cuts: Any, start: int) -> Iterator[Tensor]:
        model = self.loaded.model
        for count in cuts:
            beside = (Slice(self.neighbour, 0, len(NEIGHBOUR)),) if start % 4 == BESIDE else ()
            batch = self.builder.build(Step((*beside, Slice(sequence, start, count))))
            yield model.logits(model.forward(batch, self.memory.pages_PLCGSH))[-count:]
            start += count


def sequence_of(token_ids: list[int]) -> Sequence:
    """In pages that do not follow each other; reported whole, so that every row is wanted."""
    sampling = Sampling(seed=0, prompt_logprobs=0)
    peer = Peer("router", 1, "")
    length = len(token_ids)
    prefill = Prefill(1, 1, peer, "", "", list(token_ids), length + 1, [0], sampling)
    count = -(-length // SLOTS)
    return Sequence(prefill, [0], list(token_ids), pages=list(range(count))[::-1])


def _leading(ours: list[int], theirs: list[int]) -> int:
    """How many tokens agree before the first that does not."""
    pairs = zip(ours, theirs, strict=True)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(ours))
