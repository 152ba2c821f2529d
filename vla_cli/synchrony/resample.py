"""Streams put on other ticks, each dimension in the way that fits what it is.

    images, grippers      the last sample at or before the tick: a camera cannot see ahead, a gripper is not half told
    positions, joints     linear between neighbours; held where they jump
    rotations             spherical between neighbours
    commands              absolute ones as the state; changes a step are summed up and differenced anew, so that another
                          rate does not mean another distance; others the nearest, never a blend of two

Ticks that are a stream's own stamps give its samples to the last bit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from vla_cli.episode import Stream, median_rate, native_rate
from vla_cli.synchrony.clocks import ALLOWANCE, SAME_RATE
from vla_cli.synchrony.dimensions import Parts, in_own_frame, knows_gripper, label, parts_of, stated
from vla_cli.synchrony.rotations import from_rotation, interpolate, make_continuous, make_positive, to_rotation

_ROUNDING = 1e-6  # of a step: numbers are taken at the tick itself, where a picture may be a little early


def hold(clock: np.ndarray, ticks: np.ndarray, slack: float = ALLOWANCE) -> np.ndarray:
    """Index [T] of the last sample at or before each tick, but for `slack` of a step."""
    allowance = slack * np.median(np.diff(ticks)) if len(ticks) > 1 else 0.0
    found = np.searchsorted(clock, ticks + allowance, side="right") - 1
    return np.clip(found, 0, len(clock) - 1)


def nearest(clock: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """Index [T] of the sample nearest to each tick; the earlier of two equally near, rounding errors aside.

    Without that allowance a tick midway between commands would take now this one and now that: one twice, one never.
    """
    rate = median_rate(clock)
    allowance = ALLOWANCE / rate if rate else 0.0
    after = np.clip(np.searchsorted(clock, ticks), 0, len(clock) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(ticks - clock[before] <= clock[after] - ticks + allowance, before, after)


def linear(clock: np.ndarray, values: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """Linear between neighbours, per dimension: [N, D] at [N] seconds to float64 [T, D].

    A dimension that jumps by more than half its range from one sample to the next (a gripper, an angle that wraps) is
    held across the jump: values in between never were.
    """
    values = np.asarray(values, np.float64)
    before = np.clip(np.searchsorted(clock, ticks, side="right") - 1, 0, len(clock) - 1)
    after = np.minimum(before + 1, len(clock) - 1)
    span = clock[after] - clock[before]
    share = np.where(span > 0, (ticks - clock[before]) / np.where(span > 0, span, 1.0), 0.0)
    low, high = values[before], values[after]
    held = (np.abs(high - low) > 0.5 * np.ptp(values, axis=0)) | (share <= 0)[:, None]
    return np.where(held, low, low + np.clip(share, 0.0, 1.0)[:, None] * (high - low))


def continuous(stream: Stream) -> tuple[Stream, list[str]]:
    """A vector stream with quaternions that do not change sign, and a note where they did.

    One whose log keeps w >= 0 (`quaternion_sign`: w-positive) is left: so will the robot give them.
    """
    parts = parts_of(stream)
    if not parts.kind.startswith("quaternion") or stated(stream, "quaternion_sign") == "w-positive":
        return stream, []
    values, flips = np.array(stream.values), 0
    for block in parts.blocks:
        values[:, block], found = make_continuous(values[:, block])
        flips += found
    if not flips:
        return stream, []
    note = f"{label(stream)}: its quaternions change sign {flips} time(s) without turning, and are made continuous"
    return replace(stream, values=values), [note]


def sample_state(stream: Stream, ticks: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A vector stream [N, D] at ticks [T]: float64 [T, D], and what could not be told of its dimensions."""
    if np.array_equal(stream.timestamps, ticks):
        return np.array(stream.values, np.float64), []
    parts = parts_of(stream)
    values = linear(stream.timestamps, stream.values, ticks)
    held = list(parts.grippers)
    values[:, held] = np.asarray(stream.values, np.float64)[hold(stream.timestamps, ticks, _ROUNDING)][:, held]
    notes = list(parts.notes)
    for block in parts.blocks:
        try:
            found = interpolate(stream.timestamps, stream.values[:, block], ticks, parts.kind, degrees=parts.degrees)
        except ValueError as error:
            notes.append(f"{label(stream)}: {error}, so that its rotation is interpolated as plain numbers")
            continue
        positive = stated(stream, "quaternion_sign") == "w-positive" and parts.kind.startswith("quaternion")
        values[:, block] = make_positive(found, parts.kind) if positive else found
    return values, notes


def sample_action(stream: Stream, ticks: np.ndarray, rate: float) -> tuple[np.ndarray, list[str]]:
    """An action stream [N, D] at ticks [T] of a control clock: float64 [T, D], and notes.

    Args:
        stream: the commands.
        ticks: seconds on the stream's clock.
        rate: ticks a second.
    """
    mode = stated(stream, "mode")
    if mode == "absolute":
        return sample_state(stream, ticks)
    if np.array_equal(stream.timestamps, ticks):
        return np.array(stream.values, np.float64), []
    near = np.asarray(stream.values, np.float64)[nearest(stream.timestamps, ticks)]
    native = native_rate(stream)
    if native <= 0 or abs(rate - native) <= SAME_RATE * rate or mode == "velocity":
        return near, []
    if mode == "delta" and knows_gripper(stream):
        parts = parts_of(stream)
        try:
            found = respread(stream, parts, ticks, rate)
        except ValueError as error:
            return near, [_warning(native, rate), f"{label(stream)}: {error}"]
        note = f"{label(stream)}: its changes a step are summed up at {native:.4g} Hz and differenced at {rate:.4g} Hz"
        return found, [note, *parts.notes]
    hint = (
        f"; vla collect-ingest SOURCE --out EPISODES --overwrite --set {stream.name}.gripper=open-high (or what it is)"
    )
    return near, [_warning(native, rate) + (f"{hint} lets them be summed up" if mode == "delta" else "")]


def respread(stream: Stream, parts: Parts, ticks: np.ndarray, rate: float) -> np.ndarray:
    """Changes a step [N, D] as the changes [T, D] that go the same way at other ticks.

    The change of a command is taken to happen evenly until the next one; each tick gets what happens until the next
    tick. So sums over the whole are kept, and rotations composed. Grippers are held.

    Raises:
        ValueError: a row means no rotation.
    """
    clock, values = stream.timestamps, np.asarray(stream.values, np.float64)
    knots = np.append(clock, clock[-1] + 1.0 / native_rate(stream))
    edges = np.append(ticks, ticks[-1] + 1.0 / rate)
    own = in_own_frame(stream)
    path = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    found = np.empty((len(ticks), values.shape[1]))
    for column in parts.plain:
        found[:, column] = np.diff(np.interp(edges, knots, path[:, column]))
    for block in parts.blocks:
        deltas = to_rotation(values[:, block], parts.kind, degrees=parts.degrees)
        turns = _composed(deltas, own)
        at = _slerp(knots, turns, edges)
        turned = at[:-1].inv() * at[1:] if own else at[1:] * at[:-1].inv()
        near = values[hold(clock, ticks)][:, block]
        found[:, block] = from_rotation(turned, parts.kind, near=near, degrees=parts.degrees)
        before = [block.start + offset for offset in (-3, -2, -1)]
        if own and set(before) <= set(parts.plain):
            steps = turns[:-1].apply(values[:, before])
            way = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
            moved = np.diff(np.stack([np.interp(edges, knots, column) for column in way.T], axis=1), axis=0)
            found[:, before] = at[:-1].inv().apply(moved)
    held = list(parts.grippers)
    found[:, held] = values[hold(clock, ticks)][:, held]
    return found


def _composed(deltas: Rotation, own: bool) -> Rotation:
    """The rotation before each change and after the last [N + 1]: each change is about fixed axes, or its own."""
    turns = [Rotation.identity()]
    for delta in deltas:
        turns.append(turns[-1] * delta if own else delta * turns[-1])
    return Rotation.concatenate(turns)


def _slerp(knots: np.ndarray, turns: Rotation, edges: np.ndarray) -> Rotation:
    last = np.append(np.flatnonzero(np.diff(knots) > 0), len(knots) - 1)
    kept = Rotation.from_quat(turns.as_quat()[last])
    return Slerp(knots[last], kept)(np.clip(edges, knots[last][0], knots[-1]))


def _warning(native: float, rate: float) -> str:
    done = "left out" if rate < native else "repeated"
    return (
        f"the action stream runs at {native:.4g} Hz and the dataset at {rate:.4g} Hz: commands are {done}, so that "
        "actions which are changes a step mean another distance now"
    )
