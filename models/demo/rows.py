"""Token streams of the sources, and the rows cut from them.

A stream is the documents of one source, each between begin and end markers. Rows are taken from
each stream in order and without overlap, so the place reached in every stream is all that a
resumed run has to know; the choice of source depends on the seed and the step alone.
"""

import json
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .chat import END_OF_TEXT, build_tokenizer
from .corpus import Source

LETTERS_FOR_TOKENIZER = 8_000_000


def tokenizer_texts(sources: list[Source]) -> list[str]:
    """Documents of every source, in the proportion of its share."""
    texts = []
    for source in sources:
        room = source.share * LETTERS_FOR_TOKENIZER
        # A stride, so that a source in the order of its paths is sampled along its whole length.
        stride = max(1, int(sum(map(len, source.training)) / room))
        texts += source.training[::stride]
    return texts


def encode(tokenizer: Tokenizer, texts: list[str]) -> numpy.ndarray:
    """One stream of ids, every document as begin, text, end of text."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = []
    for encoding in tokenizer.encode_batch(texts):  # begins with BEGIN by its template
        pieces.append(numpy.array([*encoding.ids, end], dtype=numpy.uint16))
    return numpy.concatenate(pieces)


def shuffled(texts: list[str], seed: int) -> list[str]:
    order = numpy.random.default_rng(seed).permutation(len(texts))
    return [texts[index] for index in order]


def prepare(sources: list[Source], folder: Path, shipped: Path, vocabulary: int, seed: int) -> None:
    """Write tokenizer.json and the token streams to `folder`; a shipped tokenizer is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if shipped.exists():
        tokenizer = Tokenizer.from_file(str(shipped))
    else:
        tokenizer = build_tokenizer(tokenizer_texts(sources), vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    streams = {}
    for source in sources:
        streams[f"training/{source.name}"] = encode(tokenizer, shuffled(source.training, seed))
        streams[f"held_out/{source.name}"] = encode(tokenizer, source.held_out)
        print(f"{source.name}: {len(streams[f'training/{source.name}']):,} tokens", flush=True)
    numpy.savez(folder / "streams.npz", **streams)
    shares = {source.name: source.share for source in sources}
    (folder / "shares.json").write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")


class Rows:
    """Training rows, and where each stream stands."""

    def __init__(
        self, streams: dict[str, numpy.ndarray], shares: dict[str, float], seed: int
    ) -> None:
        self.streams = streams
        self.names = sorted(streams)
        total = sum(shares[name] for name in self.names)
        self.chances = [shares[name] / total for name in self.names]
        self.seed = seed
        self.taken = dict.fromkeys(self.names, 0)  # tokens taken from each stream so far

    @classmethod
    def load(cls, folder: Path, seed: int) -> "Rows":
        shares = json.loads((folder / "shares.json").read_text(encoding="utf-8"))
        with numpy.load(folder / "streams.npz") as stored:
            streams = {name: stored[f"training/{name}"] for name in shares}
        return cls(streams, shares, seed)

    def batch(self, step: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each [rows, length], of this step."""
        random = numpy.random.default_rng((self.seed, step))
        picked = random.choice(self.names, size=rows, p=self.chances)
        ids = numpy.stack([self._row(str(name), length) for name in picked])
        tokens = torch.from_numpy(ids.astype(numpy.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _row(self, name: str, length: int) -> numpy.ndarray:
        """The next length + 1 ids; the first is always the begin marker (id 0), as in serving."""
        stream = self.streams[name]
        start = self.taken[name] % len(stream)
        skip = 0 if stream[start] == 0 else 1
        row = numpy.zeros(length + 1, dtype=stream.dtype)
        row[skip:] = stream.take(numpy.arange(start, start + length + 1 - skip), mode="wrap")
        self.taken[name] += length
        return row


def held_out_rows(folder: Path, length: int, each: int) -> tuple[Tensor, Tensor]:
    """The first `each` rows of every held-out stream: what the loss curve is watched on."""
    with numpy.load(folder / "streams.npz") as stored:
        names = sorted(name for name in stored.files if name.startswith("held_out/"))
        rows = [stored[name][: each * length].reshape(-1, length) for name in names
                if len(stored[name]) >= each * length]  # fmt: skip
    tokens = torch.from_numpy(numpy.concatenate(rows).astype(numpy.int64))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
