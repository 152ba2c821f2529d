"""The tabletop as a Gymnasium vector environment, batched in NumPy and deterministic by seed.

    observation  image  [B, 60, 60, 3] uint8 RGB
                 state  [B, 4] float32: gripper x, gripper y (metres), closed (-1 / +1), holding (0 / 1)
    action       [B, 3] in [-1, 1]: x and y as shares of the speed limit (0.07 m a step), gripper (> 0 closes)

`info` keeps apart what the policy did: `approached` first, `grasped` first, `released_on`, `success`, `grounded`, so
that success, grounding and locked behaviour are separate facts. An environment that has ended keeps its last state.

One control step, in this order:

    1. the gripper moves; the displacement is what is left of it after gain and the table's edge
    2. a held object slips if that displacement is above the carry limit: it lies where it was, no longer held
    3. the fingers follow the command given `gripper_delay` steps ago: grasp, or let go. An object let go of lies where
       it was before the step; above the release limit it tumbles on from there
    4. an object still held goes to the gripper

An object that slipped or tumbled was not put anywhere, even if it lies on a plate: it has to be grasped again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla_cli.worlds.tabletop.expert import SPEED_LIMIT, STRAIGHT, Habit, expert_action
from vla_cli.worlds.tabletop.render import SIZE, camera_of, falloff_of, grain_of, object_codes, render, to_uint8
from vla_cli.worlds.tabletop.scene import Scene, Task
from vla_cli.worlds.tabletop.shifts import Domain

GRASP_RADIUS = 0.06
ZONE_RADIUS = 0.12
EPISODE_STEPS = 48
CONTROL_RATE_HZ = 10.0
HOLD_STEPS = 6
"""A "pick" succeeds when the named object has been held this many steps in a row."""
TUMBLE = 0.15
"""Metres that an object let go of too fast goes on."""
SLOW = 0.5
"""Share of the speed limit under which a gripper over an object counts as having approached it, not passed it."""


@dataclass(frozen=True)
class Start:
    """One episode to run: the scene and the task that judges it (the policy is told in words, by the caller)."""

    scene: Scene
    task: Task


class TabletopVectorEnv(VectorEnv):
    """A batch of tables, all in one domain.

    Args:
        starts: the episodes; their number is the batch size.
        domain: look and action gain.
        seed: seed of the pixel noise; element i draws from (seed, i), whatever the batch size.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_fps": CONTROL_RATE_HZ}  # noqa: RUF012

    def __init__(self, starts: Sequence[Start], domain: Domain, seed: int = 0) -> None:
        self.num_envs = len(starts)
        self.starts = list(starts)
        self.domain = domain
        self.single_observation_space = gym.spaces.Dict(
            {
                "image": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                "state": gym.spaces.Box(-1.0, 1.0, (4,), np.float32),
            }
        )
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._noise_seed = seed
        self.camera = camera_of(domain)
        self.grain, self.shade = grain_of(domain), falloff_of(domain)
        self._begin()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Back to the starts; `seed` replaces the noise seed."""
        if isinstance(seed, int):
            self._noise_seed = seed
        self._begin()
        return self.observe(), self._info()

    def _begin(self) -> None:
        scenes, tasks, batch = [s.scene for s in self.starts], [s.task for s in self.starts], self.num_envs
        self._noise = [np.random.default_rng([self._noise_seed, i]) for i in range(batch)]
        self.object_xy = np.stack([scene.object_xy for scene in scenes])
        self.plate_xy = np.stack([scene.plate_xy for scene in scenes])
        self.gripper_xy = np.stack([scene.gripper_xy for scene in scenes])
        codes = [object_codes(scene.objects) for scene in scenes]
        self.colour_codes = np.stack([c for c, _ in codes])
        self.shape_codes = np.stack([s for _, s in codes])
        self.target = np.array([s.scene.index_of(s.task) for s in self.starts])
        self.plate = np.array([task.plate_index for task in tasks])
        self.is_put = np.array([task.verb == "put" for task in tasks])
        self.gripper_closed = np.zeros(batch, bool)
        # gripper commands on their way to the fingers, oldest first
        self._commands = np.zeros((batch, self.domain.gripper_delay), bool)
        self.held = np.full(batch, -1)
        self.held_steps = np.zeros(batch, int)
        self.approached = np.full(batch, -1)
        self.grasped = np.full(batch, -1)
        self.released = np.full(batch, -1)
        self.released_on = np.full(batch, -1)
        self.success = np.zeros(batch, bool)
        self.steps = np.zeros(batch, int)
        self._still = np.zeros(batch, bool)
        self._image = np.zeros((batch, SIZE, SIZE, 3), np.uint8)

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every running table by one control step.

        Args:
            actions: [B, 3]; values outside [-1, 1] are clipped, NaN counts as 0.
        """
        return self.step_chunk(np.asarray(actions)[:, None])

    def step_chunk(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance by several control steps and observe once, at the end, as a policy that executes a chunk does.

        Args:
            actions: [B, K, 3], K steps in order.

        Returns:
            Observation, reward (1.0 where succeeded), terminated, truncated and info after the last step.
        """
        for k in range(actions.shape[1]):
            self.advance(actions[:, k])
        terminated = self.success.copy()
        return self.observe(), self.success.astype(np.float64), terminated, self.ended & ~terminated, self._info()

    def advance(self, actions: np.ndarray) -> None:
        """One control step without looking: `actions` [B, 3]."""
        actions = np.clip(np.nan_to_num(np.asarray(actions, np.float64)), -1.0, 1.0)
        running = ~self.ended
        before = self.gripper_xy
        move = actions[:, :2] * SPEED_LIMIT * np.array(self.domain.gain)
        self.gripper_xy = np.where(running[:, None], np.clip(before + move, 0.0, 1.0), before)
        self._slip(self.gripper_xy - before)
        self._grip(self._delayed(actions[:, 2] > 0, running), running, self.gripper_xy - before)
        carried = np.flatnonzero(self.held >= 0)
        self.object_xy[carried, self.held[carried]] = self.gripper_xy[carried]
        self._note_approach(np.abs(actions[:, :2]).max(axis=1), running)
        self.steps += running
        self._judge(running)

    def expert_chunk(self, horizon: int) -> np.ndarray:
        """What the expert would do for the next `horizon` steps, [B, horizon, 3]; the state is left as it was."""
        kept = {key: value.copy() for key, value in vars(self).items() if isinstance(value, np.ndarray)}
        chunk = np.empty((self.num_envs, horizon, 3))
        for k in range(horizon):
            chunk[:, k] = self.expert()
            self.advance(chunk[:, k])
        vars(self).update(kept)
        return chunk

    @property
    def ended(self) -> np.ndarray:
        """[B] bool: succeeded or out of time."""
        return self.success | (self.steps >= EPISODE_STEPS)

    def expert(self, habit: Habit = STRAIGHT) -> np.ndarray:
        """The scripted expert's commands [B, 3] for the present states."""
        everyone = np.arange(self.num_envs)
        return expert_action(
            gripper_xy=self.gripper_xy,
            holding_target=self.held == self.target,
            holding_any=self.held >= 0,
            closed=self.gripper_closed,
            target_xy=self.object_xy[everyone, self.target],
            plate_xy=self.plate_xy[everyone, self.plate],
            is_put=self.is_put,
            done=self._put(),
            gain=np.array(self.domain.gain),
            waiting=(self._commands != self.gripper_closed[:, None]).any(axis=1),
            commanded=self._commands[:, -1] if self.domain.gripper_delay else self.gripper_closed,
            carry_limit=self.domain.carry_limit,
            release_limit=self.domain.release_limit,
            habit=habit,
        )

    def _delayed(self, close: np.ndarray, running: np.ndarray) -> np.ndarray:
        """The commands [B] that reach the fingers now, while those given now join the queue."""
        queue = np.concatenate([self._commands, close[:, None]], axis=1)
        self._commands = np.where(running[:, None], queue[:, 1:], self._commands)
        return queue[:, 0]

    def _slip(self, displacement: np.ndarray) -> None:
        """Held objects slip out of hands that go too fast; `displacement` [B, 2] of this step, in metres."""
        slips = (self.held >= 0) & _faster(displacement, self.domain.carry_limit)
        self.held = np.where(slips, -1, self.held)
        self.released = np.where(slips, -1, self.released)

    def _grip(self, close: np.ndarray, running: np.ndarray, displacement: np.ndarray) -> None:
        closing, opening = running & close & ~self.gripper_closed, running & ~close & self.gripper_closed
        distance = np.linalg.norm(self.object_xy - self.gripper_xy[:, None], axis=2)
        nearest = distance.argmin(axis=1)
        caught = closing & (distance.min(axis=1) < GRASP_RADIUS)
        self.held = np.where(caught, nearest, self.held)
        self.grasped = np.where(caught & (self.grasped < 0), nearest, self.grasped)
        dropped = opening & (self.held >= 0)
        to_plate = np.linalg.norm(self.plate_xy - self.gripper_xy[:, None], axis=2)
        on = np.where(to_plate.min(axis=1) < ZONE_RADIUS, to_plate.argmin(axis=1), -1)
        tumbles = dropped & _faster(displacement, self.domain.release_limit)
        self._tumble(np.flatnonzero(tumbles), displacement)
        self.released = np.where(dropped, np.where(tumbles, -1, self.held), self.released)
        self.released_on = np.where(dropped, np.where(tumbles, -1, on), self.released_on)
        self.held = np.where(dropped, -1, self.held)
        self.gripper_closed = np.where(running, close, self.gripper_closed)

    def _tumble(self, which: np.ndarray, displacement: np.ndarray) -> None:
        """On the tables `which` [N], the held object goes on in the direction of `displacement` [B, 2]."""
        way = displacement[which] / np.linalg.norm(displacement[which], axis=1, keepdims=True)
        thing = which, self.held[which]
        self.object_xy[thing] = np.clip(self.object_xy[thing] + TUMBLE * way, 0.0, 1.0)

    def _note_approach(self, speed: np.ndarray, running: np.ndarray) -> None:
        """Passing over an object is no approach: the gripper must slow down or close above it."""
        distance = np.linalg.norm(self.object_xy - self.gripper_xy[:, None], axis=2)
        at = (distance.min(axis=1) < GRASP_RADIUS) & ((speed < SLOW) | self.gripper_closed)
        new = running & at & (self.approached < 0)
        self.approached = np.where(new, distance.argmin(axis=1), self.approached)

    def _placed(self) -> np.ndarray:
        everyone = np.arange(self.num_envs)
        gap = self.object_xy[everyone, self.target] - self.plate_xy[everyone, self.plate]
        return np.linalg.norm(gap, axis=1) < ZONE_RADIUS

    def _put(self) -> np.ndarray:
        """[B] bool: the object was let go of where it was asked for, and lies there."""
        return self.is_put & (self.released == self.target) & (self.held < 0) & self._placed()

    def _judge(self, running: np.ndarray) -> None:
        right = self.held == self.target
        self.held_steps = np.where(running & right, self.held_steps + 1, np.where(running, 0, self.held_steps))
        put = self._put()
        pick = ~self.is_put & (self.held_steps >= HOLD_STEPS)
        self.success |= running & (put | pick)

    def nearest_plate(self) -> np.ndarray:
        """[B] plate nearest to the first grasped object now, or -1 where nothing was grasped."""
        everyone = np.arange(self.num_envs)
        thing = self.object_xy[everyone, self.grasped]
        nearest = np.linalg.norm(self.plate_xy - thing[:, None], axis=2).argmin(axis=1)
        return np.where(self.grasped >= 0, nearest, -1)

    def _info(self) -> dict[str, Any]:
        return {
            "approached": self.approached.copy(),
            "grasped": self.grasped.copy(),
            "released_on": self.released_on.copy(),
            "nearest_plate": self.nearest_plate(),
            "success": self.success.copy(),
            "steps": self.steps.copy(),
        }

    def observe(self) -> dict[str, np.ndarray]:
        """What the policy sees now: image [B, 60, 60, 3] uint8 and state [B, 4] float32."""
        # a table that has ended does not change any more: its last picture is kept
        fresh = np.flatnonzero(~self._still)
        if len(fresh):
            self._image[fresh] = self.picture(fresh)
        self._still = self.ended
        return {"image": self._image.copy(), "state": self.state()}

    def picture(self, which: np.ndarray) -> np.ndarray:
        """Render the tables `which` [N] with their noise: [N, 60, 60, 3] uint8."""
        domain = self.domain
        image = render(
            camera=self.camera,
            background=np.array([domain.background]),
            plate_colour=np.array([domain.plate]),
            light=np.array([domain.light]),
            plate_xy=self.plate_xy[which],
            object_xy=self.object_xy[which],
            colour_codes=self.colour_codes[which],
            shape_codes=self.shape_codes[which],
            gripper_xy=self.gripper_xy[which],
            closed=self.gripper_closed[which],
            held=self.held[which],
            grain=self.grain,
            shade=self.shade,
        )
        noise = np.stack([self._noise[i].standard_normal((SIZE, SIZE, 3), np.float32) for i in which])
        return to_uint8(image, domain.noise * noise)

    def state(self) -> np.ndarray:
        """[B, 4] float32 proprioception: x, y, closed (-1 / +1), holding (0 / 1)."""
        closed = np.where(self.gripper_closed, 1.0, -1.0)
        return np.concatenate(
            [self.gripper_xy, closed[:, None], (self.held >= 0).astype(np.float64)[:, None]], axis=1
        ).astype(np.float32)


def _faster(displacement: np.ndarray, limit: float) -> np.ndarray:
    """[B] bool: whether a step [B, 2] in metres is above `limit`, a share of the speed limit, on either axis."""
    # a step at exactly the limit must not spill for the last bit of its floating-point number
    return np.abs(displacement).max(axis=1) > limit * SPEED_LIMIT + 1e-9
