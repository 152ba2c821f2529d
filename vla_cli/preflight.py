"""What the demonstrations would look like to a base under the base's own statistics, before anything is trained.

    base statistics (`stats_import.freeze`) + dataset  --preflight-->  Mismatch, Mismatch, ...    a dimension each

A value that normalises beyond +-`LIMIT` is one that the base never met: in most logs it means other units, another
zero, changes in place of absolute values, or a dimension that stood still in the base's data (openpi issue #814, where
a normalised -3200 made the loss explode; openpi pull request #1026 asks for a report like this one).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vla_cli.stats import NEAR_RANGE, Statistics
from vla_cli.stats_import import check_widths

LIMIT = 5.0
"""Normalised values beyond are reported: a z-score of 5 comes once in two million frames of a normal distribution."""
HARDLY = 0.05
"""Of the base's std: a dimension whose middle 98% spans less hardly moves for the base."""
OFTEN = 0.01
"""Share of the frames beyond the limit from which it is no longer a spike or two."""
WIDE = 15.0
"""Times the base's span, or its inverse: two robots at one task differ by a few times, units by more."""
UNITS = (
    (180 / math.pi, "degrees", "radians"),
    (100.0, "centimetres (or percent)", "metres (or shares of 1)"),
    (255.0, "0 to 255", "0 to 1"),
    (1000.0, "millimetres", "metres"),
)
_NEAR_FACTOR = 4.0  # two robots' spans in the same units seldom differ by more
_TURNS = {math.pi / 2: "a quarter turn", math.pi: "half a turn", 90.0: "90 degrees", 180.0: "180 degrees"}

Kind = Literal["beyond", "lost", "still", "mirrored"]
Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """One dimension that the base's statistics do not fit.

    Attributes:
        vector: "state" or "action".
        dimension: its index.
        name: its name.
        kind: "beyond" (normalises beyond +-`LIMIT`), "lost" (moves, but the base's statistics make it 0), "still"
            (hardly moves against the base's std), "mirrored" (a gripper that seems to open where the base's closes).
        severity: "error" for what spoils training, "warning" for single frames, "info" for what is worth knowing.
        message: plain sentences: where, how much, what it most likely means.
        share: of the frames beyond the limit; a lower bound when only statistics were given.
        worst: normalised value farthest from 0.
        value: the raw value that it is of.
        causes: what it may mean, likeliest first.
    """

    vector: str
    dimension: int
    name: str
    kind: Kind
    severity: Severity
    message: str
    share: float = 0.0
    worst: float = 0.0
    value: float = 0.0
    causes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        rounded = {key: float(f"{getattr(self, key):.6g}") for key in ("share", "worst", "value")}
        return asdict(self) | rounded | {"causes": list(self.causes)}


@dataclass(frozen=True)
class _Dimension:
    """One dimension on both sides: `lowest` to `highest` is everything, `low` to `high` the middle 98%."""

    vector: str
    index: int
    name: str
    base: Statistics
    data: Statistics

    def of(self, side: str, key: str) -> float:
        return float(getattr(getattr(self, side), key)[self.index])

    def span(self, side: str) -> float:
        return self.of(side, "q99") - self.of(side, "q01")

    def middle(self, side: str) -> float:
        return (self.of(side, "q99") + self.of(side, "q01")) / 2

    @property
    def label(self) -> str:
        return f"{self.vector} '{self.name}'"

    @property
    def is_gripper(self) -> bool:
        return any(word in self.name.lower() for word in ("grip", "finger", "jaw", "claw"))


def preflight(
    base: Statistics,
    data: Statistics,
    names: Sequence[str],
    *,
    vector: str,
    values: Iterable[np.ndarray] | None = None,
) -> list[Mismatch]:
    """Where a dataset does not fit a base's statistics.

    Args:
        base: the base's, as `stats_import.freeze` fits them to the dataset.
        data: the dataset's own.
        names: one a dimension.
        vector: "state" or "action".
        values: the dataset's values, [T, D] an episode, read once; without them shares are bounds from the quantiles.

    Returns:
        Findings, the gravest first, then in the order of dimensions; none when all is well.

    Raises:
        ConfigError: the dimensions differ.
    """
    check_widths(base, len(names), vector)
    check_widths(data, len(names), vector)
    shares, exact = (_bounds(base, data), False) if values is None else (_shares(base, values), True)
    extremes = np.stack([data.min, data.max])
    scores = base.normalise(extremes)
    found: list[Mismatch] = []
    for index, name in enumerate(names):
        one = _Dimension(vector, index, name, base, data)
        side = int(np.abs(scores[:, index]).argmax())
        worst, value = float(scores[side, index]), float(extremes[side, index])
        found += _lost(one) or _beyond(one, float(shares[index]), exact, worst, value) or _still(one)
        found += _mirrored(one)
    order = ("error", "warning", "info")
    return sorted(found, key=lambda mismatch: order.index(mismatch.severity))


def _shares(base: Statistics, values: Iterable[np.ndarray]) -> np.ndarray:
    """[D] share of the frames that normalise beyond the limit."""
    beyond, frames = np.zeros(len(base)), 0
    for part in values:
        beyond += (np.abs(base.normalise(part)) > LIMIT).sum(axis=0)
        frames += len(part)
    return beyond / max(frames, 1)


def _bounds(base: Statistics, data: Statistics) -> np.ndarray:
    """[D] least share of the frames beyond the limit that the range and the quantiles prove."""
    least, low, high, most = base.normalise(np.stack([data.min, data.q01, data.q99, data.max])).astype(np.float64)
    tails = 0.01 * ((np.abs(low) > LIMIT).astype(float) + (np.abs(high) > LIMIT))
    return np.where((least > LIMIT) | (most < -LIMIT), 1.0, tails)


def _lost(one: _Dimension) -> list[Mismatch]:
    if not one.of("base", "constant") or one.of("data", "constant") or not one.of("base", "mask"):
        return []
    what = "the policy cannot see it" if one.vector == "state" else "the policy cannot command it"
    text = (
        f"{one.label} moves from {_range(one, 'data')} but stood still in the base's data (at "
        f"{_figure(one.of('base', 'mean'))}): it becomes 0 whatever it is, and {what}. "
        "The dataset's own statistics keep it"
    )
    return [_mismatch(one, "lost", "error", text)]


def _beyond(one: _Dimension, share: float, exact: bool, worst: float, value: float) -> list[Mismatch]:
    if abs(worst) <= LIMIT:
        return []
    causes = _causes(one)
    count = f"{'' if exact else 'at least '}{_percent(share)} of the frames" if share else "some frames"
    if not one.of("base", "mask"):
        basis = "the base's statistics leave this dimension as it is"
    else:
        basis = f"the base saw {_range(one, 'base')}, the data are {_range(one, 'data')}"
    text = (
        f"{one.label}: {count} normalise beyond +-{LIMIT:g} under the base's statistics, the worst to "
        f"{worst:.4g} (value {_figure(value)}); {basis}. Likely: {'; or '.join(causes)}"
    )
    severity: Severity = "error" if share >= OFTEN else "warning"
    return [_mismatch(one, "beyond", severity, text, share=share, worst=worst, value=value, causes=causes)]


def _still(one: _Dimension) -> list[Mismatch]:
    fixed = one.of("base", "constant") or not one.of("base", "mask")
    share = one.span("data") / one.of("base", "std")
    if fixed or share >= HARDLY:
        return []
    causes = [] if one.of("data", "constant") else _units(one)
    meaning = f" Possibly {'; or '.join(causes)}, or" if causes else " Most likely"
    text = (
        f"{one.label} hardly moves: its middle 98% spans {_percent(share)} of the base's std ({_range(one, 'data')}, "
        f"the base saw {_range(one, 'base')}), so that the policy sees it as fixed.{meaning} this part of the robot "
        "stands still here"
    )
    return [_mismatch(one, "still", "info", text, causes=tuple(causes))]


def _mirrored(one: _Dimension) -> list[Mismatch]:
    """A gripper that spends its time at the other end of its range than the base's did."""
    widths = [one.of(side, "max") - one.of(side, "min") for side in ("base", "data")]
    if not one.is_gripper or min(widths) <= 0:
        return []
    base, data = (
        (one.of(side, "mean") - one.of(side, "min")) / width
        for side, width in zip(("base", "data"), widths, strict=True)
    )
    if abs(base - (1 - data)) > 0.15 or abs(base - data) < 0.4:
        return []
    text = (
        f"{one.label} is on average at {data:.0%} of its range, the base's was at {base:.0%}: if it is "
        "open for most of the time on both, open and closed are swapped (--gripper normalise)"
    )
    return [_mismatch(one, "mirrored", "info", text, causes=("the gripper's polarity is the other way round",))]


def _causes(one: _Dimension) -> tuple[str, ...]:
    """What values far outside may mean, likeliest first."""
    span, offset = one.span("base"), one.middle("data") - one.middle("base")
    if one.of("base", "near_constant") or span <= NEAR_RANGE * abs(one.middle("base")):
        return (
            f"the dimension was all but dead in the base's data (its middle 98% spans {_figure(span)} around "
            f"{_figure(one.middle('base'))}): do not divide by that, take the dataset's own statistics",
        )
    found: list[str] = []
    if one.is_gripper and not _overlaps(one):
        found.append("the gripper in other units (metres of opening, 0 to 1, 0 to 255) or of the other polarity")
    found += _units(one)
    found += _modes(one)
    if not found and abs(offset) > max(one.span("data"), span) / 2:
        turn = next((word for size, word in _TURNS.items() if abs(abs(offset) - size) < 0.1 * size), "")
        found.append(f"another zero: the data lie {_figure(offset)} off{f', about {turn}' if turn else ''}")
    if not found and max(abs(s) for s in _quantile_scores(one)) <= LIMIT:
        found.append("a few frames far out, a spike or a glitch: see the quality checks")
    return tuple(found or ["a wider motion than the base was shown"])


def _overlaps(one: _Dimension) -> bool:
    """Whether both have about one range: spans within 3 times of each other, and the data's middle in the base's."""
    ours, theirs = one.span("data"), one.span("base")
    inside = one.of("base", "min") <= one.middle("data") <= one.of("base", "max")
    return inside and theirs < 3 * ours and ours < 3 * theirs


def _units(one: _Dimension) -> list[str]:
    """Units that would explain how much wider or narrower the data are than the base's, the nearest factor first."""
    ours, theirs = one.span("data"), one.span("base")
    if min(ours, theirs) <= 0 or 1 / WIDE < ours / theirs < WIDE:
        return []
    larger, ratio = ours > theirs, max(ours / theirs, theirs / ours)
    fits = sorted((abs(math.log(ratio / factor)), big, small) for factor, big, small in UNITS)
    return [
        f"{big if larger else small} where the base has {small if larger else big}"
        for distance, big, small in fits
        if distance <= min(math.log(_NEAR_FACTOR), fits[0][0] + math.log(2))
    ]


def _modes(one: _Dimension) -> list[str]:
    """Changes in place of absolute values: the one lies around 0, the other far from it."""
    if one.vector != "action":
        return []
    around = {side: one.of(side, "q01") <= 0 <= one.of(side, "q99") for side in ("base", "data")}
    far = {side: abs(one.middle(side)) > one.span(side) for side in ("base", "data")}
    if around["data"] and far["base"]:
        return ["changes (deltas) where the base has absolute values (--actions absolute)"]
    if around["base"] and far["data"]:
        return ["absolute values where the base has changes (--actions delta)"]
    return []


def _quantile_scores(one: _Dimension) -> tuple[float, float]:
    mean, std = one.of("base", "mean"), one.of("base", "std")
    return (one.of("data", "q01") - mean) / std, (one.of("data", "q99") - mean) / std


def _mismatch(one: _Dimension, kind: Kind, severity: Severity, text: str, **figures: Any) -> Mismatch:
    figures |= {"vector": one.vector, "dimension": one.index, "name": one.name}
    return Mismatch(kind=kind, severity=severity, message=text + ".", **figures)


def _range(one: _Dimension, side: str) -> str:
    return f"{_figure(one.of(side, 'q01'))} to {_figure(one.of(side, 'q99'))}"


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{100 * share:.2g}%"
