"""A Pareto plot as a small SVG: what a policy gains on one axis it may lose on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 340
LEFT, TOP, RIGHT, BOTTOM = 64, 36, 24, 52
CHOSEN, OTHER = "#c24e00", "#5a6675"


@dataclass(frozen=True)
class Point:
    """One setting.

    Attributes:
        label: written beside it.
        x, y: its two costs; lower is better in both.
        chosen: whether it is the one that was taken.
    """

    label: str
    x: float
    y: float
    chosen: bool = False


def pareto_svg(points: Sequence[Point], *, title: str, x_name: str, y_name: str) -> str:
    """Draw points with two costs, joined in the given order.

    Args:
        points: at least one.
        title: of the picture.
        x_name, y_name: of the axes, with "lower is better" said by the caller.

    Returns:
        A whole SVG document.
    """
    x_low, x_high = _range([p.x for p in points])
    y_low, y_high = _range([p.y for p in points])

    def place(p: Point) -> tuple[float, float]:
        across = LEFT + (p.x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (p.y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return across, down

    places = [place(p) for p in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - RIGHT}" fill="none" stroke="#222222"/>',
        f'<polyline points="{line}" fill="none" stroke="{OTHER}" stroke-dasharray="3 3"/>',
    ]
    for value, x in ((x_low, LEFT), (x_high, WIDTH - RIGHT)):
        body.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>')
    for value, y in ((y_low, HEIGHT - BOTTOM), (y_high, TOP)):
        body.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_name)}</text>')
    body.append(
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    )
    for p, (x, y) in zip(points, places, strict=True):
        colour, radius = (CHOSEN, 6) if p.chosen else (OTHER, 4)
        weight = ' font-weight="bold"' if p.chosen else ""
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')
        body.append(f'<text x="{x + 8:.1f}" y="{y - 5:.1f}" fill="{colour}"{weight}>{escape(p.label)}</text>')
    return "\n".join([*body, "</svg>"]) + "\n"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low, high if high > low else low + 1.0
