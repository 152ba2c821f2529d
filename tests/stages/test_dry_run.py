"""A dry run refuses what a run would refuse, in the same words; and no run writes over what it reads."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from builders import contents

from vla_cli.configs import ExportConfig, FinetuneConfig, PreprocessConfig, SteerConfig
from vla_cli.dataset import load_dataset, save_dataset
from vla_cli.errors import ConfigError, VlaError
from vla_cli.stages import export, finetune, preprocess, steer

NOWHERE = Path("nowhere")


@pytest.fixture
def made(
    episodes: Path, dataset: Path, base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An artefact of each kind, a tokenizer that cannot be read, and a base without one of its weight files."""
    damaged = tmp_path_factory.mktemp("words")
    (damaged / "tokenizer.json").write_text("{}")
    half = tmp_path_factory.mktemp("half") / "base"
    shutil.copytree(base, half)
    (half / "model.safetensors").rename(half / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (half / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = {"episodes": episodes, "dataset": dataset, "base": base, "adapter": adapter}
    return {**found, "damaged": damaged, "half": half}


def stages(made: dict[str, Path], out: Path) -> dict[str, tuple[ModuleType, Any]]:
    """Each stage with a config that works."""
    base = str(made["base"])
    return {
        "preprocess": (preprocess, PreprocessConfig(episodes=made["episodes"], out=out)),
        "finetune": (finetune, FinetuneConfig(dataset=made["dataset"], base=base, out=out)),
        "steer": (steer, SteerConfig(adapters=(made["adapter"],), out=out)),
        "export": (export, ExportConfig(adapter=made["adapter"], out=out)),
    }


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(VlaError) as caught:
        call()
    return str(caught.value)


def test_a_plan_of_what_works_is_made(made: dict[str, Path], tmp_path: Path) -> None:
    for module, config in stages(made, tmp_path / "out").values():
        assert module.plan(config)["dry_run"] is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "wrong", "said"),
    [
        ("preprocess", {"latency": ("foo=1",)}, "--latency foo names no stream"),
        ("preprocess", {"split": "operator:carol"}, "--split names the operator 'carol'"),
        ("preprocess", {"gripper": "normalise"}, "--gripper normalise: nobody has stated"),
        ("preprocess", {"actions": "absolute"}, "--actions absolute needs to know"),
        ("preprocess", {"actions": "delta"}, "stated conventions: mode absolute, delta, velocity"),
        ("preprocess", {"episodes": NOWHERE}, "nowhere does not exist"),
        ("preprocess", {"episodes": "dataset"}, "dataset, written by preprocess"),
        ("preprocess", {"phrasings": NOWHERE}, "nowhere does not exist"),
        ("preprocess", {"stats_from": "nowhere"}, "no statistics at 'nowhere'"),
        ("preprocess", {"stats_from": "dataset", "state_dims": "0,1"}, "The dataset has 2 state dimensions"),
        ("preprocess", {"actions": "sideways"}, "--actions is 'sideways'"),
        ("preprocess", {"gripper": "clenched"}, "--gripper is 'clenched'"),
        ("finetune", {"dataset": "episodes"}, "episodes, written by collect-ingest"),
        ("finetune", {"dataset": "adapter"}, "an adapter, written by finetune"),
        ("finetune", {"base": "adapter"}, "--merge"),
        ("finetune", {"base": "dataset"}, "a dataset, written by preprocess"),
        ("finetune", {"base": "half"}, "names, 1 is not there (model-00002-of-00002.safetensors)"),
        ("finetune", {"replay": "adapter"}, "an adapter, written by finetune"),
        ("finetune", {"recipe": "rehearse"}, "needs base-domain data"),
        ("finetune", {"recipe": "retain"}, "needs other instructions"),
        ("finetune", {"alternatives": NOWHERE}, "nowhere does not exist"),
        ("finetune", {"recipe": "calibrate", "tokenizer": "damaged"}, "No tokenizer for base"),
        ("finetune", {"recipe": "calibrate", "tokenizer": "no/where"}, "No tokenizer for base"),
        (
            "finetune",
            {"recipe": "lora", "vision": "frozen", "language": "frozen", "action": "frozen"},
            "changes nothing",
        ),
        ("finetune", {"recipe": "calibrate", "calibrate": False}, "changes nothing"),
        ("finetune", {"replay_fraction": 2.0}, "rehearsal's fraction is 2.0"),
        ("finetune", {"recipe": "rehearse", "replay": "dataset", "batch_size": 1}, "a batch of 1 has no window"),
        ("finetune", {"rank": 0}, "rank is 0"),
        ("finetune", {"rank": 10**21}, "not from 1 to 9999"),
        ("finetune", {"steps": 10**400}, "not from 1 to 1000000000"),
        ("finetune", {"learning_rate": math.nan}, "learning_rate is nan"),
        ("finetune", {"learning_rate": math.inf}, "learning_rate is inf"),
        ("finetune", {"device": "tpu"}, "--device tpu cannot be used here"),
        ("steer", {"device": "tpu"}, "--device tpu cannot be used here"),
        ("steer", {"conditions": ("novel",)}, "no condition 'novel'"),
        ("steer", {"conditions": ("trained",), "fail_under": 0.8}, "none would be measured"),
        ("steer", {"world": "none", "dataset": "dataset", "fail_under": 0.8}, "none would be measured"),
        ("steer", {"world": "none", "dataset": "dataset", "conditions": ("trained",)}, "open-loop report"),
        ("steer", {"adapters": ("dataset",)}, "a dataset, written by preprocess"),
        ("steer", {"adapters": ("base",)}, "is a base policy"),
        ("steer", {"base": "dataset"}, "a dataset, written by preprocess"),
        ("steer", {"world": "none"}, "no dataset to compare with"),
        ("steer", {"world": "none", "dataset": "episodes"}, "episodes, written by collect-ingest"),
        ("export", {"adapter": "dataset"}, "a dataset, written by preprocess"),
        ("export", {"adapter": "base"}, "is a base policy"),
        ("export", {"report": "dataset"}, "a dataset, written by preprocess"),
        ("export", {"base": "dataset"}, "a dataset, written by preprocess"),
        ("export", {"base": "half"}, "names, 1 is not there"),
        ("steer", {"base": "half"}, "names, 1 is not there"),
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses(
    stage: str, wrong: dict[str, Any], said: str, made: dict[str, Path], tmp_path: Path
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return made.get(value, value) if isinstance(value, str) else value

    options = {key: filled(value) for key, value in wrong.items()}
    options |= {key: str(options[key]) for key in ("base", "tokenizer") if key in options}
    module, config = stages(made, tmp_path / "out")[stage]
    config = replace(config, **options)
    message = refusal(lambda: module.run(config))
    assert said in message
    assert refusal(lambda: module.plan(config)) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["out/run.json", ".out.partial/request.json"])
@pytest.mark.parametrize("stage", ["preprocess", "finetune", "steer", "export"])
def test_what_another_request_made_or_began_is_not_gone_on_with(
    stage: str, left: str, made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / left).parent.mkdir()
    (tmp_path / left).write_text('{"request": {"seed": 99}}')
    module, config = stages(made, tmp_path / "out")[stage]
    message = refusal(lambda: module.run(replace(config, resume=True)))
    assert "was begun with other settings" in message
    assert refusal(lambda: module.plan(replace(config, resume=True))) == message


@pytest.mark.parametrize(
    "ways",
    [
        {"recipe": "lora", "language": "full"},
        {"recipe": "lora", "action": "full"},
        {"recipe": "naive", "action": "lora:8"},
        {"recipe": "naive", "language": "lora:8"},
        {"recipe": "delock", "action": "full"},
    ],
)
def test_full_beside_lora_has_a_plan(dataset: Path, base: Path, tmp_path: Path, ways: dict[str, str]) -> None:
    plan = finetune.plan(FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "out", **ways))
    assert 0 < plan["estimate"]["trained_parameters"] < plan["estimate"]["parameters"]


def test_cameras_of_different_sizes_are_refused_at_once(dataset: Path, base: Path, tmp_path: Path) -> None:
    uneven, place = load_dataset(dataset), tmp_path / "uneven"
    for demonstration in uneven.demonstrations:
        demonstration.images["wrist"] = demonstration.images[uneven.cameras[0]][:, ::2, ::2]
    uneven.cameras.append("wrist")
    place.mkdir()
    save_dataset(uneven, place)
    config = FinetuneConfig(dataset=place, base=str(base), out=tmp_path / "out")
    message = refusal(lambda: finetune.plan(config))
    assert "of one size" in message and "--image-size" in message
    assert refusal(lambda: finetune.run(config)) == message


def test_a_plan_names_the_conditions_that_are_asked_for(adapter: Path, tmp_path: Path) -> None:
    config = SteerConfig(adapters=(adapter,), out=tmp_path / "out", conditions=("novel-both", "trained"))
    assert steer.plan(config)["conditions"] == ["trained", "novel-both"]


def test_what_writes_nothing_has_no_plan(made: dict[str, Path], tmp_path: Path) -> None:
    config = PreprocessConfig(episodes=made["dataset"], out=tmp_path / "out", compare=tmp_path)
    assert "--compare writes nothing" in refusal(lambda: preprocess.plan(config))


@pytest.mark.parametrize("stage", ["preprocess", "finetune", "steer", "export"])
def test_no_output_replaces_an_input(stage: str, made: dict[str, Path], tmp_path: Path) -> None:
    module, config = stages(made, tmp_path / "out")[stage]
    before = {path: contents(path) for path in config.inputs()}
    assert before
    for path in config.inputs():
        for out in (path, path / "inside", path.parent):
            for call in (module.run, module.plan):
                with pytest.raises(ConfigError, match="overlap"):
                    call(replace(config, out=out, overwrite=True))
    assert {path: contents(path) for path in config.inputs()} == before
