"""Our logits beside transformers', for every family we serve.

    penstock bench parity [--markdown] [--kernels auto|native|torch] [--family NAME ...]

Each family's checkpoint is small, random, made and saved by transformers, and loaded from disk.
Numbers are the largest |difference| of fp32 logits over the largest |logit|, by how the positions
were computed (reference/measure.py); greedy: leading tokens of 64 that are transformers' own; bits:
whether every way gave the bits of one step over all tokens. Ends with 1 where a family fails.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ..kernels.choice import IMPLEMENTATIONS, choose
from .reference.families import FAMILIES, NoReference, write
from .reference.measure import ANSWER, PARTS, Parity, expected, measure

MOST = 1e-4  # what we promise of the difference


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="penstock bench parity")
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    parser.add_argument("--kernels", choices=IMPLEMENTATIONS, default="auto")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="all, if none is named")
    parsed = parser.parse_args(arguments)
    kernels = choose("cpu", parsed.kernels)
    print(f"fp32 on a CPU, {kernels.name} kernels\n")
    print(header(parsed.markdown), flush=True)
    failed = False
    for name in parsed.family or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                wanted = expected(write(name, Path(folder)))
            except NoReference as error:
                print(f"penstock bench parity: {error}", file=sys.stderr)
                return 2
            found = measure(Path(folder), kernels, wanted)
        failed |= not holds(found)
        print(line(name, cells(found), parsed.markdown), flush=True)
    return int(failed)


def holds(found: Parity) -> bool:
    near = all(difference <= MOST for difference in found.differences.values())
    return near and found.greedy == ANSWER and not found.unequal


def cells(found: Parity) -> list[str]:
    bits = f"other in {', '.join(found.unequal)}" if found.unequal else "equal"
    differences = [f"{found.differences[part]:.1e}" for part in PARTS]
    return [*differences, f"{found.greedy} of {ANSWER}", bits]


def header(markdown: bool) -> str:
    titles = [*PARTS, "greedy", "bits"]
    if not markdown:
        return line("family", titles, markdown)
    return line("family", titles, markdown) + "\n|---" + "|---:" * len(titles) + "|"


def line(name: str, values: list[str], markdown: bool) -> str:
    if markdown:
        return f"| {' | '.join([name, *values])} |"
    return f"{name:<36}" + "".join(f"{value:>12}" for value in values)
