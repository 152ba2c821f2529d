import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cli.episode import Stream
from vla_cli.synchrony.resample import continuous, sample_action, sample_state
from vla_cli.synchrony.rotations import WIDTHS, from_rotation, to_rotation

KINDS = sorted(WIDTHS)


def pose(kind: str, steps: int = 20, rate: float = 10.0, seed: int = 0, role: str = "state", **attributes) -> Stream:
    """Three positions, a rotation, and a gripper, all of which move."""
    rng = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, (steps, 3)))
    if role == "state":
        turns = Rotation.concatenate([_all_before(turns, step) for step in range(steps)])
    values = [rng.normal(0, 0.01, (steps, 3)), from_rotation(turns, kind), rng.integers(0, 2, (steps, 1))]
    stated = {"rotation": kind, "units": "m, rad", "gripper": "open-high", **attributes}
    return Stream(role, "pose", np.concatenate(values, axis=1), np.arange(steps) / rate, stated)  # type: ignore[arg-type]


def _all_before(turns: Rotation, step: int) -> Rotation:
    found = Rotation.identity()
    for turn in turns[: step + 1]:
        found = turn * found
    return found


def composed(values: np.ndarray, kind: str, own: bool = False) -> tuple[np.ndarray, Rotation]:
    """Where a run of changes ends: position and rotation."""
    at, turned = np.zeros(3), Rotation.identity()
    for row, turn in zip(values, to_rotation(values[:, 3:-1], kind), strict=True):
        at = at + (turned.apply(row[:3]) if own else row[:3])
        turned = turned * turn if own else turn * turned
    return at, turned


@pytest.mark.parametrize("kind", [*KINDS, "none"])
@pytest.mark.parametrize("mode", ["absolute", "delta", "velocity", "unknown"])
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_same_clock_is_the_identity_to_the_last_bit(kind: str, mode: str, seed: int) -> None:
    one = pose("axis-angle" if kind == "none" else kind, seed=seed)
    one.attributes["rotation"] = kind
    one.values[3, 0] = -0.0
    one.timestamps = np.cumsum(np.random.default_rng(seed).uniform(0.08, 0.12, len(one)))
    assert sample_state(one, one.timestamps)[0].tobytes() == one.values.tobytes()
    action = Stream("action", "action", one.values, one.timestamps, {**one.attributes, "mode": mode})
    assert sample_action(action, one.timestamps, 10.0)[0].tobytes() == one.values.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [5.0, 20.0, 7.3, 40.0])
@pytest.mark.parametrize("frame", ["base", "end-effector"])
def test_changes_go_the_same_way_at_any_rate(kind: str, rate: float, frame: str) -> None:
    one = pose(kind, role="action", mode="delta", frame=frame)
    found, notes = sample_action(one, np.arange(0, 2 - 1e-9, 1 / rate), rate)
    assert any("summed up at 10 Hz" in note for note in notes)
    want, turned = composed(one.values, kind, frame != "base")
    at, end = composed(found, kind, frame != "base")
    assert np.allclose(at, want, atol=1e-9) and (end * turned.inv()).magnitude() < 1e-6
    assert set(np.unique(found[:, -1])) <= {0.0, 1.0}


def test_doubling_the_rate_halves_every_change() -> None:
    one = pose("axis-angle", role="action", mode="delta")
    found, _ = sample_action(one, np.arange(0, 2 - 1e-9, 0.05), 20.0)
    assert np.allclose(found[::2, :6], one.values[:, :6] / 2) and np.allclose(found[1::2, :6], one.values[:, :6] / 2)
    assert np.array_equal(found[::2, 6], one.values[:, 6])


def test_without_a_known_mode_or_gripper_the_warning_stays() -> None:
    for attributes in ({"mode": "unknown"}, {"mode": "delta", "gripper": "unknown"}):
        one = pose("axis-angle", role="action", **attributes)
        found, notes = sample_action(one, np.arange(0, 2 - 1e-9, 0.05), 20.0)
        assert np.array_equal(found[::2], one.values) and any("another distance" in note for note in notes)
    one = pose("axis-angle", role="action", mode="velocity")
    assert sample_action(one, np.arange(0, 1.9, 0.2), 5.0)[1] == []


def test_grippers_are_held_however_slowly_they_move() -> None:
    clock = np.arange(0, 2, 0.1)
    one = Stream("state", "arm", np.stack([clock, clock / 2], axis=1), clock, {"names": ["x", "gripper"]})
    found, _ = sample_state(one, np.arange(0, 1.9, 0.05))
    assert set(found[:, 1]) <= set(clock / 2) and np.allclose(found[:, 0], np.arange(0, 1.9, 0.05))


@pytest.mark.parametrize("kind", KINDS)
def test_states_turn_evenly_between_samples(kind: str) -> None:
    one = pose(kind, steps=30)
    middle = (one.timestamps[1:] + one.timestamps[:-1]) / 2
    found = to_rotation(sample_state(one, middle)[0][:, 3:-1], kind)
    before, after = (to_rotation(rows[:, 3:-1], kind) for rows in (one.values[:-1], one.values[1:]))
    assert np.allclose((found * before.inv()).magnitude(), (after * found.inv()).magnitude(), atol=1e-7)


def test_quaternions_are_made_continuous_unless_the_robot_gives_them_positive() -> None:
    one = pose("quaternion-xyzw")
    one.values = continuous(one)[0].values
    clean = one.values.copy()
    one.values[5:9, 3:7] *= -1
    found, notes = continuous(one)
    assert np.array_equal(found.values, clean) and "change sign 2 time(s)" in notes[0]
    one.attributes["quaternion_sign"] = "w-positive"
    assert continuous(one) == (one, [])
    one.values[:, 3:7] *= np.where(one.values[:, 6:7] < 0, -1, 1)
    assert np.all(sample_state(one, np.arange(0, 1.9, 0.03))[0][:, 6] >= 0)


def test_rows_that_mean_no_rotation_are_taken_as_numbers_and_told() -> None:
    one = pose("quaternion-xyzw")
    one.values[4, 3:7] = 0
    found, notes = sample_state(one, np.arange(0, 1.9, 0.05))
    assert np.all(np.isfinite(found)) and any("length 0" in note for note in notes)
