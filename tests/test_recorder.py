"""The recorder: what an environment shows and what it is told come out as they were, without piling up in memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from vla_cli.episode import Episode, UnusableError, load_episode, problems, save_episode
from vla_cli.errors import ConfigError
from vla_cli.frames import blocks_of
from vla_cli.observation import flatten, roles_of
from vla_cli.recorder import PictureFile, Recorder


class Pointed(gym.Wrapper):
    """Gymnasium's own pendulum, with a picture drawn without pygame: a bright row where the rod points."""

    def __init__(self, environment: gym.Env) -> None:
        super().__init__(environment)
        self.shown: list[np.ndarray] = []

    def render(self) -> Any:
        picture = np.zeros((24, 32, 3), np.uint8)
        x, y, _ = self.unwrapped._get_obs()  # pyright: ignore[reportAttributeAccessIssue]
        picture[int(12 + 11 * y), :, 0] = 255
        picture[:, int(16 + 15 * x), 1] = 200
        self.shown.append(picture)
        return picture


def pendulum() -> Pointed:
    return Pointed(gym.make("Pendulum-v1", max_episode_steps=40))


class Arm(gym.Env[dict[str, Any], np.ndarray]):
    """Two cameras and a nested state, whose buffers are used again in every step."""

    metadata = {"render_modes": [], "render_fps": 20}  # noqa: RUF012

    def __init__(self, size: int = 16, length: int = 12) -> None:
        self.size, self.length = size, length
        self.front = np.zeros((size, size, 3), np.uint8)
        self.joints = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.step_number = 0
        self.joints[:] = self.np_random.uniform(-1, 1, 3)
        return self.observation(), {}

    def observation(self) -> dict[str, Any]:
        self.front[:] = self.step_number % 256
        wrist = self.np_random.integers(0, 256, (8, 10, 3), np.uint8)
        robot = {"joints": self.joints, "temperature": 36.5, "errors": np.array([0, self.step_number])}
        return {"front": self.front, "wrist": wrist, "robot": robot, "depth": np.zeros((4, 4), np.float32), "said": ""}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.step_number += 1
        self.joints += action
        done = self.step_number == self.length
        return self.observation(), self.step_number / 2, done, False, {"success": self.joints[0] > 0}


class Told:
    """An actor that keeps what it saw and said, and stops after some steps."""

    def __init__(self, low: float, high: float, width: int, steps: int = 10**6) -> None:
        self.rng, self.range, self.steps = np.random.default_rng(0), (low, high, width), steps
        self.saw: list[Any] = []
        self.said: list[np.ndarray] = []

    def __call__(self, observation: Any) -> np.ndarray | None:
        if len(self.said) == self.steps:
            return None
        self.saw.append({k: np.array(v) for k, v in flatten(observation).items()})
        action = self.rng.uniform(*self.range).astype(np.float32)
        self.said.append(action.copy())
        return action


def streams(episode: Episode) -> dict[tuple[str, str], Any]:
    return {(s.role, s.name): s for s in episode.streams}


@pytest.fixture
def arm(tmp_path: Path) -> Recorder:
    return Recorder(Arm(), directory=tmp_path)


def test_a_gymnasium_environment_that_renders(tmp_path: Path) -> None:
    environment, actor = pendulum(), Told(-2, 2, 1)
    recorder = Recorder(environment, directory=tmp_path)
    take = recorder.record(actor, name="one", instructions=["swing up"], operator="ada", seed=3)
    found = streams(take.episode)
    assert set(found) == {("image", "render"), ("state", "observation"), ("action", "action"), ("other", "reward")}
    assert (take.ending, take.success) == ("truncated", None)
    np.testing.assert_array_equal(found["image", "render"].values, environment.shown[1:41])
    np.testing.assert_array_equal(found["state", "observation"].values, [s["observation"] for s in actor.saw])
    np.testing.assert_array_equal(found["action", "action"].values, actor.said)
    assert found["action", "action"].values.dtype == found["state", "observation"].values.dtype == np.float32
    np.testing.assert_array_equal(found["action", "action"].timestamps, np.arange(40) / 30)
    assert found["image", "render"].attributes["rate_hz"] == 30
    assert problems(take.episode) == []


def test_what_comes_back_from_disk_is_what_was_recorded(arm: Recorder, tmp_path: Path) -> None:
    actor = Told(-1, 1, 3)
    episode = arm.record(actor, name="e", instructions=["wave"], seed=1).episode
    save_episode(episode, tmp_path / "e.hdf5")
    arm.close()
    back = streams(load_episode(tmp_path / "e.hdf5"))
    for name in ("front", "wrist"):
        np.testing.assert_array_equal(back["image", name].values, [s[name] for s in actor.saw])
    np.testing.assert_array_equal(back["state", "robot.joints"].values, [s["robot.joints"] for s in actor.saw])
    np.testing.assert_array_equal(back["action", "action"].values, actor.said)
    np.testing.assert_array_equal(back["state", "robot.temperature"].values, np.full((12, 1), 36.5))
    np.testing.assert_array_equal(back["other", "robot.errors"].values, [[0, i] for i in range(12)])
    np.testing.assert_array_equal(back["other", "reward"].values[:, 0], np.arange(1, 13) / 2)


def test_what_cannot_be_kept_is_said(arm: Recorder) -> None:
    notes = arm.record(Told(-1, 1, 3), name="e", seed=1).episode.notes
    assert notes == ["depth is left out: float32[4, 4]", "said is left out: str"]


def test_the_same_seed_gives_the_same_bytes_whatever_came_before(tmp_path: Path) -> None:
    written = []
    for order in ((4, 5), (5, 4)):
        recorder = Recorder(Arm(), directory=tmp_path)
        for seed in order:
            path = tmp_path / f"{seed}.hdf5"
            save_episode(recorder.record(Told(-1, 1, 3), name=f"e{seed}", seed=seed).episode, path)
        written.append([(tmp_path / f"{seed}.hdf5").read_bytes() for seed in (4, 5)])
        recorder.close()
    assert written[0] == written[1] and written[0][0] != written[0][1]


def test_episodes_stay_readable_until_the_recorder_is_closed(arm: Recorder, tmp_path: Path) -> None:
    takes = [arm.record(Told(-1, 1, 3), name=f"e{seed}", seed=seed).episode for seed in (1, 2)]
    fronts = [np.concatenate(list(blocks_of(streams(t)["image", "front"].values))) for t in takes]
    assert all((front[:, 0, 0, 0] == range(12)).all() for front in fronts)
    arm.close()
    for take in takes:
        with pytest.raises(ValueError, match="closed"):
            np.asarray(streams(take)["image", "front"].values)


def test_an_episode_that_nobody_holds_any_more_leaves_the_disk(arm: Recorder) -> None:
    cut = streams(arm.record(Told(-1, 1, 3), name="e", seed=1).episode)["image", "front"].values.cut(3)
    assert np.asarray(cut)[:, 0, 0, 0].tolist() == [0, 1, 2] and open_pictures() == 1
    del cut
    assert open_pictures() == 0


def open_pictures() -> int:
    """Cameras that take space on disk."""
    gc.collect()
    return sum(isinstance(thing, PictureFile) and not thing._file.closed for thing in gc.get_objects())


def test_success_is_what_the_environment_says(arm: Recorder) -> None:
    up, down = (arm.record(lambda _, s=s: np.full(3, s), name="e", seed=1) for s in (1.0, -1.0))
    assert (up.success, up.ending, down.success) == (True, "terminated", False)


def test_an_actor_that_stops_ends_the_episode_before_acting(arm: Recorder) -> None:
    take = arm.record(Told(-1, 1, 3, steps=5), name="e", seed=1)
    assert take.ending == "stopped"
    assert {len(stream) for stream in take.episode.streams} == {5}
    assert problems(take.episode) == []


def test_no_action_is_no_episode(arm: Recorder) -> None:
    with pytest.raises(UnusableError, match="no steps"):
        arm.record(lambda _: None, name="e")
    assert open_pictures() == 0


def test_what_an_actor_raises_leaves_nothing_behind(arm: Recorder, tmp_path: Path) -> None:
    def acts(_: Any) -> np.ndarray:
        if arm.environment.step_number > 3:  # pyright: ignore
            assert open_pictures() == 2
            raise KeyboardInterrupt
        return np.zeros(3)

    with pytest.raises(KeyboardInterrupt):
        arm.record(acts, name="e")
    assert open_pictures() == 0 and list(tmp_path.iterdir()) == []


def test_a_robot_in_real_time_has_the_clock_s_times(tmp_path: Path) -> None:
    now = iter(np.cumsum([100.0, 0.01, 0.1, 0.02, 0.13, 0.03, 0.1]))
    recorder = Recorder(Arm(length=3), clock=lambda: float(next(now)), directory=tmp_path)
    found = streams(recorder.record(Told(-1, 1, 3), name="e").episode)
    np.testing.assert_allclose(found["image", "front"].timestamps, [0, 0.11, 0.26])
    np.testing.assert_allclose(found["action", "action"].timestamps, [0.01, 0.13, 0.29])


def test_cameras_and_state_can_be_chosen(tmp_path: Path) -> None:
    recorder = Recorder(Arm(), cameras=["wrist"], state=["robot.errors"], rate=5, directory=tmp_path)
    episode = recorder.record(Told(-1, 1, 3), name="e").episode
    assert [s.name for s in episode.of_role("image")] == ["wrist"]
    assert [s.name for s in episode.of_role("state")] == ["robot.errors"]
    assert episode.streams[0].timestamps[1] == 0.2
    assert "front is left out: uint8[16, 16, 3]" in episode.notes


@pytest.mark.parametrize(
    ("choice", "fragment"),
    [({"cameras": ["back"]}, "no 'back'"), ({"cameras": ["depth"]}, "float32[4, 4]"), ({"state": ["said"]}, "is str")],
)
def test_a_choice_that_is_not_there_is_refused(choice: dict, fragment: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Recorder(Arm(), **choice, directory=tmp_path).record(Told(-1, 1, 3), name="e")
    assert fragment in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_environment_without_pictures_or_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pictures.*rgb_array"):
        Recorder(gym.make("Pendulum-v1"), directory=tmp_path).record(Told(-2, 2, 1), name="e")
    bare = Arm()
    bare.metadata = {}
    with pytest.raises(ConfigError, match=r"render_fps"):
        Recorder(bare)


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        (lambda o: o.pop("wrist"), "step 2 lacks wrist"),
        (lambda o: o.update(wrist=np.zeros((9, 10, 3), np.uint8)), "wrist is [9, 10, 3] in step 2"),
        (lambda o: o.update(front=np.zeros((16, 16, 3))), "front is no picture in step 2"),
        (lambda o: o["robot"].update(joints=np.zeros(4)), "robot.joints has 4 numbers in step 2"),
        (lambda o: o["robot"].update(joints="broken"), "robot.joints is str"),
    ],
)
def test_an_observation_that_changes_its_kind_is_no_demonstration(changed: Any, fragment: str, tmp_path: Path) -> None:
    class Changing(Arm):
        def observation(self) -> dict[str, Any]:
            found = super().observation()
            if self.step_number == 2:
                changed(found)
            return found

    with pytest.raises(UnusableError) as caught:
        Recorder(Changing(), directory=tmp_path).record(Told(-1, 1, 3), name="e")
    assert fragment in str(caught.value)
    assert open_pictures() == 0


def test_choices_are_recorded_as_numbers_with_a_note(tmp_path: Path) -> None:
    recorder = Recorder(pendulum(), directory=tmp_path)
    recorder.environment = Choosing(recorder.environment)
    episode = recorder.record(lambda _: 1, name="e").episode
    assert episode.of_role("action")[0].values.tolist() == [[1.0]] * 40
    assert "whole numbers" in episode.notes[0]


class Choosing(gym.ActionWrapper):
    def action(self, action: int) -> np.ndarray:
        return np.array([float(action)])


def test_names_of_parts() -> None:
    assert list(flatten({"a": {"b": 1, "c/d": 2}, "e": (3, 4)})) == ["a.b", "a.c.d", "e.0", "e.1"]
    assert list(flatten(np.zeros(2))) == ["observation"]
    with pytest.raises(ConfigError, match=r"'a\.b'"):
        flatten({"a.b": 1, "a": {"b": 2}})
    assert roles_of({"flag": True, "none": None, "empty": np.zeros(0)}) == {"flag": "other"}


MEASURE = """
import resource, sys
sys.path[:0] = {path!r}
from test_recorder import Arm
from vla_cli.recorder import Recorder
import numpy as np
recorder = Recorder(Arm(size=256, length={length}))
frames = recorder.record(lambda _: np.zeros(3), name="e").episode.of_role("image")[0].values
assert sum(len(block) for block in frames.blocks()) == {length}
recorder.close()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(length: int) -> int:
    code = MEASURE.format(length=length, path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_a_ten_times_longer_episode_takes_no_more_memory() -> None:
    """1200 pictures of 256 x 256 would be 236 MB."""
    assert peak(1200) <= 1.2 * peak(120)
