"""Where the robot appears in the picture: an affine map from positions to pixels, from what moves.

Between two frames of an episode only the gripper (and what it carries) changes its place, so the centre of mass of the
squared difference of two frames lies where the gripper was half-way. Regressed on the half-way position of the
proprioception, this gives

    pixel = matrix @ position + offset            pixel (column, row) as shares of the image's edges

without knowing what the gripper looks like. Assumptions, each checked: the camera stands still; the robot is the only
thing that moves; positions are measured in a frame that stands still; the table is (nearly) flat or the depth changes
little, so that the map is affine; the demonstrations move in as many directions as there are positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_cli.calibration.bars import NO_BARS, Bars, within
from vla_cli.calibration.robust import Fit, NotIdentified, robust_fit
from vla_cli.dataset import Demonstration

LEAST_PAIRS, MOST_PAIRS = 20, 1500
NOISE_FACTOR = 6.0
LEAST_DIFFERENCE = 8.0
"""Grey levels below which a difference is never taken for movement."""
LARGEST_ERROR = 0.02
"""Standard error of a corner's place, as a share of the image's edge, above which the map is not used."""
LEAST_EXPLAINED = 0.8
ACROSS = "a demonstration that moves the gripper across the whole table, in every direction"
LEAST_SPREAD = 1e-3
"""Spread of the positions along their least used direction, as a share of the most used one."""


@dataclass(frozen=True)
class CameraMap:
    """pixel = matrix @ position + offset, pixels (column, row) as shares of the image's edges.

    Attributes:
        matrix: [2, P] float64, a share of the edge per unit of position.
        offset: [2] float64.
        error: standard error of where a position seen in the demonstrations is drawn, share of the edge.
        centre: [P] mean position of the demonstrations, where there are more than two; else None.
        reach: [P] how far they go to either side, likewise: metres and radians do not compare. Of more than two
            positions some may not move what the picture shows, as rotations of the gripper: their columns are zero.
    """

    matrix: np.ndarray
    offset: np.ndarray
    error: float = 0.0
    centre: np.ndarray | None = None
    reach: np.ndarray | None = None

    def project(self, positions: np.ndarray) -> np.ndarray:
        """Positions [N, P] to pixels [N, 2]."""
        return positions @ self.matrix.T + self.offset

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        more = {key: getattr(self, key) for key in ("centre", "reach")}
        known = {key: value.tolist() for key, value in more.items() if value is not None}
        return {"matrix": self.matrix.tolist(), "offset": self.offset.tolist(), "error": self.error, **known}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> CameraMap:
        """Inverse of `document`."""
        matrix, offset = (np.array(document[key], float) for key in ("matrix", "offset"))
        more = {key: np.array(document[key], float) for key in ("centre", "reach") if key in document}
        return cls(matrix, offset, float(document["error"]), **more)


def fit_camera(
    demonstrations: Sequence[Demonstration], camera: str, positions: Sequence[int], base: CameraMap | None = None
) -> CameraMap:
    """The map of one camera.

    Args:
        demonstrations: with image and state; frames follow each other in time.
        camera: which.
        positions: indices of the state's position dimensions.
        base: the map that this one is to be compared with: where it goes, and which positions matter in it.

    Raises:
        NotIdentified: nothing moves, the picture does not follow the position, or the positions do not spread.
    """
    where, seen = _movements(demonstrations, camera, list(positions))
    if len(where) < LEAST_PAIRS:
        steps, fast = _steps(demonstrations, list(positions))
        moving = int(sum((moved > fast).sum() for moved in steps))
        if moving < LEAST_PAIRS:
            raise NotIdentified(
                f"camera '{camera}': the gripper moves between only {moving} pairs of frames",
                f"more demonstrations: {LEAST_PAIRS} pairs at the least",
            )
        raise NotIdentified(
            f"camera '{camera}': only {len(where)} pairs of frames show movement",
            "a camera that stands still and sees the gripper move",
        )
    if len(positions) <= 2:
        fit = robust_fit(where, seen)
        return CameraMap(fit.slope.T, fit.intercept, _checked(fit, camera, _error(fit, where)))
    return _fit_of_many(where, seen, camera, base)


def _fit_of_many(where: np.ndarray, seen: np.ndarray, camera: str, base: CameraMap | None) -> CameraMap:
    """The map from more than two positions [N, P], in whatever units, some of which may not matter."""
    reach = _reach(where) if base is None or base.reach is None else base.reach
    used = np.asarray(reach > 0 if base is None else base.matrix.any(axis=0), bool)
    if not used.any():
        raise NotIdentified(f"camera '{camera}': no position changes", ACROSS)
    fit = robust_fit(where[:, used] / reach[used], seen)
    idle = np.abs(fit.slope).max(axis=1) < LARGEST_ERROR
    if base is None and idle.any() and not idle.all():
        used = np.isin(np.arange(len(used)), np.flatnonzero(used)[~idle])
        fit = robust_fit(where[:, used] / reach[used], seen)
    error = _checked(fit, camera, _error(fit, where[:, used] / reach[used], span=1.0))
    matrix = np.zeros((2, where.shape[1]))
    matrix[:, used] = fit.slope.T / reach[used]
    return CameraMap(matrix, fit.intercept, error, where.mean(axis=0), reach)


def _reach(where: np.ndarray) -> np.ndarray:
    """How far positions [N, P] go to either side, [P]."""
    return (np.quantile(where, 0.98, axis=0) - np.quantile(where, 0.02, axis=0)) / 2


def _checked(fit: Fit, camera: str, error: float) -> float:
    """The error of a fit that may be used.

    Raises:
        NotIdentified: it may not.
    """
    if min(fit.explained) < LEAST_EXPLAINED:
        raise NotIdentified(
            f"camera '{camera}': what moves in the picture does not follow the gripper's position "
            f"({min(fit.explained):.0%} explained)",
            "a camera that stands still; a camera on the wrist is not mapped",
        )
    if error > LARGEST_ERROR:
        raise NotIdentified(
            f"camera '{camera}': the demonstrations move along too few directions (where a position is drawn is "
            + (f"uncertain by {error:.1%} of the picture)" if np.isfinite(error) else "unknown beside a line)"),
            ACROSS,
        )
    return error


def _movements(
    demonstrations: Sequence[Demonstration], camera: str, positions: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Half-way positions [N, P] and where the picture changed [N, 2], of successive frames that differ."""
    steps, fast = _steps(demonstrations, positions)
    stride = max(1, sum(len(s) for s in steps) // MOST_PAIRS)
    where, seen = [], []
    for demonstration, moved in zip(demonstrations, steps, strict=True):
        images, state = demonstration.images[camera], demonstration.state[:, positions]
        for t in np.flatnonzero(moved > fast)[::stride]:
            centre = _centre_of_change(images[t], images[t + 1])
            if centre is not None:
                where.append((state[t] + state[t + 1]) / 2)
                seen.append(centre)
    return np.array(where, float).reshape(-1, len(positions)), np.array(seen, float).reshape(-1, 2)


def _steps(demonstrations: Sequence[Demonstration], positions: list[int]) -> tuple[list[np.ndarray], float]:
    """How far each demonstration moves from frame to frame, [T - 1] each; and above what it is movement."""
    steps = [np.linalg.norm(np.diff(d.state[:, positions], axis=0), axis=1) for d in demonstrations]
    every = np.concatenate(steps)
    return steps, 0.25 * float(np.quantile(every, 0.9)) if len(every) else 0.0


def _centre_of_change(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """Centre of mass (column, row) of the change between two frames, shares of the edges; None where nothing moved."""
    change = np.abs(after.astype(np.float32) - before).mean(-1)
    # most of a picture stands still: its median difference is the sensor's noise
    weight = np.maximum(change - max(NOISE_FACTOR * float(np.median(change)) * 1.4826, LEAST_DIFFERENCE), 0.0)
    total = weight.sum()
    if total <= 0:
        return None
    height, width = weight.shape
    columns, rows = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return np.array([weight.sum(0) @ columns, weight.sum(1) @ rows]) / total


def _error(fit: Fit, where: np.ndarray, span: float | None = None) -> float:
    """Standard error of the map over the square that the positions span, in every direction alike.

    Args:
        fit: of the positions.
        where: [N, P] positions.
        span: to either side of their middle; None for the largest that they span themselves.
    """
    spread = np.linalg.svd(where - where.mean(0), compute_uv=False)
    if spread[-1] < LEAST_SPREAD * spread[0]:
        return float("inf")  # the covariance of a fit on a line knows nothing of what lies beside it
    reach = float(_reach(where).max()) if span is None else span
    centre = np.median(where, axis=0)
    corners = [centre + reach * s for s in (*np.eye(len(centre)), *-np.eye(len(centre)), np.ones(len(centre)))]
    return float(max(fit.error_at(np.array(c)).max() for c in corners))


def warp(images: np.ndarray, base: CameraMap, here: CameraMap, bars: Bars = NO_BARS) -> np.ndarray:
    """Redraw images as the base's camera would see them; what comes in from outside repeats the edge.

    Args:
        images: float32 [N, H, W, 3] in 0..255, as this deployment's camera sees them.
        base: the base's map. here: this deployment's.
        bars: of the images; they stay where they are, and what lies within them is redrawn.

    Returns:
        float32 [N, H, W, 3].
    """
    height, width = images.shape[1:3]
    linear, shift = between(base, here)
    columns, rows = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    source = np.stack([columns, rows], -1) @ linear.T + shift
    above, _, left, _ = bars
    columns, rows = source[..., 0] * width - 0.5 - left, source[..., 1] * height - 0.5 - above
    redrawn = _bilinear(within(images, bars), columns, rows)
    if bars == NO_BARS:
        return redrawn
    found = images.copy()
    within(found, bars)[:] = within(redrawn, bars)
    return found


def _bilinear(images: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values of images [N, H, W, 3] at fractional pixels [H, W]; outside, those of the edge."""
    height, width = images.shape[1:3]
    columns, rows = np.clip(columns, 0, width - 1), np.clip(rows, 0, height - 1)
    left, top = np.minimum(columns.astype(int), width - 2), np.minimum(rows.astype(int), height - 2)
    x, y = (columns - left).astype(np.float32)[..., None], (rows - top).astype(np.float32)[..., None]
    upper = images[:, top, left] * (1 - x) + images[:, top, left + 1] * x
    lower = images[:, top + 1, left] * (1 - x) + images[:, top + 1, left + 1] * x
    return upper * (1 - y) + lower * y


def between(base: CameraMap, here: CameraMap) -> tuple[np.ndarray, np.ndarray]:
    """The affine map (linear [2, 2], shift [2]) from a place in the base's picture to the same place in this one.

    With more than two positions the base's picture does not fix all of them: of the positions that are drawn there, the
    one nearest to the demonstrations' middle is taken (in shares of the base's reach), wherever the frame's origin is.
    """
    scale = np.ones(base.matrix.shape[1]) if base.reach is None else base.reach
    linear = here.matrix * scale @ np.linalg.pinv(base.matrix * scale)
    if here.centre is None:
        return linear, here.offset - linear @ base.offset
    middle = here.centre[None]
    return linear, here.project(middle)[0] - linear @ base.project(middle)[0]
