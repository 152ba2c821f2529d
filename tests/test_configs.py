"""Options have their limits, whoever fills them in: the command line, a YAML file or a Python caller."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_cli.configs import ExportConfig, FinetuneConfig, IngestConfig, InspectConfig, PreprocessConfig, SteerConfig
from vla_cli.console import resolve
from vla_cli.errors import ConfigError
from vla_cli.files import check_output

HERE = Path("here")
CONFIGS = {
    "ingest": IngestConfig(source=HERE, out=HERE),
    "preprocess": PreprocessConfig(episodes=HERE),
    "finetune": FinetuneConfig(dataset=HERE, base="base", out=HERE),
    "steer": SteerConfig(adapters=(HERE,), out=HERE),
    "export": ExportConfig(adapter=HERE, out=HERE),
    "inspect": InspectConfig(path=HERE),
}


@pytest.mark.parametrize(
    ("stage", "option", "allowed", "refused"),
    [
        *((stage, "seed", [0, 7], [-1]) for stage in CONFIGS if stage != "inspect"),
        ("ingest", "workers", [0, 3], [-1]),
        ("ingest", "settle", [0.0, 2.5], [-0.1, math.nan]),
        ("ingest", "stop_after_idle", [None, 0.0], [-1.0, math.nan]),
        ("ingest", "episodes", [1], [0, -3]),
        ("preprocess", "rate", [None, 0.5, 1000.0], [0.0, -5.0, 1000.5, math.nan, math.inf]),
        ("preprocess", "val_fraction", [0.0, 0.99], [-0.1, 1.0, math.nan]),
        ("preprocess", "image_size", [None, 8, 4096], [7, 4097]),
        ("preprocess", "paraphrases", [0, 100], [-1, 101]),
        ("finetune", "checkpoint_every", [1], [0, -1]),
        ("finetune", "threads", [0, 2], [-1]),
        ("steer", "episodes", [1], [0, -1]),
        ("steer", "rollouts", [0], [-1]),
        ("steer", "fail_under", [None, 0.0, 1.0], [-0.1, 90.0, math.nan]),
        ("steer", "workers", [0, 2], [-2]),
        ("steer", "threads", [0, 2], [-1]),
        ("inspect", "episodes", [0], [-1]),
    ],
)
def test_every_number_has_its_limits(stage: str, option: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        assert getattr(replace(CONFIGS[stage], **{option: value}), option) == value
    for value in refused:
        with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')} is {value}, not "):
            replace(CONFIGS[stage], **{option: value})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"--seed is -1, not 0 or more; --episodes is 0, not 1 or more"):
        SteerConfig(adapters=(HERE,), out=HERE, seed=-1, episodes=0)


def test_a_config_file_is_held_to_them_too(tmp_path: Path) -> None:
    file = tmp_path / "steer.yaml"
    file.write_text("fail-under: 90\n")
    with pytest.raises(ConfigError, match=r"--fail-under is 90\.0, not a share from 0 to 1"):
        resolve(SteerConfig, {"adapters": (HERE,), "out": HERE}, file)


def test_what_a_text_names_is_read_too_and_no_output_may_replace_it(tmp_path: Path) -> None:
    recipe, tokenizer = tmp_path / "a" / "mine.yaml", tmp_path / "c" / "words"
    tokenizer.mkdir(parents=True)
    recipe.parent.mkdir()
    recipe.write_text("{}")
    asked = {
        recipe: replace(CONFIGS["finetune"], recipe=str(recipe)),
        tokenizer: replace(CONFIGS["finetune"], tokenizer=str(tokenizer)),
    }
    for path, config in asked.items():
        assert path in config.inputs()
        with pytest.raises(ConfigError, match="overlap"):
            check_output(path.parent, overwrite=True, resume=False, inputs=config.inputs())
        assert path.exists()


def test_a_text_that_names_no_path_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a recipe's name is where its adapter goes, not the recipe."""
    monkeypatch.chdir(tmp_path)
    for name in ("delock", "base"):
        (tmp_path / name).mkdir()
    for config in (
        replace(CONFIGS["finetune"], base="lerobot/pi0_base", recipe="delock", out=Path("delock")),
        replace(CONFIGS["preprocess"], base="lerobot/pi0_base", stats_from="base"),
    ):
        assert config.inputs() == [HERE]
