"""Checks on the course of each state dimension of one episode.

    spikes   single values far off, and jumps
    jerk     shaking

Each function is one check; its thresholds stand above it, with where they come from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from vla_cli.episode import Episode
from vla_cli.quality.facts import (
    MOVE_SHARE,
    Finding,
    Suspect,
    column_names,
    gripper_columns,
    is_switch,
    listed,
    stretches,
    times,
)

GLITCH = 3.0
"""Times a dimension's usual top step: out that far and straight back is no motion of an arm, which cannot reverse at
several times its own top speed within one frame."""
JUMP = 6.0
"""Times the usual top step: a step that far alone is no motion either."""
SPIKE_RANGE = 0.25
"""Of the dimension's range in the episode: a smaller one is small beside what the policy sees anyway (a standard
deviation is about that much), and simulators have them when they begin."""
TOP = 75.0
"""Percentile of a dimension's moving steps that stands for its usual top step; a few glitches do not move it."""
TURNS = (2 * np.pi, 360.0)
"""A full turn, in radians and degrees."""
SHAKES, SHAKE = 4, 0.5
"""Reversals in a row, each step above that share of the usual top step. The hand's own tremor is far smaller, and a
person's corrections take more than a frame each (voluntary movement stays below about 5 Hz)."""


def top_step(steps: np.ndarray, but: tuple[int, ...] = ()) -> float:
    """A dimension's usual top step (see `TOP`) from its steps [N], some left out; 0 when it hardly ever moves."""
    size = np.abs(np.delete(steps, but))
    moving = size[size > max(MOVE_SHARE * float(np.ptp(np.cumsum(steps))), 1e-9)]
    return float(np.percentile(moving, TOP)) if len(moving) else 0.0


def glitches(column: np.ndarray) -> list[int]:
    """Frames of a dimension [T] that are far off both neighbours, on the same side (`GLITCH`, `SPIKE_RANGE`).

    Found again without those found before, until there are none: a large one does not hide a smaller one.
    """
    found: set[int] = set()
    while new := _far_off(mended(column, found)):
        found |= set(new)
    return sorted(found)


def mended(column: np.ndarray, frames: Collection[int]) -> np.ndarray:
    """A dimension [T] with some frames replaced by the line between their neighbours."""
    rest = np.setdiff1d(np.arange(len(column)), list(frames))
    return np.interp(np.arange(len(column)), rest, column[rest]) if len(frames) else column


def _far_off(column: np.ndarray) -> list[int]:
    steps = np.diff(column)
    into, out = steps[:-1], steps[1:]
    size = np.minimum(np.abs(into), np.abs(out))
    back = (into * out < 0) & (np.abs(into + out) < 0.5 * size)
    least = max(SPIKE_RANGE * float(np.ptp(column)), 1e-6)
    candidates = np.flatnonzero(back & (size > least) & (size > GLITCH * float(np.median(np.abs(steps)))))
    # every candidate's own two steps are left out together, so that several do not hide one another
    top = top_step(steps, tuple({int(t) + i for t in candidates for i in (0, 1)}))
    return [int(t) + 1 for t in candidates if size[t] > GLITCH * top]


def jumps(column: np.ndarray) -> list[int]:
    """Frames of a dimension [T] that are reached in one single step far above all around it (see `JUMP`)."""
    steps = np.diff(column)
    if (np.abs(steps) > 1e-3 * np.ptp(column)).sum() < 8:
        return []
    size = np.abs(steps)
    around = np.maximum(np.append(size[1:], 0.0), np.concatenate([[0.0], size[:-1]]))
    large = np.flatnonzero((size > 3 * around) & (size > SPIKE_RANGE * np.ptp(column)))
    return [int(t) + 1 for t in large if size[t] > JUMP * top_step(steps, (int(t),))]


def spikes(episode: Episode) -> Iterator[Suspect]:
    """Single values far off (`GLITCH`) and jumps (`JUMP`) of each state dimension; grippers move in jumps anyway.

    The usual top step is the episode's or, where that is larger, the other episodes' (see `checks.unusual`):
    a dimension may hardly be needed in one episode.
    """
    for stream in episode.of_role("state"):
        columns, names = np.asarray(stream.values, np.float64), column_names(stream)
        for i in np.flatnonzero(~gripper_columns(columns, names)):
            column, steps = columns[:, i], np.diff(columns[:, i])
            off = glitches(column)
            around = {u for t in off for u in (t - 1, t, t + 1)}
            for kind, factor, found in (
                ("is far off", GLITCH, off),
                ("jumps", JUMP, [t for t in jumps(column) if t not in around]),
            ):
                if not found:
                    continue
                flags = np.zeros(len(column), bool)
                flags[found] = True
                spans, largest = stretches(flags), max(abs(float(steps[t - 1])) for t in found)
                finding = Finding(
                    check="spikes",
                    severity="warning",
                    episode=episode.name,
                    stream=stream.name,
                    dimensions=(int(i),),
                    frames=spans,
                    seconds=times(spans, stream.timestamps),
                    value=largest,
                    message=f"{episode.name}: state {names[i]} {kind} in {listed(spans)}: by {largest:.3g} within one "
                    f"step{_wraps([abs(float(steps[t - 1])) for t in found])}.",
                )
                yield Suspect(finding=finding, column=f"state/{stream.name}/{i}", figure=largest / factor)


def _wraps(sizes: Sequence[float]) -> str:
    """What to say where every step is about a full turn."""
    turned = any(all(abs(size - turn) < 0.1 * turn for size in sizes) for turn in TURNS)
    return ", a full turn: the angle wraps, and to a policy that is a jump" if turned else ""


def top_steps(episode: Episode) -> dict[str, float]:
    """Usual top step of each state dimension, "state/stream/index", glitches left out."""
    found = {}
    for stream in episode.of_role("state"):
        for i, column in enumerate(np.asarray(stream.values, np.float64).T):
            off = {u for t in glitches(column) for u in (t - 1, t)} if not is_switch(column) else set()
            found[f"state/{stream.name}/{i}"] = top_step(np.diff(column), tuple(off))
    return found


def jerk(episode: Episode) -> Iterator[Finding]:
    """Shaking: a state dimension that turns round at every frame for a while (`SHAKES`, `SHAKE`)."""
    for stream in episode.of_role("state"):
        columns, names = np.asarray(stream.values, np.float64), column_names(stream)
        for i in np.flatnonzero(~gripper_columns(columns, names)):
            steps = np.diff(columns[:, i])
            top = top_step(steps)
            turns = (steps[:-1] * steps[1:] < 0) & (np.minimum(np.abs(steps[:-1]), np.abs(steps[1:])) > SHAKE * top)
            spans = tuple((a, b + 2) for a, b in stretches(turns) if b - a + 1 >= SHAKES and top > 0)
            if spans:
                worst = max(b - a - 1 for a, b in spans)
                yield Finding(
                    check="jerk",
                    severity="warning",
                    episode=episode.name,
                    stream=stream.name,
                    frames=spans,
                    seconds=times(spans, stream.timestamps),
                    dimensions=(int(i),),
                    value=float(worst),
                    message=f"{episode.name}: state {names[i]} shakes in {listed(spans)}: it turns round at "
                    f"{worst} frames in a row.",
                )
