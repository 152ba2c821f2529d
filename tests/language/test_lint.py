"""Every fault that is put in is found, in the right episodes; clean instructions are not accused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import real_log

from vla_cli.episode import load_episode, read_manifest
from vla_cli.language.lint import Finding, lint, plain, tidy
from vla_cli.operators.grasps import Told, gripper_dims, position_dims, told
from vla_cli.readers import READERS, read_all
from vla_cli.study import _with_findings
from vla_cli.worlds.tabletop.recording import demonstrations
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS, Layout, Scene, Task

CLEAN = ["put the red cup on the tray", "put the jar in the box", "lift the big mug", "wipe the table with the sponge"]


def spoken(*texts: str | list[str]) -> list[Told]:
    return [Told(f"demo_{i}", (text,) if isinstance(text, str) else tuple(text)) for i, text in enumerate(texts)]


def of(check: str, found: list[Finding]) -> Finding:
    (one,) = [finding for finding in found if finding.check == check]
    return one


def test_clean_instructions_are_not_accused() -> None:
    assert lint(spoken(*CLEAN, *CLEAN)) == []
    assert lint([]) == []
    assert [f for f in lint(spoken(*ALL_PHRASINGS)) if f.severity != "info"] == []


FAULTS = [
    ("", "empty", "error"),
    (" \t.", "empty", "error"),
    *((text, "placeholder", "error") for text in ("valid", "DEBUG", "test", "N/A", "todo", "Task 3", "demo_4", "xxx")),
    *((text, "placeholder", "error") for text in ("12", "pick_cubes.hdf5", "None", "language instruction", "lorem")),
    ("blocks", "one-word", "warning"),
    ("Put the jar in the box.", "variants", "warning"),
    ("put  the jar in the box", "variants", "warning"),
    ("put_the_jar_in_the_box", "variants", "warning"),
    ("put jar in box", "near-duplicate", "warning"),
    ("put the jar in the boxx", None, None),
    ("lift the big mgu", None, None),
    ("wipe the tabel with the sponge", "near-duplicate", "warning"),
    ("wipe the table with the spponge", "near-duplicate", "warning"),
    ("put the \u200bcog in the box", "characters", "warning"),
    ("put the cog\x07 in the box", "characters", "warning"),
    ("put the c\ufffdg in the box", "characters", "warning"),
    ("put the cog in the box and " * 9 + "open the bin", "long", "warning"),
    (" put the cog in the box\n", "whitespace", "info"),
    ("frobnicate cogs swiftly", "not-understood", "info"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "check", "severity"), FAULTS, ids=lambda value: str(value)[:30])
def test_an_injected_fault_is_found_in_its_episode(text: str, check: str | None, severity: str | None) -> None:
    found = lint(spoken(*CLEAN, text))
    if check is None:  # too short a word to tell a slip from another word
        assert [f for f in found if f.severity != "info"] == []
        return
    finding = of(check, found)
    assert finding.severity == severity and "demo_4" in finding.episodes and finding.message and finding.fix
    assert [f.check for f in found if f.severity in ("error", "warning")] == ([check] if severity != "info" else [])
    assert "\n" not in finding.message + finding.fix and "\x07" not in finding.message + finding.fix


@pytest.mark.parametrize(
    "text",
    [
        "put the red cup on the left tray",
        "put the jars in the box",
        "lift the big bug",
        "put the 2nd jar in the box",
        "把红色方块放到盘子里",
    ],
)
def test_another_task_is_no_near_duplicate(text: str) -> None:
    assert [f for f in lint(spoken(*CLEAN, text)) if f.severity != "info"] == []


def test_a_label_beside_a_real_instruction_is_found() -> None:
    """GR00T's sample lists the task and "valid" for every episode."""
    pairs = [[f"pick the {t} from the counter and place it in the plate", "valid"] for t in ("pear", "meat", "salt")]
    found = lint(spoken(*pairs))
    assert of("placeholder", found).episodes == ("demo_0", "demo_1", "demo_2")
    assert "'plate'" in of("one-place", found).message
    assert {f.check for f in found} == {"placeholder", "one-place"}


def test_a_files_stem_is_no_instruction() -> None:
    named = replace(spoken("sort the kitchen drawers")[0], names=("sort_the_kitchen_drawers",))
    assert of("placeholder", lint([named])).episodes == ("demo_0",)
    assert not [f for f in lint(spoken("sort the kitchen drawers")) if f.check == "placeholder"]


def test_the_merged_form_is_the_usual_one() -> None:
    texts = ["put the jar in the box."] * 3 + ["Put the jar in the box"] + ["wipe the table"]
    finding = of("variants", lint(spoken(*texts)))
    assert "'put the jar in the box'" in finding.fix and finding.episodes == ("demo_0", "demo_1", "demo_2", "demo_3")


def test_of_equally_many_the_plain_form_is_proposed() -> None:
    finding = of("variants", lint(spoken("PUT THE JAR IN A BOX", "put the jar in a box", "Put the jar in a box.")))
    assert finding.fix == "use one: 'put the jar in a box'"


def test_a_space_without_width_becomes_one_with() -> None:
    assert of("characters", lint(spoken("put the\u200bjar in the box"))).fix == "use 'put the jar in the box'"
    assert of("characters", lint(spoken("put the j\u00adar in the box"))).fix == "use 'put the jar in the box'"


def test_sentences_without_spaces_are_no_words_with_a_slip() -> None:
    """Red and blue differ in one character of what has no space, and are two tasks."""
    found = lint(spoken("把红色方块放在盘子上", "把蓝色方块放在盘子上"))
    assert [finding.check for finding in found] == ["not-understood"]


def test_the_page_tells_a_finding_beside_the_instruction_it_is_about() -> None:
    drawn_out = "lift the cog and " * 12 + "open the bin"
    texts = ["lift the cog", "lift the  cog", drawn_out]
    words = lint(spoken(*texts))
    rows = {text: _with_findings({"instruction": text}, words)["findings"] for text in [*texts, "lift the co"]}
    assert [len(found) for found in rows.values()] == [1, 1, 1, 0]
    assert "spellings" in rows["lift the cog"][0] and "51 words" in rows[drawn_out][0]


def test_one_instruction_only_is_said_however_it_is_phrased() -> None:
    finding = of("single-instruction", lint(spoken("put the jar in the box", "take the jar and place it in the box")))
    assert "steerable" in finding.fix and "--alternatives" in finding.fix
    assert not lint(spoken("put the jar in the box"))


def test_an_object_that_every_task_names() -> None:
    found = lint(spoken("put the jar in the box", "put the jar on the tray"))
    assert "'jar'" in of("one-object", found).message and [f.check for f in found] == ["one-object"]


def test_the_gravest_comes_first_and_findings_are_json() -> None:
    found = lint(spoken("valid", "put the jar in the box", "Put the jar in the box"))
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=["error", "warning", "info"].index)
    assert set(found[0].document()) == {"check", "severity", "episodes", "message", "fix"}


@pytest.mark.parametrize("text", ["Put the  jar, in the box!", "ＰＵＴ the jar in the box", "put_the_jar_in_the_box"])
def test_variants_have_one_plain_form(text: str) -> None:
    assert plain(text) == "put the jar in the box" == plain(tidy(text))


# ---- what position alone explains

TASK = Task("put", "red", "block", "left")
OBJECTS = (("red", "block"), ("blue", "ball"), ("green", "wedge"), ("yellow", "ball"))


class Anywhere(Layout):
    """Scenes in which the red block is somewhere."""

    def draw(self, rng: np.random.Generator) -> Scene:
        while True:
            scene = super().draw(rng)
            if ("red", "block") in scene.objects:
                return scene


def shown(layout: Layout, seed: int, task: Task = TASK, count: int = 6, base: int = 0) -> list[Told]:
    recorded = demonstrations(layout, [task] * count, "V", np.random.default_rng(seed))
    return [
        told(f"demo_{base + i}", [r.instruction], r.state, r.actions, gripper_dims=[2], position_dims=[0, 1])
        for i, r in enumerate(recorded)
    ]


def test_an_object_on_one_mark_is_found_and_one_that_moves_is_not() -> None:
    fixed = of("position", lint(shown(Layout(OBJECTS, (1, 2, 6, 8)), 0)))
    assert "the red block was always grasped" in fixed.message and "the left plate never moved" in fixed.message
    assert "deaf" in fixed.message and len(fixed.episodes) == 6
    moving = of("position", lint(shown(Anywhere(), 1)))
    assert "red block was always" not in moving.message and "the left plate never moved" in moving.message


def test_two_marks_are_no_single_spot() -> None:
    both = shown(Layout(OBJECTS, (0, 2, 6, 8)), 0, count=5) + shown(Layout(OBJECTS, (1, 2, 6, 8)), 1, count=5, base=5)
    assert "always grasped" not in of("position", lint(both)).message


def test_each_task_is_judged_by_itself() -> None:
    """Two tasks, each with a spot of its own: the whole is spread widely, and each is explained by its place."""
    layout = Layout(OBJECTS, (0, 8, 2, 6))
    other = Task("put", "blue", "ball", "right")
    found = lint(shown(layout, 0, count=6) + shown(layout, 1, other, count=6, base=6))
    positions = [f for f in found if f.check == "position"]
    assert [f.episodes[0] for f in positions] == ["demo_0", "demo_6"] and "blue ball" in positions[1].message


def test_few_episodes_are_not_judged() -> None:
    assert [f.check for f in lint(shown(Layout(OBJECTS, (1, 2, 6, 8)), 0, count=4))] == ["single-instruction"]


def test_random_tasks_are_not_accused() -> None:
    rng = np.random.default_rng(0)
    made = []
    for i in range(12):  # both the grasp and the release anywhere, as with targets that are moved
        path = rng.uniform(0, 1, (40, 2))
        path[20], path[30] = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)
        gripper = (np.arange(40) >= 20) & (np.arange(40) < 30)
        made.append(told(f"demo_{i}", [CLEAN[i % 2]], path, gripper[:, None].astype(float), gripper_dims=[0]))
    assert lint(made) == []


def test_an_arm_without_grasps_is_judged_by_where_it_ends_unless_it_goes_home() -> None:
    rng = np.random.default_rng(0)
    away = [np.linspace(rng.uniform(0, 0.1, 2), rng.uniform(1.0, 1.05, 2), 30) for _ in range(6)]
    home = [np.concatenate([path, path[::-1]]) for path in away]
    for paths, accused in ((away, True), (home, False)):
        made = [told(f"demo_{i}", ["push the jar"], path, np.zeros((len(path), 1))) for i, path in enumerate(paths)]
        assert ("position" in [f.check for f in lint(made)]) is accused


def test_the_sample_demonstrations_are_what_they_are(episodes) -> None:
    """One task on one mark: exactly that is said of them, and no more."""
    made = []
    for row in read_manifest(episodes):
        episode = load_episode(episodes / row["file"])
        state = np.concatenate([s.values for s in episode.of_role("state")], axis=1)
        names = [f"{s.name}[{i}]" for s in episode.of_role("state") for i in range(s.values.shape[1])]
        commands = episode.of_role("action")[0].values
        dims = gripper_dims([f"action[{i}]" for i in range(commands.shape[1])], commands)
        where = position_dims(names)
        made.append(told(episode.name, episode.instructions, state, commands, gripper_dims=dims, position_dims=where))
    assert [f.check for f in lint(made)] == ["position", "single-instruction"]


@pytest.mark.parametrize(
    ("name", "reader", "checks"),
    [
        ("bridge_v2_rlds", "rlds", []),
        ("gr00t_lerobot_v2/robot_sim.PickNPlace", "lerobot", ["one-place"]),
    ],
)
def test_real_recordings(name: str, reader: str, checks: list[str]) -> None:
    made = []
    for episode in read_all(READERS.get(reader), real_log(name), lambda message: None):
        state, commands = (episode.of_role(role)[0] for role in ("state", "action"))  # type: ignore[union-attr]
        made.append(
            told(
                episode.name,
                episode.instructions,  # type: ignore[union-attr]
                np.asarray(state.values),
                np.asarray(commands.values),
                gripper_dims=gripper_dims(commands.attributes["names"], commands.values),
                position_dims=position_dims(state.attributes["names"]),
            )
        )
    assert len(made) >= 5 and [f.check for f in lint(made)] == checks
