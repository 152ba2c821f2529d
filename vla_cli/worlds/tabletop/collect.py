"""The tabletop as a place to record demonstrations in: one table as a Gymnasium environment, and its scripted expert.

    observation  agentview_image  [60, 60, 3] uint8 RGB, upright
                 robot0_eef_pos   [2] float32: x, y of the gripper in metres on the table
                 robot0_gripper   [2] float32: closed (-1 / +1), holding (0 / 1)
    action       [3] float32 in [-1, 1]: see `vla_cli.worlds.tabletop.environment`

The names are those of the sample log, so that episodes of both go together.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
import numpy as np

from vla_cli.errors import ConfigError
from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, EPISODE_STEPS, Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.expert import SPEED_LIMIT, STRAIGHT
from vla_cli.worlds.tabletop.recording import OPERATORS
from vla_cli.worlds.tabletop.render import SIZE
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS, COLOURS, PLATES, SHAPES, Layout, Task
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
from vla_cli.worlds.tabletop.world import DEFAULT_LAYOUT, DEFAULT_TASK, NAME, env_args

CAMERA, POSITION, GRIPPER = "agentview_image", "robot0_eef_pos", "robot0_gripper"
PATIENT_STEPS = 400
"""A person gets this many steps: keys move along one axis at a time."""
_HERE = 0.005  # metres: nearer is on the spot

ATTRIBUTES: dict[str, dict[str, Any]] = {
    CAMERA: {"orientation": "upright", "channels": "rgb"},
    POSITION: {
        "names": ["x", "y"],
        "units": "m",
        "frame": "table",
        "rotation": "none",
        "quaternion_sign": "none",
        "gripper": "none",
    },
    GRIPPER: {
        "names": ["closed", "holding"],
        "units": "closed -1 or 1, holding 0 or 1",
        "frame": "none",
        "rotation": "none",
        "quaternion_sign": "none",
        "gripper": "open-low",
    },
    "action": {
        "names": ["dx", "dy", "gripper"],
        "units": f"shares of {SPEED_LIMIT} m a step",
        "frame": "table",
        "rotation": "none",
        "quaternion_sign": "none",
        "gripper": "open-low",
        "mode": "delta",
    },
}
"""What is known of each stream, in the words of `vla_cli.conventions`."""


class _Table(TabletopVectorEnv):
    """One table, with its own time limit."""

    def __init__(self, start: Start, domain: Domain, seed: int, limit: int) -> None:
        self.limit = limit
        super().__init__([start], domain, seed=seed)

    @property
    def ended(self) -> np.ndarray:
        """[1] bool: succeeded or out of time."""
        return self.success | (self.steps >= self.limit)


class TabletopEnv(gym.Env[Any, Any]):
    """One table with one task; every episode draws a scene.

    Args:
        layout: how scenes are drawn; it has the task's object.
        task: what is to be done.
        domain: look and dynamics.
        limit: steps after which an episode is truncated.
        render_mode: "rgb_array" alone.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_RATE_HZ}  # noqa: RUF012

    def __init__(
        self, layout: Layout, task: Task, domain: Domain, *, limit: int = EPISODE_STEPS, render_mode: str = "rgb_array"
    ) -> None:
        self.layout, self.task, self.domain, self.limit, self.render_mode = layout, task, domain, limit, render_mode
        self.observation_space = gym.spaces.Dict(
            {
                CAMERA: gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                POSITION: gym.spaces.Box(0.0, 1.0, (2,), np.float32),
                GRIPPER: gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32)),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self._table: _Table | None = None
        self._picture = np.zeros((SIZE, SIZE, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new scene; `seed` settles it, the pixel noise, and the scenes after it."""
        super().reset(seed=seed)
        start = Start(self.layout.draw(self.np_random), self.task)
        self._table = _Table(start, self.domain, int(self.np_random.integers(2**31)), self.limit)
        observation, info = self._table.reset()
        return self._single(observation), _first(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step; `info["success"]` says whether the task is done."""
        observation, reward, terminated, truncated, info = self.table.step(np.asarray(action)[None])
        return self._single(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> np.ndarray:
        """The picture of the last observation."""
        return self._picture.copy()

    @property
    def table(self) -> TabletopVectorEnv:
        """The table of this episode.

        Raises:
            RuntimeError: there was no reset yet.
        """
        if self._table is None:
            raise RuntimeError("reset() comes before anything else")
        return self._table

    def describe(self) -> list[str]:
        """Where everything is, for a person without a picture: the gripper, each object, each plate."""
        table = self.table
        gripper, scene = table.gripper_xy[0], table.starts[0].scene
        held, fingers = int(table.held[0]), "closed" if table.gripper_closed[0] else "open"
        hand = f"{fingers}, holding the {' '.join(scene.objects[held])}" if held >= 0 else fingers
        lines = [f"{'gripper':<15}{_place(gripper)}   {hand}"]
        for name, xy in zip(scene.objects, table.object_xy[0], strict=True):
            lines.append(f"{' '.join(name):<15}{_place(xy)}   {way(gripper, xy)}")
        for name, xy in zip(PLATES, table.plate_xy[0], strict=True):
            lines.append(f"{name + ' plate':<15}{_place(xy)}   {way(gripper, xy)}")
        return lines

    def _single(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._picture, state = observation["image"][0], observation["state"][0]
        return {CAMERA: self._picture.copy(), POSITION: state[:2].copy(), GRIPPER: state[2:].copy()}


class TabletopCollection:
    """See `vla_cli.worlds.collecting.Collection`.

    Args:
        variant: a domain name, or "" for the base's own.
        instruction: any phrasing of a task.
        limit: steps the expert has.

    Raises:
        ConfigError: there is no such domain, or no task is asked for in these words.
    """

    def __init__(self, variant: str, instruction: str | None, *, limit: int = EPISODE_STEPS) -> None:
        shift = variant or "base"
        if shift not in DOMAINS:
            raise ConfigError(f"The tabletop has no domain '{shift}'", expected=f"one of {', '.join(DOMAINS)}")
        self.task = task_of(instruction)
        self.instruction = (instruction or "").strip()
        self.layout, self.domain, self.limit = layout_for(self.task), DOMAINS[shift], limit
        self.label = f"{NAME}:{shift}"
        self.world = env_args(shift, self.layout, self.task)
        self.attributes = ATTRIBUTES

    def environment(self, *, patient: bool) -> TabletopEnv:
        """One table; with more time where a person is to do the task."""
        return TabletopEnv(self.layout, self.task, self.domain, limit=PATIENT_STEPS if patient else self.limit)

    def expert(self, environment: TabletopEnv, operator: str) -> Callable[[Any], np.ndarray]:
        """The scripted expert with the habit of an operator in `recording.OPERATORS`; anybody else goes straight."""
        habit = OPERATORS.get(operator, STRAIGHT)
        return lambda observation: np.clip(environment.table.expert(habit)[0], -1.0, 1.0).astype(np.float32)


def tasks() -> dict[str, Task]:
    """Every phrasing to its task."""
    everything = [
        task
        for colour in COLOURS
        for shape in SHAPES
        for task in (*(Task("put", colour, shape, plate) for plate in PLATES), Task("pick", colour, shape))
    ]
    return {phrase: task for task in everything for phrase in task.phrasings}


def task_of(instruction: str | None) -> Task:
    """The task that an instruction asks for; case, spaces and a full stop at the end do not matter.

    Raises:
        ConfigError: there is none.
    """
    words = " ".join((instruction or "").lower().rstrip(" .!").split())
    known = tasks()
    if words in known:
        return known[words]
    like = get_close_matches(words, ALL_PHRASINGS, 3, cutoff=0.5) or [
        DEFAULT_TASK.phrasings[0],
        Task("put", "blue", "ball", "front").phrasings[1],
        Task("pick", "green", "wedge").phrasings[0],
    ]
    quoted = "; ".join(f'"{text}"' for text in like)
    raise ConfigError(
        f'The tabletop has no task "{words[:100]}"' if words else "Collecting needs an instruction to demonstrate",
        expected=f"one of its tasks in words, for instance {quoted}",
        hint=f'--instruction "{like[0]}"',
    )


def layout_for(task: Task) -> Layout:
    """A lab's scene with the task's object: the usual one, or with that object in the place of the first."""
    usual = DEFAULT_LAYOUT.objects or ()
    named = (task.colour, task.shape)
    return DEFAULT_LAYOUT if named in usual else Layout((named, *usual[1:]), DEFAULT_LAYOUT.cells)


def way(start: np.ndarray, end: np.ndarray) -> str:
    """How to get from one place on the table to another, in whole centimetres along each axis."""
    sides = (("right", "left"), ("away", "nearer"))
    parts = [
        f"{round(abs(gap) * 100)} cm {positive if gap > 0 else negative}"
        for gap, (positive, negative) in zip(end - start, sides, strict=True)
        if abs(gap) >= _HERE
    ]
    return ", ".join(parts) or "here"


def _place(xy: np.ndarray) -> str:
    return f"x {xy[0]:.2f}  y {xy[1]:.2f}"


def _first(info: dict[str, np.ndarray]) -> dict[str, Any]:
    """The infos of the only table."""
    return {key: value[0].item() for key, value in info.items()}
