"""Grippers that follow late: whose they are, how late they are, and how the arm waits for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployments import CAMERA, base_facts, robot, shown
from scipy.spatial.transform import Rotation

from vla_cli.calibration import Calibration, calibrate, measure_domain
from vla_cli.calibration.action import ActionFacts, measure_actions
from vla_cli.calibration.grippers import Gripper, Wait, fit_delay, wait_for_grippers
from vla_cli.calibration.held import changing, held_commands
from vla_cli.calibration.robust import NotIdentified
from vla_cli.calibration.timing import Timing
from vla_cli.dataset import Demonstration

TURN = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)


def waited(
    actions: np.ndarray, closed: np.ndarray, delay: int, gripper: int, middle: float, held: tuple[int, ...] = ()
) -> np.ndarray:
    """`wait_for_grippers` of one gripper, whose state [B] is all that there is."""
    wait = Wait(state=0, command=gripper, sign=1, delay=delay, middle=(0.5, middle))
    return wait_for_grippers(actions, closed[:, None], [wait], changing(actions.shape[-1], gripper, held))


@pytest.mark.parametrize(("shift", "delay"), [("V", 0), ("D", 2)])
def test_the_grippers_delay_is_found(shift: str, delay: int) -> None:
    facts = base_facts().actions
    assert facts is not None
    assert fit_delay(shown(shift), facts.grippers[0]) == delay


def test_a_gripper_without_one_delay_is_refused() -> None:
    gripper = measure_actions(robot(TURN)).grippers[0]
    mixed = [d for delay in range(5) for d in robot(TURN, count=2, delay=delay)]
    with pytest.raises(NotIdentified, match="one delay"):
        fit_delay(mixed, gripper)
    with pytest.raises(NotIdentified, match="close and open"):
        fit_delay([replace(d, actions=np.abs(d.actions)) for d in robot(TURN)], gripper)


def chunk(*gripper: float) -> np.ndarray:
    """[1, T, 3] with the steps' numbers as commands, so that each can be told."""
    steps = np.arange(1, len(gripper) + 1) / 10
    return np.stack([steps, -steps, np.array(gripper)], -1)[None].astype(np.float32)


def test_the_arm_waits_for_the_gripper_and_what_no_longer_fits_is_left_out() -> None:
    found = waited(chunk(-1, 1, 1, 1, -1, -1), np.array([False]), 2, 2, 0.0)[0]
    assert found[:, 0] == pytest.approx([0.1, 0.2, 0.0, 0.0, 0.3, 0.4])
    assert found[:, 2].tolist() == [-1, 1, 1, 1, 1, 1]


def test_without_a_flip_nothing_waits() -> None:
    open_chunk, closed_chunk = chunk(-1, -1, -1), chunk(1, 1, 1)
    assert np.array_equal(waited(open_chunk, np.array([False]), 2, 2, 0.0), open_chunk)
    assert np.array_equal(waited(closed_chunk, np.array([True]), 2, 2, 0.0), closed_chunk)
    both = np.concatenate([closed_chunk, closed_chunk])
    found = waited(both, np.array([True, False]), 2, 2, 0.0)
    assert np.array_equal(found[0], closed_chunk[0])
    assert found[1, :, 0] == pytest.approx([0.1, 0.0, 0.0])


def test_a_flip_in_the_last_step_is_the_next_chunks_to_wait_for() -> None:
    flips = chunk(-1, -1, 1)
    assert np.array_equal(waited(flips, np.array([False]), 2, 2, 0.0), flips)


def test_while_waiting_nothing_changes_and_what_is_held_is_held() -> None:
    planned = np.concatenate([chunk(-1, 1, 1, 1), np.full((1, 4, 1), 0.3, np.float32)], axis=-1)
    turned = waited(planned, np.array([False]), 1, 2, 0.0)[0]
    assert turned[:, 3] == pytest.approx([0.3, 0.3, 0.0, 0.3])
    held = waited(planned, np.array([False]), 1, 2, 0.0, held=(3,))[0]
    assert held[:, 3] == pytest.approx([0.3] * 4) and held[:, 0] == pytest.approx([0.1, 0.2, 0.0, 0.3])


def test_that_only_one_gripper_is_waited_for_is_said(tmp_path: Path) -> None:
    two = []
    for d in robot(TURN, delay=2):
        other = np.where(np.arange(len(d)) % 8 < 4, -1.0, 1.0).astype(np.float32)[:, None]
        two.append(replace(d, actions=np.concatenate([d.actions, other], axis=1)))
    base = measure_domain([replace(d, actions=np.c_[d.actions, d.actions[:, :1] * 0]) for d in robot(TURN)], [CAMERA])
    found = calibrate(two, [CAMERA], base)
    assert found.delay == 2 and found.held == (3,)
    assert "action dimension(s) 3 switch" in found.skipped["delay and timing of other grippers"]
    assert Calibration.load(found.document(), tmp_path).held == (3,)


def with_second_gripper(delays: tuple[int, int], *, values: float = 0.0, seed: int = 0) -> list[Demonstration]:
    """State x, y, gripper, gripper; actions x, y, gripper, gripper, whose second may take many values."""
    rng, found = np.random.default_rng(seed), []
    pairs = zip(robot(0.06 * TURN, delay=delays[0], seed=seed), robot(TURN, delay=delays[1]), strict=True)
    for d, other in pairs:
        command, state = (np.r_[np.full(5, -1.0), column[:-5]] for column in (other.actions[:, 2], other.state[:, 2]))
        command = command * (1 - values * rng.random(len(d)))
        pair = np.c_[d.state, state].astype(np.float32), np.c_[d.actions, command].astype(np.float32)
        found.append(replace(d, state=pair[0], actions=pair[1]))
    return found


@pytest.mark.parametrize("values", [0.0, 0.1], ids=["two values", "many values"])
def test_the_arm_waits_for_each_gripper_as_long_as_it_needs(values: float, tmp_path: Path) -> None:
    base = measure_domain(with_second_gripper((0, 0), values=values), [CAMERA])
    assert base.actions is not None and base.actions.others == (Gripper(3, 3),)
    assert ActionFacts.from_document(base.actions.document()).others == base.actions.others
    here = with_second_gripper((1, 3), values=values, seed=4)
    fitted_here = calibrate(here, [CAMERA], base)
    assert "timing of other grippers" in fitted_here.skipped
    for found in (fitted_here, Calibration.load(fitted_here.document(), tmp_path)):
        assert found.parts == ["delay"] and [wait.delay for wait in found.waits] == [1, 3] and found.held == (3,)
        planned = np.tile(np.array([0.3, 0.3, -1, -0.9], np.float32), (1, 9, 1))
        planned[0, 2:, 2], planned[0, 4:, 3] = 1, 0.9
        given = found.command(planned, np.array([[0.5, 0.5, -1, -1]]))[0]
        assert (given[:, 0] == 0).tolist() == [False, False, False, True, False, False, True, True, True]
        assert given[:, 3] == pytest.approx([-0.9] * 5 + [0.9] * 4), "zero is no value of a gripper's"
        told = found.demonstration(here[0])
        assert np.array_equal(told.actions[3:, 3], here[0].actions[:-3, 3])
        assert np.array_equal(told.actions[1:, 2], here[0].actions[:-1, 2])
    only_other = replace(fitted_here, delay=0)
    assert only_other.parts == ["delay"] and [wait.command for wait in only_other.waits] == [3]


def test_an_orientation_that_is_a_target_is_neither_zeroed_nor_spread() -> None:
    def turning(delay: int, seed: int) -> list[Demonstration]:
        rng, found = np.random.default_rng(seed), []
        for d in robot(0.06 * TURN, delay=delay, seed=seed):
            turn = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (len(d), 3)), axis=0)).as_quat()
            named = np.r_[turn[1:], turn[-1:]]
            found.append(replace(d, actions=np.c_[d.actions[:, :2], named, d.actions[:, 2:]].astype(np.float32)))
        return found

    found = calibrate(turning(2, 4), [CAMERA], measure_domain(turning(0, 0), [CAMERA]))
    assert found.held == (2, 3, 4, 5) and found.parts == ["delay"]
    planned = turning(0, 6)[0].actions[None, 3:12].copy()
    planned[0, :, 6] = np.where(np.arange(9) < 3, -1, 1)
    slow = replace(found, timing=Timing(open=0.2, closed=0.2))
    for calibration in (found, slow):
        given = calibration.command(planned, np.array([[0.5, 0.5, -1]]))[0]
        assert np.linalg.norm(given[:, 2:6], axis=1) == pytest.approx(np.ones(9), abs=1e-6)


def test_a_rotation_that_is_a_change_stands_still_while_the_arm_waits() -> None:
    """Deltas of a rotation that no state shows, with rests, are no targets."""
    found = []
    for d in robot(0.06 * TURN, delay=2):
        turns = np.random.default_rng(3).normal(0, 0.1, (len(d), 3)) * (np.arange(len(d)) % 9 > 2)[:, None]
        found.append(replace(d, actions=np.c_[d.actions, turns].astype(np.float32)))
    facts = measure_actions(found)
    assert facts.commands == (0, 1) and held_commands(found, facts) == ()


def test_dimensions_that_never_change_are_no_grippers() -> None:
    constant = [replace(d, actions=np.c_[d.actions, d.actions[:, :1] * 0]) for d in robot(0.06 * TURN)]
    found = calibrate(constant, [CAMERA], measure_domain(constant, [CAMERA]))
    assert not [part for part in found.skipped if "grippers" in part]
