"""Hand-overs of whole prompts: what of them is seen after the last chunk, and what they take.

A clock stands for the engine: chunk after chunk is published when it is due. The pages are those of
known models' KV caches, every layer of a token side by side, and hold real bytes.
"""

import statistics
from dataclasses import dataclass

from ..report import Cell, Table
from .noise import Others
from .pair import METHODS, HandOver, Pair, Shape
from .speed import Record

GIB = 1 << 30
SLOWER = 1.25  # computing takes so much longer than moving, in measured hand-overs by chunks
SLACK_SECONDS = 100e-6  # G9: beyond one chunk's share of the transfer
CHUNK_TOKENS = 2048
OVERLAP = Shape(page_bytes=1 << 20, page_count=160, pages=128)
OVERLAP_CHUNKS = (4, 16)
NATURAL = -1  # the seed of a pool that was never used


@dataclass(frozen=True, slots=True)
class Model:
    """A KV shape; `token_bytes` over all layers in bf16."""

    name: str
    token_bytes: int
    page_tokens: int

    def shape(self, tokens: int) -> Shape:
        pages = -(-tokens // self.page_tokens)
        return Shape(self.token_bytes * self.page_tokens, pages, pages, slots=self.page_tokens)


MODELS = [
    Model("DeepSeek-V3 (61 x 576)", 61 * 576 * 2, 64),
    Model("Llama-70B (80 x 2 x 8 x 128)", 80 * 2 * 8 * 128 * 2, 32),
]
PROMPTS = (8192, 32768, 131072)


def measure_overlap(methods: list[str], rounds: int) -> list[Record]:
    """G9: time after the last of so many chunks, beside the time of all of them at once."""
    records = []
    for method in methods:
        others = Others()
        pair = Pair(METHODS[method], OVERLAP)
        try:
            pair.meet().warm()
            records += [_overlap(pair, chunks, rounds) for chunks in OVERLAP_CHUNKS]
        finally:
            pair.close()
        for record in records[-len(OVERLAP_CHUNKS) :]:
            record["others_cores"] = others.cores()
    return records


def _overlap(pair: Pair, chunks: int, rounds: int) -> Record:
    whole, exposed = [], []
    for turn in range(rounds):
        at_once = pair.hand_over(2 * turn)
        whole.append(at_once.complete)
        period = SLOWER * statistics.median(whole) / chunks
        exposed.append(pair.hand_over(2 * turn, chunks, period).exposed)
    return {
        "part": "overlap",
        "method": pair.method.name,
        "bytes": pair.shape.bytes,
        "chunks": chunks,
        "seconds": whole,
        "exposed": exposed,
    }


def measure_prompts(methods: list[str], rounds: int, memory: int, longest: int) -> list[Record]:
    """Each prompt on each plane, where both pools fit into `memory` bytes."""
    records = []
    for model in MODELS:
        for tokens in PROMPTS:
            shape = model.shape(tokens)
            needed = 2 * shape.bytes
            facts: Record = {"part": "prompts", "model": model.name, "tokens": tokens}
            facts |= {"pages": shape.pages, "bytes": shape.bytes, "needed": needed}
            if needed > memory or tokens > longest:
                records.append({**facts, "method": "not run"})
                continue
            records += [{**facts, **_prompt(name, shape, tokens, rounds)} for name in methods]
    return records


def _prompt(method: str, shape: Shape, tokens: int, rounds: int) -> Record:
    others = Others()
    pair = Pair(METHODS[method], shape)
    try:
        pair.meet().hand_over(NATURAL)  # connections, and the peer's memory mapped
        at_once = [pair.hand_over(NATURAL) for _ in range(rounds)]
        seconds = statistics.median(one.seconds for one in at_once)
        chunks = max(2, tokens // CHUNK_TOKENS)
        period = SLOWER * seconds / chunks
        by_chunks = [pair.hand_over(NATURAL, chunks, period) for _ in range(rounds)]
    finally:
        pair.close()
    return {
        "method": method,
        "seconds": [one.seconds for one in at_once],
        "cpu": [one.cpu for one in at_once],
        "descriptors": at_once[0].descriptors,
        "chunks": chunks,
        "exposed": [one.exposed for one in by_chunks],
        "holder_gap": _longest(at_once + by_chunks, "holder_gap"),
        "reader_gap": _longest(at_once + by_chunks, "reader_gap"),
        "others_cores": others.cores(),
    }


def _longest(ones: list[HandOver], name: str) -> float:
    return max(getattr(one, name) for one in ones)


# --- tables ---------------------------------------------------------------------------------------


def overlap_limit(record: Record) -> float:
    """Seconds G9 allows after the last chunk."""
    return statistics.median(record["seconds"]) / record["chunks"] + SLACK_SECONDS


def overlap_tables(records: list[Record]) -> list[Table]:
    rows: list[list[Cell]] = [
        [
            one["method"],
            one["chunks"],
            statistics.median(one["seconds"]) * 1e3,
            statistics.median(one["exposed"]) * 1e3,
            min(one["exposed"]) * 1e3,
            overlap_limit(one) * 1e3,
        ]
        for one in records
        if one["part"] == "overlap"
    ]
    columns = ["plane", "chunks", "at once ms", "exposed ms", "best ms", "goal ms"]
    notes = [
        f"{OVERLAP.bytes >> 20} MB in pages of 1 MB. Exposed: last publication to all read. Goal:",
        "one chunk's share of the time at once + 0.1 ms.",
    ]
    return [Table("Exposed time after the last chunk", columns, rows, notes)] if rows else []


def prompt_tables(records: list[Record]) -> list[Table]:
    rows: list[list[Cell]] = []
    for one in (record for record in records if record["part"] == "prompts"):
        size: list[Cell] = [one["model"], one["tokens"], one["bytes"] / GIB, one["pages"]]
        if one["method"] == "not run":
            word = f"not run: needs {one['needed'] / GIB:.1f} GiB"
            rows.append([*size, word, None, None, None, None, None, None])
            continue
        seconds = statistics.median(one["seconds"])
        rows.append(
            [
                *size,
                one["method"],
                one["descriptors"],
                seconds,
                one["bytes"] / seconds / 1e9,
                statistics.median(one["exposed"]) * 1e3,
                one["holder_gap"] * 1e3,
                one["reader_gap"] * 1e3,
            ]
        )
    columns = ["KV shape", "tokens", "GiB", "pages", "plane", "runs", "s", "GB/s", "exposed ms"]
    notes = [
        "Whole protocol, pages granted in order (runs: contiguous on both sides). Exposed: after",
        f"the last chunk of {CHUNK_TOKENS} tokens, computing taking {SLOWER} x the transfer.",
        "Gaps: the longest turn of either loop in all of these hand-overs.",
    ]
    columns += ["holder gap ms", "reader gap ms"]
    return [Table("Prompts of known KV shapes", columns, rows, notes)] if rows else []
