"""The tabletop as a world to evaluate in: conditions around one demonstrated task, in one domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_cli.errors import ConfigError
from vla_cli.report import CONTROLS
from vla_cli.worlds.contract import CONDITIONS, Case, Outcome, same_words
from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.scene import PLATES, Layout, Scene, Task, draw_task, layout_from
from vla_cli.worlds.tabletop.shifts import DOMAINS

NAME = "tabletop"
NONSENSE = "florb zint wug daxing blicket"
DEFAULT_LAYOUT = Layout(
    objects=(("red", "block"), ("blue", "ball"), ("green", "wedge"), ("yellow", "block")), cells=(0, 2, 5, 7)
)
DEFAULT_TASK = Task("put", "red", "block", "left")


def env_args(shift: str, layout: Layout, task: Task) -> dict[str, Any]:
    """robomimic's `env_args` for demonstrations recorded here, from which `TabletopWorld` finds the same scenes."""
    kwargs = {
        "shift": shift,
        "control_freq": CONTROL_RATE_HZ,
        "layout": layout.document(),
        "task": task.document(),
    }
    return {"env_name": NAME, "env_version": "1", "type": 2, "env_kwargs": kwargs}


class TabletopWorld:
    """See `vla_cli.worlds.contract.World`.

    Args:
        variant: a domain name ("base", "V", ...), or "" for the demonstrations' own.
        demonstrations: `env_args` of the demonstrations, when they were recorded here.
        instructions: what was demonstrated, in the words of the demonstrations. Where those are wordings of the task,
            `trained` asks in them and `paraphrase` in the others; else in the task's first one, as the expert does.

    Raises:
        ConfigError: there is no such domain, or `env_args` name things the tabletop does not have.
    """

    action_width = 3
    state_width = 4

    def __init__(
        self,
        variant: str = "",
        demonstrations: Mapping[str, Any] | None = None,
        instructions: Sequence[str] = (),
    ) -> None:
        kwargs = (demonstrations or {}).get("env_kwargs", {})
        if not isinstance(kwargs, Mapping):
            raise ConfigError(f"The demonstrations' env_args do not describe a tabletop scene ({kwargs!r})")
        self.shift = variant or str(kwargs.get("shift", "base"))
        if self.shift not in DOMAINS:
            raise ConfigError(f"The tabletop has no domain '{self.shift}'", expected=f"one of {', '.join(DOMAINS)}")
        try:
            self.layout = layout_from(kwargs["layout"]) if "layout" in kwargs else DEFAULT_LAYOUT
            self.task = Task(**kwargs["task"]) if "task" in kwargs else DEFAULT_TASK
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"The demonstrations' env_args do not describe a tabletop scene ({error!r})") from None
        objects = self.layout.objects
        if objects is None or (self.task.colour, self.task.shape) not in objects:
            self.layout, self.task = DEFAULT_LAYOUT, DEFAULT_TASK
        self.label = f"{NAME}:{self.shift}"
        said = {same_words(text) for text in instructions}
        self.demonstrated = tuple(p for p in self.task.phrasings if p in said) or self.task.phrasings[:1]
        self.reworded = tuple(phrasing for phrasing in self.task.phrasings if phrasing not in self.demonstrated)

    def conditions(self) -> dict[str, str | None]:
        """Every condition; the spatial ones cannot be asked around a demonstrated "pick"."""
        lacking: dict[str, str] = {}
        if self.task.verb == "pick":
            lacking = dict.fromkeys(("novel-spatial", "novel-both"), "the demonstrated task names no place")
        if not self.reworded:
            lacking["paraphrase"] = "every wording of the task was demonstrated"
        return {name: lacking.get(name) for name in CONDITIONS}

    def cases(self, condition: str, episodes: int, seed: int) -> list[Case]:
        """Episodes of a condition. The scenes of the deployment conditions are the same, asked in different words."""
        if condition == "base-domain":
            return self._base_cases(episodes, np.random.default_rng([seed, 2]))
        rng = np.random.default_rng([seed, 1])
        scenes = [self.layout.draw(rng) for _ in range(episodes)]
        return [self._case(condition, scene, i) for i, scene in enumerate(scenes)]

    def _base_cases(self, episodes: int, rng: np.random.Generator) -> list[Case]:
        found = []
        for _ in range(episodes):
            scene = Layout().draw(rng)
            task = draw_task(scene, rng)
            phrasing = task.phrasings[rng.integers(len(task.phrasings))]
            found.append(Case(phrasing, Start(scene, task)))
        return found

    def _case(self, condition: str, scene: Scene, number: int) -> Case:
        trained, others = self.task, self._other_objects()
        plates = [plate for plate in PLATES if plate != trained.plate]
        colour, shape = others[number % len(others)]
        concept = Task(trained.verb, colour, shape, trained.plate)
        spatial = Task(trained.verb, trained.colour, trained.shape, plates[number % len(plates)])
        # every pair of other object and other plate comes up, not only the diagonal
        both = Task(trained.verb, colour, shape, plates[(number // len(others)) % len(plates)])
        task = {"novel-concept": concept, "novel-spatial": spatial, "novel-both": both}.get(condition, trained)
        words = {"empty-instruction": "", "nonsense-instruction": NONSENSE}
        if condition == "paraphrase":
            words[condition] = self.reworded[number % len(self.reworded)]
        elif task == trained:
            words.setdefault(condition, self.demonstrated[number % len(self.demonstrated)])
        return Case(words.get(condition, task.phrasings[0]), Start(scene, task), trained)

    def _other_objects(self) -> list[tuple[str, str]]:
        return [thing for thing in self.layout.objects or () if thing != (self.task.colour, self.task.shape)]

    def environment(self, condition: str, cases: Sequence[Case], seed: int) -> TabletopVectorEnv:
        """The deployment's domain; for the base-domain condition the base's own."""
        domain = DOMAINS["base" if condition == "base-domain" else self.shift]
        return TabletopVectorEnv([case.start for case in cases], domain, seed=seed)

    def outcomes(self, environment: TabletopVectorEnv, cases: Sequence[Case], condition: str) -> list[Outcome]:
        """Success, grounding and locked behaviour of each episode."""
        nearest = environment.nearest_plate()
        return [self._outcome(environment, int(nearest[i]), i, case, condition) for i, case in enumerate(cases)]

    def _outcome(self, env: TabletopVectorEnv, nearest: int, i: int, case: Case, condition: str) -> Outcome:
        scene, task = case.start.scene, case.start.task
        approached, grasped = int(env.approached[i]), int(env.grasped[i])
        named = scene.index_of(task)
        to_place = task.verb == "pick" or (grasped == named and nearest == task.plate_index)
        silent = condition in CONTROLS
        locked = None
        if case.trained is not None and task != case.trained:
            went_to_trained = approached == scene.index_of(case.trained)
            ended_there = grasped >= 0 and nearest == case.trained.plate_index
            locked = ended_there if condition == "novel-spatial" else went_to_trained
        elif silent:
            locked = bool(env.success[i])
        return Outcome(
            success=bool(env.success[i]),
            grounded=None if silent else approached == named and to_place,
            locked=locked,
            did=_describe(scene, approached, grasped, int(env.released_on[i]), int(env.held[i])),
            steps=int(env.steps[i]),
        )


def _describe(scene: Scene, approached: int, grasped: int, released_on: int, held: int) -> str:
    name = [f"{colour} {shape}" for colour, shape in scene.objects]
    if approached < 0 and grasped < 0:
        return "approached nothing"
    if grasped < 0:
        return f"approached the {name[approached]}, grasped nothing"
    start = (
        f"grasped the {name[grasped]}"
        if approached == grasped
        else (f"approached the {name[approached]}, grasped the {name[grasped]}")
    )
    if released_on >= 0:
        return f"{start}, put it on the {list(PLATES)[released_on]} plate"
    return f"{start}, {'held it' if held >= 0 else 'dropped it beside the plates'}"
