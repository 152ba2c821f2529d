"""Dot-and-interval plots as inline SVG: one band a condition, one line a policy, a dot with a 95% whisker.

    trained                               <- heading of a band
    base      |    |--o--|    |    |  42%
    naive     |         |    |    |-[]  98%
              0   25   50   75  100%

A policy has its own colour (Okabe and Ito's colour-blind-safe hues, darkened or lightened for contrast) *and* its own
marker shape *and* its name beside the line, so that no reader depends on colour. Pixels are CSS pixels at scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LIGHT_COLOURS = ("#5a6675", "#c24e00", "#0063ad", "#00755a", "#a23a7a", "#7d6200")
DARK_COLOURS = ("#a9b4c2", "#ff9248", "#5bb8f0", "#35cfa2", "#e99aca", "#e8c52e")
STYLES = len(LIGHT_COLOURS)

_LINE = 20
_HEADING = 26
_GAP = 10
_SECTION = 22
_AXIS = 20
_CHARACTER = 7.2
_BOLD_CHARACTER = 8.6
_LONGEST_NAME = 14


@dataclass(frozen=True)
class Axis:
    """The horizontal scale: the values of its tick marks, ascending, and how they are written."""

    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def share(self, value: float) -> float:
        """Where a value lies between the first tick (0) and the last (1), clipped."""
        low, high = self.ticks[0], self.ticks[-1]
        return min(1.0, max(0.0, (value - low) / (high - low)))


PERCENT_AXIS = Axis((0.0, 0.25, 0.5, 0.75, 1.0), ("0", "25", "50", "75", "100%"))


@dataclass(frozen=True)
class Mark:
    """One policy's line in a band.

    Attributes:
        policy: its name.
        style: colour and marker, 0 for the first policy.
        value, low, high: on the axis.
        text: the value as written at the right.
    """

    policy: str
    style: int
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Band:
    """One condition.

    Attributes:
        heading: its name.
        marks: one a policy.
        section: written above the band where it differs from the band before; may be empty.
    """

    heading: str
    marks: tuple[Mark, ...]
    section: str = ""


def error_axis(largest: float) -> Axis:
    """An axis from 0 to a round number not below `largest`, with four or five steps."""
    if largest <= 0:
        return Axis((0.0, 1.0), ("0", "1"))
    power = 10.0
    while power > largest:
        power /= 10
    while power * 10 <= largest:
        power *= 10
    top, steps = next(
        (m * power, n) for m, n in ((1, 4), (2, 4), (3, 3), (4, 4), (5, 5), (8, 4), (10, 5)) if m * power >= largest
    )
    ticks = tuple(top * i / steps for i in range(steps + 1))
    return Axis(ticks, tuple(f"{tick:.3g}" for tick in ticks))


def dot_plot(bands: Sequence[Band], axis: Axis, *, width: int, key: str, title: str, description: str) -> str:
    """Render bands one below the other.

    Args:
        bands: what to draw, top to bottom.
        axis: shared by all bands.
        width: CSS pixels; the height follows from the bands.
        key: prefix of the element ids, unique in the page.
        title, description: for people who cannot see it.

    Returns:
        An `<svg>` element.
    """
    names = [mark.policy for band in bands for mark in band.marks]
    left = 12 + _CHARACTER * min(_LONGEST_NAME, max((len(name) for name in names), default=0))
    right = 14 + _BOLD_CHARACTER * max((len(mark.text) for band in bands for mark in band.marks), default=0)
    frame = _Frame(axis, left, width - right - left)
    parts, y, section = [], 0.0, ""
    for band in bands:
        if band.section and band.section != section:
            section = band.section
            y += _SECTION
            parts.append(f'<text class="section" x="0" y="{y - 5:g}">{escape(section)}</text>')
        parts.append(_band(band, frame, y))
        y += _HEADING + _LINE * len(band.marks) + _GAP
    parts.append(frame.labels(y + 6))
    height = y + _AXIS
    return (
        f'<svg class="plot" role="img" width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}" '
        f'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class _Frame:
    """Where the axis lies: `left` and `span` in CSS pixels."""

    axis: Axis
    left: float
    span: float

    def x(self, value: float) -> float:
        return self.left + self.span * self.axis.share(value)

    def grid(self, top: float, bottom: float) -> str:
        lines = (f"M{self.x(tick):.1f} {top:g}V{bottom:g}" for tick in self.axis.ticks)
        return f'<path class="grid" d="{"".join(lines)}"/>'

    def labels(self, y: float) -> str:
        pairs = zip(self.axis.ticks, self.axis.labels, strict=True)
        return "".join(
            f'<text class="tick" x="{self.x(tick):.1f}" y="{y:g}" text-anchor="middle">{escape(label)}</text>'
            for tick, label in pairs
        )


def _band(band: Band, frame: _Frame, y: float) -> str:
    top, bottom = y + _HEADING, y + _HEADING + _LINE * len(band.marks)
    parts = [
        f'<text class="band" x="0" y="{top - 8:g}">{escape(band.heading)}</text>',
        f'<rect class="track" x="{frame.left:.1f}" y="{top:g}" width="{frame.span:.1f}" height="{bottom - top:g}"/>',
        frame.grid(top, bottom),
    ]
    for i, mark in enumerate(band.marks):
        parts.append(_mark(mark, frame, top + _LINE * (i + 0.5)))
    return "".join(parts)


def _mark(mark: Mark, frame: _Frame, y: float) -> str:
    low, x, high = frame.x(mark.low), frame.x(mark.value), frame.x(mark.high)
    name = mark.policy if len(mark.policy) <= _LONGEST_NAME else mark.policy[: _LONGEST_NAME - 1] + "…"
    whisker = f"M{low:.1f} {y - 4:g}v8M{low:.1f} {y:g}H{high:.1f}M{high:.1f} {y - 4:g}v8"
    return (
        f'<g class="p{mark.style % STYLES}">'
        f'<text class="name" x="0" y="{y + 4:g}">{escape(name)}</text>'
        f'<path class="whisker" d="{whisker}"/>{_marker(mark.style, x, y)}'
        f'<text class="value" x="{frame.left + frame.span + 10:.1f}" y="{y + 4:g}">{escape(mark.text)}</text></g>'
    )


def _marker(style: int, x: float, y: float) -> str:
    """A filled circle, square, diamond or triangle around (x, y)."""
    shapes = (
        f'<circle class="dot" cx="{x:.1f}" cy="{y:g}" r="5"/>',
        f'<rect class="dot" x="{x - 4.5:.1f}" y="{y - 4.5:g}" width="9" height="9"/>',
        f'<path class="dot" d="M{x:.1f} {y - 6:g}l6 6l-6 6l-6 -6z"/>',
        f'<path class="dot" d="M{x:.1f} {y - 5.5:g}l5.5 10h-11z"/>',
    )
    return shapes[style % len(shapes)]


def plot_css() -> str:
    """The style of the plots and of the policies' colours, in light and dark."""
    light, dark = (
        "".join(f"--p{i}:{colour};" for i, colour in enumerate(colours)) for colours in (LIGHT_COLOURS, DARK_COLOURS)
    )
    classes = "".join(f".p{i}{{color:var(--p{i})}}" for i in range(STYLES))
    return f"""
:root{{{light}}}
@media (prefers-color-scheme:dark){{:root{{{dark}}}}}
{classes}
.plot{{display:block;max-width:100%;height:auto;font-size:13px;font-variant-numeric:tabular-nums}}
.plot text{{fill:var(--ink)}}
.plot .section{{font-size:11.5px;letter-spacing:.06em;text-transform:uppercase;fill:var(--muted)}}
.plot .band{{font-weight:650}}
.plot .tick{{font-size:11.5px;fill:var(--muted)}}
.plot .name,.plot .value{{fill:currentColor}}
.plot .value{{font-weight:650}}
.plot .track{{fill:var(--track)}}
.plot .grid{{stroke:var(--line);stroke-width:1;fill:none}}
.plot .whisker{{stroke:currentColor;stroke-width:2;fill:none;opacity:.75}}
.plot .dot{{fill:currentColor;stroke:var(--paper);stroke-width:1.5}}
"""
