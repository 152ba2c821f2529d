"""The tabletop: the expert solves it everywhere, runs repeat, and outcomes keep three facts apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vla_cli.errors import ConfigError
from vla_cli.worlds.contract import CONDITIONS, Case
from vla_cli.worlds.tabletop.environment import Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.expert import Habit
from vla_cli.worlds.tabletop.render import SIZE, camera_of
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS, Layout, Task, draw_task, layout_from
from vla_cli.worlds.tabletop.shifts import DOMAINS
from vla_cli.worlds.tabletop.world import DEFAULT_LAYOUT, TabletopWorld, env_args


def random_starts(count: int, seed: int = 0) -> list[Start]:
    rng = np.random.default_rng(seed)
    scenes = [Layout().draw(rng) for _ in range(count)]
    return [Start(scene, draw_task(scene, rng)) for scene in scenes]


def run_expert(env: TabletopVectorEnv, habit: Habit = Habit()) -> TabletopVectorEnv:  # noqa: B008
    while not env.ended.all():
        env.advance(env.expert(habit))
    return env


@pytest.mark.parametrize("habit", [Habit(), Habit(0.7, "x"), Habit(0.8, "y")], ids=["straight", "x first", "y first"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_expert_succeeds_in_every_domain(domain: str, habit: Habit) -> None:
    env = run_expert(TabletopVectorEnv(random_starts(100), DOMAINS[domain]), habit)
    assert env.success.all()


def test_the_expert_opens_a_gripper_that_closed_on_nothing() -> None:
    env = TabletopVectorEnv(random_starts(20), DOMAINS["base"])
    env.advance(np.tile([0.0, 0.0, 1.0], (20, 1)))
    assert run_expert(env).success.all()


def test_observations_fit_the_spaces_and_equal_seeds_give_equal_pictures() -> None:
    runs = []
    for _ in range(2):
        env = TabletopVectorEnv(random_starts(3), DOMAINS["W"], seed=5)
        observation, _ = env.reset()
        assert env.observation_space.contains(observation)
        after = env.step(env.expert())
        runs.append((observation["image"], after[0]["image"], after[0]["state"]))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
    other, _ = TabletopVectorEnv(random_starts(3), DOMAINS["W"], seed=6).reset()
    assert (other["image"] != runs[0][0]).any()


def test_an_episode_does_not_depend_on_its_batch() -> None:
    starts = random_starts(5)
    together, _ = TabletopVectorEnv(starts, DOMAINS["V"], seed=1).reset()
    alone, _ = TabletopVectorEnv(starts[:1], DOMAINS["V"], seed=1).reset()
    np.testing.assert_array_equal(together["image"][0], alone["image"][0])


def test_looking_ahead_leaves_the_state_as_it_was() -> None:
    env = TabletopVectorEnv(random_starts(4), DOMAINS["base"])
    before = env.state()
    chunk = env.expert_chunk(8)
    np.testing.assert_array_equal(before, env.state())
    np.testing.assert_array_equal(chunk[:, 0], env.expert())


def test_an_ended_episode_does_not_change_any_more() -> None:
    env = run_expert(TabletopVectorEnv(random_starts(3), DOMAINS["base"]))
    kept = env.state().copy(), env.steps.copy()
    env.step(np.ones((3, 3)))
    np.testing.assert_array_equal(env.state(), kept[0])
    np.testing.assert_array_equal(env.steps, kept[1])


def test_nan_actions_do_nothing() -> None:
    env = TabletopVectorEnv(random_starts(2), DOMAINS["base"])
    before = env.state()
    env.advance(np.full((2, 3), np.nan))
    np.testing.assert_array_equal(before, env.state())


def test_an_object_is_drawn_where_the_camera_projects_it() -> None:
    """The pixel under an object's centre has the object's colour, in a domain with a turned camera."""
    starts = random_starts(20, seed=3)
    env = TabletopVectorEnv(starts, DOMAINS["Y"])
    observation, _ = env.reset()
    pixels = camera_of(DOMAINS["Y"]).project(env.object_xy).astype(int)
    for i, start in enumerate(starts):
        for j, (colour, _) in enumerate(start.scene.objects):
            column, row = pixels[i, j]
            near_gripper = np.linalg.norm(env.object_xy[i, j] - env.gripper_xy[i]) < 0.16
            if colour != "red" or near_gripper or not (0 <= row < SIZE and 0 <= column < SIZE):
                continue
            r, g, b = observation["image"][i, row, column].astype(int)
            assert r > 2 * g and r > 2 * b


def world() -> TabletopWorld:
    return TabletopWorld("V", env_args("V", DEFAULT_LAYOUT, Task("put", "red", "block", "left")))


Behaviour = Callable[[Case], Task]
ASKED: Behaviour = lambda case: case.start.task  # noqa: E731
TRAINED: Behaviour = lambda case: case.trained  # noqa: E731


def outcome_shares(condition: str, behaviour: Behaviour) -> dict[str, float | None]:
    """What the world says when an expert does some task, whatever the case asks for."""
    place = world()
    cases = place.cases(condition, 18, seed=4)
    acting = TabletopVectorEnv([Start(c.start.scene, behaviour(c)) for c in cases], DOMAINS["V"])
    judged = place.environment(condition, cases, seed=0)
    while not judged.ended.all():
        action = acting.expert()
        acting.advance(action)
        judged.advance(action)
    outcomes = place.outcomes(judged, cases, condition)

    def share(values: list[bool | None]) -> float | None:
        return None if None in values else float(np.mean([bool(v) for v in values]))

    return {key: share([getattr(o, key) for o in outcomes]) for key in ("success", "grounded", "locked")}


@pytest.mark.parametrize("condition", ["novel-concept", "novel-spatial", "novel-both"])
def test_obedience_and_lock_in_are_told_apart(condition: str) -> None:
    assert outcome_shares(condition, ASKED) == {"success": 1.0, "grounded": 1.0, "locked": 0.0}
    assert outcome_shares(condition, TRAINED) == {"success": 0.0, "grounded": 0.0, "locked": 1.0}


def test_doing_the_trained_task_without_being_told_is_locked() -> None:
    assert outcome_shares("empty-instruction", TRAINED) == {"success": 1.0, "grounded": None, "locked": 1.0}
    assert outcome_shares("trained", TRAINED) == {"success": 1.0, "grounded": 1.0, "locked": None}


def test_conditions_share_their_scenes_and_ask_what_they_say() -> None:
    place = world()
    cases = {c: place.cases(c, 36, seed=7) for c in CONDITIONS}
    for condition in ("paraphrase", "novel-concept", "novel-spatial", "novel-both"):
        for case, trained in zip(cases[condition], cases["trained"], strict=True):
            np.testing.assert_array_equal(case.start.scene.object_xy, trained.start.scene.object_xy)
            assert case.instruction != trained.instruction
    trained = place.task
    assert {(c.start.task.plate) for c in cases["novel-concept"]} == {trained.plate}
    assert {(c.start.task.colour, c.start.task.shape) for c in cases["novel-spatial"]} == {("red", "block")}
    both = {(c.start.task.colour, c.start.task.shape, c.start.task.plate) for c in cases["novel-both"]}
    assert len(both) == 9
    assert {c.start.task for c in cases["paraphrase"]} == {trained}


def test_other_seeds_give_other_scenes() -> None:
    first, second = (world().cases("trained", 1, seed=s)[0].start.scene.object_xy for s in (0, 1))
    assert (first != second).any()


def test_env_args_bring_back_layout_and_task() -> None:
    task = Task("put", "blue", "ball", "front")
    place = TabletopWorld("", env_args("W", DEFAULT_LAYOUT, task))
    assert (place.shift, place.task, place.layout) == ("W", task, DEFAULT_LAYOUT)
    assert layout_from(DEFAULT_LAYOUT.document()) == DEFAULT_LAYOUT


def test_a_demonstrated_pick_has_no_spatial_conditions() -> None:
    place = TabletopWorld("V", env_args("V", DEFAULT_LAYOUT, Task("pick", "red", "block")))
    asked = place.conditions()
    assert asked["novel-spatial"] and asked["novel-both"] and asked["novel-concept"] is None


def test_an_unknown_domain_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'Q'.*one of base, V, W, Y"):
        TabletopWorld("Q")


def test_every_phrasing_is_unique_to_its_task() -> None:
    assert len(set(ALL_PHRASINGS)) == len(ALL_PHRASINGS)
