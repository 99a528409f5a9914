"""GB/s against page size, of every plane and what it is measured against, from bench results."""

import math
import statistics
from typing import Any

from shapes import FAINT, INK, header, line, text

Record = dict[str, Any]
Curve = list[tuple[int, float]]  # page bytes, GB/s

PANELS = [
    ("Within one host", ["memcpy", "bare nixl", "shm", "nixl"]),
    (
        "Over TCP (loopback)",
        ["bare socket", "bare nixl-tcp", "tcp", "nixl-tcp", "zmq", "zmq-curve"],
    ),
]
COLOURS = {
    "memcpy": "#7b8794",
    "bare nixl": "#c99a2e",
    "shm": "#127a3d",
    "nixl": "#b44d12",
    "bare socket": "#7b8794",
    "bare nixl-tcp": "#c99a2e",
    "tcp": "#0b69a3",
    "nixl-tcp": "#b44d12",
    "zmq": "#7a3da8",
    "zmq-curve": "#c03d78",
}
PEERS = ("memcpy", "bare nixl", "bare socket", "bare nixl-tcp")
WIDTH, HEIGHT, TOP, BOTTOM = 1040, 470, 60, 360
PANEL_WIDTH, LEFT = 420, 70


def curves(records: list[Record]) -> dict[tuple[str, str], Curve]:
    """(method, way) to its medians, sizes rising."""
    found: dict[tuple[str, str], Curve] = {}
    for one in records:
        if one["part"] == "speed":
            gigabytes = one["bytes"] / statistics.median(one["seconds"]) / 1e9
            key = one["method"], one["way"]
            found.setdefault(key, []).append((one["page_bytes"], gigabytes))
    return {key: sorted(curve) for key, curve in found.items()}


def speeds(records: list[Record]) -> str:
    """Two panels side by side; dashed: through the whole hand-over."""
    there = curves(records)
    parts = [header(WIDTH, HEIGHT)]
    for index, (title, methods) in enumerate(PANELS):
        of_panel = {key: curve for key, curve in there.items() if key[0] in methods}
        if of_panel:
            left = LEFT + index * (PANEL_WIDTH + 90)
            parts += panel(title, [m for m in methods if (m, "alone") in there], of_panel, left)
    words = "dotted: peers without us, solid: plane alone, dashed: whole hand-over"
    parts.append(text(WIDTH / 2, HEIGHT - 12, words, INK, "middle", 12))
    return "\n".join([*parts, "</svg>\n"])


def panel(
    title: str, methods: list[str], there: dict[tuple[str, str], Curve], left: float
) -> list[str]:
    sizes = sorted({size for curve in there.values() for size, _ in curve})
    top = nice_top(max(rate for curve in there.values() for _, rate in curve))
    span = max(1.0, math.log2(sizes[-1] / sizes[0]))

    def x(size: int) -> float:
        return round(left + PANEL_WIDTH * math.log2(size / sizes[0]) / span, 1)

    def y(rate: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * rate / top, 1)

    parts = [text(left, TOP - 26, title, INK, "start", 15)]
    parts.append(text(left - 8, TOP - 10, "GB/s", INK, "end", 11))
    for step in range(5):
        level = y(top * step / 4)
        parts.append(line(left, level, left + PANEL_WIDTH, level, FAINT, 0.6))
        parts.append(text(left - 8, level + 4, f"{top * step / 4:g}", INK, "end", 11))
    for size in sizes:
        parts.append(text(x(size), BOTTOM + 18, size_text(size), INK, "middle", 11))
    for (method, way), curve in there.items():
        points = " ".join(f"{x(size)},{y(rate)}" for size, rate in curve)
        dash = "2 4" if method in PEERS else "7 4" if way == "whole" else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[method]}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/>'
        )
    return parts + legend(methods, left)


def legend(methods: list[str], left: float) -> list[str]:
    parts = []
    for index, method in enumerate(methods):
        x, y = left + (index % 3) * 145, BOTTOM + 46 + (index // 3) * 20
        dash = "2 4" if method in PEERS else ""
        parts.append(line(x, y - 4, x + 24, y - 4, COLOURS[method], 2.5, dash))
        parts.append(text(x + 30, y, method, INK, "start", 12))
    return parts


def nice_top(rate: float) -> float:
    """The next of 1, 2, 4, 6, 8, 12, 16, 20 ... that is not below."""
    for top in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128):
        if rate <= top:
            return float(top)
    return float(2 ** math.ceil(math.log2(rate)))


def size_text(size: int) -> str:
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K" if size >= 1024 else f"{size}"
