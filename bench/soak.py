"""A cluster under mixed traffic while its processes are killed, stopped and drained at random.

    penstock bench soak [--minutes 20] [--seed 1] [--kv-transport nixl] [--json FILE]

Starts a real cluster with so few pages that pools fill, asks it for completions and chats of every
kind, streamed and whole, and compares each answer (token ids, text, finish reason,
log-probabilities) with what one aggregated worker of the same numeric class said before. Meanwhile
workers and the router are ended with SIGKILL or SIGTERM, or stopped for 0.2 to 8 seconds; clients
leave at random.

A violation is: a wrong token, a request without an end, a stream that ends without [DONE] or an
error, a refusal while somebody could have answered, and afterwards: a page, a lease or a request
that is still held, a process that ended by itself. With one the exit status is 1, and request,
expected and real answer and the events before it are printed and kept.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from .cluster import Cluster, ClusterError, serving, split_address
from .report import Result, result_file
from .traffic.answers import Answer, of_whole
from .traffic.client import exchange, post
from .traffic.requests import Case, cases
from .traffic.run import Outcome, Plan, Soak, Violation
from .traffic.tables import tables

SECONDS = 60.0
ASKING = 6  # at a time, for the expected answers
REFERENCE_LIMIT = 300.0
SHOWN_CHARACTERS = 1500


async def answers(cluster: Cluster, wanted: list[Case]) -> dict[int, Answer]:
    """The right answers by number, from a cluster in which nothing breaks. Raises ClusterError."""
    address = split_address(cluster.url)
    waiting, found = list(wanted), {}

    async def line() -> None:
        while waiting:
            case = waiting.pop()
            reply = await exchange(address, post(case.path, case.body), REFERENCE_LIMIT)
            if reply.how != "complete" or reply.status != 200:
                told = reply.body[:300].decode(errors="replace")
                raise ClusterError(f"{case.name} has no answer: {reply.how} {reply.status} {told}")
            found[case.number] = of_whole(reply.body)

    await asyncio.gather(*(line() for _ in range(ASKING)))
    return found


def numeric_class(cluster: Cluster) -> str:
    """What all its workers compute in. Raises ClusterError where they differ."""
    workers = msgspec.json.decode(cluster.site.get("/health")[1])["workers"]
    classes = sorted({one["numeric_class"] for one in workers})
    if len(classes) != 1:
        raise ClusterError(f"the workers are not of one numeric class: {classes}")
    return classes[0]


@dataclass(frozen=True, slots=True)
class Reference:
    """What is asked, and what one process said to it."""

    cases: list[Case]
    expected: dict[int, Answer]
    numeric_class: str


def reference(wanted: list[Case], pages: int) -> Reference:
    """Of one aggregated worker. Raises ClusterError."""
    with serving("--aggregated", "--pages", str(pages)) as cluster:
        return Reference(wanted, asyncio.run(answers(cluster, wanted)), numeric_class(cluster))


def soak(words: list[str], known: Reference, plan: Plan, log: Path | None = None) -> Outcome:
    """One soak of `penstock serve WORDS`. Raises ClusterError where it does not even start."""
    found: list[Outcome] = []
    try:
        with serving(*words) as cluster:
            if (own := numeric_class(cluster)) != known.numeric_class:
                raise ClusterError(f"it computes in {own}, the reference in {known.numeric_class}")
            try:
                found.append(asyncio.run(Soak(plan, cluster, known.cases, known.expected).run()))
            finally:
                if log is not None:
                    log.write_text(cluster.whole_log())
    except ClusterError as error:
        if not found:
            raise
        found[0].violations.append(Violation(f"END: {error}", found[0].seconds))
    return found[0]


def serve_words(options: argparse.Namespace) -> list[str]:
    """The flags of serve."""
    words = ["--prefill", str(options.prefill), "--decode", str(options.decode)]
    words += ["--pages", str(options.pages), "--kv-transport", options.kv_transport]
    words += ["--local-prefill-tokens", str(options.local_prefill_tokens)]
    return words + options.serve.split()


def told(violation: Violation) -> str:
    """A violation for people; all of it is in the JSON."""
    lines = [f"VIOLATION at {violation.at:.1f} s: {violation.what}"]
    for name in ("body", "expected", "got"):
        if (value := getattr(violation, name)) is not None:
            lines.append(f"  {name}: {str(value)[:SHOWN_CHARACTERS]}")
    lines += [f"  {at:9.3f} {text}" for at, text in violation.events[-25:]]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock bench soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=20.0, help="of traffic with faults (20)")
    add("--seed", type=int, default=1, help="decides requests and faults")
    add("--prefill", type=int, default=2, metavar="N")
    add("--decode", type=int, default=2, metavar="N")
    add("--kv-transport", default="nixl", help="as serve's")
    add("--pages", type=int, default=64, metavar="N", help="per worker; few, so that pools fill")
    add("--local-prefill-tokens", type=int, default=64, metavar="N")
    add("--serve", default="", metavar="FLAGS", help="further flags of serve")
    add("--cases", type=int, default=70, metavar="N", help="different requests")
    add("--reference-pages", type=int, default=2000, metavar="N", help="of the reference worker")
    add("--concurrency", type=int, default=16, metavar="N", help="clients")
    add("--fault-seconds", type=float, default=5.0, help="mean between faults; 0 = none")
    add("--spare", default="", metavar="NAMES", help="never ended, e.g. router,decode-0")
    add("--limit-seconds", type=float, default=300.0, help="a request that takes longer hangs")
    add("--log", type=result_file, metavar="FILE", help="where the cluster's log is kept")
    add("--json", type=result_file, metavar="FILE")
    return parser


def main(arguments: list[str]) -> int:
    options = build_parser().parse_args(arguments)
    kept = options.log is not None
    if not kept:
        file = tempfile.NamedTemporaryFile(prefix="penstock-soak-", suffix=".log", delete=False)
        file.close()
        options.log = Path(file.name)
    asked = {name: one for name, one in vars(options).items() if name not in ("json", "log")}
    result = Result("soak", asked)
    plan = Plan(
        options.seed,
        options.minutes * SECONDS,
        options.concurrency,
        options.fault_seconds,
        options.limit_seconds,
        frozenset(options.spare.split(",")),
    )
    try:
        known = reference(cases(options.seed, options.cases), options.reference_pages)
        outcome = soak(serve_words(options), known, plan, options.log)
    except (ClusterError, OSError) as error:
        print(f"penstock bench soak: {error}", file=sys.stderr)
        return 1
    result.rounds.append(asdict(outcome))
    result.finish(tables(outcome), options.json)
    for violation in outcome.violations:
        print(told(violation), file=sys.stderr)
    if outcome.violations:
        print(f"{len(outcome.violations)} violations; log: {options.log}", file=sys.stderr)
        return 1
    if not kept:
        options.log.unlink()
    return 0
