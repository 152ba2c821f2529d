import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cli.episode import Stream, UnusableError
from vla_cli.errors import ConfigError
from vla_cli.synchrony.actions import (
    base_of,
    check_actions,
    close_high,
    convert_actions,
    gripper_ranges,
    to_absolute,
    to_delta,
)
from vla_cli.synchrony.dimensions import parts_of
from vla_cli.synchrony.rotations import WIDTHS, from_rotation, to_rotation

KINDS = sorted(WIDTHS)
STATED = {"units": "m, rad", "rotation": "axis-angle", "gripper": "open-high", "frame": "base"}


def pose(role: str, kind: str, seed: int, steps: int = 15, **attributes) -> Stream:
    rng = np.random.default_rng(seed)
    turns = Rotation.random(steps, rng=rng)
    if attributes.get("mode") == "delta":
        turns = Rotation.from_rotvec(turns.as_rotvec() * 0.9)
    columns = [rng.normal(size=(steps, 3)), from_rotation(turns, kind), rng.integers(0, 2, (steps, 1))]
    stated = {**STATED, "rotation": kind, **attributes}
    return Stream(role, role, np.concatenate(columns, axis=1), np.arange(steps) / 10, stated)  # type: ignore[arg-type]


def agree(one: np.ndarray, other: np.ndarray, kind: str) -> bool:
    """Whether rows mean the same: positions and grippers as numbers, rotations as rotations."""
    turned = to_rotation(one[:, 3:-1], kind) * to_rotation(other[:, 3:-1], kind).inv()
    return np.allclose(one[:, [0, 1, 2, -1]], other[:, [0, 1, 2, -1]]) and bool(turned.magnitude().max() < 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frame", ["base", "end-effector"])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_delta_and_absolute_are_inverse(kind: str, frame: str, seed: int, state_kind: str) -> None:
    state = pose("state", state_kind, seed + 1)
    own = frame != "base"
    targets, changes = pose("action", kind, seed, mode="absolute"), pose("action", kind, seed, mode="delta")
    base, parts = base_of(targets, [state]), parts_of(targets)
    back = to_absolute(to_delta(targets.values, base, parts, own_frame=own), base, parts, own_frame=own)
    assert agree(back, targets.values, kind)
    back = to_delta(to_absolute(changes.values, base, parts, own_frame=own), base, parts, own_frame=own)
    assert agree(back, changes.values, kind)
    if kind != "euler-xyz" and not kind.startswith("quaternion"):
        assert np.allclose(back, changes.values, atol=1e-6)


def test_a_change_is_turned_and_not_subtracted() -> None:
    turn = Rotation.from_rotvec([[0.0, 0.0, 0.3]])
    start = Rotation.from_rotvec([[1.2, -0.4, 0.5]])
    row = np.concatenate([np.zeros((1, 3)), from_rotation(turn * start, "axis-angle"), np.zeros((1, 1))], axis=1)
    still = np.concatenate([np.zeros((1, 3)), from_rotation(start, "axis-angle"), np.zeros((1, 1))], axis=1)
    clock = np.zeros(1)
    action = Stream("action", "action", row, clock, {**STATED, "mode": "absolute"})
    state = Stream("state", "state", still, clock, STATED)
    found, notes = convert_actions([action], [state], "delta")
    assert np.allclose(found[0].values[0, 3:6], [0, 0, 0.3])
    assert found[0].attributes["mode"] == "delta" and "made delta from absolute" in notes[0]
    again, _ = convert_actions(found, [state], "absolute")
    assert np.allclose(again[0].values, row)


def test_the_next_state_is_the_action_and_the_last_is_repeated() -> None:
    state = pose("state", "quaternion-xyzw", 0)
    found, notes = convert_actions([pose("action", "axis-angle", 1, mode="unknown")], [state], "next-state")
    assert np.array_equal(found[0].values[:-1], state.values[1:])
    assert np.array_equal(found[0].values[-1], state.values[-1])
    assert found[0].role == "action" and found[0].attributes["mode"] == "absolute" and notes
    with pytest.raises(UnusableError, match="no state"):
        convert_actions([], [], "next-state")


def test_what_has_the_wanted_mode_already_is_left() -> None:
    action = pose("action", "axis-angle", 0, mode="delta")
    assert convert_actions([action], [], "delta") == ([action], [])
    assert convert_actions([action], [], "as-recorded") == ([action], [])


@pytest.mark.parametrize("key", ["mode", "rotation", "units", "gripper"])
def test_an_unknown_convention_is_named_with_the_command_that_states_it(key: str) -> None:
    action = pose("action", "axis-angle", 0, mode="absolute")
    action.attributes[key] = "unknown"
    with pytest.raises(ConfigError) as caught:
        convert_actions([action], [pose("state", "axis-angle", 1)], "delta")
    assert f"its {key} is unknown" in str(caught.value) and f"--set action.{key}=" in str(caught.value)


def test_scaled_changes_and_velocities_are_refused() -> None:
    state = pose("state", "axis-angle", 1)
    scaled = pose("action", "axis-angle", 0, mode="delta", units="normalised to [-1, 1]")
    with pytest.raises(ConfigError, match=r"normalised to \[-1, 1\]"):
        convert_actions([scaled], [state], "absolute")
    with pytest.raises(ConfigError, match="is a velocity"):
        convert_actions([pose("action", "axis-angle", 0, mode="velocity")], [state], "delta")
    metres = pose("action", "quaternion-xyzw", 0, mode="delta", units="cm")
    with pytest.raises(ConfigError, match="cannot be added"):
        convert_actions([metres], [state], "absolute")


def test_the_state_is_found_among_several_or_asked_for() -> None:
    clock, rng = np.arange(15) / 10, np.random.default_rng(0)
    joints = {"units": "rad", "rotation": "joints", "gripper": "none"}
    action = Stream("action", "joint_position", rng.normal(size=(15, 7)), clock, {**joints, "mode": "absolute"})
    position = Stream("state", "joint_positions", rng.normal(size=(15, 7)), clock, joints)
    other = Stream("state", "joint_torques", rng.normal(size=(15, 7)), clock, joints)
    found, _ = convert_actions([action], [pose("state", "axis-angle", 0), position, other], "delta")
    assert np.allclose(found[0].values, action.values - position.values)
    for states in ([], [pose("state", "axis-angle", 0)]):
        with pytest.raises(UnusableError, match="no state streams"):
            convert_actions([action], states, "delta")
    turning = pose("action", "axis-angle", 0, mode="absolute")
    with pytest.raises(ConfigError, match=r"--set state.rotation="):
        convert_actions([turning], [pose("state", "axis-angle", 0, rotation="unknown")], "delta")


def test_a_pose_in_several_streams_is_put_together() -> None:
    whole = pose("state", "axis-angle", 3)
    parts = [
        Stream("state", name, whole.values[:, cut], whole.timestamps, {**STATED, **stated})
        for name, cut, stated in (
            ("eef_pos", slice(0, 3), {"rotation": "none", "gripper": "none"}),
            ("eef_rot", slice(3, 6), {"gripper": "none"}),
            ("gripper_width", slice(6, 7), {"rotation": "none", "gripper": "width"}),
        )
    ]
    action = pose("action", "axis-angle", 4, mode="absolute")
    together, _ = convert_actions([action], parts, "delta")
    alone, _ = convert_actions([action], [whole], "delta")
    assert np.array_equal(together[0].values, alone[0].values)


@pytest.mark.parametrize(("low", "mirrored"), [(0.0, lambda v: 1 - v), (-1.0, lambda v: -v)])
def test_a_gripper_that_is_high_when_open_is_mirrored_within_its_range(low: float, mirrored) -> None:
    action = pose("action", "axis-angle", 0, mode="delta")
    action.values[:, 6] = np.where(np.arange(15) > 7, 1.0, low)
    found, notes = close_high(action, {})
    assert np.array_equal(found.values[:, 6], mirrored(action.values[:, 6])) and "mirrored" in notes[0]
    assert np.array_equal(found.values[:, :6], action.values[:, :6])
    assert close_high(found, {}) == (found, [])  # it is low when open now


def test_an_episode_whose_gripper_never_moves_is_mirrored_like_the_others() -> None:
    moving, still = (pose("action", "axis-angle", seed, mode="delta") for seed in (0, 1))
    moving.values[:, 6], still.values[:, 6] = np.where(np.arange(15) > 7, 1.0, -1.0), 1.0
    ranges = gripper_ranges([moving])
    assert ranges == {"action/action": (-1.0, 1.0)}
    assert np.all(close_high(still, ranges)[0].values[:, 6] == -1)


def test_a_gripper_nobody_has_told_of_is_asked_for_and_measures_are_left() -> None:
    for unknown in (
        pose("action", "axis-angle", 0, gripper="unknown"),
        pose("state", "axis-angle", 0, gripper="unknown", names=["x", "y", "z", "rx", "ry", "rz", "gripper"]),
    ):
        with pytest.raises(ConfigError, match=r"\.gripper=open-high"):
            close_high(unknown, {})
    for convention in ("open-low", "width", "joint", "none"):
        left = pose("state", "axis-angle", 0, gripper=convention)
        assert close_high(left, {}) == (left, [])


@pytest.mark.parametrize(("top", "reached"), [(100.0, 97.0), (255.0, 251.0), (7.0, 7.0)])
def test_a_gripper_of_another_scale_is_mirrored_within_that_scale(top: float, reached: float) -> None:
    action = pose("action", "axis-angle", 0, mode="delta")
    action.values[:, 6] = np.where(np.arange(15) > 7, reached, 2.0)
    total = top if top > 7 else 9.0  # where no scale is known, its own two ends change places
    found, notes = close_high(action, gripper_ranges([action]))
    assert np.array_equal(found.values[:, 6], total - action.values[:, 6]) and f"{total:g} - v" in notes[0]


def test_a_gripper_that_is_found_in_the_other_episodes_only_is_not_left_the_other_way_round() -> None:
    clock, seven = np.arange(15) / 10, np.zeros((15, 7))
    moving = Stream("action", "action", np.c_[seven, clock > 0.7], clock, {"gripper": "open-high"})
    still = Stream("action", "action", np.c_[seven, np.ones(15)], clock, {"gripper": "open-high"})
    ranges = gripper_ranges([moving])
    assert close_high(moving, ranges)[0].values[0, 7] == 1
    with pytest.raises(UnusableError, match="which of its 8 dimensions is the gripper"):
        close_high(still, ranges)
    assert close_high(still, {}) == (still, [])


def test_joints_with_a_stated_gripper_are_not_refused_by_their_header() -> None:
    stated = {"mode": "absolute", "rotation": "joints", "units": "rad", "gripper": "open-high"}
    check_actions(Stream("action", "action", np.empty((0, 8)), np.empty(0), stated), "delta")
    with pytest.raises(UnusableError, match="none is named so or has two values, so that it is not made delta"):
        check_actions(Stream("action", "action", np.zeros((5, 8)), np.arange(5.0), stated), "delta")
