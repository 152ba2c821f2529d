"""How late grippers follow their commands, and how the arm waits for them.

    a gripper's state flips `delay` steps after its command did (0: within the same step)

Assumptions, each checked: one delay a gripper, at most `LONGEST_DELAY`; a two-valued gripper state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_cli.calibration.robust import NotIdentified
from vla_cli.dataset import Demonstration

LONGEST_DELAY = 8
MOST_VALUES = 8
"""Distinct values up to which a dimension switches and does not move."""
LEAST_AGREEMENT = 0.8
"""Share of the flips with the same delay above which a state is taken for that of a command's gripper."""


@dataclass(frozen=True)
class Gripper:
    """A gripper: which state answers which command.

    Attributes:
        state, command: its dimension of the state and of the action.
        sign: 1 when the state rises with the command, else -1.
        delay: control steps from the command's flip to the state's, beyond the step itself.
    """

    state: int
    command: int
    sign: int = 1
    delay: int = 0


@dataclass(frozen=True)
class Wait:
    """A gripper that the arm waits for.

    Attributes:
        state, command, sign: as of `Gripper`.
        delay: further control steps that it needs here, beside the base's own.
        middle: half-way value of its state and of its command.
    """

    state: int
    command: int
    sign: int
    delay: int
    middle: tuple[float, float]

    def is_above(self, state: np.ndarray) -> np.ndarray:
        """[B] bool: whether a state [B, S] is that of a command above its middle."""
        return np.asarray((state[:, self.state] > self.middle[0]) == (self.sign > 0))


def find_grippers(
    demonstrations: Sequence[Demonstration], positions: Sequence[int], commands: Sequence[int]
) -> list[Gripper]:
    """The grippers among what is neither a position nor moves one, the clearest first; each state and command once."""
    width, states = demonstrations[0].actions.shape[1], demonstrations[0].state.shape[1]
    found: list[tuple[float, Gripper]] = []
    for a in (i for i in range(width) if i not in commands):
        for s in (i for i in range(states) if i not in positions):
            for sign in (1, -1):
                lags, missed = _lags(demonstrations, s, a, sign)
                if len(lags) >= 3 and missed == 0:
                    delay = int(np.median(lags))
                    agreement = float((lags == delay).mean())
                    if agreement > LEAST_AGREEMENT:
                        found.append((agreement, Gripper(s, a, sign, delay)))
    chosen: list[Gripper] = []
    for _, gripper in sorted(found, key=lambda pair: -pair[0]):
        if all(gripper.state != other.state and gripper.command != other.command for other in chosen):
            chosen.append(gripper)
    return chosen


def fit_delay(demonstrations: Sequence[Demonstration], gripper: Gripper) -> int:
    """Steps from a gripper's command to its state.

    Raises:
        NotIdentified: its answers differ, or there are too few.
    """
    lags, missed = _lags(demonstrations, gripper.state, gripper.command, gripper.sign)
    if len(lags) < 3 or missed > 0.2 * len(lags):
        raise NotIdentified(
            f"the gripper's state answers {len(lags)} of its commands", "demonstrations that close and open it"
        )
    delay = int(np.median(lags))
    if (lags == delay).mean() < 0.6:
        raise NotIdentified(
            f"the gripper follows after {lags.min()} to {lags.max()} steps", "an actuator with one delay"
        )
    return delay


def _lags(demonstrations: Sequence[Demonstration], state: int, command: int, sign: int) -> tuple[np.ndarray, int]:
    """For each flip of the command: steps until the state shows it; and how many flips it never showed."""
    commands = np.concatenate([d.actions[:, command] for d in demonstrations])
    states = np.concatenate([d.state[:, state] for d in demonstrations])
    middle_c, middle_s = (commands.min() + commands.max()) / 2, (states.min() + states.max()) / 2
    if commands.min() == commands.max() or states.min() == states.max():
        return np.array([], int), 0
    lags, missed = [], 0
    for d in demonstrations:
        wanted = (d.actions[:, command] > middle_c) == (sign > 0)
        shown = d.state[:, state] > middle_s
        for t in np.flatnonzero(wanted[1:] != wanted[:-1]) + 1:
            after = np.flatnonzero(shown[t + 1 : t + 2 + LONGEST_DELAY] == wanted[t])
            if t + 1 < len(shown) and shown[t] == wanted[t]:
                missed += 1  # it was there already: this state does not follow this command
            elif len(after):
                lags.append(int(after[0]))
            elif t + 2 + LONGEST_DELAY <= len(shown):
                missed += 1
    return np.array(lags, int), missed


def middles(demonstrations: Sequence[Demonstration], state: int, command: int) -> tuple[float, float]:
    """Half-way between open and closed: of a gripper's state and of its command."""
    states = np.concatenate([d.state[:, state] for d in demonstrations])
    commands = np.concatenate([d.actions[:, command] for d in demonstrations])
    return float(states.min() + states.max()) / 2, float(commands.min() + commands.max()) / 2


def wait_for_grippers(
    actions: np.ndarray, state: np.ndarray, waits: Sequence[Wait], changes: Sequence[int]
) -> np.ndarray:
    """Stand still after each flip of a gripper's command in a chunk, for as long as that gripper needs.

    Args:
        actions: [B, T, A]. state: [B, S] now.
        waits: the grippers; where several flip in one step, the slowest is waited for.
        changes: action dimensions that stand still at zero; all others keep their value.

    Returns:
        [B, T, A]; what no longer fits into the chunk is left to the next one.
    """
    found = np.array(actions)
    above = np.stack([wait.is_above(state) for wait in waits], axis=1)
    for b, chunk in enumerate(actions):
        fingers, row = above[b].tolist(), 0
        for step in chunk:
            if row >= len(chunk):
                break
            found[b, row] = step
            row += 1
            wanted = [bool(step[wait.command] > wait.middle[1]) for wait in waits]
            if wanted != fingers:
                still = step.copy()
                still[changes] = 0.0
                delay = max(w.delay for w, before, now in zip(waits, fingers, wanted, strict=True) if before != now)
                found[b, row : row + delay] = still
                row += delay
                fingers = wanted
    return found
