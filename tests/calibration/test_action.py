"""What a command does: gain and delay are found, commands are converted both ways, and refusals say what to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from deployments import CAMERA, base_facts, robot, shown, swept

from vla_cli.calibration import calibrate
from vla_cli.calibration.action import (
    ActionFacts,
    fit_delay,
    fit_gain,
    from_base,
    measure_actions,
    to_base,
    wait_for_gripper,
)
from vla_cli.calibration.robust import NotIdentified

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


@pytest.mark.parametrize(("shift", "delay"), [("V", 0), ("D", 2)])
def test_the_grippers_delay_is_found(shift: str, delay: int) -> None:
    facts = base_facts().actions
    assert facts is not None
    assert fit_delay(shown(shift), facts) == delay


def test_a_gripper_without_one_delay_is_refused() -> None:
    facts = measure_actions(robot(TURN))
    mixed = [d for delay in range(5) for d in robot(TURN, count=2, delay=delay)]
    with pytest.raises(NotIdentified, match="one delay"):
        fit_delay(mixed, facts)
    with pytest.raises(NotIdentified, match="close and open"):
        fit_delay([replace(d, actions=np.abs(d.actions)) for d in robot(TURN)], facts)


def chunk(*gripper: float) -> np.ndarray:
    """[1, T, 3] with the steps' numbers as commands, so that each can be told."""
    steps = np.arange(1, len(gripper) + 1) / 10
    return np.stack([steps, -steps, np.array(gripper)], -1)[None].astype(np.float32)


def test_the_arm_waits_for_the_gripper_and_what_no_longer_fits_is_left_out() -> None:
    found = wait_for_gripper(chunk(-1, 1, 1, 1, -1, -1), np.array([False]), 2, (0, 1), 2, 0.0)[0]
    assert found[:, 0] == pytest.approx([0.1, 0.2, 0.0, 0.0, 0.3, 0.4])
    assert found[:, 2].tolist() == [-1, 1, 1, 1, 1, 1]


def test_without_a_flip_nothing_waits() -> None:
    open_chunk, closed_chunk = chunk(-1, -1, -1), chunk(1, 1, 1)
    assert np.array_equal(wait_for_gripper(open_chunk, np.array([False]), 2, (0, 1), 2, 0.0), open_chunk)
    assert np.array_equal(wait_for_gripper(closed_chunk, np.array([True]), 2, (0, 1), 2, 0.0), closed_chunk)
    both = np.concatenate([closed_chunk, closed_chunk])
    found = wait_for_gripper(both, np.array([True, False]), 2, (0, 1), 2, 0.0)
    assert np.array_equal(found[0], closed_chunk[0])
    assert found[1, :, 0] == pytest.approx([0.1, 0.0, 0.0])


def test_a_flip_in_the_last_step_is_the_next_chunks_to_wait_for() -> None:
    flips = chunk(-1, -1, 1)
    assert np.array_equal(wait_for_gripper(flips, np.array([False]), 2, (0, 1), 2, 0.0), flips)
