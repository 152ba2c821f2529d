"""The tabletop: the expert solves it everywhere, runs repeat, and outcomes keep three facts apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from vla_cli.errors import ConfigError
from vla_cli.worlds.contract import CONDITIONS, Case
from vla_cli.worlds.tabletop.environment import EPISODE_STEPS, TUMBLE, Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.expert import SPEED_LIMIT, Habit
from vla_cli.worlds.tabletop.render import SIZE, camera_of
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS, Layout, Task, draw_task, layout_from
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
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


def test_the_camera_maps_pixels_back_to_the_table() -> None:
    xy = np.random.default_rng(0).uniform(-0.2, 1.2, (3, 5, 2))
    camera = camera_of(DOMAINS["Y"])
    np.testing.assert_allclose(camera.unproject(camera.project(xy)), xy, atol=1e-12)


def test_older_domains_look_and_move_as_they_did() -> None:
    """Demonstrations, bases and figures from before were made with exactly these pictures and motions."""
    env = TabletopVectorEnv(random_starts(1), DOMAINS["V"], seed=1)
    assert sha256(env.observe()["image"].tobytes()).hexdigest()[:12] == "294fc4cbfd33"
    found = {}
    for name in ("base", "V", "W", "Y"):
        env = TabletopVectorEnv(random_starts(4), DOMAINS[name], seed=1)
        for _ in range(12):
            env.advance(env.expert())
        found[name] = sha256((env.object_xy * 1e6).round().astype("<i8").tobytes()).hexdigest()[:12]
    assert found == {"base": "4837528b7b6a", "V": "6c0b26753cd5", "W": "6c0b26753cd5", "Y": "6c0b26753cd5"}


def clean_picture(domain: Domain) -> np.ndarray:
    """One table without pixel noise, [60, 60, 3] float64 in [0, 255]."""
    env = TabletopVectorEnv(random_starts(1), replace(domain, noise=0.0))
    return env.reset()[0]["image"][0].astype(np.float64)


def test_wood_grain_is_on_the_table_only() -> None:
    neutral = replace(DOMAINS["W"], light=(1.0, 1.0, 1.0))
    plain, wooden = clean_picture(neutral), clean_picture(replace(neutral, texture=0.3))
    table = (plain == plain[0, 0]).all(axis=2)
    # the edges of things are mixed with the table below them, also beyond the picture: leave out two pixels
    padded = np.pad(table, 2, constant_values=True)
    inside = ~np.any([padded[r : r + SIZE, c : c + SIZE] for r in range(5) for c in range(5)], axis=0)
    assert inside.sum() > 150 and table.sum() > 1000
    np.testing.assert_array_equal(plain[inside], wooden[inside])
    share = wooden[table] / plain[table]
    assert np.abs(share - 1).max() < 0.31 and (share.std(axis=0) > 0.05).all()
    # not a change of brightness alone: the channels do not go together
    assert np.abs(share[:, 0] - share[:, 2]).max() > 0.1


def test_wood_grain_turns_with_the_camera() -> None:
    """A plank's edge is seen along the turned table, and equal table points have equal grain."""
    upright = replace(DOMAINS["base"], texture=0.3)
    turned = replace(upright, rotation=90.0)
    away = Layout().draw(np.random.default_rng(0))
    for array in (away.object_xy, away.plate_xy, away.gripper_xy):
        array[...] = 5.0
    pictures = [
        TabletopVectorEnv([Start(away, Task("pick", *away.objects[0]))], replace(d, noise=0.0)).reset()[0]["image"][0]
        for d in (upright, turned)
    ]
    np.testing.assert_allclose(np.rot90(pictures[0]).astype(int), pictures[1], atol=1)


def test_light_falls_off_to_the_lower_right_corner() -> None:
    even, falling = clean_picture(DOMAINS["base"]), clean_picture(replace(DOMAINS["base"], gradient=0.4))
    share = falling / even
    np.testing.assert_allclose(share[0, 0], 1.0)
    np.testing.assert_allclose(share[-1, -1], 0.6, atol=0.01)
    np.testing.assert_allclose([share[0, -1], share[-1, 0]], 0.8, atol=0.01)


def over_the_object(domain: Domain) -> TabletopVectorEnv:
    """A table whose gripper stands open above the object to be put on the left plate."""
    scene = DEFAULT_LAYOUT.draw(np.random.default_rng(1))
    scene.gripper_xy[:] = scene.object_xy[0]
    return TabletopVectorEnv([Start(scene, Task("put", "red", "block", "left"))], domain)


def advance(env: TabletopVectorEnv, x: float, y: float, gripper: float) -> None:
    """One step by `x` and `y` shares of the speed limit in actual displacement."""
    env.advance(np.array([[x / env.domain.gain[0], y / env.domain.gain[1], gripper]]))


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_the_fingers_follow_their_commands_after_the_delay(delay: int) -> None:
    env = over_the_object(replace(DOMAINS["V"], gripper_delay=delay))
    commands = [True] * 7 + [False] * 7
    closed, holding = [], []
    for command in commands:
        advance(env, 0.0, 0.0, 1.0 if command else -1.0)
        closed.append(env.state()[0, 2] > 0)
        holding.append(env.state()[0, 3] > 0)
    assert closed == holding == [False] * delay + commands[: len(commands) - delay]


def test_an_expert_that_waits_for_its_fingers_stands_still() -> None:
    env = TabletopVectorEnv(random_starts(20), DOMAINS["D"])
    waited = 0
    while not env.ended.all():
        action, fingers, running = env.expert(), env.gripper_closed, ~env.ended
        on_the_way = running & (env._commands != fingers[:, None]).any(axis=1)
        assert (action[on_the_way, :2] == 0).all()
        waited += on_the_way.sum()
        np.testing.assert_array_equal(env.expert_chunk(2)[:, 0], action)
        env.advance(action)
    assert waited > 20


def test_what_is_carried_too_fast_slips_and_can_be_grasped_again() -> None:
    env = over_the_object(DOMAINS["S"])
    advance(env, 0.0, 0.0, 1.0)
    advance(env, 0.44, -0.44, 1.0)
    assert env.held[0] == 0
    lay = env.gripper_xy[0].copy()
    advance(env, 0.1, 0.46, 1.0)
    np.testing.assert_array_equal(env.object_xy[0, 0], lay)
    np.testing.assert_allclose(env.gripper_xy[0], lay + SPEED_LIMIT * np.array([0.1, 0.46]))
    np.testing.assert_array_equal(env.state()[0, 2:], [1.0, 0.0])
    advance(env, 0.0, 0.0, 1.0)
    assert env.held[0] < 0
    advance(env, 0.0, 0.0, -1.0)
    advance(env, 0.0, 0.0, 1.0)
    assert env.held[0] == 0


def test_what_is_let_go_of_while_moving_tumbles_on() -> None:
    still, slow, fast = (over_the_object(DOMAINS["S"]) for _ in range(3))
    ended = []
    for env, speed in ((still, 0.0), (slow, 0.19), (fast, 0.3)):
        advance(env, 0.0, 0.0, 1.0)
        start = env.object_xy[0, 0].copy()
        advance(env, speed, -speed, -1.0)
        ended.append(env.object_xy[0, 0] - start)
        assert env.held[0] < 0
    np.testing.assert_array_equal(ended[:2], np.zeros((2, 2)))
    np.testing.assert_allclose(ended[2], TUMBLE * np.array([1, -1]) / np.sqrt(2))


def test_a_spilled_object_was_not_put_even_on_its_plate() -> None:
    """The rim stops what tumbles off a plate; it has to be grasped and put there properly all the same."""
    env = over_the_object(DOMAINS["S"])
    env.plate_xy[0, 0] = env.object_xy[0, 0] - [TUMBLE, 0.0]
    advance(env, 0.0, 0.0, 1.0)
    advance(env, -0.3, 0.0, -1.0)
    np.testing.assert_allclose(env.object_xy[0, 0], env.plate_xy[0, 0])
    assert not env.success[0] and env.released_on[0] == -1
    assert run_expert(env).success.all()


def test_old_ways_of_carrying_spill_brim_full_cups() -> None:
    """What succeeds in V, whose pictures and displacements are the same, fails in S."""
    rng = np.random.default_rng(0)
    starts = [Start(DEFAULT_LAYOUT.draw(rng), Task("put", "red", "block", "left")) for _ in range(20)]
    ways = [TabletopVectorEnv(starts, DOMAINS[name]) for name in ("V", "S")]
    np.testing.assert_array_equal(ways[0].reset()[0]["image"], ways[1].reset()[0]["image"])
    for _ in range(EPISODE_STEPS):
        # the motions that are right in V, in both
        action = ways[0].expert()
        for env in ways:
            env.advance(action)
    assert ways[0].success.all() and not ways[1].success.any()


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


@pytest.mark.parametrize(
    "kwargs", [-1, True, {"layout": -1}, {"layout": {"objects": 3}}, {"task": "put"}, {"task": {"colour": "red"}}]
)
def test_recordings_that_describe_no_scene_are_refused(kwargs: object) -> None:
    with pytest.raises(ConfigError, match="do not describe a tabletop scene"):
        TabletopWorld("", {"env_name": "tabletop", "env_kwargs": kwargs})
