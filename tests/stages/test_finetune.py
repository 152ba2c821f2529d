"""`vla finetune`: repeatable to the byte, resumable to the byte, and plain about what it cannot do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import InterruptAfter, assert_refused, contents, robomimic_log

from vla_cli.adapter import load_spec
from vla_cli.configs import FinetuneConfig, IngestConfig, PreprocessConfig
from vla_cli.dataset import load_dataset, save_dataset
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import partial_path, read_json
from vla_cli.language.alternatives import FILE_NAME as ALTERNATIVES
from vla_cli.policies import estimate
from vla_cli.policies.estimate import Sizes, seconds_a_step
from vla_cli.policies.trainer import Trainer
from vla_cli.recipe import FOLDER
from vla_cli.retention.composition import Composition
from vla_cli.stages import finetune, ingest, preprocess
from vla_cli.stages.finetune import preparation
from vla_cli.stats import compute

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"


def config(dataset: Path, base: Path, out: Path, **options: object) -> FinetuneConfig:
    defaults = {"recipe": "lora", "steps": 5, "batch_size": 6, "checkpoint_every": 2}
    return FinetuneConfig(dataset=dataset, base=str(base), out=out, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["naive", "lora", "rehearse"])
def test_interrupted_and_resumed_ends_with_the_same_bytes(
    dataset: Path, replay: Path, base: Path, tmp_path: Path, recipe: str
) -> None:
    options = {"recipe": recipe, "replay": replay if recipe == "rehearse" else None}
    if recipe == "rehearse":
        options["micro_batch"] = 3
    if recipe == "lora":
        options["early_stopping"] = 8  # measured where checkpoints are: after 2, 4 and 5 steps
    finetune.run(config(dataset, base, tmp_path / "whole", **options))
    told, run = load_spec(tmp_path / "whole").early_stopping, read_json(tmp_path / "whole" / "run.json")
    assert told == run["facts"].get("early_stopping", {}) and bool(told) == (recipe == "lora")
    assert bool(told) == ("early_stopping" in run["request"]) == ("early_stopping" in run["request"]["recipe"])
    if told:
        assert f"lowest after step {run['facts']['last_step']['step']} of 5" in told["why"]
        assert told["held_out_loss"] == run["facts"]["last_step"]["held_out_loss"]
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config(dataset, base, tmp_path / "halves", **options), InterruptAfter(4))
    assert not (tmp_path / "halves").exists()
    assert (partial_path(tmp_path / "halves") / "checkpoint.safetensors").is_file()
    finetune.run(config(dataset, base, tmp_path / "halves", resume=True, **options))
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")


def test_what_follows_the_training_can_be_interrupted_too(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an alpha that is given, not searched for, is done with as soon: the promise is about when it stops
    recipe = tmp_path / "merging.yaml"
    recipe.write_text("method: lora\nretention: {merge: {alpha: 0.5}}\n")
    options = {"recipe": str(recipe)}
    finetune.run(config(dataset, base, tmp_path / "whole", **options))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Composition, "after_training", interrupted)
        finetune.run(config(dataset, base, tmp_path / "halves", **options))
    assert (partial_path(tmp_path / "halves") / "checkpoint.safetensors").is_file()
    monkeypatch.setattr(Trainer, "step", interrupted)  # no step is done again
    finetune.run(config(dataset, base, tmp_path / "halves", resume=True, **options))
    assert "checkpoint.safetensors" not in contents(tmp_path / "halves")
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")


def test_another_seed_is_another_adapter(dataset: Path, base: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        finetune.run(config(dataset, base, tmp_path / str(seed), steps=2, seed=seed))
    assert (
        contents(tmp_path / "0")["adapter_model.safetensors"] != contents(tmp_path / "1")["adapter_model.safetensors"]
    )


def test_resuming_with_other_settings_is_refused_by_name(dataset: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config(dataset, base, tmp_path / "out"), InterruptAfter(4))
    with pytest.raises(ConfigError, match="seed"):
        finetune.run(config(dataset, base, tmp_path / "out", seed=3, resume=True))


def test_the_adapter_says_what_the_robot_must_know(adapter: Path, base: Path) -> None:
    spec = load_spec(adapter)
    assert spec.instructions == ["put the red block on the left plate"]
    assert spec.base is not None and spec.base.name == str(base)
    assert (spec.statistics_from, spec.rate_hz, spec.cameras) == ("base", 10.0, ["agentview_image"])
    assert spec.world is not None and spec.world["env_kwargs"]["shift"] == "V"
    run = read_json(adapter / "run.json")
    assert run["request"]["base"]["digest"] == spec.base.digest
    assert run["request"]["dataset"]["digest"].startswith("sha256:")


def test_the_loss_goes_down(dataset: Path, base: Path, tmp_path: Path) -> None:
    finetune.run(config(dataset, base, tmp_path / "out", steps=24, batch_size=12))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 24
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])


def test_a_dry_run_writes_nothing(dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "seconds_a_step", seconds_a_step)
    monkeypatch.setattr("vla_cli.stages.finetune.estimate.activation_bytes", estimate.activation_bytes)
    monkeypatch.chdir(tmp_path)
    begun = time.perf_counter()
    plan = finetune.plan(config(dataset, base, tmp_path / "out", recipe="delock"))
    took = time.perf_counter() - begun
    assert plan["train_episodes"] == 18 and plan["recipe"]["steps"] == 5
    told = plan["estimate"]
    assert told["optimiser_bytes"] == 12 * told["trained_parameters"] > 0
    assert told["activation_bytes"] > 10**7 and "MB activations" in told["memory"]
    assert 0 < told["seconds_a_step"] < took and told["seconds"] == 5 * told["seconds_a_step"]
    assert "for 5 steps" in told["time"] and told["time"].endswith("without what l2 do in a step")
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_a_large_base_is_left_to_the_run() -> None:
    def never() -> Callable[[int], object]:
        raise AssertionError("its steps are not to be timed")

    sizes = Sizes(bare=3 * 10**9, total=3 * 10**9, trained=1, outright=0, held=0)
    told = estimate.time_of(never, sizes, steps=300, beside=["merge"], certain=False)
    assert told["seconds"] is None and "3,000 million parameters is not loaded" in told["time"]
    assert "the run says after its first steps" in told["time"]


def test_a_run_says_once_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for each, words in ((30.0, "a step takes 30 s: some 2.4 hours for the 287 left"), (0.1, "")):
        clock = estimate.Clock(300)
        seconds = iter([0.0, 2 * each])
        monkeypatch.setattr(estimate.time, "perf_counter", lambda seconds=seconds: next(seconds))
        # resumed at step 10: the first step is not counted
        assert [clock.tick(done) for done in range(11, 15)] == ["", "", words, ""]
    assert [estimate.duration(s) for s in (0.2, 1.4, 60, 5000, 9000)] == [
        "1 second",
        "1 second",
        "60 seconds",
        "83 minutes",
        "2.5 hours",
    ]


@pytest.mark.parametrize(
    ("recipe", "models", "kept"),
    [
        ("", 1, 0),
        ("retention: {rehearsal: {}}", 1, 0),
        ("retention: {distillation: {}}", 2, 0),
        ("retention: {anchor: {}}", 2, 0),
        ("retention: {ewc: {}}", 2, 2),
        ("retention: {l2: {}, merge: {alpha: 0.5}}", 1, 1),
        ("retention: {l2: {}, sam: {}, projection: {}}", 1, 3),
        ("early_stopping: 20", 1, 1),
        ("guidance: {kind: contrast, weight: auto}", 2, 0),
    ],
)
def test_the_estimate_counts_what_is_kept_beside_the_model(
    dataset: Path, base: Path, replay: Path, tmp_path: Path, recipe: str, models: int, kept: int
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"method: full\n{recipe}\n")
    given = {"replay": replay, "alternatives": SAMPLES / "alternatives.yaml"}
    told = finetune.plan(config(dataset, base, tmp_path / "out", recipe=str(file), **given))["estimate"]
    assert told["weight_bytes"] == models * 4 * told["parameters"]
    assert told["kept_bytes"] == kept * 4 * told["trained_parameters"]


def robot_log(tmp_path: Path, **options: object) -> Path:
    """A dataset of another robot, with its own number of dimensions."""
    source = robomimic_log(tmp_path / "log.hdf5", **options)  # type: ignore[arg-type]
    ingest.run(IngestConfig(source=source, out=tmp_path / "episodes", instruction="wipe the table"))
    preprocess.run(PreprocessConfig(episodes=tmp_path / "episodes", out=tmp_path / "dataset"))
    return tmp_path / "dataset"


def test_a_robot_that_is_new_to_the_base_uses_its_own_statistics(base: Path, tmp_path: Path) -> None:
    summary = finetune.run(config(robot_log(tmp_path), base, tmp_path / "out", steps=2))
    spec = load_spec(tmp_path / "out")
    assert spec.statistics_from == "dataset"
    assert any("new to the base" in text for text in summary["warnings"])
    assert any("wipe" in text for text in summary["warnings"]), "words the tokenizer does not know are named"


def test_rehearsal_without_replay_is_refused(dataset: Path, base: Path, tmp_path: Path) -> None:
    assert_refused(
        ConfigError, tmp_path / "out", lambda: finetune.run(config(dataset, base, tmp_path / "out", recipe="rehearse"))
    )


def test_what_preprocess_proposed_is_pointed_at_where_it_was_not_given(
    dataset: Path, base: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "eager.yaml"
    recipe.write_text((FOLDER / "steerable.yaml").read_text().replace("when-needed", "always"))
    out, scenes = tmp_path / "a", Path(shutil.copytree(dataset, tmp_path / "dataset"))
    shutil.copy(SAMPLES / ALTERNATIVES, scenes)
    summary = finetune.run(config(scenes, base, out, recipe=str(recipe), steps=1))
    reasons = {entry["name"]: entry["reason"] for entry in summary["skipped"]}
    assert reasons["retention/rehearsal"] == "no --replay was given"
    assert "(dataset/alternatives.yaml proposes some" in reasons["retention/distillation"]
    assert str(tmp_path) not in (out / "run.json").read_text(), "an adapter is the same wherever it was made"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "nosuch"}, "no recipe 'nosuch'"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"replay_fraction": 0.5}, "does not rehearse"),
    ],
)
def test_impossible_options_are_refused(
    dataset: Path, base: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    assert_refused(
        ConfigError, tmp_path / "out", lambda: finetune.run(config(dataset, base, tmp_path / "out", **options)), words
    )


def test_what_does_not_fit_into_memory_is_to_be_made_smaller(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "seconds_a_step", seconds_a_step)
    huge = config(dataset, base, tmp_path / "out", noise_draws=10**13)  # beyond any address space
    for call in (finetune.run, finetune.plan):
        said = "memory", "--micro-batch below 6", "--noise-draws"
        assert_refused(ConfigError, huge.out, lambda call=call: call(huge), *said)


def test_a_missing_dataset_and_a_missing_base_are_refused(dataset: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(InputError, out, lambda: finetune.run(config(tmp_path / "none", base, out)), "vla preprocess")
    assert_refused(InputError, out, lambda: finetune.run(config(dataset, tmp_path / "x", out)), "sample_data/base")


def test_early_stopping_needs_demonstrations_that_are_held_out(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_dataset(dataset)
    monkeypatch.setattr(preparation, "load_dataset", lambda path: replace(whole, valid=[]))
    asked = config(dataset, base, tmp_path / "out", early_stopping=20)
    for call in (finetune.plan, finetune.run):
        assert_refused(ConfigError, asked.out, lambda call=call: call(asked), "holds none out", "--val-fraction")


def test_an_output_in_the_way_is_left_alone(dataset: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        finetune.run(config(dataset, base, tmp_path / "out"))
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_replay_that_does_not_fit_is_refused(dataset: Path, base: Path, tmp_path: Path) -> None:
    other = robot_log(tmp_path)
    assert_refused(
        InputError,
        tmp_path / "out",
        lambda: finetune.run(config(dataset, base, tmp_path / "out", recipe="rehearse", replay=other)),
        "--replay",
    )


def test_replay_may_be_episodes(dataset: Path, replay: Path, base: Path, tmp_path: Path) -> None:
    episodes = replay.parent / "episodes"
    finetune.run(config(dataset, base, tmp_path / "out", recipe="rehearse", replay=episodes, steps=2))
    assert read_json(tmp_path / "out" / "run.json")["facts"]["retention"]["rehearsal"]["replay_windows"] > 500


@pytest.fixture(scope="module")
def centimetres(dataset: Path, replay: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demonstrations and the replay, their states and actions logged in other units."""
    made = {}
    for name, source in (("dataset", dataset), ("replay", replay)):
        found = load_dataset(source)
        shown = [replace(d, state=100 * d.state, actions=100 * d.actions) for d in found.demonstrations]
        state, actions = (compute(np.concatenate([getattr(d, of) for d in shown])) for of in ("state", "actions"))
        statistics = replace(found.statistics, state=state, actions=actions)
        made[name] = tmp_path_factory.mktemp("centimetres") / name
        made[name].mkdir()
        save_dataset(replace(found, demonstrations=shown, statistics=statistics), made[name])
    return made


def retaining(folder: Path, retention: dict[str, object], **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"method": "lora", "retention": retention, **changes}))
    return str(path)


@pytest.mark.parametrize(
    "retention",
    [
        {"rehearsal": {}},
        {"rehearsal": {"style_probability": 0.0}},
        {"ewc": {}},
        {"projection": {}},
        {"distillation": {}},
        {"merge": {"alpha": "auto"}},
    ],
)
def test_a_base_that_is_fed_with_other_statistics_does_not_teach(
    centimetres: dict[str, Path], base: Path, tmp_path: Path, retention: dict[str, object]
) -> None:
    data = {"replay": centimetres["replay"], "alternatives": SAMPLES / ALTERNATIVES}
    asked = config(centimetres["dataset"], base, tmp_path / "out", recipe=retaining(tmp_path, retention), **data)
    (name,) = retention
    with pytest.raises(ConfigError, match=f"'{name}' holds the policy to what the base does.*other units"):
        finetune.plan(asked)


def test_what_the_base_cannot_teach_is_left_out_by_name_where_the_recipe_allows_it(
    centimetres: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    data = {"replay": centimetres["replay"], "alternatives": SAMPLES / ALTERNATIVES}
    done = finetune.run(config(centimetres["dataset"], base, tmp_path / "out", recipe="steerable", steps=1, **data))
    reasons = {entry["name"]: entry["reason"] for entry in done["skipped"]}
    assert set(reasons) == {"retention/rehearsal", "retention/distillation", "retention/merge"}
    assert all("other units or dimensions" in reason for reason in reasons.values())
    assert not any("learning the replayed sample by heart" in text for text in done["warnings"])
    assert {name for name in data if any(f"--{name} is given, but" in text for text in done["warnings"])} == set(data)


def test_what_does_not_ask_the_base_works_for_a_robot_that_is_new_to_it(
    centimetres: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    retention = {"anchor": {}, "sam": {}, "consft": {}, "paraphrase": {}, "merge": {"alpha": 0.5}}
    chosen = retaining(tmp_path, retention, guidance={"kind": "null", "weight": "auto"})
    asked = config(centimetres["dataset"], base, tmp_path / "out", recipe=chosen, alternatives=SAMPLES / ALTERNATIVES)
    planned = finetune.plan(asked)
    assert planned["dry_run"]
    # the weight of guidance is measured beside the base, which is fed otherwise
    assert "--alternatives is given, but recipe 'mine' does not use it." in planned["warnings"]


def test_replay_of_another_robot_is_said_where_the_base_has_no_statistics_of_its_own(
    dataset: Path, replay: Path, centimetres: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(base, tmp_path / "base"))
    (bare / "policy.json").unlink()
    chosen = retaining(tmp_path, {"rehearsal": {}})
    for given, unlike in ((replay, False), (centimetres["replay"], True)):
        asked = config(dataset, bare, tmp_path / "out", recipe=chosen, replay=given)
        said = [text for text in finetune.plan(asked)["warnings"] if "each other's standard deviations" in text]
        assert len(said) == unlike
