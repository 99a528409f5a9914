"""How fast pages move, alone and through the whole hand-over, and what a hand-over costs.

    penstock bench kv [--quick] [--parts speed,large,...] [--json FILE]

Parts: speed (every plane beside memcpy, bare NIXL and a bare socket), large (256 MB at once),
load (hand-overs of 16 MB, four in flight, some hundred of them, beside one after the other),
loopback (NIXL's own TCP settings beside ours), across (two network namespaces; needs root), pieces
(256 B to 8 KB), control (one page there and back), idle, overlap (exposed after the last chunk),
checked (digests of pages), prompts (KV shapes of known models), agents (NIXL's own costs).

load prints one row per method and page size: GB/s one after the other and with four in flight, CPU
seconds of both ends per GB of either, and what both are of the peer's under the same load (shm over
memcpy, nixl over bare NIXL with four READs in flight; a copy has one core).

Within a part methods take turns and bytes are verified outside the time. `python docs/draw.py`
makes the picture of the JSON.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict

from .planes import nixl
from .planes.across import METHODS_ACROSS, measure_across, refusals
from .planes.checked import checked_tables, measure_checked
from .planes.control import control_tables, measure_idle, measure_round_trips
from .planes.goals import NOT_RUN, goal_table
from .planes.load import load_tables, measure_load
from .planes.noise import own_seconds
from .planes.pair import METHODS, PairError
from .planes.prompts import GIB, measure_overlap, measure_prompts, overlap_tables, prompt_tables
from .planes.speed import LARGE, Record, measure, shape_of, speed_tables
from .report import Result, Table, result_file

OPERATION, LARGE_OPERATION, PIECES_OPERATION = 16 << 20, 256 << 20, 4 << 20
CHECKED_OPERATION = 64 << 20
QUICK_GIB, FOREVER = 2.0, float("inf")
PLANES = ("nixl", "shm", "tcp")
SPEED = tuple(name for name in METHODS if name != "bare nixl-tcp, untuned")
PIECES = ("memcpy", "bare nixl", "nixl")
QUICK = ("memcpy", "bare nixl", "bare socket", "nixl", "shm", "tcp")
LOAD = ("memcpy", "bare nixl", "nixl", "shm", "tcp")
QUICK_LOAD = ("memcpy", "shm")
QUICK_ACROSS = ("bare socket", "bare nixl-tcp", "tcp")
TITLES = {
    "speed": "Pages between two processes",
    "large": "Large operations",
    "loopback": "NIXL over TCP, with our settings and with its own",
    "across": "Between two network namespaces",
    "pieces": "Small pieces, planes alone",
}


def there(names: Iterable[str]) -> list[str]:
    """Of these methods, those this version has."""
    return [name for name in names if name in METHODS]


def sizes_of(options: argparse.Namespace, quick: str, full: str) -> list[int]:
    """Page sizes in bytes; the options' own where they were given."""
    text = options.sizes or (quick if options.quick else full)
    return [int(float(size) * 1024) for size in text.split(",")]


def chosen(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    wanted = options.methods.split(",") if options.methods else names
    return there(name for name in names if name in wanted)


def speed(options: argparse.Namespace) -> list[Record]:
    sizes = sizes_of(options, "16,1024", "4,16,64,256,1024,4096")
    names = QUICK if options.quick else SPEED
    return _each(options, "speed", sizes, chosen(options, names), OPERATION)


def large(options: argparse.Namespace) -> list[Record]:
    sizes = sizes_of(options, "1024", "64,1024")
    names = LARGE[:4] if options.quick else LARGE
    return _each(options, "large", sizes, chosen(options, names), LARGE_OPERATION)


def load(options: argparse.Namespace) -> list[Record]:
    methods = chosen(options, QUICK_LOAD if options.quick else LOAD)
    sizes = sizes_of(options, "1024", "16,64,1024")
    return measure_load(methods, sizes, OPERATION, 2 if options.quick else 2 * options.rounds)


def loopback(options: argparse.Namespace) -> list[Record]:
    peers = chosen(options, ("bare nixl-tcp", "bare nixl-tcp, untuned"))
    return _each(options, "loopback", sizes_of(options, "1024", "64,1024"), peers, OPERATION)


def pieces(options: argparse.Namespace) -> list[Record]:
    sizes = sizes_of(options, "0.25,4", "0.25,1,4,8")
    return _each(options, "pieces", sizes, chosen(options, PIECES), PIECES_OPERATION, whole=False)


def _each(
    options: argparse.Namespace,
    part: str,
    sizes: list[int],
    methods: list[str],
    operation: int,
    whole: bool = True,
) -> list[Record]:
    records = []
    for size in sizes:
        records += measure(part, methods, shape_of(size, operation), options.rounds, whole)
    return records


def across(options: argparse.Namespace) -> list[Record]:
    sizes = sizes_of(options, "64", "16,64,256,1024,4096")
    methods = chosen(options, QUICK_ACROSS if options.quick else METHODS_ACROSS)
    return measure_across(sizes, OPERATION, options.rounds, methods)


def control(options: argparse.Namespace) -> list[Record]:
    times = 20 if options.quick else 100
    methods = chosen(options, PLANES[:2] if options.quick else PLANES)
    return measure_round_trips(methods, 1 if options.quick else 3, times)


def idle(options: argparse.Namespace) -> list[Record]:
    methods = chosen(options, PLANES if options.quick else (*PLANES, "zmq"))
    return measure_idle(methods, 2.0 if options.quick else 10.0)


def overlap(options: argparse.Namespace) -> list[Record]:
    return measure_overlap(chosen(options, PLANES), options.rounds)


def checked(options: argparse.Namespace) -> list[Record]:
    sizes = sizes_of(options, "1024", "64,1024")
    methods = chosen(options, PLANES[:2] if options.quick else PLANES)
    return measure_checked(methods, sizes, CHECKED_OPERATION, options.rounds)


def prompts(options: argparse.Namespace) -> list[Record]:
    longest = 8192 if options.quick else options.longest
    memory = int(min(options.memory_gib, QUICK_GIB if options.quick else FOREVER) * GIB)
    rounds = 1 if options.quick else 3
    methods = chosen(options, PLANES[:2] if options.quick else PLANES)
    return measure_prompts(methods, rounds, memory, longest)


def agents(options: argparse.Namespace) -> list[Record]:
    """Last of all: it loads NIXL into this process."""
    if not chosen(options, ["nixl"]):
        return []
    costs = [{"part": "agents", **asdict(cost)} for cost in nixl.measure()]
    return [{**one, "bound": None if one["bound"] == FOREVER else one["bound"]} for one in costs]


PARTS: dict[str, Callable[[argparse.Namespace], list[Record]]] = {
    part.__name__: part
    for part in (
        speed,
        large,
        load,
        loopback,
        across,
        pieces,
        control,
        idle,
        overlap,
        checked,
        prompts,
        agents,
    )
}


def tables(records: list[Record]) -> list[Table]:
    """Everything that was measured, then the goals."""
    made: list[Table] = []
    for part, title in TITLES.items():
        there = [one for one in records if one["part"] == part and one["method"] != NOT_RUN]
        made += speed_tables(title, there)
    made += load_tables(records)
    made += refusals(records)
    made += control_tables(records)
    made += overlap_tables(records)
    made += checked_tables(records)
    made += prompt_tables(records)
    return [*made, goal_table(records)]


def arguments_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="penstock bench kv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="about a minute; fewer of all")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, by comma")
    parser.add_argument("--methods", default="", help="only these, by comma")
    parser.add_argument("--sizes", default="", help="page sizes in KB, by comma")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="(9, quick 3)")
    parser.add_argument("--memory-gib", type=float, default=12.0, help="both pools' of a prompt")
    parser.add_argument("--longest", type=int, default=131072, help="tokens of a prompt")
    parser.add_argument("--json", type=result_file, metavar="FILE")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 9)
    unknown = [part for part in options.parts.split(",") if part not in PARTS]
    unknown += [name for name in options.methods.split(",") if name and name not in METHODS]
    if unknown:
        parser.error(f"no {unknown[0]!r}; parts: {', '.join(PARTS)}; methods: {', '.join(METHODS)}")
    return options


def main(arguments: list[str]) -> int:
    options = arguments_of(arguments)
    asked = {name: value for name, value in vars(options).items() if name != "json"}
    result = Result("kv", asked)
    try:
        for part in options.parts.split(","):
            began, used = time.monotonic(), own_seconds()
            result.rounds += PARTS[part](options)
            took = f"{time.monotonic() - began:.0f} s, {own_seconds() - used:.0f} s of CPU"
            print(f"{part}: measured in {took}", file=sys.stderr)
    except PairError as error:
        print(f"penstock bench kv: {error}", file=sys.stderr)
        return 1
    result.finish(tables(result.rounds), options.json)
    return 0
