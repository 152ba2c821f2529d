"""Collecting in a world: the expert's episodes are usable, repeat to the byte, and are no scenes of the evaluation."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_cli.conventions import keys_of
from vla_cli.episode import Episode, UnusableError, load_episode, native_rate, problems, save_episode
from vla_cli.errors import ConfigError
from vla_cli.frames import blocks_of
from vla_cli.logs import list_entries, read_entry
from vla_cli.worlds import COLLECTABLE, WORLDS
from vla_cli.worlds.collecting import EXPERT, WorldLog, WorldSource, is_world, open_world, scene_seed
from vla_cli.worlds.tabletop.collect import (
    ATTRIBUTES,
    CAMERA,
    GRIPPER,
    POSITION,
    TabletopCollection,
    TabletopEnv,
    layout_for,
    task_of,
    tasks,
    way,
)
from vla_cli.worlds.tabletop.environment import EPISODE_STEPS, TabletopVectorEnv
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS, Task
from vla_cli.worlds.tabletop.shifts import DOMAINS
from vla_cli.worlds.tabletop.world import DEFAULT_LAYOUT, TabletopWorld

INSTRUCTION = "put the red block on the left plate"
ROOT = Path(__file__).parents[2]


def collect(spec: str, episodes: int = 3, instruction: str = INSTRUCTION, seed: int = 0, operator: str | None = None):
    return open_world(spec, actor="expert", episodes=episodes, instruction=instruction, seed=seed, operator=operator)


def stream(episode: Episode, name: str) -> np.ndarray:
    return np.asarray(next(s for s in episode.streams if s.name == name).values)


# ---- the expert's episodes


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_expert_s_episodes_are_usable_in_every_domain(domain: str, tmp_path: Path) -> None:
    log = collect(f"tabletop:{domain}", episodes=4)
    for entry in list_entries(log, Path("tabletop")):
        episode = read_entry(log, entry)
        assert problems(episode) == [] and episode.notes == []
        assert stream(episode, "reward")[:, 0].tolist() == [0.0] * (len(episode.streams[0]) - 1) + [1.0]
        path = tmp_path / f"{entry.name}.hdf5"
        save_episode(episode, path)
        back = load_episode(path)
        assert (back.name, back.instructions, back.operator) == (entry.name, [INSTRUCTION], EXPERT)
        assert back.world == episode.world and episode.world["env_kwargs"]["shift"] == domain
        assert native_rate(back.of_role("action")[0]) == 10.0
        for name in (CAMERA, POSITION, GRIPPER, "action"):
            np.testing.assert_array_equal(stream(back, name), stream(episode, name))
    log.close()


def test_an_episode_replayed_does_the_task_again_and_looks_the_same() -> None:
    log = collect("tabletop:S", episodes=1)
    episode = log.read(log.entries()[0])
    environment = TabletopCollection("S", INSTRUCTION).environment(patient=False)
    observation, _ = environment.reset(seed=scene_seed(0, 0))
    pictures = np.concatenate(list(blocks_of(episode.of_role("image")[0].values)))
    done = False
    for picture, position, action in zip(pictures, stream(episode, POSITION), stream(episode, "action"), strict=True):
        np.testing.assert_array_equal(observation[CAMERA], picture)
        np.testing.assert_array_equal(observation[POSITION], position)
        observation, _, done, _, _ = environment.step(action)
    assert done


def test_the_streams_say_all_their_conventions() -> None:
    log = collect("tabletop:V", episodes=1)
    episode = log.read(log.entries()[0])
    roles = {"image": [CAMERA], "state": [POSITION, GRIPPER], "action": ["action"]}
    for role, names in roles.items():
        found = {s.name: s.attributes for s in episode.of_role(role)}  # pyright: ignore[reportArgumentType]
        assert sorted(found) == sorted(names)
        for name in names:
            assert all(found[name].get(key) for key in keys_of(role))
            assert found[name]["rate_hz"] == 10.0
    assert len(ATTRIBUTES["action"]["names"]) == stream(episode, "action").shape[1] == 3


def test_the_streams_are_those_of_the_sample_log() -> None:
    import h5py

    with h5py.File(ROOT / "sample_data/demonstrations.hdf5") as file:
        recorded = {key: file["data/demo_0/obs"][key].shape[1:] for key in file["data/demo_0/obs"]}  # pyright: ignore
    log = collect("tabletop:V", episodes=1)
    episode = log.read(log.entries()[0])
    own = {s.name: s.values.shape[1:] for role in ("image", "state") for s in episode.of_role(role)}  # pyright: ignore
    assert own == recorded


def test_an_operator_s_habit_shows() -> None:
    steps = {}
    for operator in ("alice", "bob", None):
        log = collect("tabletop:V", episodes=2, operator=operator)
        episodes = [log.read(entry) for entry in log.entries()]
        assert {episode.operator for episode in episodes} == {operator or EXPERT}
        steps[operator] = sum(len(episode.streams[0]) for episode in episodes)
        log.close()
    assert steps["bob"] > steps["alice"] == steps[None]


def test_an_expert_that_runs_out_of_time_is_no_demonstration() -> None:
    hasty = WorldLog(TabletopCollection("V", INSTRUCTION, limit=5), actor="expert", episodes=2, seed=0, operator=None)
    for entry in hasty.entries():
        with pytest.raises(UnusableError, match="did not succeed in 5 steps"):
            hasty.read(entry)
    hasty.close()


# ---- the same again


PROCESS = """
import sys
from pathlib import Path
from vla_cli.episode import save_episode
from vla_cli.worlds.collecting import open_world
log = open_world("tabletop:V", actor="expert", episodes=4, instruction=sys.argv[2], seed=7, operator="bob")
entries = log.entries()
for index in map(int, sys.argv[3:]):
    save_episode(log.read(entries[index]), Path(sys.argv[1]) / f"{index}.hdf5")
log.close()
"""


def test_several_processes_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for number, order in enumerate((["0", "1", "2", "3"], ["3", "1"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [str(folder), INSTRUCTION, *order]
        subprocess.run([sys.executable, "-c", PROCESS, *arguments], check=True, cwd=ROOT)
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0] | written[1] == written[0] and sorted(written[1]) == ["1.hdf5", "3.hdf5"]
    assert len(set(written[0].values())) == 4


def test_no_two_episodes_of_any_seeds_share_a_scene() -> None:
    assert len({scene_seed(seed, index) for seed in range(50) for index in range(50)}) == 2500


def test_the_scenes_are_not_those_of_the_evaluation() -> None:
    environment = TabletopCollection("V", INSTRUCTION).environment(patient=False)
    collected = []
    for index in range(5):
        environment.reset(seed=scene_seed(0, index))
        collected.append(environment.table.starts[0].scene.object_xy)
    cases = TabletopWorld("V").cases("trained", 20, seed=0)
    assert not any(np.allclose(case.start.scene.object_xy, xy) for case in cases for xy in collected)


def test_the_evaluation_finds_the_collected_task_and_layout_again() -> None:
    for words in (INSTRUCTION, "place the purple wedge on the back plate"):
        place = TabletopCollection("W", words)
        world = TabletopWorld("", place.world)
        assert (world.shift, world.task, world.layout) == ("W", place.task, place.layout)


# ---- what is asked for


def test_every_phrasing_finds_its_task() -> None:
    assert set(tasks()) == set(ALL_PHRASINGS)
    for phrase, task in tasks().items():
        assert task_of(phrase) == task and phrase in task.phrasings
    assert task_of("  Lift the  GREEN wedge. ") == Task("pick", "green", "wedge")


@pytest.mark.parametrize("words", ["put the red block on the top plate", "sing a song", "x" * 100_000])
def test_an_unknown_instruction_lists_some_that_exist(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_of(words)
    assert (
        len(str(caught.value)) < 600 and caught.value.expected.count('"') == 6 and "--instruction" in caught.value.hint
    )
    assert all(text in ALL_PHRASINGS for text in caught.value.expected.split('"')[1::2])


@pytest.mark.parametrize("words", [None, "", "  "])
def test_collecting_without_an_instruction_is_refused(words: str | None) -> None:
    with pytest.raises(ConfigError, match=r"needs an instruction.*--instruction"):
        open_world("tabletop:V", actor="expert", episodes=1, instruction=words, seed=0, operator=None)


def test_the_instruction_is_recorded_in_the_user_s_words() -> None:
    log = collect("tabletop", episodes=1, instruction=" Grab the cyan ball ")
    episode = log.read(log.entries()[0])
    assert episode.instructions == ["Grab the cyan ball"] and episode.world["env_kwargs"]["task"]["colour"] == "cyan"
    log.close()


def test_the_scene_has_the_named_object() -> None:
    for task in tasks().values():
        layout = layout_for(task)
        assert layout.objects and (task.colour, task.shape) in layout.objects and len(set(layout.objects)) == 4
    assert layout_for(Task("put", "blue", "ball", "left")) == DEFAULT_LAYOUT


def test_which_sources_are_worlds() -> None:
    assert all(is_world(spec) for spec in ("tabletop", "tabletop:V", "tabletop:nowhere"))
    assert not any(is_world(spec) for spec in ("", "tabletop.hdf5", "./tabletop", "logs/tabletop:V", "C:\\tabletop"))
    assert set(COLLECTABLE) <= set(WORLDS)


@pytest.mark.parametrize(
    ("spec", "changes", "fragment"),
    [
        ("kitchen", {}, "world to collect from 'kitchen'"),
        ("tabletop:Q", {}, "no domain 'Q'"),
        ("tabletop", {"episodes": 0}, "0 episodes"),
        ("tabletop", {"seed": -1}, "seed -1"),
    ],
)
def test_a_world_that_is_not_there_is_refused(spec: str, changes: dict, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        collect(spec, **changes)
    assert fragment in str(caught.value)


def test_a_source_is_opened_in_whichever_process() -> None:
    source = WorldSource("tabletop:V", "expert", 2, INSTRUCTION, 3, "bob")
    # another process gets it by multiprocessing's own way
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_first_actions, (source,))
    np.testing.assert_array_equal(there, _first_actions(source))
    with source.opened(lambda message: None) as log:
        assert len(log.entries()) == 2 and log.read(log.entries()[1]).operator == "bob"


def _first_actions(source: WorldSource) -> np.ndarray:
    with source.opened(lambda message: None) as log:
        return stream(log.read(log.entries()[0]), "action")


def test_entries_keep_their_names_when_more_are_asked_for() -> None:
    few, more = (collect("tabletop", episodes=count).entries() for count in (3, 5))
    assert more[:3] == few and len({entry.name for entry in more}) == 5 and few[0].files == ()


# ---- the environment


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_environment_keeps_gymnasium_s_promises() -> None:
    check_env(TabletopCollection("V", INSTRUCTION).environment(patient=False), skip_render_check=True)


def test_one_table_is_the_batch_of_one() -> None:
    environment = TabletopEnv(DEFAULT_LAYOUT, Task("put", "red", "block", "left"), DOMAINS["D"])
    observation, _ = environment.reset(seed=4)
    batch = TabletopVectorEnv(environment.table.starts, DOMAINS["D"])
    batch._noise_seed = environment.table._noise_seed  # pyright: ignore[reportAttributeAccessIssue]
    batched, _ = batch.reset()
    rng = np.random.default_rng(0)
    for _ in range(EPISODE_STEPS):
        np.testing.assert_array_equal(observation[CAMERA], batched["image"][0])
        state = np.concatenate([observation[POSITION], observation[GRIPPER]])
        np.testing.assert_array_equal(state, batched["state"][0])
        np.testing.assert_array_equal(environment.render(), batched["image"][0])
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        observation, _, _, truncated, _ = environment.step(action)
        batched, *_ = batch.step(action[None])
    assert truncated


def test_a_person_has_more_time_than_the_expert() -> None:
    environment = TabletopCollection("V", INSTRUCTION).environment(patient=True)
    environment.reset(seed=0)
    still = np.array([0, 0, -1], np.float32)
    assert not any(environment.step(still)[3] for _ in range(EPISODE_STEPS + 10))


def test_the_table_is_described_in_words() -> None:
    environment = TabletopCollection("V", INSTRUCTION).environment(patient=True)
    environment.reset(seed=0)
    before = environment.describe()
    assert [line.split("  ")[0] for line in before][:2] == ["gripper", "red block"] and len(before) == 9
    assert "open" in before[0]
    table = environment.table
    table.gripper_xy[0] = table.object_xy[0, 0]
    environment.step(np.array([0, 0, 1], np.float32))
    after = environment.describe()
    assert "closed, holding the red block" in after[0] and after[1].endswith("here")


def test_ways_are_told_in_centimetres() -> None:
    start = np.array([0.5, 0.5])
    assert way(start, np.array([0.3, 0.62])) == "20 cm left, 12 cm away"
    assert way(start, np.array([0.504, 0.41])) == "9 cm nearer"
    assert way(start, start) == "here"
