"""Grasp and release are where the gripper closed and opened, in made-up and in recorded demonstrations."""

from __future__ import annotations

import numpy as np
import pytest

from vla_cli.episode import load_episode, read_manifest
from vla_cli.operators.grasps import grasp_and_release, gripper_dims, position_dims, reach, spread, told

PATH = np.stack([np.arange(8.0), np.arange(8.0) ** 2], axis=1)


def actions(*gripper: float) -> np.ndarray:
    return np.stack([np.zeros(8), np.array(gripper, float)], axis=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_grasp_is_at_the_first_closing_command_and_release_at_the_one_that_opens(sign: int) -> None:
    grasp, release = grasp_and_release(PATH, sign * actions(0, 0, 1, 1, 1, 0, 0, 0), [1])
    assert grasp is not None and release is not None
    assert grasp.tolist() == [2, 4] and release.tolist() == [5, 25]


def test_a_failed_attempt_is_not_the_grasp() -> None:
    grasp, release = grasp_and_release(PATH, actions(0, 1, 0, 0, 1, 1, 1, 0), [1], position_dims=[0])
    assert grasp is not None and release is not None
    assert (grasp.tolist(), release.tolist()) == ([4], [7])


def test_what_did_not_happen_is_none() -> None:
    assert grasp_and_release(PATH, actions(0, 0, 0, 0, 0, 0, 1, 1), [1])[1] is None
    assert grasp_and_release(PATH, actions(*[0.5] * 8), [1]) == (None, None)
    assert grasp_and_release(PATH, actions(0, 0, 1, 1, 1, 0, 0, 0), []) == (None, None)
    assert grasp_and_release(np.zeros((8, 0)), actions(0, 0, 1, 1, 1, 0, 0, 0), [1]) == (None, None)
    assert grasp_and_release(np.zeros((0, 2)), np.zeros((0, 2)), [1]) == (None, None)


def test_of_a_hand_the_finger_that_moves_most_counts() -> None:
    hand = np.stack([0.1 * np.array([0, 1, 0, 1, 0, 1, 0, 1]), -np.array([0, 0, 0, 1, 1, 1, 1, 0])], axis=1)
    grasp, release = grasp_and_release(PATH, hand, [0, 1], position_dims=[0])
    assert grasp is not None and release is not None
    assert (grasp.tolist(), release.tolist()) == ([3], [7])


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper"], [0, 1, 2]),
        (["robot0_eef_pos[0]", "robot0_eef_pos[1]", "robot0_eef_quat[0]", "robot0_gripper[0]"], [0, 1]),
        (["left_arm[0]", "left_arm[1]", "left_hand[0]", "waist[0]"], [0, 1, 3]),
        (["joint_1.pos", "joint_2.pos", "gripper.pos"], [0, 1]),
        (["robot0_eef_pos[0]", "robot0_eef_pos[1]", "robot0_joint_pos[0]", "robot0_joint_pos[1]"], [0, 1]),
        (["state[0]", "state[1]"], [0, 1]),
        ([], []),
    ],
)
def test_positions_are_told_by_their_names(names: list[str], wanted: list[int]) -> None:
    assert position_dims(names) == wanted


def test_the_gripper_is_told_by_its_name_or_as_a_switch_at_the_end() -> None:
    switch = actions(0, 0, 1, 1, 1, 0, 0, 0)
    assert gripper_dims(["x", "left_gripper", "right_gripper"], np.zeros((8, 3))) == [1, 2]
    assert gripper_dims(["a[0]", "a[1]"], switch) == [1]
    assert gripper_dims(["a[0]", "a[1]"], actions(*np.linspace(0, 1, 8))) == []
    assert gripper_dims(["a[0]", "a[1]"], actions(*np.zeros(8))) == []


def test_recorded_grasps_are_at_the_block_and_releases_at_the_plate(episodes) -> None:
    """The sample has the red block near (0.5, 0.3) and the left plate near (0.1, 0.5)."""
    for row in read_manifest(episodes):
        episode = load_episode(episodes / row["file"])
        state = np.concatenate([s.values for s in episode.of_role("state")], axis=1)
        commands = episode.of_role("action")[0].values
        names = [f"{s.name}[{i}]" for s in episode.of_role("state") for i in range(s.values.shape[1])]
        dims = gripper_dims(["action[0]", "action[1]", "action[2]"], commands)
        grasp, release = grasp_and_release(state, commands, dims, position_dims=position_dims(names))
        assert grasp is not None and release is not None
        assert np.linalg.norm(grasp - [0.5, 0.3]) < 0.09 and np.linalg.norm(release - [0.1, 0.5]) < 0.12


def test_reach_is_the_spread_of_all_positions_whatever_the_episodes() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)) * [1, 2, 3] + n for n in (5, 40, 17)]
    kept = [told(str(i), ["x"], part, np.zeros((len(part), 1))) for i, part in enumerate(parts)]
    whole = np.concatenate(parts)
    assert reach(kept) == pytest.approx(np.sqrt(whole.var(axis=0).sum()))
    assert reach([told("a", ["x"], np.zeros((4, 0)), np.zeros((4, 1)))]) == 0.0
    assert spread(list(whole), 5) == pytest.approx(np.sqrt(whole.var(axis=0, ddof=1).sum()))
    assert spread([*whole[:4], None], 5) is None
