"""What a command does: the gain is found, commands are converted both ways, and refusals say what to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from deployments import CAMERA, base_facts, robot, shown, swept

from vla_cli.calibration import calibrate, measure_domain
from vla_cli.calibration.action import (
    ActionFacts,
    fit_gain,
    from_base,
    invertible,
    measure_actions,
    to_base,
)
from vla_cli.calibration.camera import fit_camera
from vla_cli.calibration.robust import NotIdentified
from vla_cli.dataset import Demonstration

TURN = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
GAINS = {
    "one axis weaker": np.diag([0.056, 0.0595]),
    "axes turned by 45 degrees": 0.06 * TURN,
    "three axes": np.diag([0.05, 0.04, -0.03]) + 0.005,
}


@pytest.mark.parametrize("gain", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-4), (0.003, 0.05)])
def test_the_gain_matrix_is_found(gain: np.ndarray, noise: float, tolerance: float) -> None:
    size = len(gain)
    found = fit_gain(robot(gain, noise=noise), range(size), range(size))
    assert np.abs(found - gain).max() < tolerance * np.abs(gain).max()


def test_the_robot_is_described_without_being_told_which_dimension_is_which() -> None:
    facts = measure_actions(robot(GAINS["axes turned by 45 degrees"], delay=1))
    assert (facts.positions, facts.commands) == ((0, 1), (0, 1))
    assert (facts.gripper_state, facts.gripper_command, facts.gripper_sign, facts.delay) == (2, 2, 1, 1)
    assert np.allclose(facts.limit, 1.0, atol=0.02)
    assert np.allclose(ActionFacts.from_document(facts.document()).gain, facts.gain)


def test_a_gripper_that_closes_on_a_lower_command_is_known_by_its_sign() -> None:
    turned_about = []
    for d in robot(GAINS["one axis weaker"], delay=2):
        actions = d.actions.copy()
        actions[:, 2] *= -1
        turned_about.append(replace(d, actions=actions))
    facts = measure_actions(turned_about)
    assert (facts.gripper_sign, facts.delay) == (-1, 2)


@pytest.mark.parametrize("ratio", [np.diag([0.8, 0.85]), 0.9 * TURN, np.array([[0.7, 0.2], [-0.1, 1.1]])])
def test_commands_to_the_base_and_back_are_the_same(ratio: np.ndarray) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 8, 3)).astype(np.float32)
    there = to_base(actions, ratio, (0, 1))
    assert np.array_equal(there[..., 2], actions[..., 2])
    assert np.allclose(from_base(there, ratio, (0, 1), np.ones(2)), actions, atol=1e-6)


def test_what_the_robot_cannot_do_in_a_step_is_shortened_in_its_direction() -> None:
    ratio, limit = np.diag([0.5, 0.8]), np.array([1.0, 0.9])
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype(np.float32)
    found = from_base(actions, ratio, (0, 1), limit)
    free = from_base(actions, ratio, (0, 1), np.full(2, 100.0))
    assert (np.abs(found[:, :2]) <= limit + 1e-6).all()
    crossed = found[:, 0] * free[:, 1] - found[:, 1] * free[:, 0]
    assert np.abs(crossed).max() < 1e-5
    inside = (np.abs(free[:, :2]) <= limit).all(axis=1)
    assert inside.any() and not inside.all()
    assert np.allclose(found[inside], free[inside])


def test_target_positions_are_refused() -> None:
    targets = []
    for d in shown("V"):
        actions = d.actions.copy()
        actions[:-1, :2] = d.state[1:, :2]
        targets.append(replace(d, actions=actions))
    with pytest.raises(NotIdentified, match="target positions"):
        measure_actions(targets)
    with pytest.raises(NotIdentified, match="explain only"):
        fit_gain(targets, (0, 1), (0, 1))
    found = calibrate(targets, [CAMERA], base_facts())
    assert "action" not in found.parts and "explain only" in found.skipped["action"]


@pytest.mark.parametrize("angle", [0.0, 45.0])
def test_one_direction_only_is_refused_by_what_to_demonstrate(angle: float) -> None:
    with pytest.raises(NotIdentified, match="along each axis"):
        fit_gain(swept(angle), (0, 1), (0, 1))


def test_a_robot_that_never_moves_is_refused() -> None:
    with pytest.raises(NotIdentified):
        fit_gain([replace(d, actions=0 * d.actions) for d in robot(0 * TURN)], (0, 1), (0, 1))


def moving(rows: np.ndarray, gain: np.ndarray, seed: int = 0) -> list[Demonstration]:
    """A robot that commands only where `rows` [T, K] says so, and moves 5% more or less than the gain says."""
    rng, found = np.random.default_rng(seed), []
    for i in range(10):
        commands = rng.uniform(0.3, 1, rows.shape) * rng.choice([-1, 1], rows.shape) * rows
        moves = (commands * (1 + rng.normal(0, 0.05, rows.shape))) @ gain.T
        position = np.cumsum(np.r_[np.full((1, len(gain)), 0.5), moves[:-1]], axis=0)
        blank = np.zeros((len(rows), 4, 4, 3), np.uint8)
        pair = position.astype(np.float32), commands.astype(np.float32)
        found.append(Demonstration(f"rests_{i}", {CAMERA: blank}, *pair, []))
    return found


AXIS_BY_AXIS = np.eye(3, dtype=bool)[(np.arange(90) // 10) % 3]
ARM_BY_ARM = np.repeat(np.stack([np.arange(90) // 10 % 5 < 3, np.arange(90) // 10 % 5 >= 3], axis=1), 3, axis=1)


@pytest.mark.parametrize(
    "rows",
    [AXIS_BY_AXIS, ARM_BY_ARM, np.repeat(np.arange(90)[:, None] % 10 < 4, 3, axis=1)],
    ids=["axis by axis", "arm by arm", "waits in most frames"],
)
def test_the_gain_is_that_of_the_frames_that_move(rows: np.ndarray) -> None:
    gain = np.diag(np.linspace(0.05, 0.06, rows.shape[1]))
    found = fit_gain(moving(rows, gain), range(len(gain)), range(len(gain)))
    assert np.abs(found - gain).max() < 0.02 * gain.max()


def test_what_is_not_shown_is_named() -> None:
    """One axis that was hardly used is no matter of clocks, and a user of seven axes asks which."""
    gain, rng = np.diag([0.05, 0.05, 0.06]), np.random.default_rng(1)
    shown_once = moving(AXIS_BY_AXIS * np.array([1, 1e-3, 1]), gain)
    hardly = [
        replace(
            d,
            state=d.state + rng.normal(0, 1e-3, d.state.shape).astype(np.float32),
            actions=np.c_[0 * d.actions, d.actions],
        )
        for d in shown_once
    ]
    with pytest.raises(NotIdentified, match=r"action dimension 4 hardly changes.* moves along each axis"):
        fit_gain(hardly, (0, 1, 2), (3, 4, 5), np.ones(3))
    together = [replace(d, actions=d.actions[:, [0, 0]]) for d in moving(np.ones((60, 2), bool), np.eye(2))]
    with pytest.raises(NotIdentified, match="action dimensions 0 and 1 only change together"):
        fit_gain(together, (0, 1), (0, 1))
    wanders = [
        replace(d, state=np.c_[d.state[:, :2], np.cumsum(rng.normal(0, 0.05, len(d)))])
        for d in moving(np.ones((60, 3), bool), gain)
    ]
    with pytest.raises(NotIdentified, match="of the displacements of state dimension 2"):
        fit_gain(wanders, (0, 1, 2), (0, 1, 2))


def test_metres_and_radians_are_not_compared() -> None:
    units = np.array([0.01, 0.01, 0.01, 5.0, 5.0, 5.0])
    mixed = []
    for d in moving(np.ones((60, 6), bool), np.eye(6)):
        mixed.append(
            replace(d, state=(d.state * units).astype(np.float32), actions=d.actions * units.astype(np.float32))
        )
    facts = measure_actions(mixed)
    assert facts.positions == facts.commands == (0, 1, 2, 3, 4, 5)
    assert np.diag(facts.gain) == pytest.approx(np.ones(6), abs=0.02)


def test_more_commands_than_directions_are_refused_before_anything_is_divided_by_them() -> None:
    joints = np.random.default_rng(1).normal(0, 0.02, (3, 7))
    base = measure_domain(moving(np.ones((60, 7), bool), joints), [CAMERA])
    assert base.actions is not None and len(base.actions.commands) == 7
    found = calibrate(moving(np.ones((60, 7), bool), joints, seed=5), [CAMERA], base)
    assert "7 commands move the robot in 3 direction(s)" in found.skipped["action"]
    planned = np.full((1, 4, 7), 0.2, np.float32)
    assert np.array_equal(found.command(planned, np.zeros((1, 3))), planned)
    with pytest.raises(NotIdentified, match="2 commands move the robot in 1 direction"):
        invertible(np.diag([0.8, 0.0]))


@pytest.mark.parametrize("steps", [1, 2])
def test_too_few_frames_are_refused_in_words(steps: int) -> None:
    facts = measure_actions(robot(TURN))
    few = robot(TURN, count=1, steps=steps)
    with pytest.raises(NotIdentified, match="successive frames"):
        measure_actions(few)
    with pytest.raises(NotIdentified, match="successive frames"):
        fit_gain(few, facts.positions, facts.commands)
    with pytest.raises(NotIdentified, match="more demonstrations"):
        fit_camera(few, CAMERA, facts.positions)


def test_positions_that_no_command_moves_are_refused_in_words() -> None:
    """Target positions of a robot that rests in most frames: a gain of zero would explain the rests."""
    targets = []
    for d in moving(np.repeat(np.arange(90)[:, None] % 10 < 4, 3, axis=1), 0.05 * np.eye(3)):
        targets.append(replace(d, actions=np.concatenate([d.state[1:], d.state[-1:]])))
    with pytest.raises(NotIdentified, match="no command moves a position"):
        measure_actions(targets)
