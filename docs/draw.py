"""Draws the pictures of the docs as SVG: `python docs/draw.py` rewrites docs/*.svg.

`python docs/draw.py --check` writes nothing and fails where a picture is not what would be drawn.
The table of moves is drawn from the table the code uses, the speeds from bench/results/kv.json.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from moves_picture import moves
from shapes import FAINT, INK, PAPER, box, header, line, text
from speed_picture import speeds

HERE = Path(__file__).parent
SPEEDS = HERE.parent / "bench" / "results" / "kv.json"
COLOURS = {"client": "#52606d", "router": "#8d2b0b", "prefill": "#0b69a3", "decode": "#0f609b"}


@dataclass(frozen=True)
class Arrow:
    """One message of the sequence picture; `heavy` carries block bytes."""

    source: str
    target: str
    text: str
    heavy: bool = False
    gap: int = 34


LANES = {
    "client": "client",
    "router": "router",
    "prefill": "prefill worker",
    "decode": "decode worker",
}

ONE_REQUEST = [
    Arrow("client", "router", "POST /v1/chat/completions"),
    Arrow("router", "router", "validate, tokenise, hash blocks, choose a route"),
    Arrow("router", "prefill", "Prefill(tokens, sampling, decode_at)"),
    Arrow("prefill", "decode", "Handoff(request, lease)"),
    Arrow("decode", "prefill", "Introduce / Agent (once per pair)"),
    Arrow("decode", "decode", "reserve pages, skip the cached prefix"),
    Arrow("prefill", "prefill", "chunk 1 of the prompt"),
    Arrow("prefill", "decode", "Published(pages, generations)"),
    Arrow("prefill", "decode", "blocks of chunk 1, while 2 computes", heavy=True),
    Arrow("prefill", "prefill", "chunk 2; draw the first token"),
    Arrow("prefill", "router", "Tokens: the first token"),
    Arrow("router", "client", "first byte out"),
    Arrow("prefill", "decode", "Published(last pages, first tokens)"),
    Arrow("prefill", "decode", "the rest of the blocks", heavy=True),
    Arrow("decode", "decode", "generations still valid? then they count"),
    Arrow("decode", "prefill", "Release(lease)"),
    Arrow("decode", "router", "Admitted; Tokens: one frame per step"),
    Arrow("router", "client", "data: ... data: [DONE]"),
]


def sequence(arrows: list[Arrow]) -> str:
    """A sequence diagram: one lane per process, time downwards."""
    step, left, top = 245, 110, 70
    x = {lane: left + step * index for index, lane in enumerate(LANES)}
    height = top + sum(arrow.gap for arrow in arrows) + 40
    width = left + step * (len(LANES) - 1) + 290
    parts = [header(width, height)]
    for lane, title in LANES.items():
        parts.append(
            f'<rect x="{x[lane] - 75}" y="14" width="150" height="30" rx="6" '
            f'fill="{COLOURS[lane]}"/>' + text(x[lane], 34, title, PAPER, "middle", 14)
        )
        parts.append(line(x[lane], 44, x[lane], height - 16, FAINT, dash="3 4"))
    y = top
    for arrow in arrows:
        y += arrow.gap
        parts.append(message(arrow, x[arrow.source], x[arrow.target], y))
    return "\n".join([*parts, "</svg>\n"])


def message(arrow: Arrow, start: int, end: int, y: int) -> str:
    """One arrow, or a note beside its lane where source and target are one."""
    if start == end:
        note = text(start + 12, y + 4, arrow.text, INK, "start", 12, italic=True)
        return f'<circle cx="{start}" cy="{y}" r="4" fill="{COLOURS[arrow.source]}"/>' + note
    colour = "#127a3d" if arrow.heavy else INK
    side = -7 if end > start else 7
    drawn = line(start, y, end + side, y, colour, 5 if arrow.heavy else 1.4)
    drawn += f'<path d="M{end} {y} l{side * 1.6} -5 l0 10 z" fill="{colour}"/>'
    return drawn + text((start + end) / 2, y - 6, arrow.text, colour, "middle", 12)


STATES = {
    "free": (90, 90),
    "open": (380, 90),
    "sealed": (690, 90),
    "cached": (690, 230),
    "quarantined": (380, 230),
}
MOVES = [
    ("free", "open", "take: generation + 1", 0),
    ("open", "sealed", "seal: immutable from here", 0),
    ("sealed", "cached", "last holder gone", 40),
    ("cached", "sealed", "shared again", -40),
    ("open", "quarantined", "holder gone, bytes may arrive", 0),
    ("quarantined", "free", "quiet", 0),
]


def page_states() -> str:
    """The life of one page."""
    parts = [header(880, 340)]
    for source, target, label, shift in MOVES:
        (x1, y1), (x2, y2) = STATES[source], STATES[target]
        x1, x2 = x1 + shift, x2 + shift
        if y1 == y2:
            x1, x2 = (x1 + 62, x2 - 66) if x2 > x1 else (x1 - 62, x2 + 66)
            middle = ((x1 + x2) / 2, y1 - 8)
        elif x1 == x2:
            y1, y2 = (y1 + 22, y2 - 26) if y2 > y1 else (y1 - 22, y2 + 26)
            middle = (x1 + (60 if shift > 0 else 96 if shift == 0 else -50), (y1 + y2) / 2)
        else:
            x1, y1, x2, y2 = x1 - 62, y1 - 10, x2 + 20, y2 + 26
            middle = ((x1 + x2) / 2 - 26, (y1 + y2) / 2 + 16)
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.4" '
            'marker-end="url(#head)"/>'
        )
        parts.append(text(*middle, label, INK, "middle", 12))
    parts.append(text(440, 318, "cached pages are evicted (to free) when pages are needed", INK))
    for name, (x, y) in STATES.items():
        colour = "#b44d12" if name == "quarantined" else "#0b69a3"
        parts.append(box(x, y, name, colour))
    return "\n".join([*parts, "</svg>\n"])


def pictures() -> dict[str, str]:
    """File name to SVG. The speeds are left out where nothing was measured yet."""
    drawn = {
        "one-request.svg": sequence(ONE_REQUEST),
        "page-states.svg": page_states(),
        "moves.svg": moves(),
    }
    if SPEEDS.exists():
        drawn["kv-speed.svg"] = speeds(json.loads(SPEEDS.read_text())["rounds"])
    return drawn


def main(arguments: list[str]) -> int:
    drawn = pictures()
    if arguments == ["--check"]:
        old = [
            name
            for name, picture in drawn.items()
            if not (HERE / name).exists() or (HERE / name).read_text() != picture
        ]
        for name in old:
            print(f"docs/{name} is not what `python docs/draw.py` draws")
        return 1 if old else 0
    for name, picture in drawn.items():
        (HERE / name).write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
