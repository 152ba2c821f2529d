"""Recording demonstrations from anything with `reset` and `step`: a simulated world, a robot, a Gymnasium environment.

    observation[t] --actor--> action[t] --environment--> observation[t + 1], reward[t], terminated, truncated, info

An episode of T actions holds the T observations on which they were decided, as robomimic and RLDS keep them; what is
seen after the last action is not part of it. Cameras go to a file on disk as they come, so that a long episode never
stands in memory.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from vla_cli.episode import Episode, Role, Stream, UnusableError
from vla_cli.errors import ConfigError
from vla_cli.frames import ArrayFrames
from vla_cli.observation import flatten, is_picture, kind_of, roles_of, vector

FORMAT = "world"
ACTION, REWARD = "action", "reward"
RENDERED = "render"
"""The camera's name where the pictures are the environment's own rendering."""

Actor = Callable[[Any], Any]
"""An observation to the action to take on it, or None to end the episode before acting."""


class Environment(Protocol):
    """The part of `gymnasium.Env` that is used; `metadata["render_fps"]` and `render()` too, where they are there."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: observation, info."""
        ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act: observation, reward, terminated, truncated, info."""
        ...


@dataclass(frozen=True)
class Take:
    """One recording.

    Attributes:
        episode: what was recorded; its pictures can be read until the recorder is closed.
        success: what the environment says (`info["success"]` or `info["is_success"]` after the last step); None where
            it says nothing: a cart whose pole fell terminates too.
        ending: why it ended: the environment "terminated" or "truncated" it, or the actor "stopped".
    """

    episode: Episode
    success: bool | None
    ending: Literal["terminated", "truncated", "stopped"]


class Recorder:
    """Records episodes of one environment.

    Streams: each camera (role "image"), each floating vector ("state"), other numbers ("other"), "action" [T, A] and
    "reward" [T, 1] ("other"). Nested observations are named with dots. Actions and vectors stay float32 or float64;
    whole numbers become float64.

    Args:
        environment: one environment, not a batch.
        cameras: keys of the observation that are cameras; None for every uint8 [H, W, 3] array or, where there is
            none, `environment.render()`.
        state: keys that are the robot's state; None for every floating number or vector.
        rate: control steps a second; None for the environment's `metadata["render_fps"]`.
        clock: tells seconds (`time.monotonic`) when the environment runs in real time: observations and actions get
            the times at which they came. Without one, step t is at t / rate.
        attributes: stream name to what is known of it (see `conventions`), "names" for instance.
        world: robomimic's `env_args`, by which the environment can be found again.
        directory: where pictures wait on disk; None for the system's own place.

    Raises:
        ConfigError: without a clock, the environment has to state its rate.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        cameras: Sequence[str] | None = None,
        state: Sequence[str] | None = None,
        rate: float | None = None,
        clock: Callable[[], float] | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        world: dict[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        stated = rate or (getattr(environment, "metadata", None) or {}).get("render_fps")
        self.rate = float(stated) if stated else 0.0
        if not (0 <= self.rate < float("inf")) or (not self.rate and clock is None):
            raise ConfigError(
                f"The environment states the control rate {stated!r}",
                expected="steps a second in metadata['render_fps'], a rate, or a clock",
            )
        self.environment, self.cameras, self.state, self.clock = environment, cameras, state, clock
        self.attributes, self.world = attributes or {}, world
        self.directory = directory
        self._files: weakref.WeakSet[PictureFile] = weakref.WeakSet()

    def record(
        self,
        actor: Actor,
        *,
        name: str,
        instructions: Sequence[str] = (),
        operator: str = "unknown",
        source: str = "",
        seed: int | None = None,
    ) -> Take:
        """Reset the environment and let an actor act until one of them ends the episode.

        Args:
            actor: observation to action; what it raises ends the recording, of which nothing is kept.
            name, instructions, operator, source: as the episode tells them.
            seed: for `reset`; equal seeds and actors give equal episodes where the environment keeps to that.

        Raises:
            ConfigError: the observation has no pictures, or lacks a key that was asked for.
            UnusableError: there was no action, or an observation or action is of another kind than those before.
        """
        observation, info = self.environment.reset() if seed is None else self.environment.reset(seed=seed)
        now = self._now()
        tape = self._tape(observation)
        ending: Literal["terminated", "truncated", "stopped"] = "stopped"
        try:
            while True:
                tape.observe(self._flat(observation, tape.roles), now)
                if (action := actor(observation)) is None:
                    break
                tape.act(action, self._now())
                observation, reward, terminated, truncated, info = self.environment.step(action)
                now = self._now()
                tape.rewards.append(float(reward))
                if terminated or truncated:
                    ending = "terminated" if terminated else "truncated"
                    break
            streams = tape.streams(self.rate, self.attributes)
        except BaseException:
            tape.discard()
            raise
        self._files.update(tape.cameras.values())
        episode = Episode(
            name, streams, list(instructions), operator, FORMAT, source, world=self.world, notes=list(tape.notes)
        )
        return Take(episode, _success(info), ending)

    def close(self) -> None:
        """Remove the pictures on disk; the episodes' cameras cannot be read any more."""
        for file in self._files:
            file.close()

    def _now(self) -> float | None:
        return None if self.clock is None else self.clock()

    def _flat(self, observation: Any, roles: Mapping[str, Role]) -> dict[str, Any]:
        flat = flatten(observation)
        rendering = roles.get(RENDERED) == "image" and not is_picture(flat.get(RENDERED))
        return {**flat, RENDERED: self._rendered()} if rendering else flat

    def _rendered(self) -> Any:
        render = getattr(self.environment, "render", None)
        return render() if callable(render) else None

    def _tape(self, observation: Any) -> _Tape:
        flat = flatten(observation)
        roles = roles_of(flat, self.cameras, self.state)
        notes = [f"{key} is left out: {kind_of(flat[key])}" for key in flat if key not in roles]
        if "image" not in roles.values():
            if not is_picture(picture := self._rendered()):
                raise ConfigError(
                    f"The environment shows no pictures: its observation has {', '.join(flat)}, and render() gives "
                    f"{kind_of(picture)}",
                    expected="a uint8 [H, W, 3] array in the observation or from render()",
                    hint='the environment with render_mode="rgb_array"',
                )
            roles[RENDERED] = "image"
        return _Tape(roles, self.directory, notes)


@dataclass
class _Tape:
    """What one recording has so far."""

    roles: dict[str, Role]
    directory: Path | None
    notes: list[str]
    values: dict[tuple[Role, str], list[np.ndarray]] = field(default_factory=dict)
    cameras: dict[str, PictureFile] = field(default_factory=dict)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    seen_at: list[float | None] = field(default_factory=list)
    acted_at: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = {(role, name): [] for name, role in self.roles.items() if role != "image"}

    def observe(self, flat: Mapping[str, Any], now: float | None) -> None:
        for name, role in self.roles.items():
            if name not in flat:
                raise UnusableError(f"the observation of step {len(self.seen_at)} lacks {name}")
            if role == "image":
                self._film(name, flat[name])
            else:
                _append(self.values[role, name], flat[name], name)
        self.seen_at.append(now)

    def act(self, action: Any, now: float | None) -> None:
        _append(self.actions, action, "the action")
        if len(self.actions) == 1 and np.asarray(action).dtype.kind in "iub":
            self.notes.append("its actions are whole numbers: what may be a choice is recorded as a quantity")
        self.acted_at.append(now)

    def _film(self, name: str, picture: Any) -> None:
        if not is_picture(picture):
            raise UnusableError(f"{name} is no picture in step {len(self.seen_at)}: {kind_of(picture)}")
        if name not in self.cameras:
            self.cameras[name] = PictureFile(np.shape(picture), self.directory)
        self.cameras[name].append(np.asarray(picture), name)

    def streams(self, rate: float, attributes: Mapping[str, Mapping[str, Any]]) -> list[Stream]:
        """The first T of everything, T being the number of actions."""
        length = len(self.acted_at)
        if not length:
            raise UnusableError("it has no steps")
        facts = {"rate_hz": rate} if rate else {}
        seen, acted = (_clock(times[:length], self.seen_at[0], rate) for times in (self.seen_at, self.acted_at))
        found = []
        for name, camera in self.cameras.items():
            found.append(
                Stream("image", name, ArrayFrames(camera, length), seen, {**facts, **attributes.get(name, {})})
            )
        for (role, name), rows in self.values.items():
            found.append(Stream(role, name, np.stack(rows[:length]), seen, {**facts, **attributes.get(name, {})}))
        found.append(Stream("action", ACTION, np.stack(self.actions), acted, {**facts, **attributes.get(ACTION, {})}))
        reward = REWARD if ("other", REWARD) not in self.values else f"step.{REWARD}"
        found.append(Stream("other", reward, np.array(self.rewards)[:, None], acted, facts))
        return found

    def discard(self) -> None:
        for camera in self.cameras.values():
            camera.close()


class PictureFile:
    """One camera's pictures, plain in an unnamed file on disk, which goes with the last reference to it.

    Args:
        size: [H, W, 3].
        directory: where; None for the system's own place.
    """

    def __init__(self, size: Sequence[int], directory: Path | None) -> None:
        self.shape = (0, *size)
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115

    def append(self, picture: np.ndarray, label: str) -> None:
        """One more [H, W, 3] uint8 picture.

        Raises:
            UnusableError: it has another size than the first.
        """
        length, *size = self.shape
        if list(picture.shape) != size:
            raise UnusableError(f"{label} is {list(picture.shape)} in step {length}, {size} in step 0")
        self._file.write(picture.tobytes())
        self.shape = (length + 1, *size)

    def __getitem__(self, steps: slice) -> np.ndarray:
        begin, end, _ = steps.indices(self.shape[0])
        pictures = np.empty((max(end - begin, 0), *self.shape[1:]), np.uint8)
        self._file.seek(begin * math.prod(self.shape[1:]))
        if self._file.readinto(pictures.data) != pictures.nbytes:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"the pictures from step {begin} on are not on disk any more")
        return pictures

    def close(self) -> None:
        """Give the disk's space back."""
        self._file.close()


def _append(rows: list[np.ndarray], value: Any, label: str) -> None:
    """One more row [D], as wide as the first."""
    row = vector(value, label)
    if rows and rows[0].shape != row.shape:
        raise UnusableError(f"{label} has {len(row)} numbers in step {len(rows)}, {len(rows[0])} in step 0")
    rows.append(row)


def _clock(times: Sequence[float | None], start: float | None, rate: float) -> np.ndarray:
    """Seconds [T] since the first observation, measured or by the rate."""
    if start is None:
        return np.arange(len(times)) / rate
    return np.array(times, np.float64) - start


def _success(info: Any) -> bool | None:
    for key in ("success", "is_success"):
        if isinstance(info, Mapping) and key in info:
            return bool(np.all(info[key]))
    return None
