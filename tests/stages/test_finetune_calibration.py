"""`vla finetune --recipe calibrate`: transforms in the open, the base's weights untouched, and a policy that obeys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import contents, robomimic_log

from vla_cli.adapter import load_spec
from vla_cli.calibration.deployment import domain_facts, fit_calibration
from vla_cli.configs import FinetuneConfig, IngestConfig, PreprocessConfig
from vla_cli.dataset import load_dataset
from vla_cli.errors import ConfigError
from vla_cli.files import read_json
from vla_cli.policies.flow import load
from vla_cli.progress import SILENT
from vla_cli.provenance import RunRecord
from vla_cli.recipe import load_recipe
from vla_cli.stages import finetune, ingest, preprocess
from vla_cli.stages.finetune.preparation import STAGE, of_no_use, prepare
from vla_cli.suites import SUITES
from vla_cli.worlds.tabletop.world import TabletopWorld

EPISODES = 20


def config(dataset: Path, base: Path, out: Path, **options: object) -> FinetuneConfig:
    return FinetuneConfig(dataset=dataset, base=str(base), out=out, **{"recipe": "calibrate", **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bare_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base without the facts about its own domain."""
    copy = tmp_path_factory.mktemp("bare") / "base"
    shutil.copytree(base, copy)
    (copy / "domain.json").unlink()
    return copy


def success(base: Path, adapter: Path, condition: str) -> int:
    policy = load(str(base), adapter, device="cpu")
    world = TabletopWorld("", policy.spec.world)
    findings = SUITES.get("closed-loop")(
        {"calibrated": policy}, world, episodes=EPISODES, seed=1, conditions=[condition], films=0
    )
    return sum(rollout.success for rollout in findings.rollouts)


def test_the_adapter_holds_transforms_and_no_weights(calibrated: Path) -> None:
    spec = load_spec(calibrated)
    assert spec.kind == "frozen"
    assert set(contents(calibrated)) == {"policy.json", "run.json", "calibration/table_agentview_image.png"}
    assert {"look", "camera", "action"} <= set(spec.calibration["parts"])
    assert np.allclose(spec.calibration["ratio"], np.diag([0.8, 0.85]), atol=0.01)
    run = read_json(calibrated / "run.json")
    assert run["counts"]["steps"] == 0 and run["skipped"] == []
    assert run["facts"]["calibration"] == spec.calibration


def test_it_acts_on_raw_observations(calibrated: Path, base: Path, dataset: Path) -> None:
    policy = load(str(base), calibrated, device="cpu")
    demonstration = load_dataset(dataset).demonstrations[0]
    noise = np.zeros(policy.noise_shape(1), np.float32)
    images = demonstration.images["agentview_image"][:1, None]
    chunk = policy.act(images, demonstration.state[:1], demonstration.instructions, noise)
    assert chunk.shape == (1, policy.spec.chunk_size, 3) and np.isfinite(chunk).all()


@pytest.mark.parametrize("condition", ["novel-both", "base-domain"])
def test_it_follows_instructions_that_were_never_shown(calibrated: Path, base: Path, condition: str) -> None:
    assert success(base, calibrated, condition) >= 0.9 * EPISODES


def test_for_this_deployment_only_it_stays_on_in_any_light(
    calibrated: Path, dataset: Path, base: Path, tmp_path: Path
) -> None:
    finetune.run(config(dataset, base, tmp_path / "out", deployment_only=True))
    always, by_picture = (load(str(base), adapter, device="cpu") for adapter in (tmp_path / "out", calibrated))
    seen = load_dataset(dataset).demonstrations[0].images["agentview_image"][::10, None]
    brighter = np.clip(seen * 1.8, 0, 255).astype(np.uint8)
    assert by_picture.is_calibrated(seen).all() and not by_picture.is_calibrated(brighter).any()
    assert always.is_calibrated(brighter).all()
    alike = {**always.spec.calibration, "on": by_picture.spec.calibration["on"]}
    assert alike == by_picture.spec.calibration, "nothing else is fitted otherwise"
    with pytest.raises(ConfigError, match="nothing to keep on"):
        finetune.plan(config(dataset, base, tmp_path / "other", deployment_only=True, recipe="naive"))


def test_what_never_moved_is_warned_of(dataset: Path, base: Path, tmp_path: Path) -> None:
    plan = prepare(config(dataset, base, tmp_path / "out"))
    for demonstration in plan.dataset.demonstrations:
        for frames in demonstration.images.values():
            frames[:, 4:12, 4:12] = (20, 40, 190)
    record = RunRecord(STAGE, {})
    given = plan.dataset, plan.spec, plan.files.directory
    assert fit_calibration(*given, None, only_here=False, record=record, progress=SILENT) is not None
    assert [text for text in record.warnings if "13% from the left and 13% from the top" in text]


def test_a_calibration_is_undone_by_deleting_its_key(calibrated: Path, base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "adapter"
    shutil.copytree(calibrated, bare)
    document = json.loads((bare / "policy.json").read_text())
    del document["calibration"]
    (bare / "policy.json").write_text(json.dumps(document))
    policy, own = load(str(base), bare, device="cpu"), load(str(base), device="cpu")
    assert policy.calibration is None
    rng = np.random.default_rng(0)
    images, state = rng.integers(0, 256, (2, 1, 60, 60, 3)).astype(np.uint8), rng.uniform(0, 1, (2, 4))
    noise = rng.standard_normal(policy.noise_shape(2)).astype(np.float32)
    words = ["put the red block on the left plate"] * 2
    assert np.array_equal(policy.act(images, state, words, noise), own.act(images, state, words, noise))


def test_two_runs_give_the_same_bytes(calibrated: Path, dataset: Path, base: Path, tmp_path: Path) -> None:
    finetune.run(config(dataset, base, tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(calibrated)


def test_a_dry_run_writes_nothing(dataset: Path, base: Path, tmp_path: Path) -> None:
    plan = finetune.plan(config(dataset, base, tmp_path / "out"))
    assert plan["recipe"]["calibrate"] is True
    assert plan["estimate"]["trained_parameters"] == 0
    assert list(tmp_path.iterdir()) == []


def test_another_robot_is_told_why_nothing_was_calibrated(base: Path, tmp_path: Path) -> None:
    source = robomimic_log(tmp_path / "log.hdf5")
    ingest.run(IngestConfig(source=source, out=tmp_path / "episodes", instruction="put the red block down"))
    preprocess.run(PreprocessConfig(episodes=tmp_path / "episodes", out=tmp_path / "dataset"))
    summary = finetune.run(config(tmp_path / "dataset", base, tmp_path / "out"))
    assert any("Nothing was calibrated" in text and "new to the base" in text for text in summary["warnings"])
    assert load_spec(tmp_path / "out").calibration == {}


def test_a_base_without_domain_facts_is_measured_from_replay(
    dataset: Path, replay: Path, bare_base: Path, calibrated: Path, tmp_path: Path
) -> None:
    summary = finetune.run(config(dataset, bare_base, tmp_path / "out", replay=replay))
    assert summary["warnings"] == []
    found, shipped = load_spec(tmp_path / "out").calibration, load_spec(calibrated).calibration
    assert found["parts"] == shipped["parts"]
    assert np.allclose(found["ratio"], shipped["ratio"], atol=1e-3)


def test_without_domain_facts_and_replay_a_warning_says_how(dataset: Path, bare_base: Path, tmp_path: Path) -> None:
    summary = finetune.run(config(dataset, bare_base, tmp_path / "out"))
    assert any("Nothing was calibrated" in text and "--replay" in text for text in summary["warnings"])
    assert load_spec(tmp_path / "out").calibration == {}


def test_a_base_without_policy_json_is_not_calibrated_and_the_reason_is_the_true_one(tmp_path: Path) -> None:
    spec: Any = SimpleNamespace(statistics_from="dataset")
    facts, why = domain_facts(spec, tmp_path, None)
    assert facts is None and "carries no policy.json" in why and "units" not in why


def test_what_was_given_for_weights_alone_is_named_where_none_are_trained(base: Path, tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(
        config=SimpleNamespace(replay=Path("replay")),
        recipe=load_recipe("steerable"),
        alternatives=["another"],
        used={"replay", "alternatives"},
        spec=SimpleNamespace(statistics_from="base"),
        files=SimpleNamespace(directory=base),
    )
    assert of_no_use(plan) == ["replay", "alternatives"]
    plan.files.directory = tmp_path  # no domain.json: calibration is measured from the replay
    assert of_no_use(plan) == ["alternatives"]
    plan.alternatives = []
    assert of_no_use(plan) == []
