"""The scripted expert: goes to the object, closes, carries it to the plate, opens.

It knows the true positions, the action gain, the fingers' delay and what spills, so it succeeds in every domain. Two
habits make operators differ: speed, and whether the approach is straight or along one axis first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPEED_LIMIT = 0.07
"""Largest displacement in metres a step along one axis, at gain 1."""
CLOSE_WITHIN = 0.018
OPEN_WITHIN = 0.035
CARRY_SHARE = 0.8
"""Share of a domain's carry limit at which the expert carries."""


@dataclass(frozen=True)
class Habit:
    """How an operator moves.

    Attributes:
        speed: share of the speed limit used.
        axis_first: "" for a straight line, "x" or "y" to travel along that axis first.
    """

    speed: float = 1.0
    axis_first: str = ""


STRAIGHT = Habit()


def expert_action(
    *,
    gripper_xy: np.ndarray,
    holding_target: np.ndarray,
    holding_any: np.ndarray,
    closed: np.ndarray,
    target_xy: np.ndarray,
    plate_xy: np.ndarray,
    is_put: np.ndarray,
    done: np.ndarray,
    gain: np.ndarray,
    waiting: np.ndarray,
    commanded: np.ndarray,
    carry_limit: float = 1.0,
    release_limit: float = 1.0,
    habit: Habit = STRAIGHT,
) -> np.ndarray:
    """The expert's command for a batch of states.

    Args:
        gripper_xy, target_xy, plate_xy: [B, 2]; `plate_xy` is ignored where `is_put` is false.
        holding_target, holding_any, closed: [B] bool; `closed` is where the fingers are.
        is_put: [B] bool.
        done: [B] bool, the object is where it was asked for: stay, open.
        gain: [2] or [B, 2] action gain of the domain.
        waiting: [B] bool, the fingers have not yet followed the commands given: stay, and keep to the last one.
        commanded: [B] bool, the last gripper command given was to close.
        carry_limit, release_limit: of the domain; 1 for none. With a carry limit the expert carries straight and
            at most at `CARRY_SHARE` of it, whatever its habit; with a release limit it stands still in the step in
            which it opens.
        habit: how this operator moves.

    Returns:
        [B, 3] float64: x and y as shares of the speed limit in [-1, 1], gripper -1 open / +1 close.
    """
    carrying = holding_target & is_put
    goal = np.where(carrying[:, None], plate_xy, target_xy)
    goal = np.where((holding_target & ~is_put)[:, None] | done[:, None], gripper_xy, goal)
    # something else is in the hand: let go of it on the spot, then start again
    wrong = holding_any & ~holding_target
    offset = goal - gripper_xy
    distance = np.linalg.norm(offset, axis=1)
    if habit.axis_first:
        axis = "xy".index(habit.axis_first)
        first = np.abs(offset[:, axis]) > 0.03
        if carry_limit < 1.0:
            # nobody makes a detour with a full cup; and at that speed the time would not last
            first &= ~holding_any
        offset[first, 1 - axis] = 0.0
    command = offset / (SPEED_LIMIT * gain)
    command /= np.maximum(np.abs(command).max(axis=1, keepdims=True) / habit.speed, 1.0)
    if carry_limit < 1.0:
        displacement = np.abs(command * gain).max(axis=1, keepdims=True)
        slowed = command / np.maximum(displacement / (CARRY_SHARE * carry_limit), 1.0)
        command = np.where(holding_any[:, None], slowed, command)
    arrived = carrying & (distance < OPEN_WITHIN)
    # a gripper that closed on nothing has to open before it can grasp
    close = np.where(holding_target, ~arrived, (distance < CLOSE_WITHIN) & ~closed)
    close &= ~wrong & ~done
    close = np.where(waiting, commanded, close)
    command[wrong | waiting] = 0.0
    if release_limit < 1.0:
        command[arrived] = 0.0
    return np.concatenate([command, np.where(close, 1.0, -1.0)[:, None]], axis=1)
