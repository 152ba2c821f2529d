"""`vla eval-steer`: matched, repeatable, and honest about what it measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import h5py
import pytest
from builders import assert_refused, contents, robomimic_log, short_episodes

from vla_cli.adapter import load_spec, save_spec
from vla_cli.configs import ExportConfig, FinetuneConfig, IngestConfig, PreprocessConfig, SteerConfig
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import read_json, write_json
from vla_cli.progress import Progress
from vla_cli.report import load_report, load_rollouts
from vla_cli.report.verdict import answers_to_words
from vla_cli.stages import export, finetune, ingest, preprocess, steer
from vla_cli.suites import answers, closed_loop, open_loop
from vla_cli.worlds.contract import CONDITIONS
from vla_cli.worlds.tabletop.scene import Task

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"


@pytest.fixture(scope="module")
def report(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steer") / "report"
    with short_episodes():
        steer.run(SteerConfig(adapters=(adapter,), out=out, episodes=3, rollouts=1))
    return out


def test_every_condition_is_measured_for_base_and_adapter(report: Path) -> None:
    found = load_report(report)
    assert found.policy_names == ["base", "lora"]
    assert [c.name for c in found.conditions] == list(CONDITIONS)
    for policy in found.policy_names:
        for condition in CONDITIONS:
            row = found.find(policy, condition, "success")
            assert row is not None and row.n == 3
        assert found.find(policy, "novel-both", "locked") is not None
        assert found.find(policy, "trained", "locked") is None
    assert found.settings["world"] == "tabletop:V", "the demonstrations' own scene, without being told"


def test_doing_nothing_scores_nothing(adapter: Path, tmp_path: Path) -> None:
    steer.run(SteerConfig(adapters=(adapter,), out=tmp_path / "r", episodes=9, conditions=("do-nothing",)))
    found = load_report(tmp_path / "r")
    for policy in found.policy_names:
        row = found.find(policy, "do-nothing", "success")
        assert row is not None and row.k == 0


def test_the_same_episode_is_the_same_for_every_policy(report: Path) -> None:
    rollouts = load_rollouts(report)
    assert len(rollouts) == 2 * len(CONDITIONS) * 3
    asked = {p: [(r.condition, r.episode, r.instruction) for r in rollouts if r.policy == p] for p in ("base", "lora")}
    assert asked["base"] == asked["lora"]


def test_the_page_is_whole_and_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= len(CONDITIONS)
    assert "novel-concept" in page and "</html>" in page


@pytest.mark.usefixtures("brief")
def test_a_second_run_gives_the_same_bytes_and_another_seed_other_scenes(adapter: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        asked = ("novel-both",)
        steer.run(SteerConfig(adapters=(adapter,), out=tmp_path / name, episodes=4, conditions=asked, seed=seed))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["rollouts.jsonl"] != contents(tmp_path / "c")["rollouts.jsonl"]


def test_guidance_changes_the_adapter_and_not_the_base(adapter: Path, tmp_path: Path) -> None:
    films = {}
    for weight in (1.0, 3.0):
        out = tmp_path / str(weight)
        asked = ("novel-both",)
        steer.run(SteerConfig(adapters=(adapter,), out=out, episodes=6, conditions=asked, guidance_weight=weight))
        films[weight] = [(r.policy, r.did, r.steps) for r in load_rollouts(out)]
    base = [[row for row in films[w] if row[0] == "base"] for w in (1.0, 3.0)]
    adapted = [[row for row in films[w] if row[0] == "lora"] for w in (1.0, 3.0)]
    assert base[0] == base[1]
    assert adapted[0] != adapted[1]


def test_the_adapters_own_guidance_is_used_and_reported(adapter: Path, tmp_path: Path) -> None:
    own = shutil.copytree(adapter, tmp_path / "own")
    save_spec(replace(load_spec(own), guidance={"kind": "null", "weight": 3.0, "why": "a test"}), own)
    did, settings = {}, {}
    asked = ("empty-instruction", "novel-both")
    for name, path, options in (
        ("own", own, {}),
        ("asked", adapter, {"guidance": "null", "guidance_weight": 3.0}),
        ("plain", own, {"guidance": "none"}),
    ):
        config = SteerConfig(adapters=(path,), out=tmp_path / f"r-{name}", episodes=2, conditions=asked, **options)  # type: ignore[arg-type]
        assert steer.plan(config)["guidance"]["base"] == {"kind": "none", "weight": 1.0}
        steer.run(config)
        rows = [(r.condition, r.policy, r.did, r.steps) for r in load_rollouts(config.out)]
        did[name] = {c: [row for row in rows if row[:2] == (c, "lora")] for c in asked}
        settings[name] = load_report(config.out).settings["guidance"]["lora"]
    assert settings["own"] == settings["asked"] == {"kind": "null", "weight": 3.0}
    assert settings["plain"] == {"kind": "none", "weight": 1.0}
    assert did["own"] == did["asked"] and did["own"]["novel-both"] != did["plain"]["novel-both"]
    # a prompt cannot be moved away from itself
    assert did["own"]["empty-instruction"] == did["plain"]["empty-instruction"]


class Interrupting(Progress):
    """Stands for a person who presses Ctrl-C after so many parts."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("world", [None, "none"])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    adapter: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: str | None
) -> None:
    asked = () if world else ("trained", "novel-both")
    config = SteerConfig(adapters=(adapter,), out=tmp_path / "a", episodes=3, conditions=asked, world=world, workers=1)
    config = replace(config, dataset=dataset if world else None)
    monkeypatch.setattr(open_loop, "WINDOWS_PER_EPISODE", 2)
    steer.run(config)
    begun: list[tuple[Any, ...]] = []
    for module, part in ((closed_loop, "_run_condition"), (open_loop, "_error")):
        whole = getattr(module, part)
        monkeypatch.setattr(module, part, lambda *args, whole=whole: (begun.append(args), whole(*args))[1])
    again = replace(config, out=tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        steer.run(again, Interrupting(after=3))
    first = len(begun)
    assert first > 0
    steer.run(replace(again, resume=True))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    episodes = 1 if world is None else first // 3
    assert len(begun) <= (4 if world is None else 6) * episodes + (world is None), "nothing is done twice"


def trained_on(adapter: Path, copy: Path, *instructions: str) -> Path:
    """The same adapter, but said to be trained on other instructions."""
    shutil.copytree(adapter, copy)
    save_spec(replace(load_spec(copy), instructions=list(instructions)), copy)
    return copy


@pytest.mark.usefixtures("brief")
def test_trained_is_asked_in_the_words_of_the_demonstrations(adapter: Path, tmp_path: Path) -> None:
    plain, *others = Task("put", "red", "block", "left").phrasings
    reworded = trained_on(adapter, tmp_path / "reworded", f"  {others[0]}")
    asked = ("trained", "paraphrase", "do-nothing")
    config = SteerConfig(adapters=(reworded,), out=tmp_path / "report", episodes=6, conditions=asked)
    assert steer.plan(replace(config, conditions=(*asked, "novel-concept")))["warnings"] == []
    steer.run(config)
    said = {c: {r.instruction for r in load_rollouts(tmp_path / "report") if r.condition == c} for c in asked}
    assert said["trained"] == said["do-nothing"] == {others[0]}
    assert said["paraphrase"] == {plain, *others[1:]}
    assert not [w for w in load_report(tmp_path / "report").warnings if "demonstrated" in w]
    every = trained_on(adapter, tmp_path / "every", plain, *others)
    plan = steer.plan(SteerConfig(adapters=(every,), out=tmp_path / "none"))
    assert "paraphrase" not in plan["conditions"]


@pytest.mark.usefixtures("brief")
def test_it_is_said_where_trained_was_not_trained_and_novel_not_novel(adapter: Path, tmp_path: Path) -> None:
    demonstrated = [
        Task("put", "blue", "ball", "front").phrasings[0],
        Task("put", "green", "wedge", "back").phrasings[0],
    ]
    two = trained_on(adapter, tmp_path / "two", *demonstrated)
    out = tmp_path / "report"
    config = SteerConfig(adapters=(two,), out=out, episodes=9, conditions=("trained", "novel-both", "novel-concept"))
    first, second = steer.plan(config)["warnings"]
    assert [first, second] == steer.plan(replace(config, conditions=config.conditions[:2]))["warnings"]
    assert "trained asks 'put the red block on the left plate', which was not demonstrated to it" in first
    assert "novel-both asks" in second and "which was demonstrated to it" in second
    steer.run(replace(config, conditions=config.conditions[:2]))
    assert load_report(out).warnings[:2] == [first, second]


@pytest.mark.usefixtures("brief")
def test_another_world_can_be_named(adapter: Path, tmp_path: Path) -> None:
    asked = ("trained",)
    steer.run(SteerConfig(adapters=(adapter,), out=tmp_path / "r", episodes=2, conditions=asked, world="tabletop:base"))
    assert load_report(tmp_path / "r").settings["world"] == "tabletop:base"


def test_fail_under_is_exit_one_and_keeps_the_report(adapter: Path, tmp_path: Path) -> None:
    asked = SteerConfig(adapters=(adapter,), out=tmp_path / "r", episodes=12, conditions=("novel-both", "do-nothing"))
    with pytest.raises(CheckFailed) as caught:
        steer.run(replace(asked, fail_under=1.0))
    assert caught.value.exit_code == 1
    row = load_report(tmp_path / "r").find("lora", "novel-both", "success")
    assert row is not None and row.value < 1.0
    assert steer.run(replace(asked, fail_under=row.value, resume=True))["rows"], "as many as were asked for are enough"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"world": "moon"}, "no world 'moon'"),
        ({"world": "tabletop:Q"}, "no domain 'Q'"),
        ({"conditions": ("novel",)}, "no condition 'novel'"),
        ({"world": "none"}, "no world to act in"),
        ({"guidance": "cpg"}, "no guidance 'cpg'"),
        ({"guidance": "none", "guidance_weight": 2.0}, "together with"),
        ({"guidance_weight": float("nan")}, "finite number"),
    ],
)
def test_impossible_options_are_refused(adapter: Path, tmp_path: Path, options: dict[str, object], words: str) -> None:
    config = SteerConfig(adapters=(adapter,), out=tmp_path / "r", episodes=2, **options)  # type: ignore[arg-type]
    assert_refused(ConfigError, tmp_path / "r", lambda: steer.run(config), words)


def test_a_dataset_is_no_adapter(dataset: Path, tmp_path: Path) -> None:
    config = SteerConfig(adapters=(dataset,), out=tmp_path / "r")
    said = ("is a dataset, written by preprocess", "an adapter", f"vla finetune {dataset} --base BASE")
    assert_refused(InputError, tmp_path / "r", lambda: steer.run(config), *said)


def test_a_camera_that_the_base_calls_otherwise_is_no_other_robot(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_loop, "WINDOWS_PER_EPISODE", 2)
    monkeypatch.setattr(answers, "DRAWS", 2)
    monkeypatch.setattr(answers, "FRAMES", 1)
    log = Path(shutil.copy(SAMPLES / "demonstrations.hdf5", tmp_path / "log.hdf5"))
    with h5py.File(log, "r+") as file:
        del file["data"].attrs["env_args"]  # the robot's own recordings, of no world
        for name in sorted(file["data"])[5:]:
            del file["data"][name]
        for demonstration in file["data"].values():
            demonstration["obs"].move("agentview_image", "front_image")
    ingest.run(IngestConfig(source=log, out=tmp_path / "episodes", instruction="put the block on the plate"))
    preprocess.run(PreprocessConfig(episodes=tmp_path / "episodes", out=tmp_path / "dataset"))
    shutil.copy(SAMPLES / "alternatives.yaml", tmp_path / "dataset")  # where preprocess puts those that it proposes
    train = FinetuneConfig(
        dataset=tmp_path / "dataset", base=str(base), out=tmp_path / "adapter", recipe="lora", steps=1, batch_size=2
    )
    finetune.run(train)
    spec = load_spec(tmp_path / "adapter")
    assert spec.statistics_from == "base" and spec.cameras == ["front_image"] != load_spec(base).cameras
    steer.run(SteerConfig(adapters=(train.out,), out=tmp_path / "report", dataset=train.dataset, episodes=1))
    report = load_report(tmp_path / "report")
    assert report.policy_names == ["base", "lora"]
    kept = report.find("lora", "other-object", "kept")
    assert kept is not None and 0.5 < kept.value < 1.5, "one step of training leaves the answer to other words"
    object_ = answers_to_words(report)[0]
    assert escape(object_) in (tmp_path / "report" / "report.html").read_text()
    assert "not resolved" in object_, "of one episode"
    assert read_json(tmp_path / "report" / "run.json")["request"]["alternatives"][0]["while"] == "empty"
    asked = SteerConfig(adapters=(train.out,), out=tmp_path / "again", dataset=train.dataset, episodes=1)
    (tmp_path / "others.yaml").write_text("words: 1")
    given = replace(asked, alternatives=tmp_path / "others.yaml")
    assert_refused(ConfigError, given.out, lambda: steer.plan(given), "others.yaml", "a YAML list of instructions")


def test_an_adapter_is_held_against_the_base_behind_its_own_calibration(
    calibrated: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((open_loop, "WINDOWS_PER_EPISODE", 1), (answers, "DRAWS", 2), (answers, "FRAMES", 1)):
        monkeypatch.setattr(module, name, value)
    given = {"dataset": dataset, "alternatives": SAMPLES / "alternatives.yaml", "world": "none", "episodes": 2}
    steer.run(SteerConfig(adapters=(calibrated,), out=tmp_path / "r", **given))
    report = load_report(tmp_path / "r")
    kept = report.find("calibrate", "other-object", "kept")
    assert kept is not None and kept.value == pytest.approx(1), "no weight was trained"
    base, own = (report.find(name, "other-object", "response") for name in ("base", "calibrate"))
    assert base is not None and own is not None and base.value != own.value, "the calibration is at work"


def test_what_is_asked_without_a_world_is_given_or_known_from_training_or_proposed(
    adapter: Path, dataset: Path, tmp_path: Path
) -> None:
    trained, shown = shutil.copytree(adapter, tmp_path / "trained"), shutil.copytree(dataset, tmp_path / "dataset")
    config = SteerConfig(adapters=(trained,), out=tmp_path / "r", dataset=shown, world="none")

    def asked(**given: Any) -> list[str]:
        return steer.plan(replace(config, **given))["alternatives"]

    assert asked() == []
    (shown / "alternatives.yaml").write_text("- proposed\n")
    assert asked() == ["proposed"]
    record = read_json(trained / "run.json")
    record["request"]["alternatives"] = [{"instruction": "of the training", "while": "empty"}]
    write_json(trained / "run.json", record)
    assert asked() == ["of the training"]
    (tmp_path / "others.yaml").write_text("- given\n")
    assert asked(alternatives=tmp_path / "others.yaml") == ["given"]
    record["request"]["alternatives"] = [{"while": "empty"}]
    write_json(trained / "run.json", record)
    assert_refused(ConfigError, config.out, asked, "run.json", "entry 1", "has no instruction")


def test_another_robots_adapter_gets_the_open_loop_report(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_loop, "WINDOWS_PER_EPISODE", 2)
    source = robomimic_log(tmp_path / "log.hdf5")
    ingest.run(IngestConfig(source=source, out=tmp_path / "episodes", instruction="put the block on the plate"))
    preprocess.run(PreprocessConfig(episodes=tmp_path / "episodes", out=tmp_path / "dataset"))
    train = FinetuneConfig(
        dataset=tmp_path / "dataset", base=str(base), out=tmp_path / "a", recipe="lora", steps=2, batch_size=4
    )
    finetune.run(train)
    steer.run(SteerConfig(adapters=(tmp_path / "a",), out=tmp_path / "r", dataset=tmp_path / "dataset", world="none"))
    report = load_report(tmp_path / "r")
    assert report.kind == "open-loop"
    row = report.find("lora", "trained", "action_error")
    assert row is not None and row.value > 0 and row.low <= row.value <= row.high
    assert {(c.policy, c.other, c.condition) for c in report.comparisons} >= {("lora", "base", "trained")}
    assert not [text for text in report.warnings if "held out here" in text]
    assert [text for text in report.warnings if "other words before the grasp was not measured" in text]
    export.run(ExportConfig(adapter=tmp_path / "a", out=tmp_path / "bundle", report=tmp_path / "r"))
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "**This does not say whether it still listens.** Open-loop error, lower is better" in card
    # the same episodes, others held out: what is measured may have been trained on
    again = PreprocessConfig(episodes=tmp_path / "episodes", out=tmp_path / "again", seed=5)
    preprocess.run(again)
    steer.run(SteerConfig(adapters=(tmp_path / "a",), out=tmp_path / "s", dataset=again.out, world="none", episodes=1))
    assert [w for w in load_report(tmp_path / "s").warnings if w.startswith("lora: it was trained on another dataset")]
    with h5py.File(again.out / "dataset.hdf5", "r+") as file:
        file["data"].attrs["rate_hz"] = 50.0
    slower = SteerConfig(adapters=(tmp_path / "a",), out=tmp_path / "t", dataset=again.out, world="none")
    assert_refused(InputError, tmp_path / "t", lambda: steer.run(slower), "is not of the robot", "50 Hz")
    for call in (steer.run, steer.plan):
        with pytest.raises(InputError, match=r"Policy 'lora'.*--world none"):
            call(SteerConfig(adapters=(tmp_path / "a",), out=tmp_path / "w", world="tabletop:V"))


@pytest.mark.usefixtures("brief")
def test_the_demonstrations_world_wins_over_a_dataset_and_says_so(adapter: Path, dataset: Path, tmp_path: Path) -> None:
    asked = ("trained",)
    given = {"dataset": dataset, "alternatives": SAMPLES / "alternatives.yaml"}
    steer.run(SteerConfig(adapters=(adapter,), out=tmp_path / "r", episodes=2, conditions=asked, **given))
    report = load_report(tmp_path / "r")
    assert report.kind == "closed-loop"
    assert all(any(f"--{option} was not used" in text for text in report.warnings) for option in given)


def test_adapters_of_different_tasks_are_refused(adapter: Path, tmp_path: Path) -> None:
    other = shutil.copytree(adapter, tmp_path / "other")
    spec = load_spec(adapter)
    assert spec.world is not None
    kwargs = {**spec.world["env_kwargs"], "task": {"verb": "pick", "colour": "red", "shape": "block", "plate": ""}}
    save_spec(replace(spec, world={**spec.world, "env_kwargs": kwargs}), other)
    config = SteerConfig(adapters=(adapter, other), out=tmp_path / "r", episodes=2)
    assert_refused(ConfigError, tmp_path / "r", lambda: steer.run(config), "different scenes or tasks")


def test_what_training_warned_of_is_said_again_with_the_policys_name(
    adapter: Path, calibrated: Path, tmp_path: Path
) -> None:
    warned, empty = shutil.copytree(adapter, tmp_path / "warned"), shutil.copytree(calibrated, tmp_path / "empty")
    write_json(warned / "run.json", {**read_json(warned / "run.json"), "warnings": ["it learns the sample by heart."]})
    save_spec(replace(load_spec(empty), calibration={}, recipe="nothing"), empty)
    asked = ("trained",)
    steer.run(SteerConfig(adapters=(warned, calibrated, empty), out=tmp_path / "r", episodes=2, conditions=asked))
    report = load_report(tmp_path / "r")
    assert report.warnings == [
        "lora: it learns the sample by heart.",
        "nothing: It holds no weights and no calibration: its rows are the base's own.",
    ]
    assert report.settings["weights"] == {"lora": "lora", "calibrate": "frozen", "nothing": "frozen"}
    assert report.settings["calibration"] == {"lora": [], "calibrate": ["look", "camera", "action"], "nothing": []}
    same = [[(r.did, r.steps) for r in load_rollouts(tmp_path / "r") if r.policy == p] for p in ("base", "nothing")]
    assert same[0] == same[1]
