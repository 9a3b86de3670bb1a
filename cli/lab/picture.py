"""The distribution of the gaps as a picture: one row a scenario, one dot a round, time on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 900, 150, 30, 22, 34, 34
SHORTEST_S, LONGEST_S = 0.01, 100.0
TICKS = ((0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (100.0, "100 s"))


def svg(gaps_s: Mapping[str, Sequence[float]]) -> str:
    """A whole SVG document. A gap beyond either end of the axis is drawn at the end."""
    height = TOP + ROW * len(gaps_s) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="18">longest time without a completed I/O, one dot a round; the bar is the median</text>',
    ]
    for at_s, label in TICKS:
        x = _x(at_s)
        lines.append(f'<line x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{height - BOTTOM}" stroke="#ddd"/>')
        lines.append(f'<text x="{x}" y="{height - BOTTOM + 16}" text-anchor="middle" fill="#555">{label}</text>')
    for number, (name, found) in enumerate(gaps_s.items()):
        y = TOP + ROW * number + ROW // 2
        lines.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        lines += [f'<circle cx="{_x(gap)}" cy="{y}" r="4" fill="#2266aa" fill-opacity="0.4"/>' for gap in found]
        if found:
            middle = _x(sorted(found)[(len(found) - 1) // 2])
            lines.append(f'<line x1="{middle}" y1="{y - 8}" x2="{middle}" y2="{y + 8}" stroke="#aa3322" stroke-width="2"/>')
    return "\n".join([*lines, "</svg>", ""])


def _x(gap_s: float) -> float:
    held = min(max(gap_s, SHORTEST_S), LONGEST_S)
    share = math.log(held / SHORTEST_S) / math.log(LONGEST_S / SHORTEST_S)
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)
