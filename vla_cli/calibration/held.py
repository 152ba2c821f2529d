"""Which action dimensions hold a value: all others are changes, where zero stands still.

Beside the commands that displace a position, an action may say how something is to be: a mode, a gripper, an
orientation. An arm that waits must not be sent zeros there, nor one that goes slowly a part of it a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vla_cli.calibration.action import ActionFacts
from vla_cli.calibration.grippers import MOST_VALUES
from vla_cli.dataset import Demonstration

LIKE_A_STATE = 0.95
"""Correlation with a state of the next step above which a dimension says what that state is to be."""
LEAST_SIZE = 0.25
"""Share of their largest size below which dimensions that are changes come now and then: whoever rests says nothing."""


def changing(width: int, gripper: int, held: Sequence[int]) -> list[int]:
    """The action dimensions (of `width`) that are changes: zero stands still. Others hold a value, as the gripper's."""
    return [i for i in range(width) if i != gripper and i not in held]


def held_commands(demonstrations: Sequence[Demonstration], facts: ActionFacts) -> tuple[int, ...]:
    """Action dimensions beside the first gripper's that hold a value.

    They switch between a few values (modes, grippers without a state), are another gripper's, or are targets.
    Neighbours belong together, as the parts of an orientation do: all are targets where one of them says what a state
    is next, or where together they never come near zero, as a quaternion's and those of two axes do not.
    """
    actions = np.concatenate([d.actions for d in demonstrations])
    others = [i for i in range(actions.shape[1]) if i != facts.gripper_command and i not in facts.commands]
    switching = switching_commands(demonstrations, others)
    grippers = [other.command for other in facts.others]
    free = [i for i in others if i not in switching and i not in grippers]
    targets = [i for group in _neighbours(free) if _are_targets(demonstrations, group) for i in group]
    return tuple(sorted({*switching, *grippers, *targets}))


def switching_commands(demonstrations: Sequence[Demonstration], dims: Sequence[int]) -> list[int]:
    """Those of some action dimensions that only switch between a few values."""
    actions = np.concatenate([d.actions for d in demonstrations])
    return [i for i in dims if len(np.unique(actions[:, i])) <= MOST_VALUES]


def _neighbours(dims: Sequence[int]) -> Iterator[list[int]]:
    """Runs of successive numbers."""
    run: list[int] = []
    for i in dims:
        if run and i != run[-1] + 1:
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _are_targets(demonstrations: Sequence[Demonstration], group: Sequence[int]) -> bool:
    values = np.concatenate([d.actions[:, list(group)] for d in demonstrations]).astype(np.float64)
    sizes = np.linalg.norm(values, axis=1)
    if sizes.min() > LEAST_SIZE * sizes.max():
        return True
    said = np.concatenate([d.actions[:-1, list(group)] for d in demonstrations]).astype(np.float64)
    reached = np.concatenate([d.state[1:] for d in demonstrations]).astype(np.float64)
    return bool((_correlations(said, reached) > LIKE_A_STATE).any())


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between the columns of a [N, P] and b [N, Q], [P, Q]; 0 for one that never changes."""
    if len(a) < 2:
        return np.zeros((a.shape[1], b.shape[1]))
    a, b = (x - x.mean(axis=0) for x in (a, b))
    return (a.T @ b) / np.maximum(np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0), 1e-9)
