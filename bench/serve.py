"""A whole cluster under load, through HTTP: latency, throughput, and where the time went.

    penstock bench serve [--layouts 1p1d,aggregated] [--rounds 3] [--json FILE]
    penstock bench serve --url http://127.0.0.1:8000

Starts the clusters itself, all at once, and lets them take turns cell by cell, so that a busy
machine slows all of them; the load comes from a process of its own (bench/load.py). A cell is a
prompt length and a number of concurrent streams in a closed loop. Every figure is made per round;
the tables show medians over rounds. Cells with many prompt tokens are measured in the first round
only, and beyond --budget-tokens not at all: the table says so.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .accounting import alive
from .cluster import Cluster, ClusterError, Site, command, serving
from .report import Cell as Shown
from .report import Result, Table, load_of_machine, median, percentile, result_file, scaled

STAGES = ("queue", "prefill", "transfer", "admission_wait", "first_decode_step")
ROLES = ("router", "prefill", "decode", "aggregated")
ONCE_TOKENS = 50_000  # cells with more prompt tokens than this are measured in one round
LEAST_REQUESTS = {100: 8, 2000: 3}  # per cell and round, by the longest prompt it is meant for
MILLISECONDS = 1000.0


@dataclass(frozen=True, slots=True)
class Cell:
    prompt_tokens: int
    concurrency: int

    @property
    def requests(self) -> int:
        """Every stream asks at least once, short prompts more often: they are soon over."""
        repeats = 2 if self.prompt_tokens <= 100 else 1
        least = next((n for length, n in LEAST_REQUESTS.items() if self.prompt_tokens <= length), 1)
        return max(least, repeats * self.concurrency)

    @property
    def tokens(self) -> int:
        return self.requests * self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Target:
    """Something to measure: a cluster of ours, or one that runs elsewhere."""

    name: str
    site: Site
    cluster: Cluster | None

    def cpu_seconds(self) -> dict[str, float]:
        return self.cluster.cpu_seconds() if self.cluster else {}

    def load(self, cell: Cell, requests: int, seed: int, options: argparse.Namespace) -> dict:
        """One closed loop against it, in a process of its own."""
        words = ["bench", "load", "--url", self.site.url]
        words += ["--prompt-tokens", str(cell.prompt_tokens)]
        words += ["--concurrency", str(min(cell.concurrency, requests))]
        words += ["--requests", str(requests), "--output-tokens", str(options.output_tokens)]
        words += ["--seed", str(seed)] + ["--same-prompt"] * options.same_prompt
        ran = subprocess.run(command(*words), capture_output=True)
        if ran.returncode != 0:
            log = self.cluster.log() if self.cluster else ""
            raise ClusterError(f"{self.name}, {cell}: {ran.stderr.decode()}\n{log}")
        return json.loads(ran.stdout)


def layout_words(layout: str) -> list[str]:
    """`2p1d` or `aggregated` as flags of serve. Raises ValueError."""
    if layout == "aggregated":
        return ["--aggregated"]
    prefill, _, rest = layout.partition("p")
    decode, end = rest[:-1], rest[-1:]
    if not (prefill.isdigit() and decode.isdigit() and end == "d"):
        raise ValueError(f"{layout!r} is no layout; write 1p1d, 2p1d or aggregated")
    return ["--prefill", prefill, "--decode", decode]


@contextlib.contextmanager
def targets(options: argparse.Namespace) -> Iterator[list[Target]]:
    """All that is measured, running."""
    with contextlib.ExitStack() as stack:
        if options.url:
            site = stack.enter_context(contextlib.closing(Site(options.url)))
            yield [Target("running", site, None)]
            return
        found = []
        for layout in options.layouts:
            words = layout_words(layout)
            if options.kv_transport:
                words += ["--kv-transport", options.kv_transport]
            cluster = stack.enter_context(serving(*words, *options.serve.split()))
            found.append(Target(layout, cluster.site, cluster))
        yield found


# --- measuring ------------------------------------------------------------------------------------


def measure(target: Target, cell: Cell, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One cell of one round."""
    metrics, cpu = target.site.metrics(), target.cpu_seconds()
    outcome = target.load(cell, cell.requests, seed, options)
    later, cpu_later = target.site.metrics(), target.cpu_seconds()
    if target.cluster and not all(alive(pid) for _, pid in target.cluster.processes().values()):
        raise ClusterError(f"{target.name}: a process ended meanwhile\n{target.cluster.log()}")
    change = {name: value - metrics.get(name, 0.0) for name, value in later.items()}
    return {
        "layout": target.name,
        "prompt_tokens": cell.prompt_tokens,
        "concurrency": cell.concurrency,
        "load_of_machine": load_of_machine(),
        **summary(outcome),
        "stage_seconds": {stage: stage_mean(change, stage) for stage in STAGES},
        "paths": {
            path: int(change[series])
            for path in ("local", "remote", "aggregated", "prefill_only")
            if change.get(series := f'penstock_routing_decisions_total{{path="{path}"}}')
        },
        "cpu_seconds": {role: cpu_later[role] - cpu[role] for role in cpu},
    }


def summary(outcome: dict[str, Any]) -> dict[str, Any]:
    """What one closed loop says, without its single gaps."""
    records = outcome["records"]
    gaps = [gap for record in records for gap in record["gaps"]]
    firsts = [record["first"] for record in records]
    seconds = [record["gaps"][0] for record in records if record["gaps"]]
    wall = outcome["wall_seconds"]
    tokens = sum(record["tokens"] for record in records)
    return {
        "requests": len(records),
        "wall_seconds": wall,
        "load_cpu_seconds": outcome["cpu_seconds"],
        "first_seconds": firsts,
        "ttft_p50": percentile(firsts, 0.5),
        "ttft_p99": percentile(firsts, 0.99),
        "second_token": percentile(seconds, 0.5),
        "itl_p50": percentile(gaps, 0.5),
        "itl_p99": percentile(gaps, 0.99),
        "itl_mean": sum(gaps) / len(gaps) if gaps else None,
        "output_tokens_per_second": tokens / wall,
        "prompt_tokens_per_second": sum(one["prompt_tokens"] for one in records) / wall,
        "cached_tokens": sum(one["cached_tokens"] for one in records),
        "tokens_without_text": tokens - sum(one["events"] for one in records),
    }


def stage_mean(change: dict[str, float], stage: str) -> float | None:
    """Mean seconds of the requests that went through this stage; None where none did."""
    count = change.get(f'penstock_stage_seconds_count{{stage="{stage}"}}', 0.0)
    total = change.get(f'penstock_stage_seconds_sum{{stage="{stage}"}}', 0.0)
    return total / count if count else None


def run(options: argparse.Namespace, result: Result) -> list[Cell]:
    """All rounds; returns the cells left out."""
    cells = [Cell(length, streams) for length in options.lengths for streams in options.streams]
    wanted = [cell for cell in cells if cell.tokens <= options.budget_tokens]
    with targets(options) as found:
        for target in found:
            for length in sorted({cell.prompt_tokens for cell in wanted}):
                warm = min(length, 2000)  # what is opened at a first hand-over is opened then
                target.load(Cell(warm, 1), 1, -length, options)
        for number in range(options.rounds):
            for cell in wanted:
                if number > 0 and cell.tokens > ONCE_TOKENS:
                    continue
                # The next round begins with another one, so that none always comes first.
                for target in found[number % len(found) :] + found[: number % len(found)]:
                    seed = 1 + number * 1000 + cell.concurrency
                    one = {"round": number, **measure(target, cell, seed, options)}
                    result.rounds.append(one)
                    print(progress(one), file=sys.stderr)
    return [cell for cell in cells if cell not in wanted]


def progress(one: dict[str, Any]) -> str:
    return (
        f"round {one['round']} {one['layout']:>10} {one['prompt_tokens']:>6} tokens "
        f"{one['concurrency']:>3} streams: TTFT {one['ttft_p50']:.3f} s, "
        f"all {one['wall_seconds']:.1f} s"
    )


# --- the tables -----------------------------------------------------------------------------------


def rows_of(rounds: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rounds of each row, in the order in which rows were first measured."""
    rows: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for one in rounds:
        key = (one["prompt_tokens"], one["concurrency"], one["layout"])
        rows.setdefault(key, []).append(one)
    return [rows[key] for key in sorted(rows, key=lambda key: key[:2])]


def of_rounds(row: list[dict[str, Any]], *keys: str) -> float | None:
    """Median over rounds of one figure, which may lie a level deeper."""
    values: list[Any] = row
    for key in keys:
        values = [value.get(key) if value else None for value in values]
    return median(values)


def heading(row: list[dict[str, Any]]) -> list[Shown]:
    paths = sorted({path for one in row for path in one["paths"]})
    first = row[0]
    return [first["prompt_tokens"], first["concurrency"], first["layout"], "+".join(paths)]


HEADING = ["prompt", "streams", "layout", "path"]


def latency_table(rounds: list[dict[str, Any]], left_out: list[Cell]) -> Table:
    milliseconds = ("ttft_p50", "ttft_p99", "second_token", "itl_p50", "itl_p99", "itl_mean")
    rates = ("output_tokens_per_second", "prompt_tokens_per_second")
    rows: list[list[Shown]] = [
        heading(row)
        + [len(row), row[0]["requests"]]
        + [scaled(of_rounds(row, name), MILLISECONDS) for name in milliseconds]
        + [of_rounds(row, name) for name in rates]
        for row in rows_of(rounds)
    ]
    columns = [*HEADING, "rounds", "requests", "TTFT p50 ms", "p99", "2nd token ms"]
    columns += ["ITL p50 ms", "p99", "TPOT ms", "output tokens/s", "prompt tokens/s"]
    notes = [
        "ITL: time between two tokens of one stream, the first token excluded; TPOT is its mean.",
        "2nd token: median from the first token to the second; of a hand-over, what was "
        "not hidden.",
        "An ITL of 0: tokens read together, because some process had to wait for a core.",
        "Medians over rounds; requests per round. Of few requests p99 is the slowest one.",
    ]
    silent = sum(one["tokens_without_text"] for one in rounds)
    if silent:
        notes.append(f"{silent} tokens ended within a character and came with the next one.")
    if left_out:
        cells = ", ".join(f"{cell.prompt_tokens} x {cell.concurrency}" for cell in left_out)
        notes.append(f"Left out, more prompt tokens than --budget-tokens: {cells}.")
    return Table("Latency and throughput", columns, rows, notes)


def stage_table(rounds: list[dict[str, Any]]) -> Table:
    roles = [role for role in ROLES if any(role in one["cpu_seconds"] for one in rounds)]
    rows: list[list[Shown]] = [
        heading(row)
        + [scaled(of_rounds(row, "stage_seconds", stage), MILLISECONDS) for stage in STAGES]
        + [of_rounds(row, "wall_seconds")]
        + [of_rounds(row, "cpu_seconds", role) for role in roles]
        for row in rows_of(rounds)
    ]
    columns = [*HEADING, *(f"{stage.replace('_', ' ')} ms" for stage in STAGES), "wall s"]
    columns += [f"CPU s {role}" for role in roles]
    notes = [
        "Stages: mean per request, from the router's penstock_stage_seconds. Transfer is what the",
        "hand-over cost after the last publication; earlier blocks cross while prefill computes.",
        "CPU seconds of all processes of a role during the wall time beside them.",
    ]
    return Table("Where the time went", columns, rows, notes)


def numbers(text: str) -> list[int]:
    return [int(one.replace("_", "")) for one in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock bench serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layouts", default="1p1d,aggregated", help="such as 2p1d,aggregated")
    parser.add_argument("--kv-transport", default="", help="auto, nixl, tcp, zmq or shm")
    parser.add_argument("--serve", default="", metavar="FLAGS", help="further flags of serve")
    parser.add_argument("--url", default="", help="measure what runs there instead")
    parser.add_argument("--lengths", type=numbers, default=[100, 2000, 16000], metavar="N,N")
    parser.add_argument("--streams", type=numbers, default=[1, 8, 32], metavar="N,N")
    parser.add_argument("--output-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--budget-tokens", type=int, default=130_000, metavar="N", help="per cell")
    parser.add_argument("--same-prompt", action="store_true", help="let the prefix cache answer")
    parser.add_argument("--json", type=result_file, metavar="FILE")
    return parser


def main(arguments: list[str]) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.layouts = options.layouts.split(",")
    asked = {name: value for name, value in vars(options).items() if name != "json"}
    result = Result("serve", asked)
    try:
        for layout in options.layouts:
            layout_words(layout)
        left_out = run(options, result)
    except ValueError as error:
        parser.error(str(error))
    except (ClusterError, OSError) as error:
        print(f"penstock bench serve: {error}", file=sys.stderr)
        return 1
    tables = [latency_table(result.rounds, left_out), stage_table(result.rounds)]
    result.finish(tables, options.json)
    return 0
