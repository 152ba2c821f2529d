"""What one demonstration shows of the hand that made it: speed, approach, grasp, path, pauses.

path [T, P]    the state's moving columns, each in units of its range over the set (q01 to q99)
length [T]     how far along the path, from 0
progress       0 to 1 from the first frame to the last

speed          length over time, in each of `BINS` equal parts of the episode
approach       unit vector to the grasp from where the last `APPROACH` of the way to it begins
grasp          the first frame at which the gripper's command changes for good (`HOLD` frames)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cli.errors import ConfigError
from vla_cli.stats import CONSTANT_RANGE
from vla_cli.synchrony.rotations import WIDTHS, to_rotation
from vla_cli.synchrony.stillness import moves

BINS = 20
POINTS = 25
"""Of a resampled path, evenly along its length: a slow and a fast hand on one path give the same points."""
APPROACH = 0.25
"""Of the way from the start to the grasp: the last of the reach, without the dwell before the fingers close."""
HOLD = 3
"""Frames for which a changed gripper command must last; shorter is chatter."""
STILL = 1e-3
"""Of a dimension's range over the set: a smaller step of `stillness.STEP_RATE` is no move (as
`synchrony.synchronise.IDLE_SHARE`)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """The numbers of one demonstration on the control clock.

    Attributes:
        name: the episode's.
        operator: who demonstrated, or "unknown".
        instruction: what was asked; may be empty.
        state: [T, S], the log's own units; S may be 0 (then the actions stand for it).
        actions: [T, A].
        rate_hz: frames a second.
        gripper: the column of `actions` that is the gripper's command, or None.
    """

    name: str
    operator: str
    instruction: str
    state: np.ndarray
    actions: np.ndarray
    rate_hz: float
    gripper: int | None = None


@dataclass(frozen=True, eq=False)
class Space:
    """How the paths of a set are measured, the same for all its episodes.

    Attributes:
        columns: of the state (of the actions where there is no state) that make the path.
        low, span: [P] q01, and q99 - q01, over the set.
        level: the gripper's command between open and closed, or None where it never changes.
        rotation: first column of a rotation in the state and its kind (`synchrony.rotations.WIDTHS`), or None.
        degrees: its angles are in degrees.
    """

    columns: tuple[int, ...]
    low: np.ndarray
    span: np.ndarray
    level: float | None = None
    rotation: tuple[int, str] | None = None
    degrees: bool = False


@dataclass(frozen=True, eq=False)
class Habits:
    """One demonstration's figures; speeds in ranges of the set a second.

    Attributes:
        operator, instruction: whose, and what of.
        frames: how many.
        seconds: from the first to the last.
        speed: mean over the episode.
        profile: [BINS] speed over progress.
        idle: share of the steps in which nothing moves.
        path: [POINTS, P] evenly along its length.
        approach: [P] unit vector, or None without a grasp or a way to it.
        grasp: the rotation at the grasp, or None.
    """

    operator: str
    instruction: str
    frames: int
    seconds: float
    speed: float
    profile: np.ndarray
    idle: float
    path: np.ndarray
    approach: np.ndarray | None
    grasp: Rotation | None


def space_of(
    records: Sequence[Record],
    *,
    position: Sequence[int] | None = None,
    rotation: tuple[int, str] | None = None,
    degrees: bool = False,
) -> Space:
    """Measure a set.

    Args:
        records: at least one.
        position: columns of the state that are the hand's position, if they are known: they alone make the path, and
            share one scale, so that directions are true. Else every column that moves and is no switch or rotation.
        rotation: first column and kind of the hand's rotation in the state, if there is one.
        degrees: its angles are in degrees.

    Raises:
        ConfigError: a column or a kind does not exist.
    """
    values = np.concatenate([_moved(record) for record in records])
    width = values.shape[1]
    turning = range(rotation[0], rotation[0] + WIDTHS.get(rotation[1], 0)) if rotation else range(0)
    wrong = [index for index in (*(position or ()), *turning) if not 0 <= index < width]
    if wrong or (rotation and rotation[1] not in WIDTHS):
        raise ConfigError(f"The state has no {wrong or rotation}", expected=f"columns below {width}")
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    span = high - low
    if position is None:
        moving = [i for i in range(width) if span[i] > CONSTANT_RANGE * max(1.0, abs(low[i])) and i not in turning]
        columns = tuple(i for i in moving if len(np.unique(values[:, i])) > 2)
    else:
        columns = tuple(position)
    chosen = list(columns)
    scale = np.full(len(chosen), span[chosen].max(initial=0.0) or 1.0) if position is not None else span[chosen]
    return Space(columns, low[chosen], scale, _level(records), rotation, degrees)


def habits_of(record: Record, space: Space) -> Habits:
    """The figures of one demonstration of at least one frame."""
    path = (_moved(record)[:, list(space.columns)] - space.low) / space.span
    steps = np.diff(path, axis=0)
    length = np.append(0.0, np.cumsum(np.linalg.norm(steps, axis=1)))
    seconds = max(len(path) - 1, 1) / record.rate_hz
    edges = np.interp(np.linspace(0, max(len(path) - 1, 1), BINS + 1), np.arange(len(path)), length)
    grasp = _grasp(record, space)
    return Habits(
        operator=record.operator,
        instruction=record.instruction,
        frames=len(path),
        seconds=seconds,
        speed=float(length[-1] / seconds),
        profile=np.diff(edges) * BINS / seconds,
        idle=float(np.mean(~moves(path, STILL, record.rate_hz).any(axis=1))) if len(steps) else 1.0,
        path=_along(path, length, np.linspace(0, length[-1], POINTS)),
        approach=None if grasp is None else _approach(path, length, grasp),
        grasp=None if grasp is None else _orientation(record, space, grasp),
    )


def _moved(record: Record) -> np.ndarray:
    """[T, S] what the path is taken from."""
    found = record.state
    if not found.shape[1]:
        arm = [index for index in range(record.actions.shape[1]) if index != record.gripper]
        found = record.actions[:, arm]
    return np.asarray(found, np.float64)


def _level(records: Sequence[Record]) -> float | None:
    commands = [record.actions[:, record.gripper] for record in records if record.gripper is not None]
    if not commands:
        return None
    low, high = min(float(c.min()) for c in commands), max(float(c.max()) for c in commands)
    return (low + high) / 2 if high > low else None


def _grasp(record: Record, space: Space) -> int | None:
    """The first frame of the first lasting change of the gripper's command."""
    if record.gripper is None or space.level is None:
        return None
    above = record.actions[:, record.gripper] > space.level
    changes = np.append(np.flatnonzero(np.diff(above)) + 1, len(above))
    lasting = changes[:-1][np.diff(changes) >= HOLD]
    return int(lasting[0]) if len(lasting) else None


def _approach(path: np.ndarray, length: np.ndarray, grasp: int) -> np.ndarray | None:
    begin = _along(path, length, np.array([(1 - APPROACH) * length[grasp]]))[0]
    way = path[grasp] - begin
    size = float(np.linalg.norm(way))
    return way / size if size > STILL else None


def _orientation(record: Record, space: Space, grasp: int) -> Rotation | None:
    if space.rotation is None or not record.state.shape[1]:
        return None
    first, kind = space.rotation
    try:
        return to_rotation(record.state[grasp : grasp + 1, first : first + WIDTHS[kind]], kind, degrees=space.degrees)[
            0
        ]
    except ValueError:
        return None


def _along(path: np.ndarray, length: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[N, P] the path at lengths `where` [N]."""
    found = np.empty((len(where), path.shape[1]))
    for column in range(path.shape[1]):
        found[:, column] = np.interp(where, length, path[:, column])
    return found
