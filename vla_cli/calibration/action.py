"""What a command does: displacement per command.

    displacement_t = position_{t+1} - position_t = gain @ command_t          gain [P, K]

Assumptions, each checked: commands are displacements (or velocities), not target positions; they act within a step;
the demonstrations command every direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vla_cli.calibration.grippers import MOST_VALUES, Gripper, find_grippers
from vla_cli.calibration.robust import Fit, NotIdentified, robust_fit
from vla_cli.dataset import Demonstration

LEAST_EXPLAINED = 0.8
LARGEST_ERROR = 0.08
"""Largest standard error of what a large command does to a position, as a share of its largest displacement."""
LEAST_SPREAD = 0.05
"""Spread of the commands, as shares of a large one, along their least used direction."""
RESTS = 0.05
"""Displacement, as a share of its standard deviation, below which a position rests; commands may miss it by as much."""
ALONE = "a demonstration that moves along each axis by itself"
WORST_CONDITION = 50.0
"""Largest ratio of the strongest to the weakest direction of a matrix that commands are divided by."""


@dataclass(frozen=True)
class ActionFacts:
    """How a robot answers to commands.

    Attributes:
        positions: state dimensions [P] that follow commands as displacements.
        commands: action dimensions [K] that move them.
        gain: [P, K] displacement in a step per unit of command.
        limit: [K] largest command seen.
        gripper_state, gripper_command: state and action dimension of the gripper, or -1 where none was found.
        gripper_sign: 1 when the state rises with the command, else -1.
        delay: control steps from the gripper's command to its state's flip, beyond the step itself.
        others: further grippers, as of a second arm.
    """

    positions: tuple[int, ...]
    commands: tuple[int, ...]
    gain: np.ndarray
    limit: np.ndarray
    gripper_state: int = -1
    gripper_command: int = -1
    gripper_sign: int = 1
    delay: int = 0
    others: tuple[Gripper, ...] = ()

    @property
    def grippers(self) -> list[Gripper]:
        """All of them, the first one first; empty where none was found."""
        if self.gripper_state < 0:
            return []
        return [Gripper(self.gripper_state, self.gripper_command, self.gripper_sign, self.delay), *self.others]

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "positions": list(self.positions),
            "commands": list(self.commands),
            "gain": self.gain.tolist(),
            "limit": self.limit.tolist(),
            "gripper_state": self.gripper_state,
            "gripper_command": self.gripper_command,
            "gripper_sign": self.gripper_sign,
            "delay": self.delay,
            **({"others": [asdict(other) for other in self.others]} if self.others else {}),
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> ActionFacts:
        """Inverse of `document`."""
        return cls(
            **{
                **document,
                "positions": tuple(document["positions"]),
                "commands": tuple(document["commands"]),
                "gain": np.array(document["gain"], float),
                "limit": np.array(document["limit"], float),
                "others": tuple(Gripper(**other) for other in document.get("others", [])),
            }
        )


def measure_actions(demonstrations: Sequence[Demonstration]) -> ActionFacts:
    """Find which commands move which positions, by how much, and the gripper's pair and delay.

    Raises:
        NotIdentified: no state dimension follows the commands as a displacement.
    """
    commands, moved = _displacements(demonstrations)
    if len(commands) == 0 or moved.shape[1] == 0:
        raise NotIdentified("there are no states, or no two successive frames", "states that hold the position")
    found = _fit(commands, moved)
    positions = tuple(int(i) for i in np.flatnonzero((found.explained > LEAST_EXPLAINED) & (moved.std(0) > 1e-9)))
    # a two-valued state that flips with a command is no position
    states = np.concatenate([d.state for d in demonstrations])
    positions = tuple(i for i in positions if len(np.unique(states[:, i])) > MOST_VALUES)
    if not positions:
        raise NotIdentified(
            "no state dimension moves as the commands say (are the actions target positions?)",
            "states that hold the position which the actions displace",
        )
    strength = np.abs(found.slope[:, positions]) * commands.std(0)[:, None]
    # metres and radians do not compare: a command counts that moves any position, measured by that position's own moves
    moves = (strength > 0.1 * strength.max(axis=0)).any(axis=1)
    chosen = tuple(int(i) for i in np.flatnonzero(moves))
    if not chosen:
        raise NotIdentified("no command moves a position", ALONE)
    gain = fit_gain(demonstrations, positions, chosen)
    limit = np.abs(commands[:, chosen]).max(axis=0)
    grippers = find_grippers(demonstrations, positions, chosen)
    if not grippers:
        return ActionFacts(positions, chosen, gain, limit)
    first = grippers[0]
    return ActionFacts(
        positions, chosen, gain, limit, first.state, first.command, first.sign, first.delay, tuple(grippers[1:])
    )


def fit_gain(
    demonstrations: Sequence[Demonstration],
    positions: Sequence[int],
    commands: Sequence[int],
    limit: np.ndarray | None = None,
) -> np.ndarray:
    """Displacement per command [P, K].

    Args:
        demonstrations: raw units.
        positions, commands: which dimensions.
        limit: [K] what a large command is in each one's unit; None for the largest seen.

    Raises:
        NotIdentified: the commands do not explain the displacements, or not every direction was commanded.
    """
    x, y = _displacements(demonstrations)
    x, y = x[:, list(commands)], y[:, list(positions)]
    fit = _fit(x, y)
    # metres and radians do not compare, but shares of a large command do
    large = np.maximum(np.abs(x).max(axis=0) if limit is None else limit, 1e-9)
    _, spread, directions = np.linalg.svd((x - x.mean(0)) / large, full_matrices=False)
    if spread[-1] / np.sqrt(len(x)) <= LEAST_SPREAD:
        raise NotIdentified(
            f"the demonstrations do not command every direction ({_rare(directions[-1], commands)})", ALONE
        )
    if min(fit.explained) < LEAST_EXPLAINED:
        worst = positions[int(np.argmin(fit.explained))]
        raise NotIdentified(
            f"the commands explain only {min(fit.explained):.0%} of the displacements of state dimension {worst}",
            "states and actions of one clock, with commands that act within a step",
        )
    moves = np.abs(fit.slope * large[:, None]).max(axis=0)
    error = float((fit.slope_error * large[:, None] / np.maximum(moves, 1e-9)).max())
    if error > LARGEST_ERROR:
        raise NotIdentified(
            f"the demonstrations do not command every direction enough (a gain is uncertain by {min(error, 1.0):.0%})",
            ALONE,
        )
    return fit.slope.T


def _rare(direction: np.ndarray, commands: Sequence[int]) -> str:
    """What the demonstrations do not do, by the direction [K] along which their commands spread least."""
    share = np.abs(direction)
    named = [str(commands[int(i)]) for i in np.flatnonzero(share > 0.3 * share.max())]
    if len(named) == 1:
        return f"action dimension {named[0]} hardly changes"
    return f"action dimensions {', '.join(named[:-1])} and {named[-1]} only change together"


def _fit(commands: np.ndarray, moved: np.ndarray) -> Fit:
    """Displacements [N, P] by commands [N, K], of the frames that move.

    Where a position rests in most frames, these are fitted exactly and the spread of the residuals is theirs: nothing.
    Then whatever moves is an outlier, and a gain of zero explains the rest. So frames that move must be fitted too.
    """
    fit, scale = robust_fit(commands, moved), np.maximum(moved.std(0), 1e-9)
    missed = np.abs(moved - commands @ fit.slope - fit.intercept) / scale
    moving = np.abs(moved) > RESTS * scale
    if all(np.median(missed[rows, p]) <= RESTS for p, rows in enumerate(moving.T) if rows.any()):
        return fit
    return robust_fit(commands, moved, RESTS * scale)


def invertible(ratio: np.ndarray) -> np.ndarray:
    """A ratio of gains [K, K], where commands can be divided by it.

    Raises:
        NotIdentified: they cannot, or only by making some of them very large.
    """
    values = np.linalg.svd(ratio, compute_uv=False)
    if values[0] > WORST_CONDITION * values[-1]:
        told = int((WORST_CONDITION * values > values[0]).sum())
        raise NotIdentified(
            f"{len(ratio)} commands move the robot in {told} direction(s), so that what each does cannot be told",
            "as many positions in the state as there are commands, each moved by a command of its own",
        )
    return ratio


def _displacements(demonstrations: Sequence[Demonstration]) -> tuple[np.ndarray, np.ndarray]:
    """Commands [N, A] and the state's change in the same step [N, S]."""
    commands = np.concatenate([d.actions[:-1] for d in demonstrations]).astype(np.float64)
    moved = np.concatenate([np.diff(d.state, axis=0) for d in demonstrations]).astype(np.float64)
    return commands, moved


def to_base(actions: np.ndarray, ratio: np.ndarray, commands: Sequence[int]) -> np.ndarray:
    """This robot's commands [..., A] as the base would have given them: `ratio` [K, K] times the moving part."""
    found = np.array(actions, np.float64)
    found[..., list(commands)] = found[..., list(commands)] @ ratio.T
    return found.astype(np.float32)


def from_base(actions: np.ndarray, ratio: np.ndarray, commands: Sequence[int], limit: np.ndarray) -> np.ndarray:
    """Inverse of `to_base`; a command beyond `limit` [K] is shortened as a whole, so that its direction stays."""
    found = np.array(actions, np.float64)
    moving = found[..., list(commands)] @ np.linalg.inv(ratio).T
    over = np.maximum(np.abs(moving) / np.maximum(limit, 1e-9), 1.0).max(axis=-1, keepdims=True)
    found[..., list(commands)] = moving / over
    return found.astype(np.float32)
