"""Rounds of faults as tables, and whether every promise that is no matter of time was kept.

Milliseconds are median, 99th percentile and worst.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..report import Cell, Table, median, percentile
from .reader import COMPLETE

Round = dict[str, Any]
SPREAD = ["median ms", "p99 ms", "worst ms"]
COMMON = ("CANCELLED", COMPLETE)


def tables(rounds: Sequence[Round], network_notes: list[str]) -> list[Table]:
    makers: list[tuple[str, Callable[[list[Round]], list[Table]]]] = [
        ("F1", _deaths),
        ("F2", _standstills),
        ("F3", lambda found: _cuts(found, network_notes)),
        ("F5", _respawns),
        ("F7", _leases),
        ("F8", _storms),
        ("F13", _companies),
    ]
    made: list[Table] = []
    for promise, make in makers:
        if found := [one for one in rounds if one["promise"] == promise]:
            made += make(found)
    return made


def kept(rounds: Sequence[Round]) -> bool:
    """No wrong byte, no byte in a page granted again, nothing that hung, ended twice or leaked."""
    never = ("wrong", "hit", "twice", "hung", "lost", "pages")
    return not any(one.get(name) for one in rounds for name in never)


def _spread(seconds: Sequence[float]) -> list[Cell]:
    if not seconds:
        return [None, None, None]
    middle, high = percentile(seconds, 0.5), percentile(seconds, 0.99)
    assert middle is not None and high is not None
    return [middle * 1e3, high * 1e3, max(seconds) * 1e3]


def _groups(rounds: list[Round], *names: str) -> dict[tuple[str, ...], list[Round]]:
    found: dict[tuple[str, ...], list[Round]] = {}
    for one in rounds:
        found.setdefault(tuple(str(one[name]) for name in names), []).append(one)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def _words(found: Sequence[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(found).most_common())


def _deaths(rounds: list[Round]) -> list[Table]:
    rows: list[list[Cell]] = []
    for (plane, when), found in _groups(rounds, "plane", "when").items():
        ended = [one["seconds"] for one in found if one["word"] != COMPLETE]
        words = _words([one["word"] for one in found])
        rows.append([plane, when, len(found), *_spread(ended), words])
    notes = [
        "From SIGKILL to the end of the hand-over in the reader. `unmet`: killed after its first",
        "word and not contacted; `idle`: pages reserved, nothing posted; else after the post.",
    ]
    columns = ["plane", "killed", "rounds", *SPREAD, "ended as"]
    return [Table("F1: a dead holder", columns, rows, notes)]


def _standstills(rounds: list[Round]) -> list[Table]:
    late: list[list[Cell]] = []
    again: list[list[Cell]] = []
    for (plane, kind), found in _groups(rounds, "plane", "kind").items():
        words = _words([one["word"] for one in found])
        if kind == "deadline":
            timed = [one["late"] for one in found if one["word"] == "TIMED_OUT"]
            late.append([plane, len(found), *_spread(timed), words])
        quarantined = max(one["quarantined"] for one in found)
        granted, hit = (sum(one[name] for one in found) for name in ("granted", "hit"))
        good = sum(one["good"] for one in found)
        waited = _spread([one["seconds"] for one in found]) if kind == "cancel" else [None] * 3
        again.append([plane, kind, len(found), *waited, quarantined, granted, hit, good])
    columns = ["plane", "rounds", *SPREAD, "ended as"]
    notes = ["After our own deadline. A holder on the same host may be read while it stands still."]
    first = Table("F2: a holder that stands still", columns, late, notes)
    columns = ["plane", "given up by", "rounds", *SPREAD, "quarantined", "granted", "hit", "good"]
    notes = [
        "The time is what the caller of a cancel waits. Quarantined: most pages kept back while",
        "the holder stood still; granted: pages given to others meanwhile; hit: those of them in",
        "which a byte landed when it went on, its own pages overwritten; good: the next complete.",
    ]
    return [first, Table("F4: reads that were given up", columns, again, notes)]


def _cuts(rounds: list[Round], network_notes: list[str]) -> list[Table]:
    rows: list[list[Cell]] = []
    for (plane, down), found in _groups(rounds, "plane", "down").items():
        timed = [one["late"] for one in found if one["word"] == "TIMED_OUT"]
        again = median(one["good_again"] for one in found)
        again = None if again is None else again * 1e3
        hit, words = sum(one["hit"] for one in found), _words([one["word"] for one in found])
        rows.append([plane, down, len(found), *_spread(timed), again, hit, words])
    columns = ["plane", "down s", "rounds", *SPREAD, "good again ms", "hit", "ended as"]
    notes = [
        "Two network namespaces, one cable, cut in the middle of a read; time after our deadline.",
        "Good again: from the mended cable to a complete hand-over, nothing restarted.",
        *network_notes,
    ]
    return [Table("F3: a cut cable", columns, rows, notes)]


def _respawns(rounds: list[Round]) -> list[Table]:
    rows: list[list[Cell]] = []
    for (plane,), found in _groups(rounds, "plane").items():
        born = [one for one in found if "ready" in one]
        kept = next((one for one in found if "bytes" in one), {"descriptors": None, "bytes": 0})
        ready = median(one["ready"] for one in born)
        good = _spread([one["first_good"] for one in born])
        ready = None if ready is None else ready * 1e3
        rows.append([plane, len(born), ready, *good, kept["descriptors"], kept["bytes"] / 1e6])
    columns = ["plane", "times", "ready ms", *SPREAD, "descriptors", "MB"]
    notes = [
        "From the fork of the new incarnation (its imports are done) to the first good hand-over;",
        "what the reader has more of after all of them.",
    ]
    return [Table("F5: again at the same name and port", columns, rows, notes)]


def _leases(rounds: list[Round]) -> list[Table]:
    rows: list[list[Cell]] = [
        [kind, len(found), *_spread([one["seconds"] for one in found])]
        for (kind,), found in _groups(rounds, "kind").items()
    ]
    notes = ["Until the holder's pages are free; the lease is 1 s, renewed every quarter of that."]
    return [Table("F7: a reader is ...", ["reader", "rounds", *SPREAD], rows, notes)]


def _storms(rounds: list[Round]) -> list[Table]:
    rows: list[list[Cell]] = []
    for one in rounds:
        ended, words = one["ended"], one["words"]
        told = ", ".join(f"{count} {word}" for word, count in ended.items())
        faults = sum(words.get(kind, 0) for kind in ("lost", "doubled", "delayed"))
        bad = [one["hung"], one["twice"], one["wrong"]]
        rows.append(
            [one["plane"], sum(ended.values()), faults, *_spread(one["seconds"]), *bad, told]
        )
    columns = ["plane", "hand-overs", "faults", *SPREAD, "hung", "twice", "wrong", "ended as"]
    notes = ["A proxy loses 6%, doubles 6% and delays 30% of all control words by up to 80 ms."]
    return [Table("F8: bad weather", columns, rows, notes)]


def _companies(rounds: list[Round]) -> list[Table]:
    rows: list[list[Cell]] = []
    leaks: list[list[Cell]] = []
    for one in rounds:
        if "healthy" in one:
            healthy = median(one["healthy"])
            for trouble, seconds in one["troubled"].items():
                pairs = zip(seconds, one["healthy"], strict=True)
                ratio = median(sick / well for sick, well in pairs)
                rows.append([one["plane"], trouble, len(seconds), _ms(healthy),
                             _ms(median(seconds)), ratio, one["lost"]])  # fmt: skip
        else:
            kinds = ", ".join(f"{count} {kind}" for kind, count in one["kinds"].items())
            leaks.append([one["plane"], one["failures"], one["descriptors"], one["bytes"] / 1e6,
                          one["pages"], kinds])  # fmt: skip
    columns = ["plane", "the eighth is", "rounds", "healthy ms", "troubled ms", "ratio", "lost"]
    notes = ["Seven hand-overs at once; ratio: median of each round against its healthy neighbour."]
    first = Table("F13: one of eight fails", columns, rows, notes)
    columns = ["plane", "failures", "descriptors", "MB", "pages", "of them"]
    return [first, Table("F13: what failures leave behind", columns, leaks)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
