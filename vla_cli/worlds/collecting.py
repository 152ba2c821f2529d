"""Collecting new demonstrations in a world: a log like any other to `collect-ingest`, but recorded as it is read.

    entry                episode_00000, episode_00001, ...
    scene of an episode  settled by (seed, index) alone, so that any number of processes record the same episodes

The scenes are not those of `eval-steer`, which draws its own from the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from vla_cli.episode import Episode, UnusableError
from vla_cli.errors import ConfigError
from vla_cli.keyboard import Discarded, Keyboard, Terminal, check_terminal
from vla_cli.logs import Entry, Warn
from vla_cli.recorder import Recorder, Take
from vla_cli.worlds import COLLECTABLE

Who = Literal["expert", "keyboard"]
EXPERT = "scripted-expert"
"""The operator of the expert's episodes where nobody says another."""
_PURPOSE = 3  # keeps these scenes apart from those of the evaluation, which counts 1 and 2


class Collection(Protocol):
    """A world to collect in, with one task in words; built as `Collection(variant, instruction)`.

    Attributes:
        label: the world and its variant.
        instruction: the words.
        world: robomimic's `env_args`.
        attributes: stream name to what is known of it.
    """

    label: str
    instruction: str
    world: dict[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]

    def environment(self, *, patient: bool) -> Any:
        """One Gymnasium environment that states `info["success"]` and can `describe()` itself in lines of text."""
        ...

    def expert(self, environment: Any, operator: str) -> Callable[[Any], Any]:
        """The scripted expert as an actor, with an operator's habit."""
        ...


def is_world(spec: str) -> bool:
    """Whether a source names a world (NAME or NAME:VARIANT) and no path."""
    return spec.partition(":")[0] in COLLECTABLE


@dataclass(frozen=True)
class WorldSource:
    """A world as the ingest stage takes it: what to open, in whichever process. See `open_world` for the fields."""

    spec: str
    actor: Who
    episodes: int
    instruction: str | None
    seed: int
    operator: str | None

    @contextmanager
    def opened(self, warn: Warn) -> Iterator[WorldLog]:
        """The log, closed at the end.

        Raises:
            ConfigError: see `open_world`.
        """
        log = open_world(
            self.spec,
            actor=self.actor,
            episodes=self.episodes,
            instruction=self.instruction,
            seed=self.seed,
            operator=self.operator,
        )
        try:
            yield log
        finally:
            log.close()


def open_world(
    spec: str, *, actor: Who, episodes: int, instruction: str | None, seed: int, operator: str | None
) -> WorldLog:
    """A world as a log of episodes that are yet to be recorded.

    Args:
        spec: "NAME" or "NAME:VARIANT".
        actor: who demonstrates.
        episodes: how many.
        instruction: the one task, in words that the world knows.
        seed: of the scenes and the pixel noise.
        operator: who demonstrates, by name.

    Raises:
        ConfigError: there is no such world, variant, task or actor, no episode or a negative seed is asked for, or keys
            are to be pressed where there is no terminal.
    """
    name, _, variant = spec.partition(":")
    build = COLLECTABLE.get(name)
    if actor not in ("expert", "keyboard"):
        raise ConfigError(f"Nobody called '{actor}' can demonstrate in a world", expected="expert or keyboard")
    if episodes < 1 or seed < 0:
        raise ConfigError(
            f"{episodes} episodes from seed {seed} cannot be collected", expected="one or more, from 0 on"
        )
    log = WorldLog(build(variant, instruction), actor=actor, episodes=episodes, seed=seed, operator=operator)
    if actor == "keyboard":
        check_terminal()
    return log


class WorldLog:
    """See `vla_cli.logs.Log`; equal arguments give equal episodes, whatever is read before, but for the keyboard's.

    Args:
        place: the world with its task.
        actor, episodes, seed, operator: as for `open_world`.
    """

    def __init__(self, place: Collection, *, actor: Who, episodes: int, seed: int, operator: str | None) -> None:
        self.place, self.actor, self.episodes, self.seed = place, actor, episodes, seed
        self.operator = operator or (EXPERT if actor == "expert" else "unknown")
        self.environment = place.environment(patient=actor == "keyboard")
        self.recorder = Recorder(self.environment, attributes=place.attributes, world=place.world)
        self._message = ""

    def entries(self) -> list[Entry]:
        """One an episode; they are read from no file."""
        return [Entry(f"episode_{index:05d}", str(index), ()) for index in range(self.episodes)]

    def read(self, entry: Entry) -> Episode:
        """Record an episode.

        Raises:
            UnusableError: the expert failed, or the operator left the episode out.
            Interrupted: the terminal was closed.
        """
        index = int(entry.locator)
        if self.actor == "keyboard":
            return self._by_hand(entry, index)
        take = self._record(entry, index, self.place.expert(self.environment, self.operator))
        if not take.success:
            raise UnusableError(
                f"the scripted expert did not succeed in {_steps(take)} steps: a failed demonstration teaches failing"
            )
        return take.episode

    def close(self) -> None:
        """Remove the pictures that wait on disk."""
        self.recorder.close()
        self.environment.close()

    def _by_hand(self, entry: Entry, index: int) -> Episode:
        title = f"{self.place.label}, episode {index + 1} of {self.episodes}"
        with Terminal() as terminal:
            while True:
                self.environment.reset(seed=scene_seed(self.seed, index))
                person = Keyboard(
                    terminal, title, self.place.instruction, self.environment.describe, message=self._message
                )
                if not person.started():
                    self._message = f"Episode {index + 1} was left out."
                    raise UnusableError("the operator left it out")
                try:
                    take = self._record(entry, index, person)
                except Discarded:
                    self._message = "Discarded; the same scene once more."
                    continue
                outcome = "the task is done" if take.success else "the task is NOT done"
                self._message = f"Episode {index + 1} is kept: {_steps(take)} steps, {outcome}."
                return take.episode

    def _record(self, entry: Entry, index: int, actor: Callable[[Any], Any]) -> Take:
        take = self.recorder.record(
            actor,
            name=entry.name,
            instructions=[self.place.instruction],
            operator=self.operator,
            source=f"{self.place.label}, seed {self.seed}, episode {index}",
            seed=scene_seed(self.seed, index),
        )
        if not take.success:
            take.episode.notes.append("the task was not done when the recording ended")
        return take


def scene_seed(seed: int, index: int) -> int:
    """The seed of one episode's scene and noise: no two pairs share theirs."""
    return int(np.random.SeedSequence([seed, index, _PURPOSE]).generate_state(1, np.uint64)[0])


def _steps(take: Take) -> int:
    return len(take.episode.of_role("action")[0])
