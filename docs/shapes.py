"""What all pictures are made of: plain SVG shapes, so that nothing but Python is needed."""

from html import escape

INK, FAINT, PAPER = "#1f2933", "#9aa5b1", "#ffffff"
FONT = 'font-family="DejaVu Sans, Verdana, sans-serif"'


def header(width: int, height: int) -> str:
    marker = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{INK}"/>'
        "</marker></defs>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n'
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>{marker}'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.4, dash: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" '
        f'stroke-width="{width}"{dashed}/>'
    )


def text(
    x: float,
    y: float,
    words: str,
    colour: str,
    anchor: str = "middle",
    size: int = 12,
    italic: bool = False,
) -> str:
    style = ' font-style="italic"' if italic else ""
    return (
        f'<text x="{x}" y="{y}" {FONT} font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}"{style}>{escape(words)}</text>'
    )


def box(x: float, y: float, words: str, colour: str) -> str:
    """A state: 120 x 40 around its middle."""
    shape = f'<rect x="{x - 60}" y="{y - 20}" width="120" height="40" rx="8" fill="{colour}"/>'
    return shape + text(x, y + 5, words, PAPER, "middle", 14)


def arrow(points: list[tuple[float, float]], colour: str = INK) -> str:
    """A line through these points, with a head at the last."""
    path = " ".join(f"{x} {y}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4" '
        'marker-end="url(#head)"/>'
    )
