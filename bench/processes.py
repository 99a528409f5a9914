"""What the processes of a cluster cost beside the tokens: starting, idling, dying, coming back.

    penstock bench processes [--rounds 5] [--json FILE]

Seconds from `penstock serve` to ready and from SIGTERM to the end; what each process takes while
nothing is asked; after kill -9, seconds until /health lists a process no more and until its
replacement is listed (a fresh cluster each time, because pauses before a restart grow); seconds
until a worker started by hand is listed; all of it without load and under a light one. At the
end the router process's CPU time per token and per request (bench/router_process.py).
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import router_process
from .accounting import costs
from .cluster import Cluster, ClusterError, command, free_port, serving, start
from .report import Cell, Result, Table, median, result_file, spread

LAYOUTS = {"1p1d": ["--prefill", "1", "--decode", "1"], "aggregated": ["--aggregated"]}
LISTED_AT_REST = ("prefill-0", "decode-0")
QUIET_SECONDS = 2.0  # after the start, before idle cost is counted
LIGHT = ["--prompt-tokens", "600", "--output-tokens", "64", "--concurrency", "2"]
BY_HAND = "decode-by-hand"
REASON_LENGTH = 120

# --- starting and idling --------------------------------------------------------------------------


def starts(layout: str) -> dict[str, Any]:
    """One start, and one end."""
    port = free_port()
    begun = time.monotonic()
    words = ["serve", "--port", str(port), *LAYOUTS[layout]]
    cluster = start(words, f"http://127.0.0.1:{port}")
    try:
        cluster.wait(cluster.site.is_ready, "the cluster is ready")
        ready = time.monotonic() - begun
    finally:
        ended = cluster.end()
    return {"what": "start", "layout": layout, "ready_seconds": ready, "end_seconds": ended}


def idling(layout: str, seconds: float) -> dict[str, Any]:
    """What each process costs while nobody asks."""
    with serving(*LAYOUTS[layout]) as cluster:
        time.sleep(QUIET_SECONDS)
        pids = {"supervisor": cluster.pid}
        pids |= {name: pid for name, (_, pid) in cluster.processes().items()}
        found = costs(pids, seconds)
    processes = {
        name: {
            "core_share": one.core_share,
            "switches_per_second": one.switches_per_second,
            "resident_mib": one.resident_mib,
            "proportional_mib": one.proportional_mib,
        }
        for name, one in found.items()
    }
    return {"what": "idle", "layout": layout, "seconds": seconds, "processes": processes}


# --- dying and coming back ------------------------------------------------------------------------


@contextlib.contextmanager
def light_load(cluster: Cluster, wanted: bool, outcome: dict[str, Any]) -> Iterator[None]:
    """Two streams, again and again. Requests may fail here: `outcome` says how many and why."""
    if not wanted:
        yield
        return
    words = command("bench", "load", "--url", cluster.url, "--requests", "0", *LIGHT)
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        time.sleep(1.0)
        yield
    finally:
        told = process.communicate(timeout=120)[0]
    if process.returncode != 0:
        raise ClusterError(f"the load ended with {process.returncode}")
    found = json.loads(told)
    outcome["answered"] = len(found["records"])
    outcome["failures"] = dict(Counter(one[:REASON_LENGTH] for one in found["failures"]))


def listed(cluster: Cluster) -> set[str]:
    """The workers /health lists; none while the router itself is away."""
    try:
        return set(cluster.site.workers())
    except (OSError, http.client.HTTPException):
        return set()


def kill(cluster: Cluster, name: str) -> dict[str, Any]:
    """kill -9, and what /health says from then on."""
    pid = cluster.processes()[name][1]
    watched = LISTED_AT_REST[0] if name == "router" else name
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    cluster.wait(lambda: watched not in listed(cluster), f"{name} is missed")
    missed = time.monotonic() - begun
    cluster.wait(lambda: listed(cluster).issuperset(LISTED_AT_REST), f"{name} is back")
    return {
        "what": "kill",
        "process": name,
        "missed_seconds": missed,
        "back_seconds": time.monotonic() - begun,
    }


def by_hand(cluster: Cluster, file: Path) -> dict[str, Any]:
    """A worker that nobody supervises joins, and leaves when asked."""
    begun = time.monotonic()
    words = ["decode", "--config", str(file), "--name", BY_HAND]
    worker = start(words, cluster.url)
    try:
        worker.wait(lambda: BY_HAND in listed(cluster), "the worker is listed")
        joined = time.monotonic() - begun
    finally:
        ended = worker.end()
    cluster.wait(lambda: BY_HAND not in listed(cluster), "the worker has left")
    return {"what": "by hand", "joined_seconds": joined, "end_seconds": ended}


def losses(load: bool) -> list[dict[str, Any]]:
    """One cluster in which everything dies once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cluster.toml"
        file.write_text(f'[router]\ncontrol = "tcp://127.0.0.1:{free_port()}"\n')
        extra = Path(folder) / "extra.toml"
        tables = f'[[prefill]]\nname = "unused"\n[[decode]]\nname = "{BY_HAND}"\n'
        extra.write_text(file.read_text() + tables)
        outcome: dict[str, Any] = {"what": "load meanwhile"}
        measured: list[Callable[[Cluster], dict[str, Any]]] = [
            lambda cluster: by_hand(cluster, extra),
            lambda cluster: kill(cluster, "prefill-0"),
            lambda cluster: kill(cluster, "decode-0"),
            lambda cluster: kill(cluster, "router"),
        ]
        rounds = []
        with serving("--config", str(file), *LAYOUTS["1p1d"]) as cluster:
            with light_load(cluster, load, outcome):
                for one in measured:
                    rounds.append({"load": load, **one(cluster)})
                    time.sleep(1.0)
        return [*rounds, {"load": load, **outcome}] if load else rounds


# --- the tables -----------------------------------------------------------------------------------


def start_table(rounds: list[dict[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for layout in LAYOUTS:
        row = [one for one in rounds if one["what"] == "start" and one["layout"] == layout]
        ready = [one["ready_seconds"] for one in row]
        ends = [one["end_seconds"] for one in row]
        rows.append([layout, len(row), median(ready), spread(ready), median(ends), spread(ends)])
    columns = ["layout", "starts", "to ready s", "lowest..highest", "to the end s"]
    return Table("Starting and ending a cluster", [*columns, "lowest..highest"], rows)


def idle_table(rounds: list[dict[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for one in rounds:
        for name, cost in one.get("processes", {}).items():
            shares = [cost["core_share"] * 100, cost["switches_per_second"]]
            sizes = [cost["resident_mib"], cost["proportional_mib"]]
            rows.append([one["layout"], name, *shares, *sizes])
    columns = ["layout", "process", "% of a core", "wake-ups/s", "RSS MiB", "PSS MiB"]
    notes = ["Wake-ups: voluntary context switches of all threads. KV pages count once touched."]
    return Table("Idle: nobody asks", columns, rows, notes)


def loss_table(rounds: list[dict[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    names = {one["process"]: None for one in rounds if one["what"] == "kill"}
    for load in (False, True):
        kind = "two streams" if load else "none"
        there = [one for one in rounds if one.get("load") is load]
        for name in names:
            row = [one for one in there if one.get("process") == name]
            missed = [one["missed_seconds"] for one in row]
            back = [one["back_seconds"] for one in row]
            events = [f"kill -9 {name}", len(row), median(missed), spread(missed)]
            rows.append([kind, *events, median(back), spread(back)])
        joined = [one["joined_seconds"] for one in there if one["what"] == "by hand"]
        event = ["decode started by hand", len(joined), None, ""]
        rows.append([kind, *event, median(joined), spread(joined)])
    loads = [one for one in rounds if one["what"] == "load meanwhile"]
    answered = sum(one["answered"] for one in loads)
    failed = sum(sum(one["failures"].values()) for one in loads)
    notes = [
        "Seconds from the event on. The supervisor waits half a second before it starts again.",
        f"The load saw {answered} whole answers and {failed} failures (there is one worker of a",
        "role, so a new request is refused while it is away, and nobody answers for the router).",
    ]
    columns = ["load", "event", "times", "missed s", "lowest..highest"]
    return Table("Losing and joining", [*columns, "listed s", "lowest..highest"], rows, notes)


def run(options: argparse.Namespace, result: Result) -> None:
    def keep(number: int, found: list[dict[str, Any]]) -> None:
        result.rounds += [{"round": number, **one} for one in found]
        for one in found:
            print(f"round {number}: {one['what']}", file=sys.stderr)

    for number in range(options.rounds):
        keep(number, [starts(layout) for layout in LAYOUTS])
        for load in (False, True):
            keep(number, losses(load))
    for layout in LAYOUTS:
        keep(0, [idling(layout, options.idle_seconds)])
    options.rounds = options.router_rounds
    for one in router_process.measure(options):
        keep(one["round"], [one])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="penstock bench processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--router-rounds", type=int, default=5, metavar="N")
    router_process.add_arguments(parser)
    parser.add_argument("--json", type=result_file, metavar="FILE")
    options = parser.parse_args(arguments)
    asked = {name: value for name, value in vars(options).items() if name != "json"}
    result = Result("processes", asked)
    try:
        run(options, result)
    except (ClusterError, OSError) as error:
        print(f"penstock bench processes: {error}", file=sys.stderr)
        return 1
    rounds = result.rounds
    router_rounds = [one for one in rounds if "server" in one]
    tables = [start_table(rounds), idle_table(rounds), loss_table(rounds)]
    result.finish([*tables, router_process.table(router_rounds)], options.json)
    return 0
