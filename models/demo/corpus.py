"""The texts the demo model learns from, and those it never sees.

Four domains: code, arithmetic, sql, dialogue. Each is made of sources: own generators, the
standard library of the running interpreter and, when a folder of prompt files is given, three of
its files. Splits follow the content (a path, a query), never the order, so they stay the same
when a file grows.
"""

import ast
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from .chat import exchange
from .generators import generate

TRAINING_SEED = 1
HELD_OUT_SEED = 2
HELD_OUT_DOCUMENTS = 400  # of each generator
SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "turtledemo", "ensurepip",
    "pydoc_data", "__pycache__", "distutils", "unittest_data", "config",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Documents of one origin: those to train on and those held out."""

    name: str
    domain: str
    share: float  # of the training tokens, before shares are scaled to sum to one
    training: list[str] = field(repr=False)
    held_out: list[str] = field(repr=False)


def bucket(key: str, buckets: int) -> int:
    """A number below `buckets` that depends on the key alone, equal on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % buckets


# ---- code


def library_files(root: Path) -> Iterator[tuple[str, str]]:
    """(relative path, text) of the library's sources, in order of their paths."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]):
            yield relative.as_posix(), path.read_text(encoding="utf-8", errors="ignore")


def library_source(root: Path) -> Source:
    """Whole files; one in twenty is held out by its path."""
    training, held_out = [], []
    for name, text in library_files(root):
        (training if bucket(name, 20) else held_out).append(text)
    return Source("library", "code", 0.28, training, held_out)


def documented_functions(text: str) -> Iterator[tuple[str, str]]:
    """(request, answer) for each short function with a docstring."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or node.col_offset or node.decorator_list:
            continue
        summary = (ast.get_docstring(node) or "").split("\n")[0].strip().rstrip(".")
        own_lines = lines[node.lineno - 1 : node.end_lineno]
        if len(summary) > 12 and len(own_lines) <= 25:
            request = f"Write the Python function `{node.name}`: {summary}."
            yield request, "```python\n" + "\n".join(own_lines) + "\n```"


def functions_source(library: Source) -> Source:
    """Functions of the library's files as chats, on the same side of the split as their file."""
    sides = []
    for texts in (library.training, library.held_out):
        sides.append([exchange(*pair) for text in texts for pair in documented_functions(text)])
    return Source("functions", "code", 0.03, *sides)


# ---- prompt files


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def grade_school_document(row: dict, index: int) -> str:
    """Question and worked answer without the calculator marks; half of them as a chat."""
    answer = re.sub(r"<<[^>]*>>", "", row["answer"])
    if index % 2:
        return f"Question: {row['question']}\nAnswer: {answer}"
    return exchange(row["question"], answer)


def grade_school_source(prompts: Path) -> Source:
    sides = []
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        rows = read_lines(prompts / name)
        sides.append([grade_school_document(row, index) for index, row in enumerate(rows)])
    return Source("grade_school", "arithmetic", 0.13, *sides)


def query_key(row: dict) -> str:
    """What makes two rows ask for the same: the query without case, spacing and final mark."""
    return " ".join(row["query"].lower().rstrip("; ").split())


def split_by_query(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Two halves; all questions of one query stand in the same half."""
    halves: tuple[list[dict], list[dict]] = ([], [])
    for row in rows:
        halves[bucket(query_key(row), 2)].append(row)
    return halves


def spider_document(row: dict) -> str:
    question = f"Database: {row['db_id']}\nQuestion: {row['question']}"
    if bucket(row["question"], 2):
        return f"{question}\nSQL: {row['query']}"
    return exchange(question, row["query"])


def spider_source(prompts: Path) -> Source:
    rows = json.loads((prompts / "spider_dev.json").read_text(encoding="utf-8"))
    training, held_out = split_by_query(rows)
    return Source(
        "spider", "sql", 0.03, [*map(spider_document, training)], [*map(spider_document, held_out)]
    )


def plays_source(prompts: Path) -> Source:
    """Speeches, joined to pieces of about 4,000 characters; the last tenth is held out."""
    pieces, piece = [], ""
    for speech in (prompts / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n"):
        piece += speech + "\n\n"
        if len(piece) > 4000:
            pieces.append(piece)
            piece = ""
    cut = len(pieces) * 9 // 10
    return Source("plays", "dialogue", 0.11, pieces[:cut], pieces[cut:])


# ---- all of it


def generated_source(kind: str, domain: str, share: float, count: int) -> Source:
    """Documents of a generator; held-out ones that also occur in training are dropped."""
    training = list(islice(generate(kind, TRAINING_SEED), count))
    held_out = islice(generate(kind, HELD_OUT_SEED), HELD_OUT_DOCUMENTS)
    seen = set(training)
    return Source(kind, domain, share, training, [text for text in held_out if text not in seen])


def load_sources(prompts: Path | None, scale: float = 1.0) -> list[Source]:
    """All sources; without a prompts folder the generators and the library alone.

    `scale` shortens the generated part, for tests.
    """
    library = library_source(Path(sysconfig.get_path("stdlib")))
    sources = [
        library,
        functions_source(library),
        generated_source("exercises", "code", 0.03, int(8000 * scale)),
        generated_source("arithmetic", "arithmetic", 0.17, int(30000 * scale)),
        generated_source("sql", "sql", 0.10, int(30000 * scale)),
        generated_source("dialogue", "dialogue", 0.12, int(30000 * scale)),
    ]
    if prompts is None:
        print("no prompt files given: training on own generators and the standard library only")
        return sources
    return sources + [grade_school_source(prompts), spider_source(prompts), plays_source(prompts)]
