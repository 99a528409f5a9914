"""The goals of the hand-over's speed, G1 to G10, and what a run says of each. Pure.

Ratios are of medians of one run in which both sides took turns.
"""

import statistics
from collections.abc import Callable

from ..report import Table, shown
from .checked import pipelined, serial
from .prompts import overlap_limit
from .speed import Record, best, rate, size_text

Verdict = tuple[str, str, str, str]  # id, goal, came out, verdict
LARGE_PAGES = 64 << 10
NOT_RUN = "not run"


def find(records: list[Record], part: str, **wanted: object) -> list[Record]:
    """Records of one part with these values."""
    return [
        one
        for one in records
        if one["part"] == part and all(one.get(name) == value for name, value in wanted.items())
    ]


def ratios(
    records: list[Record], part: str, ours: tuple[str, str], peer: tuple[str, str]
) -> dict[int, tuple[float, float]]:
    """By page size: ours over the peer's, of medians and of bests; each a (method, way)."""
    found = {}
    for one in find(records, part, method=ours[0], way=ours[1]):
        size = one["page_bytes"]
        other = find(records, part, method=peer[0], way=peer[1], page_bytes=size)
        if other:
            found[size] = (rate(one) / rate(other[0]), best(one) / best(other[0]))
    return found


def judge(name: str, goal: str, measured: str, good: bool | None) -> Verdict:
    return name, goal, measured, NOT_RUN if good is None else "met" if good else "missed"


def ratio_goal(
    name: str,
    goal: str,
    found: dict[int, tuple[float, float]],
    bounds: Callable[[int], float | None],
) -> Verdict:
    """Every page size whose bound is not None must reach it by the median."""
    asked = {size: pair for size, pair in sorted(found.items()) if bounds(size) is not None}
    if not asked:
        return judge(name, goal, "", None)
    told = ", ".join(
        f"{size_text(size)}: {shown(median)} ({shown(top)})"
        for size, (median, top) in asked.items()
    )
    return judge(name, goal, told, all(pair[0] >= bounds(size) for size, pair in asked.items()))  # type: ignore[operator]


def from_size(smallest: int, bound: float) -> Callable[[int], float | None]:
    return lambda size: bound if size >= smallest else None


def shared_memory_bound(size: int) -> float | None:
    return 0.9 if size >= LARGE_PAGES else 0.8 if size >= 16 << 10 else 0.65


def nixl_bound(size: int) -> float | None:
    return 0.97 if size >= LARGE_PAGES else 0.92


def speed_goals(records: list[Record]) -> list[Verdict]:
    """G1 to G3, for a small and a large operation; alone and whole."""
    verdicts = []
    for part, size in (("speed", "16M"), ("large", "256M")):
        for way in ("alone", "whole"):
            what = f"{size} at once, {'plane alone' if way == 'alone' else 'whole protocol'}"
            over_copy = ratios(records, part, ("shm", way), ("memcpy", "alone"))
            over_nixl = ratios(records, part, ("shm", way), ("bare nixl", "alone"))
            nixl = ratios(records, part, ("nixl", way), ("bare nixl", "alone"))
            goal = f"shm over memcpy, {what}: 0.9 from 64K, 0.8 at 16K, 0.65 at 4K"
            verdicts.append(ratio_goal("G1", goal, over_copy, shared_memory_bound))
            goal = f"shm over bare NIXL, {what}: 2 from 64K, 3 at 4K"
            bound = {4 << 10: 3.0}
            verdicts.append(
                ratio_goal(
                    "G2", goal, over_nixl, lambda s, b=bound: b.get(s, from_size(65536, 2)(s))
                )
            )
            goal = f"nixl over bare NIXL, {what}: 0.97 from 64K, 0.92 below"
            verdicts.append(ratio_goal("G3", goal, nixl, nixl_bound))
    return verdicts


def piece_goals(records: list[Record]) -> list[Verdict]:
    found = ratios(records, "pieces", ("nixl", "alone"), ("bare nixl", "alone"))
    rates = {one["page_bytes"]: rate(one) for one in find(records, "pieces", method="nixl")}
    goal = "nixl over one bare READ per piece, pieces of 4K: 2"
    verdicts = [ratio_goal("G4", goal, found, lambda size: 2.0 if size == 4096 else None)]
    goal = "nixl, pieces of 256 B: at most half as fast as of 4K"
    if 256 not in rates or 4096 not in rates:
        return [*verdicts, judge("G4", goal, "", None)]
    share = rates[256] / rates[4096]
    told = f"{shown(rates[256])} of {shown(rates[4096])} GB/s"
    return [*verdicts, judge("G4", goal, told, share >= 0.5)]


def across_goals(records: list[Record]) -> list[Verdict]:
    verdicts = []
    for way in ("alone", "whole"):
        what = "plane alone" if way == "alone" else "whole protocol"
        over_socket = ratios(records, "across", ("tcp", way), ("bare socket", "alone"))
        over_nixl = ratios(records, "across", ("tcp", way), ("bare nixl-tcp", "alone"))
        goal = f"tcp over a bare socket between namespaces, {what}: 0.9 from 64K"
        verdicts.append(ratio_goal("G5", goal, over_socket, from_size(LARGE_PAGES, 0.9)))
        goal = f"tcp over bare NIXL TCP between namespaces, {what}: 2 from 64K"
        verdicts.append(ratio_goal("G5", goal, over_nixl, from_size(LARGE_PAGES, 2.0)))
    for part, where in (("across", "between namespaces"), ("loopback", "over loopback")):
        peers = ("bare nixl-tcp", "alone"), ("bare nixl-tcp, untuned", "alone")
        goal = f"NIXL TCP READ with our settings over its own, {where}: 3 from 64K"
        found = ratios(records, part, *peers)
        verdicts.append(ratio_goal("G5", goal, found, from_size(LARGE_PAGES, 3.0)))
    return verdicts


def control_goals(records: list[Record]) -> list[Verdict]:
    """G6: whole hand-overs of one page beside the same sequence without us."""
    verdicts = []
    bare = {"nixl": "bare: zmq words, NIXL READ", "shm": "bare: zmq words, no page"}
    for way in ("spinning", "sleeping"):
        for method, peer in bare.items():
            goal = f"{method}, one 4K page, {way}: at most 5 us over the same bare sequence"
            ours = find(records, "control", method=f"{method}, whole", way=way)
            theirs = find(records, "control", method=peer, way=way)
            if not ours or not theirs:
                verdicts.append(judge("G6", goal, "", None))
                continue
            times = [statistics.median(one[0]["seconds"]) * 1e6 for one in (ours, theirs)]
            told = f"{shown(times[0])} over {shown(times[1])} us"
            verdicts.append(judge("G6", goal, told, times[0] - times[1] <= 5))
    return verdicts


def idle_goals(records: list[Record]) -> list[Verdict]:
    idle = find(records, "idle")
    goal = "an end with nothing to do: at most 1% of a core"
    if not idle:
        verdicts = [judge("G7", goal, "", None)]
    else:
        most = max(idle, key=lambda one: one["core_share"])
        told = f"at most {shown(most['core_share'] * 100)}% ({most['method']} {most['side']})"
        verdicts = [judge("G7", goal, told, most["core_share"] <= 0.01)]
    goal = "CPU per GB, nixl whole over bare NIXL: at most 1.1"
    costs = {}
    for one in find(records, "speed", method="nixl", way="whole"):
        size = one["page_bytes"]
        for peer in find(records, "speed", method="bare nixl", page_bytes=size):
            costs[size] = statistics.median(one["cpu"]) / statistics.median(peer["cpu"])
    told = ", ".join(f"{size_text(size)}: {shown(cost)}" for size, cost in costs.items())
    good = max(costs.values()) <= 1.1 if costs else None
    return [*verdicts, judge("G7", goal, told, good)]


def agent_goals(records: list[Record]) -> list[Verdict]:
    verdicts = []
    for one in find(records, "agents"):
        told = f"{shown(one['figure'])} {one['unit']}"
        if one["bound"] is None:  # beside the figure above it, not judged
            verdicts.append(("G8", one["name"], told, "-"))
            continue
        goal = f"{one['name']}: at most {shown(one['bound'])} {one['unit']}"
        verdicts.append(judge("G8", goal, told, one["figure"] <= one["bound"]))
    return verdicts or [judge("G8", "what NIXL agents cost beside the bytes", "", None)]


def overlap_goals(records: list[Record]) -> list[Verdict]:
    verdicts = []
    for one in find(records, "overlap"):
        exposed, limit = statistics.median(one["exposed"]), overlap_limit(one)
        goal = f"{one['method']}, {one['chunks']} chunks: exposed at most a chunk's share + 0.1 ms"
        told = f"{shown(exposed * 1e3)} of {shown(limit * 1e3)} ms"
        verdicts.append(judge("G9", goal, told, exposed <= limit))
    return verdicts or [judge("G9", "exposed time after the last chunk", "", None)]


def checked_goals(records: list[Record]) -> list[Verdict]:
    verdicts = []
    bounds = {"nixl": (0.30, 0.55), "shm": (0.60, 1.20)}
    for one in find(records, "checked"):
        if one["page_bytes"] < LARGE_PAGES or one["method"] not in bounds:
            continue
        most, most_serial = bounds[one["method"]]
        goal = (
            f"checked mode, {one['method']}, pages of {size_text(one['page_bytes'])}: "
            f"at most +{most:.0%} ({most_serial:.0%} if serial)"
        )
        told = f"+{pipelined(one):.0%} ({serial(one):.0%})"
        verdicts.append(judge("G10", goal, told, pipelined(one) <= most))
    return verdicts or [judge("G10", "checked mode's cost", "", None)]


def goal_table(records: list[Record]) -> Table:
    """All of them; what was not run says so."""
    verdicts = [
        *speed_goals(records),
        *piece_goals(records),
        *across_goals(records),
        *control_goals(records),
        *idle_goals(records),
        *agent_goals(records),
        *overlap_goals(records),
        *checked_goals(records),
    ]
    notes = ["Ratios of medians; of bests in brackets."]
    if left := sorted({one[0] for one in verdicts if one[3] == NOT_RUN}):
        notes.append(f"Not run here, or not all of it: {', '.join(left)}.")
    columns = ["", "goal", "came out", "verdict"]
    return Table("Goals", columns, [list(one) for one in verdicts if one[3] != NOT_RUN], notes)
