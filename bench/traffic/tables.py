"""A soak's outcome as tables."""

from collections import Counter

from ..report import Cell, Table, median, percentile, spread
from .judge import VIOLATIONS
from .run import Outcome

OUTCOMES = ("right", "refused", "broken off", "cut", "left", *VIOLATIONS)
STAGE = "penstock_stage_seconds"
PARTS = ("sum", "count")
COUNTED = {
    "penstock_worker_counter_preemptions_total": "preemptions (pages ran out)",
    "penstock_worker_counter_evictions_total": "cached pages evicted",
    "penstock_placed_again_total": "choices placed again",
    "penstock_flow_pulled_pages_total": "pages pulled",
    "penstock_flow_skipped_pages_total": "pages not pulled, held already",
    "penstock_flow_stale_total": "late words of old attempts",
    "penstock_repeated_tokens_total": "tokens said twice",
    "penstock_alarms_total": "alarms: tokens that differed",
    "penstock_worker_counter_failures_total": "attempts that failed on a worker",
}


def tables(outcome: Outcome) -> list[Table]:
    return [requests(outcome), faults(outcome), processes(outcome), counters(outcome)]


def requests(outcome: Outcome) -> Table:
    """By kind and by how they ended."""
    kinds = sorted({one.kind for one in outcome.exchanges})
    rows: list[list[Cell]] = []
    for kind in [*kinds, ""]:
        there = [one for one in outcome.exchanges if not kind or one.kind == kind]
        counts = Counter(one.outcome for one in there)
        times = [one.seconds for one in there if one.outcome == "right"]
        broken = [one.seconds for one in there if one.outcome == "right" and one.during_fault]
        row: list[Cell] = [kind or "all", *(counts[name] for name in OUTCOMES)]
        row += [percentile(times, 0.5), percentile(times, 0.99)]
        row += [max(times, default=None), len(broken), max(broken, default=None)]
        rows.append(row)
    reasons = Counter(one.note for one in outcome.exchanges if one.note)
    notes = [f"{count} x {reason}" for reason, count in reasons.most_common(6)]
    notes += ["Seconds are of right answers; `over a fault`: one happened while they were made."]
    columns = ["request", *OUTCOMES, "p50 s", "p99 s", "longest s", "over a fault", "longest s"]
    return Table("Requests by kind and outcome", columns, rows, notes)


def faults(outcome: Outcome) -> Table:
    """What was broken, and how long it took to be whole again."""
    rows: list[list[Cell]] = []
    groups = sorted({(one.kind, one.role) for one in outcome.faults})
    for kind, role in groups:
        there = [one for one in outcome.faults if (one.kind, one.role) == (kind, role)]
        missed = [one.missed - one.at for one in there if one.missed >= 0]
        # Of a stopped process: since it was let go on.
        back = [one.back - one.at - one.stopped_seconds for one in there if one.back >= 0]
        served = [one.served - one.at for one in there if one.served >= 0]
        row: list[Cell] = [kind, role, len(there), len(missed), median(missed), spread(missed)]
        row += [median(back), spread(back), median(served), spread(served)]
        rows.append(row)
    notes = [
        "Missed: /health lists it no more. Back: listed again (stopped: since it went on). The",
        "supervisor waits longer before each further start of the same process.",
        "Served: a request asked after the fault was answered right.",
    ]
    columns = ["fault", "of", "times", "missed", "after s", "lowest..highest"]
    columns += ["back s", "lowest..highest", "served s", "lowest..highest"]
    return Table("Faults and recovery", columns, rows, notes)


def processes(outcome: Outcome) -> Table:
    """Descriptors and memory at rest, before and after."""
    rows: list[list[Cell]] = []
    for name, before in outcome.before.items():
        after = outcome.after.get(name)
        lived = "yes" if after and after.pid == before.pid else "no"
        row: list[Cell] = [name, lived, before.descriptors]
        row += [after.descriptors if after else None, before.resident_mib]
        row += [after.resident_mib if after else None]
        rows.append(row)
    columns = ["process", "lived through", "descriptors before", "after", "RSS MiB before", "after"]
    return Table("What processes hold at rest", columns, rows)


def counters(outcome: Outcome) -> Table:
    sums: Counter[str] = Counter()
    for key, value in outcome.counters.items():
        sums[key.partition("{")[0]] += int(value)
    rows: list[list[Cell]] = [[text, sums[name]] for name, text in COUNTED.items()]
    for role, share in sorted(outcome.fullest.items()):
        rows.append([f"most pages held on a {role} worker, %", round(100 * share)])
    waits = [outcome.counters.get(f'{STAGE}_{of}{{stage="admission_wait"}}', 0.0) for of in PARTS]
    rows.append(["mean wait of a hand-over for pages, ms", 1000 * waits[0] / (waits[1] or 1.0)])
    rows += [
        ["violations", len(outcome.violations)],
        ["seconds under faults", round(outcome.seconds)],
        ["seconds from the last answer to rest", round(outcome.rest_seconds, 1)],
        ["CPU seconds of the clients", round(outcome.driver_cpu_seconds, 1)],
    ]
    return Table("Counted", ["what", "how many"], rows)
