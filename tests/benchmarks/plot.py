"""A run's chief rows as a picture: for each row, how many times as fast as each peer and each limit.

A line a row and a dot a peer or limit, on a logarithmic axis; to the right of the line in the middle keypeer is ahead,
whether more is better or less. The bar at a dot is the spread of both. SVG 1.1, made by hand: no library is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.report import Row, number
from tests.benchmarks.run import Run
from tests.benchmarks.table import ALT, chief

WIDTH, LEFT, RIGHT, TOP, LINE, BOTTOM = 1120, 570, 30, 66, 24, 52  # pixels
VALUE = 150  # pixels from the axis to where the names end
LEAST, MOST = 1 / 100, 1_000  # the axis never goes further; what is beyond is drawn at its end
PEERS = {  # by the first words of a name; the longest that fits
    "OpenBao": "#d9730d", "OpenBao, audit synced": "#8a4b08", "Barbican": "#a333c8", "Keylime": "#21803a",
    "age": "#0a7d8c",
}  # fmt: skip
LIMIT, LIMIT_NAME = "#5c6773", "a limit of the same run"
_STYLE = "font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:12px"


def plot(run: Run) -> str:
    """The SVG document."""
    rows = [row for row in chief(run) if row.beside]
    height = TOP + LINE * len(rows) + BOTTOM
    low, high = _axis(rows)
    body = [*_legend(rows), *_grid(low, high, len(rows))]
    for number_, row in enumerate(rows):
        body += _row(row, TOP + LINE * number_ + LINE // 2, low, high)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join(
        [f'{head} style="{_STYLE}" role="img"><title>{escape(ALT)}</title>',
         f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>', *body, "</svg>", ""]
    )  # fmt: skip


def ahead(row: Row, name: str) -> tuple[float, float, float]:
    """How many times as good as ``name``: by the medians, and at worst and at best of the rounds."""
    ours, theirs = row.ours, row.beside[name]
    if row.better == "less":
        ours, theirs = theirs, ours
    return _ratio(ours.median, theirs.median), _ratio(ours.low, theirs.high), _ratio(ours.high, theirs.low)


def _ratio(one: float, other: float) -> float:
    return min(MOST, max(LEAST, one / other)) if other > 0 else MOST


def _axis(rows: Sequence[Row]) -> tuple[int, int]:
    """Powers of ten that hold every dot."""
    found = [ahead(row, name)[0] for row in rows for name in row.beside] or [1.0]
    return min(-1, math.floor(math.log10(min(found)))), max(1, math.ceil(math.log10(max(found))))


def _x(value: float, low: int, high: int) -> float:
    place = (math.log10(value) - low) / (high - low)
    return LEFT + min(1.0, max(0.0, place)) * (WIDTH - LEFT - RIGHT)


def _kind(name: str) -> tuple[str, str]:
    """The legend's word for a name, and its colour."""
    fitting = [each for each in PEERS if name.startswith(each)]
    return (max(fitting, key=len), PEERS[max(fitting, key=len)]) if fitting else (LIMIT_NAME, LIMIT)


def _legend(rows: Sequence[Row]) -> list[str]:
    kinds = dict(sorted({_kind(name) for row in rows for name in row.beside}))
    made, x = [_text(12, 22, "How many times as fast as …", weight="bold")], 218.0
    for name, colour in kinds.items():
        made += [_dot(x, 18, colour, name == LIMIT_NAME), _text(x + 10, 22, name)]
        x += 34 + 6.6 * len(name)
    return made


def _grid(low: int, high: int, rows: int) -> list[str]:
    bottom, made = TOP + LINE * rows, []
    for power in range(low, high + 1):
        x, word = _x(10.0**power, low, high), f"{10.0**power:g}×"
        colour = "#24292f" if power == 0 else "#d8dee4"
        made.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}"/>')
        made += [_text(x, place, word, anchor="middle", colour="#57606a") for place in (TOP - 8, bottom + 18)]
    one = _x(1.0, low, high)
    made.append(_text(one - 12, bottom + 38, "← keypeer is behind", anchor="end", colour="#57606a"))
    made.append(_text(one + 12, bottom + 38, "keypeer is ahead →", colour="#57606a"))
    return made


def _row(row: Row, y: int, low: int, high: int) -> list[str]:
    unit = "/s" if row.unit == "1/s" else f" {row.unit}"
    made = [
        _text(LEFT - VALUE, y + 4, row.what, anchor="end"),
        _text(LEFT - 14, y + 4, f"{number(row.ours.median)}{unit}", anchor="end", weight="bold"),
        f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#eaeef2"/>',
    ]
    for name in row.beside:
        middle, worst, best = ahead(row, name)
        kind, colour = _kind(name)
        ends = _x(worst, low, high), _x(best, low, high)
        made += [
            f'<line x1="{ends[0]:.1f}" y1="{y}" x2="{ends[1]:.1f}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
            _dot(_x(middle, low, high), y, colour, kind == LIMIT_NAME, f"{name}: {row.beside[name]}{unit}"),
        ]
    return made


def _dot(x: float, y: float, colour: str, square: bool, hover: str = "") -> str:
    title = f"<title>{escape(hover)}</title>" if hover else ""
    if square:
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}">{title}</rect>'
    return f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}">{title}</circle>'


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal", colour: str = "#24292f"
) -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(words)}</text>'
