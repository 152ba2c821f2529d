"""Where the arm grasped and let go in a demonstration, told from the gripper's commands and the measured positions.

gripper command   open open CLOSE close close OPEN open
position          p0   p1   p2    p3    p4    p5   p6     grasp p2, release p5
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_RANGE = 1e-3
"""A gripper command that varies less than this (raw units) over an episode does nothing."""
_GRIPPER = re.compile(r"grip|finger|thumb|claw|jaw|(^|_)hand(_|\b)", re.IGNORECASE)
_CARTESIAN = re.compile(
    r"(^|[_.\s])([xyz]|(eef|ee|tcp|tool)?_?(pos|position|xyz|trans|translation))(\[\d+\]|_?[xyz0-9])?$", re.IGNORECASE
)
_TURNED = re.compile(r"quat|rot|roll|pitch|yaw|euler|axis|orient|r6d|(^|[_.])r[xyz]$", re.IGNORECASE)


def grasp_and_release(
    state: np.ndarray, actions: np.ndarray, gripper_dims: Sequence[int], *, position_dims: Sequence[int] | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where something was taken and where it was let go.

    Which command closes a gripper is not known in general: an episode is taken to begin with an open one, and to carry
    during the longest run of commands on the other side of the middle of its range (as `holding_frames`
    tells). An attempt that failed is the shorter run.

    Args:
        state: [T, S] float, raw units.
        actions: [T, A] float, raw units, on the same clock.
        gripper_dims: of `actions`; of several (a hand) the one that moves most counts. Empty: nothing is known.
        position_dims: of `state`, of one unit (metres, or radians); None takes all.

    Returns:
        Two positions [D] float64: at the command that closes, and at the command that opens again. None for what did
        not happen: no grasp, or not let go until the end.
    """
    commands = gripper_track(actions, gripper_dims)
    if commands is None or state.shape[1] == 0:
        return None, None
    side = commands > (commands.min() + commands.max()) / 2
    carrying = np.concatenate([[False], side != side[0], [False]]).astype(np.int8)
    starts, ends = np.flatnonzero(np.diff(carrying) == 1), np.flatnonzero(np.diff(carrying) == -1)
    longest = int(np.argmax(ends - starts))
    positions = np.asarray(state, np.float64)[
        :, list(range(state.shape[1]) if position_dims is None else position_dims)
    ]
    start, end = int(starts[longest]), int(ends[longest])
    return positions[start], positions[end] if end < len(positions) else None


def gripper_track(actions: np.ndarray, gripper_dims: Sequence[int]) -> np.ndarray | None:
    """Commands [T] float64 of the gripper dimension that moves most; None where there is none, or none moves.

    Args:
        actions: [T, A] float, raw units.
        gripper_dims: of `actions`; may be empty.
    """
    dims = list(gripper_dims)
    if not dims or len(actions) == 0:
        return None
    commands = np.asarray(actions, np.float64)[:, dims]
    track = commands[:, int(np.argmax(np.ptp(commands, axis=0)))]
    return track if np.ptp(track) >= LEAST_RANGE else None


def holding_frames(commands: np.ndarray, threshold: float) -> np.ndarray:
    """Whether something is in the gripper, frame by frame.

    Args:
        commands: [T] the gripper's commands.
        threshold: between open and closed.

    Returns:
        [T] bool; all False when the command never crosses the threshold.
    """
    side = commands > threshold
    return np.concatenate([[False], side[:-1] != side[0]])


def position_dims(names: Sequence[str]) -> list[int]:
    """Which state dimensions say where the arm is, by their names.

    Those of a Cartesian position ("x", "robot0_eef_pos[1]") where there are any; else all that are neither a gripper's
    nor a rotation's (joints).
    """
    cartesian = [i for i, n in enumerate(names) if _CARTESIAN.search(n) and not _unfit(n) and "joint" not in n.lower()]
    return cartesian or [i for i, name in enumerate(names) if not _unfit(name)]


def _unfit(name: str) -> bool:
    return bool(_GRIPPER.search(name) or _TURNED.search(name))


def gripper_dims(names: Sequence[str], actions: np.ndarray) -> list[int]:
    """Which action dimensions command the gripper: by their names, else the last one where it is a switch.

    A switch has nine of ten values within a tenth of its range from either end.

    Args:
        names: one a dimension.
        actions: [T, A] of any episode, raw units.
    """
    named = [i for i, name in enumerate(names) if _GRIPPER.search(name)]
    if named or len(actions) == 0 or actions.shape[1] == 0:
        return named
    last = np.asarray(actions, np.float64)[:, -1]
    span = np.ptp(last)
    ends = np.minimum(last - last.min(), last.max() - last) <= 0.1 * span
    return [actions.shape[1] - 1] if span >= LEAST_RANGE and ends.mean() >= 0.9 else []


@dataclass(frozen=True)
class Told:
    """What one episode was told, and where its arm was; positions are [D] float64 in one unit, None where unknown.

    Attributes:
        episode: its name.
        instructions: what it was told; may be empty.
        names: other names that are no instruction (the file's stem).
        grasp, release: as of `grasp_and_release`.
        start, end: the first and last position.
        frames: how many frames the next two are over.
        mean: [D] of all positions.
        scatter: mean squared distance from that mean.
    """

    episode: str
    instructions: tuple[str, ...]
    names: tuple[str, ...] = ()
    grasp: np.ndarray | None = None
    release: np.ndarray | None = None
    start: np.ndarray | None = None
    end: np.ndarray | None = None
    frames: int = 0
    mean: np.ndarray | None = None
    scatter: float = 0.0


def told(
    episode: str,
    instructions: Sequence[str],
    state: np.ndarray,
    actions: np.ndarray,
    *,
    gripper_dims: Sequence[int] = (),
    position_dims: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> Told:
    """What `language.lint.lint` needs of an episode, a few numbers.

    Args:
        episode: its name.
        instructions: what it was told.
        state: [T, S] float, raw units; S may be 0.
        actions: [T, A] float, raw units.
        gripper_dims: of `actions`.
        position_dims: of `state`, of one unit; None takes all.
        names: other names that are no instruction (the file's stem).
    """
    chosen = list(range(state.shape[1]) if position_dims is None else position_dims)
    positions = np.asarray(state, np.float64)[:, chosen]
    if positions.size == 0:
        return Told(episode, tuple(instructions), tuple(names))
    grasp, release = grasp_and_release(state, actions, gripper_dims, position_dims=chosen)
    mean = positions.mean(axis=0)
    scatter = float(((positions - mean) ** 2).sum(axis=1).mean())
    ends = (positions[0], positions[-1])
    return Told(episode, tuple(instructions), tuple(names), grasp, release, *ends, len(positions), mean, scatter)


def spread(positions: Sequence[np.ndarray | None], fewest: int) -> float | None:
    """Unbiased root mean square distance from the mean; None when fewer than `fewest` are known."""
    known = [position for position in positions if position is not None]
    return float(np.sqrt(np.var(known, axis=0, ddof=1).sum())) if len(known) >= fewest else None


def reach(episodes: Sequence[Told]) -> float:
    """How widely the arm moves at all: the same of every position of every episode; 0 where nothing is known."""
    known = [told for told in episodes if told.mean is not None and told.frames]
    if not known:
        return 0.0
    frames = np.array([told.frames for told in known], np.float64)
    means = np.array([told.mean for told in known])
    centre = frames @ means / frames.sum()
    within = np.array([told.scatter for told in known])
    return float(np.sqrt(frames @ (within + ((means - centre) ** 2).sum(axis=1)) / frames.sum()))
