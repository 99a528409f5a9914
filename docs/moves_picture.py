"""The hand-over's table of moves as a picture: every row of kvtransfer/moves.py, and no other.

Only where things stand is decided here; states, arrows and their words come from the tables. A
state or a pair of states without a place here cannot be drawn, and a test says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from shapes import INK, arrow, box, header, text

from penstock.kvtransfer.moves import HOLDER_MOVES, READER_MOVES, LeaseState, ReadState

WIDTH, HEIGHT = 880, 1150
LINE = 18  # between two events of one arrow
READER_TOP = 540
COLOURS = {"ended": "#52606d", "complete": "#127a3d"}
GOING_ON = "#0b69a3"


@dataclass(frozen=True)
class Way:
    """An arrow's bends, and where its first word stands."""

    points: list[tuple[float, float]]
    label: tuple[float, float]


PLACES: dict[Enum, tuple[float, float]] = {
    LeaseState.PUBLISHING: (420, 100),
    LeaseState.PUBLISHED: (420, 240),
    LeaseState.ENDED: (420, 460),
    ReadState.WAITING: (420, READER_TOP + 100),
    ReadState.PULLING: (420, READER_TOP + 240),
    ReadState.COMPLETE: (720, READER_TOP + 560),
    ReadState.ENDED: (420, READER_TOP + 560),
}


def down(top: float, bottom: float) -> list[tuple[float, float]]:
    """From one state to one straight below it."""
    return [(420, top + 20), (420, bottom - 22)]


def around(top: float, bottom: float) -> list[tuple[float, float]]:
    """Past the states between, on their left."""
    return [(360, top), (40, top), (40, bottom), (358, bottom)]


WAYS: dict[tuple[Enum, Enum], Way] = {
    (LeaseState.PUBLISHING, LeaseState.PUBLISHED): Way(down(100, 240), (432, 174)),
    (LeaseState.PUBLISHING, LeaseState.ENDED): Way(around(100, 460), (52, 240)),
    (LeaseState.PUBLISHED, LeaseState.ENDED): Way(down(240, 460), (432, 300)),
    (ReadState.WAITING, ReadState.PULLING): Way(
        down(READER_TOP + 100, READER_TOP + 240), (432, READER_TOP + 174)
    ),
    (ReadState.WAITING, ReadState.ENDED): Way(
        around(READER_TOP + 100, READER_TOP + 560), (52, READER_TOP + 260)
    ),
    (ReadState.PULLING, ReadState.COMPLETE): Way(
        [
            (480, READER_TOP + 240),
            (850, READER_TOP + 240),
            (850, READER_TOP + 560),
            (782, READER_TOP + 560),
        ],
        (492, READER_TOP + 230),
    ),
    (ReadState.PULLING, ReadState.ENDED): Way(
        down(READER_TOP + 240, READER_TOP + 560), (432, READER_TOP + 300)
    ),
}


def rows_of(table: Mapping[tuple[Enum, Enum], Enum]) -> dict[tuple[Enum, Enum], list[str]]:
    """For each pair of states, what leads from one to the other, in the table's order."""
    rows: dict[tuple[Enum, Enum], list[str]] = {}
    for (state, event), after in table.items():
        rows.setdefault((state, after), []).append(event.value)
    return rows


def panel(table: Mapping[tuple[Enum, Enum], Enum]) -> list[str]:
    parts = []
    for (state, after), events in rows_of(table).items():
        way = WAYS[state, after]
        parts.append(arrow(way.points))
        x, y = way.label
        parts += [
            text(x, y + LINE * index, event, INK, "start", 12) for index, event in enumerate(events)
        ]
    states = {state: None for (state, _), after in table.items() for state in (state, after)}
    for state in states:
        parts.append(box(*PLACES[state], state.value, COLOURS.get(state.value, GOING_ON)))
    return parts


def moves() -> str:
    """Both tables, the holder's above."""
    parts = [header(WIDTH, HEIGHT)]
    parts.append(text(20, 40, "Holder: its pages are read", INK, "start", 16))
    parts += panel(HOLDER_MOVES)  # type: ignore[arg-type]
    parts.append(text(20, READER_TOP + 40, "Reader: its pages are written", INK, "start", 16))
    parts += panel(READER_MOVES)  # type: ignore[arg-type]
    return "\n".join([*parts, "</svg>\n"])
