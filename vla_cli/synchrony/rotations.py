"""Rotations in the ways that logs write them, with the arithmetic that plain numbers do not have.

    kind              columns                                                            source
    quaternion-xyzw   x y z w                                                            ROS, scipy
    quaternion-wxyz   w x y z                                                            MuJoCo
    axis-angle        rotation vector: axis times angle                                  robosuite, UMI, UR robots
    euler-xyz         angles about the fixed x, y, z axes in turn (roll, pitch, yaw)     ROS REP 103, DROID
    rotation-6d       the first two rows of the rotation matrix                          PyTorch3D, UMI (Zhou 2019)

Angles are in radians, or in degrees where `degrees` says so.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

WIDTHS: dict[str, int] = {
    "quaternion-xyzw": 4,
    "quaternion-wxyz": 4,
    "axis-angle": 3,
    "euler-xyz": 3,
    "rotation-6d": 6,
}
"""Kind to its number of columns."""

ANGLES = ("axis-angle", "euler-xyz")
"""The kinds whose numbers are angles, which have a unit."""

_TINY = 1e-6  # a quaternion or a row shorter than this has no direction
_TURN = 2 * np.pi


def to_rotation(values: np.ndarray, kind: str, *, degrees: bool = False) -> Rotation:
    """The rotations that rows [T, `WIDTHS[kind]`] mean. Quaternions and 6d rows need not be of unit length.

    Raises:
        ValueError: a row means none: a quaternion of length 0, or parallel or empty rows of a matrix.
    """
    values = np.asarray(values, np.float64)
    if kind.startswith("quaternion"):
        if np.any(np.linalg.norm(values, axis=1) < _TINY):
            raise ValueError("a quaternion has length 0")
        return Rotation.from_quat(np.roll(values, -1, axis=1) if kind == "quaternion-wxyz" else values)
    if kind == "rotation-6d":
        return Rotation.from_matrix(_matrices(values))
    angles = np.radians(values) if degrees else values
    return Rotation.from_rotvec(angles) if kind == "axis-angle" else Rotation.from_euler("xyz", angles)


def from_rotation(
    rotation: Rotation, kind: str, *, near: np.ndarray | None = None, degrees: bool = False, bounded: bool = True
) -> np.ndarray:
    """Rows [T, `WIDTHS[kind]`] that mean the rotations; the inverse of `to_rotation`.

    Args:
        rotation: T rotations.
        kind: a key of `WIDTHS`.
        near: [T, ...] rows of the same kind; of the rows that mean one rotation, the nearest to these is taken (the
            sign of a quaternion, the branch of angles).
        degrees: angles are in degrees.
        bounded: angles stay within half a turn even if `near` suggests another branch.
    """
    if kind.startswith("quaternion"):
        values = rotation.as_quat()
        values = np.roll(values, 1, axis=1) if kind == "quaternion-wxyz" else values
        return values if near is None else np.where(np.sum(values * near, axis=1, keepdims=True) < 0, -values, values)
    if kind == "rotation-6d":
        return rotation.as_matrix()[:, :2, :].reshape(-1, 6)
    wanted = None if near is None else np.radians(near) if degrees else np.asarray(near, np.float64)
    found = _vectors(rotation, wanted, bounded) if kind == "axis-angle" else _eulers(rotation, wanted, bounded)
    return np.degrees(found) if degrees else found


def convert(values: np.ndarray, source: str, target: str, *, degrees: bool = False) -> np.ndarray:
    """Rows of one kind in another, [T, `WIDTHS[source]`] to [T, `WIDTHS[target]`].

    Raises:
        ValueError: as for `to_rotation`.
    """
    return from_rotation(to_rotation(values, source, degrees=degrees), target, degrees=degrees)


def interpolate(
    clock: np.ndarray, values: np.ndarray, ticks: np.ndarray, kind: str, *, degrees: bool = False
) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985, scipy's Slerp): constant angular speed along the shorter way.

    Args:
        clock: [N] float64 seconds, not decreasing; of doubled stamps the last sample counts.
        values: [N, `WIDTHS[kind]`].
        ticks: [T] float64 seconds; outside the clock the nearest sample is held.
        kind, degrees: what the rows are.

    Returns:
        [T, `WIDTHS[kind]`] float64; where a tick is a sample's own time, that sample to the last bit.

    Raises:
        ValueError: as for `to_rotation`.
    """
    values = np.asarray(values, np.float64)
    last = np.append(np.flatnonzero(np.diff(clock) > 0), len(clock) - 1)
    clock, values = clock[last], values[last]
    rotation = to_rotation(values, kind, degrees=degrees)
    inside = np.clip(ticks, clock[0], clock[-1])
    before = np.searchsorted(clock, inside, side="right") - 1
    after = np.minimum(before + 1, len(clock) - 1)
    nearer = np.where(inside - clock[before] <= clock[after] - inside, before, after)
    if len(clock) == 1:
        return values[before]
    found = from_rotation(
        Slerp(clock, rotation)(inside),
        kind,
        near=values[nearer],
        degrees=degrees,
        bounded=_is_bounded(values, kind, degrees),
    )
    return np.where((clock[before] == inside)[:, None], values[before], found)


def make_continuous(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Quaternions [T, 4] without changes of sign: q and -q are one rotation, and a policy should see one number.

    The first keeps its sign; each other one takes the sign that is nearer to the one before.

    Returns:
        The quaternions, and how many times the recorded ones changed sign.
    """
    flips = np.sum(values[1:] * values[:-1], axis=1) < 0
    signs = np.where(np.cumsum(np.concatenate([[False], flips])) % 2 == 1, -1.0, 1.0)
    return values * signs[:, None].astype(values.dtype), int(flips.sum())


def make_positive(values: np.ndarray, kind: str) -> np.ndarray:
    """Quaternions [T, 4] with w >= 0."""
    real = values[:, 0 if kind == "quaternion-wxyz" else 3]
    return np.where((real < 0)[:, None], -values, values)


def _matrices(values: np.ndarray) -> np.ndarray:
    """Gram-Schmidt, as Zhou et al. 2019 (1812.07035), equation 14."""
    first, second = values[:, :3], values[:, 3:]
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    x = first / np.maximum(lengths, _TINY)
    rest = second - np.sum(x * second, axis=1, keepdims=True) * x
    heights = np.linalg.norm(rest, axis=1, keepdims=True)
    if np.any(lengths < _TINY) or np.any(heights < _TINY):
        raise ValueError("the rows of a 6d rotation are empty or parallel")
    y = rest / heights
    return np.stack([x, y, np.cross(x, y)], axis=1)


def _vectors(rotation: Rotation, near: np.ndarray | None, bounded: bool) -> np.ndarray:
    found = rotation.as_rotvec()
    if near is None or bounded:
        return found
    angles = np.linalg.norm(found, axis=1, keepdims=True)
    lengths = np.linalg.norm(near, axis=1, keepdims=True)
    axes = np.where(angles > _TINY, found / np.maximum(angles, _TINY), near / np.maximum(lengths, _TINY))
    turns = np.round((np.sum(axes * near, axis=1, keepdims=True) - angles) / _TURN)
    return found + turns * _TURN * axes


def _eulers(rotation: Rotation, near: np.ndarray | None, bounded: bool) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gimbal lock: any of the triples that mean the rotation will do
        one = rotation.as_euler("xyz")
    if near is None:
        return one
    other = _wrapped(np.stack([one[:, 0] + np.pi, np.pi - one[:, 1], one[:, 2] + np.pi], axis=1))
    steps = np.stack([_wrapped(one - near), _wrapped(other - near)])
    best = np.abs(steps).sum(axis=2).argmin(axis=0)
    chosen = near + steps[best, np.arange(len(one))]
    return _wrapped(chosen) if bounded else chosen


def _wrapped(angles: np.ndarray) -> np.ndarray:
    return angles - _TURN * np.round(angles / _TURN)


def _is_bounded(values: np.ndarray, kind: str, degrees: bool) -> bool:
    half = (180.0 if degrees else np.pi) + _TINY
    sizes = np.linalg.norm(values, axis=1) if kind == "axis-angle" else np.abs(values)
    return bool(np.all(sizes <= half))
