"""Held-out bits per byte of the shipped checkpoint beside a byte n-gram, and sample answers.

    python -m penstock.models.demo.evaluate --prompts DIR

Both models score the same documents. The demo model also pays for the end-of-text mark of every
document, which the n-gram does not. Writes evaluation.json and samples.md.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer

from .accuracy import QUESTIONS, right_answers
from .architecture import Decoder, Shape
from .chat import END_OF_TEXT, MARKERS
from .corpus import Source, load_sources
from .export import read_weights
from .ngram import NGram
from .samples import write_samples

HERE = Path(__file__).parent
WINDOW = 1024  # positions scored with one another; a longer document is cut
BYTES_PER_SOURCE = 120_000


@dataclass(frozen=True, slots=True)
class Score:
    """Bits per byte on one set of held-out documents."""

    name: str
    domain: str
    documents: int
    size_bytes: int
    model: float
    ngram: float  # trained on the training text of all sources
    ngram_own: float  # trained on the training text of this source alone


def load_model(checkpoint: Path) -> tuple[Decoder, Tokenizer]:
    """The exported weights, in float32 on the values that bfloat16 kept."""
    model = Decoder(Shape())
    model.load_state_dict(read_weights(checkpoint / "model.safetensors"))
    return model.eval(), Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def windows(ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets; every window after the first starts again from the begin mark alone."""
    begin, body = ids[0], ids[1:]
    for start in range(0, len(body), WINDOW):
        targets = body[start : start + WINDOW]
        yield [begin, *targets[:-1]], targets


@torch.no_grad()
def model_bits(model: Decoder, tokenizer: Tokenizer, documents: list[str]) -> float:
    """Total bits the model needs for the documents."""
    nats, end = 0.0, MARKERS.index(END_OF_TEXT)
    for encoding in tokenizer.encode_batch(documents):
        for inputs, targets in windows([*encoding.ids, end]):
            with torch.autocast("cpu", torch.bfloat16):
                logits_SV = model(torch.tensor([inputs]))[0]
            wanted_S = torch.tensor(targets)
            nats += functional.cross_entropy(logits_SV.float(), wanted_S, reduction="sum").item()
    return nats / math.log(2)


def limited(documents: list[str]) -> list[str]:
    """Leading documents of about BYTES_PER_SOURCE, at least one."""
    kept, size = [], 0
    for document in documents:
        if size >= BYTES_PER_SOURCE:
            break
        kept.append(document)
        size += len(document.encode())
    return kept


def score(source: Source, model: Decoder, tokenizer: Tokenizer, shared: NGram) -> Score:
    documents = limited(source.held_out)
    bits, size = shared.bits(documents)
    own_bits, _ = NGram(source.training).bits(documents)
    return Score(
        source.name,
        source.domain,
        len(documents),
        size,
        round(model_bits(model, tokenizer, documents) / size, 4),
        round(bits / size, 4),
        round(own_bits / size, 4),
    )


def domains(scores: list[Score]) -> dict[str, dict[str, float]]:
    """Mean over the bytes of each domain's sources."""
    result = {}
    for domain in dict.fromkeys(each.domain for each in scores):
        parts = [each for each in scores if each.domain == domain]
        size = sum(each.size_bytes for each in parts)
        result[domain] = {
            column: round(sum(getattr(each, column) * each.size_bytes for each in parts) / size, 4)
            for column in ("model", "ngram", "ngram_own")
        }
    return result


def print_table(scores: list[Score], by_domain: dict[str, dict[str, float]]) -> None:
    print("held-out bits per byte     bytes    model   n-gram   n-gram of the source")
    for each in scores:
        label = f"{each.domain}/{each.name}"
        figures = f"{each.model:8.3f} {each.ngram:8.3f} {each.ngram_own:8.3f}"
        print(f"{label:24} {each.size_bytes:8,} {figures}")
    for domain, row in by_domain.items():
        print(f"{domain:33} {row['model']:8.3f} {row['ngram']:8.3f} {row['ngram_own']:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="evaluate the demo model")
    parser.add_argument("--prompts", type=Path, help="folder with the public prompt files")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--target", type=Path, default=HERE, help="where the results are written")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.checkpoint)
    sources = load_sources(arguments.prompts)
    shared = NGram([document for source in sources for document in source.training])
    scores = [score(source, model, tokenizer, shared) for source in sources]
    by_domain = domains(scores)
    print_table(scores, by_domain)
    right = dict(right_answers(model, tokenizer))
    print(f"right answers out of {QUESTIONS}:", right)
    result = {
        "unit": "bits per byte",
        "domains": by_domain,
        "sources": [*map(asdict, scores)],
        "right_answers": {"questions_each": QUESTIONS, **right},
    }
    text = json.dumps(result, indent=2) + "\n"
    (arguments.target / "evaluation.json").write_text(text, encoding="utf-8")
    write_samples(model, tokenizer, sources, arguments.target / "samples.md")


if __name__ == "__main__":
    main()
