"""Competence: 1 for a policy that does as was shown, 0 for chance, and high for the base where it is calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vla_cli.adapter import PolicySpec
from vla_cli.dataset import load_dataset
from vla_cli.policies.competence import ENOUGH, Competence, measure_competence
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.windows import Windows


class Player:
    """A policy that has learnt the demonstrations by heart, and does what it is told to do with them."""

    def __init__(self, spec: PolicySpec, windows: Windows, change) -> None:
        self.spec, self.change = spec, change
        samples = windows.gather(range(len(windows)))
        seen = zip(samples.state, samples.images, samples.actions, strict=True)
        self.known = {state.tobytes() + image.tobytes(): chunk for state, image, chunk in seen}

    def act(self, images: np.ndarray, state: np.ndarray, instructions: Sequence[str], noise: np.ndarray) -> np.ndarray:
        found = [self.known[s.tobytes() + i.tobytes()] for s, i in zip(state, images, strict=True)]
        return self.change(np.stack(found), state)

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        return (batch, self.spec.chunk_size, len(self.spec.action_names))


@pytest.fixture(scope="module")
def policy(base: Path, calibrated: Path) -> FlowPolicy:
    return load(str(base), calibrated, device="cpu")


@pytest.fixture(scope="module")
def windows(dataset: Path, policy: FlowPolicy) -> Windows:
    found = load_dataset(dataset)
    return Windows(found.split("train"), found.cameras, policy.spec.chunk_size)


def closed(state: np.ndarray) -> np.ndarray:
    return state[:, 2] > 0


def played(windows: Windows, policy: FlowPolicy, change) -> Competence:
    return measure_competence(Player(policy.spec, windows, change), windows, closed=closed, seed=0)


def test_doing_as_was_shown_is_perfect(windows: Windows, policy: FlowPolicy) -> None:
    found = played(windows, policy, lambda actions, state: actions)
    assert (found.all, found.open, found.closed, found.lowest) == (1.0, 1.0, 1.0, 1.0)


def test_doing_something_of_the_demonstrations_at_random_is_chance(windows: Windows, policy: FlowPolicy) -> None:
    rng = np.random.default_rng(0)
    found = played(windows, policy, lambda actions, state: rng.permutation(actions))
    assert abs(found.all) < 0.15
    assert found.lowest < ENOUGH


def test_one_phase_that_fails_is_found(windows: Windows, policy: FlowPolicy) -> None:
    def carries_backwards(actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        found = actions.copy()
        found[closed(state)] *= [-1.0, -1.0, 1.0]
        return found

    found = played(windows, policy, carries_backwards)
    assert found.open == 1.0
    assert found.closed is not None and found.closed == found.lowest < 0.5
    assert found.worst == "with closed fingers"


def test_calibration_makes_the_base_competent(windows: Windows, policy: FlowPolicy) -> None:
    calibration = policy.calibration
    assert calibration is not None
    able = measure_competence(policy, windows, closed=calibration.closed, seed=0)
    policy.calibrate(None)
    try:
        bare = measure_competence(policy, windows, closed=calibration.closed, seed=0)
    finally:
        policy.calibrate(calibration)
    assert able.lowest > max(ENOUGH, bare.lowest + 0.05)
    assert able.all > bare.all + 0.05
    again = measure_competence(policy, windows, closed=calibration.closed, seed=0)
    assert again == able


def test_without_a_gripper_there_is_one_figure(windows: Windows, policy: FlowPolicy) -> None:
    player = Player(policy.spec, windows, lambda actions, state: 0.9 * actions)
    found = measure_competence(player, windows, closed=None, seed=0)
    assert found.closed is None
    assert found.open == pytest.approx(found.all, abs=0.05)
    assert 0.7 < found.lowest < 1.0
    assert set(found.document()) == {"all", "open", "closed", "frames"}
