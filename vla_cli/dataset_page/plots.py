"""The drawings of the dataset's page, as inline SVG: where the arm went, how fast, what is wrong when, how long.

Colours are the classes p0.. of `report.svg` (light and dark); beyond six operators lines are dashed, so that nobody
depends on colour alone. Every mark has a <title>, which browsers show under the pointer. Pixels are CSS pixels at scale
1, and everything lies inside the view box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vla_cli.dataset_page.judgement import LIMIT
from vla_cli.outline import printable
from vla_cli.report.svg import STYLES

WIDTH = 540
"""Two beside each other on the page."""
MOST_EPISODES = 200
"""Episodes that a drawing shows, the first ones; a page should stay small enough to mail."""
MOST_OPERATORS = 12
MOST_SPANS = 4000
POINTS = 50
"""Of a speed profile, from the start (0) to the end (1) of each episode."""
WIDEST = 10.0
"""Normalised value at which the axis ends."""
KINDS: dict[str, tuple[str, ...]] = {
    "idle": ("idle", "noop"),
    "frozen or black": ("frozen", "black", "blank"),
    "gaps": ("dropped", "gap", "gaps", "timestamps"),
    "spikes": ("spikes", "jerk"),
    "chatter": ("chatter",),
    "other": (),
}
"""Lanes of the timeline, top to bottom, and the checks that each shows; what none names is "other"."""
_LARGEST = 1e12
_POINTS_IN_ALL = 20_000
_LEFT, _RIGHT, _TOP, _AXIS, _SIDE = 120, 16, 8, 36, 60
_ROW, _LANE, _NAME = 20, 3, 17


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` become pixels from `start` to `stop`, clipped."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + (self.stop - self.start) * min(1.0, max(0.0, share))

    def ticks(self, count: int = 5) -> list[float]:
        """About so many round values inside."""
        raw = (self.high - self.low) / count
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def operator_styles(operators: Iterable[str]) -> dict[str, int]:
    """A style for each operator, in the order of their names."""
    return {name: index for index, name in enumerate(sorted(set(operators)))}


def style_class(style: int) -> str:
    """The classes of a style: colour, and dashes from the seventh on."""
    return f"p{style % STYLES} d{style // STYLES % 3}"


def trajectories(
    paths: Sequence[np.ndarray],
    labels: Sequence[str],
    styles: Sequence[int],
    axes: tuple[str, str],
    title: str = "Trajectories from above",
) -> str:
    """Paths in two dimensions, both axes in one scale, each with its start (ring) and end (square).

    Args:
        paths: [T, 2] each, in the log's own units; points that are not finite are left out.
        labels, styles: one a path.
        axes: what the two dimensions are called.
        title: of the drawing.

    Returns:
        An `<svg>` element; empty where no path has a point.
    """
    shown = list(zip(map(_points, paths), labels, styles, strict=True))[:MOST_EPISODES]
    shown = [item for item in shown if len(item[0])]
    if not shown:
        return ""
    everything = np.concatenate([points for points, _, _ in shown])
    centre, side = _frame(everything)
    height = WIDTH * 0.72
    tall = (height - _TOP - _AXIS) / (WIDTH - _SIDE - _RIGHT)
    half = max(side[0], side[1] / tall) / 2 * 1.06
    x = Scale(centre[0] - half, centre[0] + half, _SIDE, WIDTH - _RIGHT)
    y = Scale(centre[1] - half * tall, centre[1] + half * tall, height - _AXIS, _TOP)
    parts = [_box(x, y), _x_axis(x, y, axes[0]), _y_axis(y, x, axes[1])]
    most = int(np.clip(_POINTS_IN_ALL // len(shown), 20, 200))
    parts += [_path(_thinned(points, most), label, style, x, y) for points, label, style in shown]
    return _svg(WIDTH, height, "trajectories", printable(title, 120), f"{len(shown)} episodes", parts)


def profiles(speeds: Sequence[np.ndarray], operators: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Speed over the share of the episode, by operator.

    Args:
        speeds: [T] each.
        operators: one an episode.

    Returns:
        Operator to mean [POINTS], standard deviation over episodes [POINTS], and how many episodes.
    """
    progress = np.linspace(0, 1, POINTS)
    found: dict[str, list[np.ndarray]] = {}
    for speed, operator in zip(speeds, operators, strict=True):
        values = np.asarray(speed, np.float64).reshape(-1)
        kept = np.isfinite(values)
        if kept.any():
            values = np.clip(values, 0, _LARGEST)
            places = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
            found.setdefault(operator, []).append(np.interp(progress, places[kept], values[kept]))
    return {name: (np.mean(rows, axis=0), np.std(rows, axis=0), len(rows)) for name, rows in sorted(found.items())}


def speed_profiles(speeds: Sequence[np.ndarray], operators: Sequence[str], unit: str) -> str:
    """Mean and standard deviation of `profiles`, one line an operator; the operators with most episodes."""
    found = profiles(speeds, operators)
    styles = operator_styles(operators)
    chosen = sorted(found, key=lambda name: (-found[name][2], name))[:MOST_OPERATORS]
    if not chosen:
        return ""
    top = max(float((found[name][0] + found[name][1]).max()) for name in chosen)
    height = 300
    x = Scale(0, 1, _SIDE, WIDTH - _RIGHT)
    y = Scale(0, top if top > 0 else 1.0, height - _AXIS, _TOP)
    parts = [_box(x, y), _x_axis(x, y, "share of the episode"), _y_axis(y, x, unit)]
    for name in chosen:
        mean, spread, count = found[name]
        xs = [x(float(p)) for p in np.linspace(0, 1, POINTS)]
        upper, lower = ([y(float(v)) for v in np.maximum(mean + sign * spread, 0)] for sign in (1, -1))
        band = _points_text([*zip(xs, upper, strict=True), *list(zip(xs, lower, strict=True))[::-1]])
        line = _points_text(zip(xs, (y(float(v)) for v in mean), strict=True))
        label = escape(f"{printable(name, 60)}: {count} episodes, mean {mean.mean():.3g} {printable(unit, 40)}")
        parts.append(
            f'<g class="{style_class(styles[name])}"><title>{label}</title>'
            f'<polygon class="spread" points="{band}"/><polyline class="line" points="{line}"/></g>'
        )
    return _svg(WIDTH, height, "speeds", "Speed by operator", f"{len(chosen)} operators", parts)


@dataclass(frozen=True)
class Span:
    """A stretch of one episode in which a check found something; seconds from the episode's first frame."""

    episode: int
    check: str
    start: float
    stop: float
    label: str


def lane_of(check: str) -> int:
    """The lane of a check, see `KINDS`."""
    return next((i for i, checks in enumerate(KINDS.values()) if check in checks), len(KINDS) - 1)


def timeline(names: Sequence[str], seconds: Sequence[float], spans: Sequence[Span]) -> str:
    """One row an episode, time to the right, one lane a kind of finding."""
    names, seconds = names[:MOST_EPISODES], [_finite(s) for s in seconds[:MOST_EPISODES]]
    if not names:
        return ""
    height = _TOP + _ROW * len(names) + _AXIS
    x = Scale(0, max(*seconds, 1e-3), _LEFT, WIDTH - _RIGHT)
    y = Scale(0, 1, height - _AXIS, _TOP)
    parts = [_x_axis(x, y, "seconds")]
    for row, (name, length) in enumerate(zip(names, seconds, strict=True)):
        top = _TOP + _ROW * row
        parts.append(_row_name(name, top + 13))
        wide = max(x(length) - _LEFT, 1)
        parts.append(
            f'<rect class="track" x="{_LEFT}" y="{top + 1}" width="{wide:.1f}" height="{_ROW - 2}">'
            f"<title>{escape(printable(name, 100))}: {length:.4g} s</title></rect>"
        )
    for span in [s for s in spans if 0 <= s.episode < len(names)][:MOST_SPANS]:
        lane, top = lane_of(span.check), _TOP + _ROW * span.episode + 1
        left = min(x(_finite(span.start)), WIDTH - _RIGHT - 2)
        where = f'x="{left:.1f}" width="{max(x(_finite(span.stop)) - left, 2):.1f}"'
        parts.append(
            f'<g class="p{lane}"><title>{escape(printable(span.label, 300))}</title>'
            f'<rect class="tint" y="{top}" {where} height="{_ROW - 2}"/>'
            f'<rect class="span" y="{top + _LANE * lane}" {where} height="{_LANE}"/></g>'
        )
    return _svg(WIDTH, height, "timeline", "Quality over time", f"{len(spans)} stretches with findings", parts)


def lengths(names: Sequence[str], seconds: Sequence[float], styles: Sequence[int]) -> str:
    """One bar an episode, in order, and the median as a line."""
    shown = [_finite(s) for s in seconds[:MOST_EPISODES]]
    if not shown:
        return ""
    height = 200
    y = Scale(0, max(*shown, 1e-3), height - _AXIS, _TOP)
    x = Scale(0, len(shown), _SIDE, WIDTH - _RIGHT)
    wide = (WIDTH - _RIGHT - _SIDE) / len(shown)
    bars = [
        f'<rect class="bar {style_class(style)}" x="{x(i) + wide * 0.1:.1f}" y="{y(value):.1f}" '
        f'width="{wide * 0.8:.1f}" height="{max(height - _AXIS - y(value), 0.5):.1f}">'
        f"<title>{escape(printable(name, 100))}: {value:.4g} s</title></rect>"
        for i, (name, value, style) in enumerate(zip(names, shown, styles, strict=False))
    ]
    middle = float(np.median(shown))
    line = (
        f'<path class="limit" d="M{_SIDE} {y(middle):.1f}H{WIDTH - _RIGHT}"><title>median {middle:.4g} s</title></path>'
    )
    parts = [_y_axis(y, x, "seconds"), *bars, line, _label(WIDTH / 2, height - 8, "episodes, in order")]
    return _svg(WIDTH, height, "lengths", "Episode lengths", f"median {middle:.4g} s", parts)


def ranges(rows: Sequence[tuple[str, float, float, bool]]) -> str:
    """Name, least and largest normalised value of each dimension, and whether it is beyond; `LIMIT` as dashed lines.

    What is beyond `WIDEST` is drawn at the edge; the figure at the right says where it is.
    """
    if not rows:
        return ""
    rows = rows[:MOST_EPISODES]
    height = _TOP + _ROW * len(rows) + _AXIS
    x, y = Scale(-WIDEST, WIDEST, _LEFT, WIDTH - 130), Scale(0, 1, height - _AXIS, _TOP)
    limits = "".join(f"M{x(value):.1f} {_TOP}V{height - _AXIS}" for value in (-LIMIT, LIMIT))
    parts = [_x_axis(x, y, "normalised value"), f'<path class="limit" d="{limits}"/>']
    for index, (name, low, high, beyond) in enumerate(rows):
        middle = _TOP + _ROW * index + _ROW / 2
        left, right = x(_finite(low)), x(_finite(high))
        figures = f"{low:.3g} .. {high:.3g}"
        parts.append(
            f'{_row_name(name, middle + 4)}<rect class="{"beyond" if beyond else "within"}" x="{min(left, right):.1f}" '
            f'y="{middle - 4:g}" width="{max(right - left, 2):.1f}" height="8">'
            f"<title>{escape(printable(name, 100))}: {figures}</title></rect>"
            f'<text class="tick" x="{WIDTH - 122}" y="{middle + 4:g}">{figures}</text>'
        )
    return _svg(WIDTH, height, "ranges", "Normalised ranges", f"{len(rows)} dimensions", parts)


# ---- pieces


def _svg(width: float, height: float, key: str, title: str, description: str, parts: Iterable[str]) -> str:
    return (
        f'<svg class="plot" role="img" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _finite(value: float) -> float:
    return min(max(float(value), -_LARGEST), _LARGEST) if value == value else 0.0


def _points(path: np.ndarray) -> np.ndarray:
    values = np.asarray(path, np.float64).reshape(-1, 2)
    return np.clip(values[np.isfinite(values).all(axis=1)], -_LARGEST, _LARGEST)


def _frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre [2] and size [2] of what is drawn; never nothing, and never finer than the numbers are."""
    low, high = points.min(axis=0), points.max(axis=0)
    least = max(1e-6, 1e-9 * float(np.abs(points).max()))
    return (low + high) / 2, np.maximum(high - low, least)


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
    return points[np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).round().astype(int))]


def _points_text(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def _path(points: np.ndarray, label: str, style: int, x: Scale, y: Scale) -> str:
    drawn = [(x(float(a)), y(float(b))) for a, b in points]
    (first_x, first_y), (last_x, last_y) = drawn[0], drawn[-1]
    return (
        f'<g class="{style_class(style)}"><title>{escape(printable(label, 200))}</title>'
        f'<polyline class="line" points="{_points_text(drawn)}"/>'
        f'<circle class="start" cx="{first_x:.1f}" cy="{first_y:.1f}" r="3.5"/>'
        f'<rect class="end" x="{last_x - 3:.1f}" y="{last_y - 3:.1f}" width="6" height="6"/></g>'
    )


def _box(x: Scale, y: Scale) -> str:
    wide, high = x.stop - x.start, y.start - y.stop
    return f'<rect class="track" x="{x.start:g}" y="{y.stop:g}" width="{wide:g}" height="{high:g}"/>'


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="tick" x="{x:g}" y="{y:g}" text-anchor="middle">{escape(printable(text, 60))}</text>'


def _row_name(name: str, y: float) -> str:
    """A name with its end, which tells one from the next."""
    short = printable(name)
    short = short if len(short) <= _NAME else "…" + short[1 - _NAME :]
    return f'<text class="name" x="0" y="{y:g}">{escape(short)}</text>'


def _x_axis(x: Scale, y: Scale, text: str) -> str:
    ticks = x.ticks()
    grid = "".join(f"M{x(tick):.1f} {y.stop:g}V{y.start:g}" for tick in ticks)
    labels = "".join(_label(round(x(tick), 1), y.start + 14, f"{tick:.4g}") for tick in ticks)
    return f'<path class="grid" d="{grid}"/>{labels}{_label((x.start + x.stop) / 2, y.start + 29, text)}'


def _y_axis(y: Scale, x: Scale, text: str) -> str:
    ticks = y.ticks()
    grid = "".join(f"M{x.start:g} {y(tick):.1f}H{x.stop:g}" for tick in ticks)
    labels = "".join(
        f'<text class="tick" x="{x.start - 6:g}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in ticks
    )
    middle = (y.start + y.stop) / 2
    name = (
        f'<text class="tick" x="12" y="{middle:g}" text-anchor="middle" transform="rotate(-90 12 {middle:g})">'
        f"{escape(printable(text, 40))}</text>"
    )
    return f'<path class="grid" d="{grid}"/>{labels}{name}'


def legend(items: Mapping[str, int], more: int = 0) -> str:
    """Names with their colours, as HTML."""
    shown = "".join(
        f'<span><b class="{style_class(style)}" aria-hidden="true">■</b> {escape(printable(name, 60))}</span> '
        for name, style in items.items()
    )
    return f'<p class="legend">{shown}{f"and {more} more" if more else ""}</p>'
