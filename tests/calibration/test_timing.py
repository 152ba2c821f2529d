"""How fast a path is followed is taken from the demonstrations; the path stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployments import CAMERA, base_facts, fitted, robot, shown

from vla_cli.calibration import Calibration, calibrate, measure_domain
from vla_cli.calibration.robust import NotIdentified
from vla_cli.calibration.timing import Speeds, Timing, fit_timing, measure_speeds, retime
from vla_cli.dataset import Demonstration

STEPS = 40


def follow(actions: np.ndarray, closed: np.ndarray, timing: Timing) -> np.ndarray:
    return retime(actions, closed, timing, commands=(0, 1), gripper=2, sign=1, middle=0.0)


def path(seed: int, moving: int = 6, closed: bool = False) -> np.ndarray:
    """[1, 40, 3]: a few steps of movement with one flip among them, then rest."""
    rng = np.random.default_rng(seed)
    found = np.zeros((1, STEPS, 3), np.float32)
    found[0, :moving, :2] = rng.uniform(-1, 1, (moving, 2))
    flip = rng.integers(1, moving)
    found[0, :flip, 2], found[0, flip:, 2] = (1, -1) if closed else (-1, 1)
    return found


def flip_of(chunk: np.ndarray, closed: bool) -> int:
    return int(np.flatnonzero((chunk[:, 2] > 0) != closed)[0])


def test_brim_full_cups_are_carried_slowly_and_stopped_before_letting_go() -> None:
    found = fitted("S").timing
    # the world slips above 0.45 of the speed limit, of which 0.8 is the x axis' gain
    assert found.closed == pytest.approx(0.45 * 0.8, abs=0.03)
    assert found.opening is not None and found.opening < 0.1
    assert found.open is None and found.closing is None


@pytest.mark.parametrize("shift", ["base", "V", "D"])
def test_an_ordinary_manner_of_moving_stays_the_bases(shift: str) -> None:
    found, base = fitted(shift).timing, base_facts().speeds
    assert base is not None
    assert found.open is None and found.closed is None
    # ten grasps scatter: a limit that is hardly below the base's own speed changes nothing to speak of
    for flip in ("closing", "opening"):
        limit = getattr(found, flip)
        assert limit is None or getattr(base, flip) - limit < 0.2 * base.top


def test_an_operator_in_no_hurry_is_no_other_manner_of_moving() -> None:
    base = base_facts().speeds
    assert base is not None
    halves = {name: None if value is None else 0.5 * value for name, value in base.document().items()}
    slower = Speeds(**{**halves, "top": 0.5 * base.top})  # type: ignore[arg-type]  # only the phases may be None
    assert fit_timing(base, slower).is_identity


def test_a_phase_in_which_the_arm_stood_is_no_manner_of_moving() -> None:
    """It would never move again with closed fingers."""
    base = Speeds(1.0, 1.0, 1.0, 0.1, 0.4)
    assert fit_timing(base, replace(base, closed=0.0)).is_identity
    assert fit_timing(base, replace(base, closed=0.0, open=0.3)).open == 0.3
    assert fit_timing(base, replace(base, opening=0.0)).opening == 0.0


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("timing", [Timing(open=0.3, closed=0.3), Timing(closing=0.0, opening=0.0, closed=0.4)])
def test_the_path_is_kept_and_the_gripper_acts_where_it_was_planned(timing: Timing, closed: bool) -> None:
    for seed in range(20):
        planned = path(seed, closed=closed)
        found = follow(planned, np.array([closed]), timing)
        before, after = flip_of(planned[0], closed), flip_of(found[0], closed)
        assert after >= before
        assert found[0, : after + 1, :2].sum(0) == pytest.approx(planned[0, : before + 1, :2].sum(0), abs=1e-5)
        assert found[0, :, :2].sum(0) == pytest.approx(planned[0, :, :2].sum(0), abs=1e-5)
        assert set(found[0, :, 2].tolist()) == {-1.0, 1.0}
        assert ((found[0, 1:, 2] > 0) != (found[0, :-1, 2] > 0)).sum() == (0 if after == 0 else 1)


def test_no_step_is_faster_than_demonstrated() -> None:
    timing = Timing(open=0.5, closed=0.3, closing=0.1, opening=0.05)
    for seed in range(20):
        for closed in (False, True):
            now = closed
            for step in follow(path(seed, closed=closed), np.array([closed]), timing)[0]:
                speed, wanted = np.abs(step[:2]).max(), bool(step[2] > 0)
                limit = timing.closed if now else timing.open
                assert limit is not None and speed <= limit + 1e-6
                if wanted != now:
                    at_flip = timing.closing if wanted else timing.opening
                    assert at_flip is not None and speed <= at_flip + 1e-6
                now = wanted


def test_no_limits_change_nothing() -> None:
    chunks = np.concatenate([path(seed) for seed in range(8)])
    assert Timing().is_identity
    assert np.array_equal(follow(chunks, np.zeros(8, bool), Timing()), chunks)


def test_what_no_longer_fits_is_left_to_the_next_chunk() -> None:
    planned = path(0, moving=6)[:, :6]
    found = follow(planned, np.array([False]), Timing(open=0.1, closed=0.1))
    assert found.shape == planned.shape
    assert np.abs(found[..., :2]).max() <= 0.1 + 1e-6


def test_a_gripper_that_closes_on_a_lower_command_is_followed_too() -> None:
    planned = path(3)
    turned = planned * np.array([1, 1, -1], np.float32)
    timing = Timing(open=0.3, closing=0.0)
    straight = follow(planned, np.array([False]), timing)
    found = retime(turned, np.array([False]), timing, commands=(0, 1), gripper=2, sign=-1, middle=0.0)
    assert np.array_equal(found * np.array([1, 1, -1], np.float32), straight)


def in_metres_and_radians(carried: float, seed: int) -> list[Demonstration]:
    """A robot that moves by 2 cm and turns by 0.1 rad a step at most, and carries at a share of the speed."""
    rng, units, found = np.random.default_rng(seed), np.array([0.02, 0.02, 0.1]), []
    for d in robot(np.eye(3), count=8, steps=60, seed=seed):
        speed = np.where(d.actions[:, 3:] > 0, [carried, carried, 1], 1) * units
        commands = rng.uniform(-1, 1, (len(d), 3)) * speed * np.array([1, 1, 0.4])
        commands[::11] = units
        position = np.cumsum(np.r_[np.zeros((1, 3)), commands[:-1]], axis=0)
        pair = np.c_[position, d.state[:, 3]].astype(np.float32), np.c_[commands, d.actions[:, 3]].astype(np.float32)
        found.append(replace(d, state=pair[0], actions=pair[1]))
    return found


def test_metres_are_not_slow_beside_radians(tmp_path: Path) -> None:
    base = measure_domain(in_metres_and_radians(1.0, 0), [CAMERA])
    fitted_here = calibrate(in_metres_and_radians(0.45, 1), [CAMERA], base)
    for found in (fitted_here, Calibration.load(fitted_here.document(), tmp_path)):
        assert found.timing.closed == pytest.approx(0.45, abs=0.06) and found.timing.open is None
        planned = np.tile(np.array([0.018, 0, 0, 1], np.float32), (1, 8, 1))
        given = found.command(planned, np.array([[0, 0, 0, 1]]))[0]
        assert given[:, 0] == pytest.approx(np.full(8, 0.02 * found.timing.closed), abs=1e-4)


def test_without_a_gripper_there_are_no_phases() -> None:
    facts = base_facts().actions
    assert facts is not None
    with pytest.raises(NotIdentified, match="no gripper"):
        measure_speeds(shown("base"), replace(facts, gripper_state=-1))


def test_what_else_is_commanded_goes_with_the_step_it_was_planned_for() -> None:
    """x, y, a rotation's change, a mode that is held, gripper; the state holds no orientation."""
    planned = np.zeros((1, 8, 5), np.float32)
    planned[0, :2, 0], planned[0, 1, 2], planned[0, :, 3], planned[0, :, 4] = 0.4, 0.6, np.arange(8) // 2, -1
    follower = {"commands": (0, 1), "gripper": 4, "sign": 1, "middle": 0.0, "held": (3,)}
    untouched = retime(planned, np.array([False]), Timing(closed=0.1), **follower)
    assert np.array_equal(untouched, planned)
    found = retime(planned, np.array([False]), Timing(open=0.2), **follower)[0]
    assert found[:, 0] == pytest.approx([0.2, 0.2, 0.2, 0.2, 0, 0, 0, 0], abs=1e-6)
    assert found[:, 2] == pytest.approx([0, 0, 0.3, 0.3, 0, 0, 0, 0], abs=1e-6)
    assert found[:, 3].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_an_analogue_gripper_keeps_the_openings_that_were_planned() -> None:
    planned = np.zeros((1, 6, 3), np.float32)
    planned[0, :, 0], planned[0, :, 2] = 0.05, [0.0, 0.01, 0.02, 0.02, 0.06, 0.06]
    found = retime(planned, np.array([False]), Timing(open=0.04), commands=(0, 1), gripper=2, sign=1, middle=0.04)
    # every value was planned, and the flip comes when the path up to it is done: in the next chunk
    assert found[0, :, 2] == pytest.approx([0.0, 0.01, 0.02, 0.02, 0.02, 0.02])
    stopped = retime(planned, np.array([False]), Timing(closing=0.0), commands=(0, 1), gripper=2, sign=1, middle=0.04)
    assert stopped[0, :, 2] == pytest.approx([0.0, 0.01, 0.02, 0.02, 0.02, 0.06])
    assert stopped[0, :, 0] == pytest.approx([0.05] * 5 + [0.0])
