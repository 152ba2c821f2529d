"""The whole pipeline, as examples/pipeline.sh chains it: small here, at full size in `make demo`.

The lock-in test is the small version of the demo's claim, on scenes that the demo does not use.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from builders import real_log
from forks import Forks

from vla_cli.adapter import load_spec
from vla_cli.bundle import verify_digests
from vla_cli.configs import ExportConfig, FinetuneConfig, IngestConfig, PreprocessConfig, SteerConfig
from vla_cli.errors import InputError
from vla_cli.files import read_json
from vla_cli.report import load_report
from vla_cli.stages import export, finetune, ingest, preprocess, steer

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_script_runs_from_raw_logs_to_a_bundle(tmp_path: Path, forks: Forks) -> None:
    work = tmp_path / "work"
    result = subprocess.run(
        ["bash", "examples/pipeline.sh", str(work)],
        cwd=ROOT,
        env={**os.environ, "VLA": str(forks.command), "STEPS": "3", "EPISODES": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert verify_digests(work / "bundle") > 8
    report = load_report(work / "report")
    assert report.policy_names == ["base", "naive", "delock", "steerable"]
    assert report.settings["guidance"]["delock"] == {"kind": "contrast", "weight": 1.5}
    assert report.settings["weights"] == {"naive": "full", "delock": "lora", "steerable": "frozen"}
    assert (work / "bundle" / "merged" / "model.safetensors").is_file()
    assert (work / "bundle" / "merged" / "calibration").is_dir()


def test_lock_in_and_two_cures(dataset: Path, base: Path, tmp_path: Path, forks: Forks) -> None:
    """The plain fine-tune goes deaf, DeLock goes half as deaf, calibration not at all. A third of the demo's steps."""
    common = ["finetune", dataset, "--base", base, "--steps", 100]
    arms = [tmp_path / name for name in ("naive", "delock", "steerable")]
    runs = [forks.start(*common, "--recipe", arm.name, "--out", arm) for arm in arms[:2]]
    # without any base-domain data, and without a name: it is the default
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), out=arms[2]))
    assert [run.wait()[0] for run in runs] == [0, 0]
    asked = ("trained", "novel-concept", "novel-both", "base-domain")
    steer.run(SteerConfig(adapters=tuple(arms), out=tmp_path / "report", episodes=12, seed=7, conditions=asked))
    report = load_report(tmp_path / "report")

    def value(policy: str, condition: str, metric: str = "success") -> float:
        row = report.find(policy, condition, metric)
        assert row is not None
        return row.value

    assert value("base", "trained") <= 0.5, "there is something to adapt to"
    assert value("naive", "trained") >= 0.8
    assert value("naive", "novel-concept") <= 0.2
    assert value("naive", "novel-both") <= 0.2
    assert value("naive", "novel-concept", "locked") + value("naive", "novel-both", "locked") >= 0.2
    assert value("delock", "trained") >= 0.8
    assert value("delock", "novel-concept") >= value("naive", "novel-concept") + 0.25
    assert value("delock", "novel-both") >= value("naive", "novel-both") + 0.25
    assert value("steerable", "trained") >= 0.9
    assert value("steerable", "novel-concept") >= 0.9
    assert value("steerable", "novel-both") >= 0.9
    assert value("steerable", "novel-concept", "locked") <= 0.05
    # the transforms leave pictures of the base's own domain alone, and no weight was touched
    assert value("steerable", "base-domain") == value("base", "base-domain")


def through_all_stages(source: Path, base: Path, work: Path, **options: object) -> None:
    """A real recording through the five stages, few steps, 60-pixel images, open-loop report."""
    ingest.run(IngestConfig(source=source, out=work / "episodes"))
    preprocess.run(
        PreprocessConfig(episodes=work / "episodes", out=work / "dataset", image_size=60, val_fraction=0.2, **options)  # type: ignore[arg-type]
    )
    train = FinetuneConfig(
        dataset=work / "dataset", base=str(base), out=work / "adapter", recipe="lora", steps=4, batch_size=8
    )
    finetune.run(train)
    steer.run(SteerConfig(adapters=(work / "adapter",), out=work / "report", dataset=work / "dataset", episodes=1))
    export.run(ExportConfig(adapter=work / "adapter", out=work / "bundle", report=work / "report"))


def test_bridge_recordings_go_through_all_five_stages(base: Path, tmp_path: Path) -> None:
    through_all_stages(real_log("bridge_v2_rlds"), base, tmp_path)
    report = load_report(tmp_path / "report")
    assert report.kind == "open-loop" and report.policy_names == ["base", "lora"]
    spec = load_spec(tmp_path / "adapter")
    assert len(spec.action_names) == 7 and len(spec.cameras) == 3 and spec.rate_hz == 5
    assert verify_digests(tmp_path / "bundle") > 5


def test_gr00t_recordings_go_through_all_five_stages(base: Path, tmp_path: Path) -> None:
    """It lists a camera without files, a wrong split, and 44 action dimensions against π0's 32: each is said."""
    source = real_log("gr00t_lerobot_v2/robot_sim.PickNPlace")
    ingest.run(IngestConfig(source=source, out=tmp_path / "all" / "episodes"))
    said = " ".join(read_json(tmp_path / "all" / "episodes" / "run.json")["warnings"])
    assert "egoview" in said and "0:100" in said
    episodes = tmp_path / "all" / "episodes"
    preprocess.run(PreprocessConfig(episodes=episodes, out=tmp_path / "wide", image_size=60, val_fraction=0.2))
    wide = " ".join(read_json(tmp_path / "wide" / "run.json")["warnings"])
    assert "44" in wide and "32" in wide and "--action-dims" in wide
    with pytest.raises(InputError, match=r"44 action dimensions.*at most 32.*--action-dims"):
        finetune.run(FinetuneConfig(dataset=tmp_path / "wide", base=str(base), out=tmp_path / "a", recipe="lora"))
    picked = {"action_dims": "0-6,22-33", "state_dims": "0-12,22-34"}
    preprocess.run(
        PreprocessConfig(episodes=episodes, out=tmp_path / "dataset", image_size=60, val_fraction=0.2, **picked)  # type: ignore[arg-type]
    )
    train = FinetuneConfig(
        dataset=tmp_path / "dataset", base=str(base), out=tmp_path / "a", recipe="lora", steps=4, batch_size=8
    )
    summary = finetune.run(train)
    assert summary["counts"]["train_episodes"] == 4
    steer.run(SteerConfig(adapters=(tmp_path / "a",), out=tmp_path / "r", dataset=tmp_path / "dataset", episodes=1))
    export.run(ExportConfig(adapter=tmp_path / "a", out=tmp_path / "b", report=tmp_path / "r", merge=True))
    rows = json.loads((tmp_path / "r" / "report.json").read_text())["rows"]
    assert {row["policy"] for row in rows} == {"base", "lora"}
    assert len(load_spec(tmp_path / "b").action_names) == 19
