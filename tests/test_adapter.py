"""`policy.json`: what a file of it may hold, and what it is taken for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vla_cli.adapter import load_adapter_spec, load_spec, save_spec
from vla_cli.errors import InputError


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def altered(copied: Path, *keys: str, value: Any) -> Path:
    file = copied / "policy.json"
    document = json.loads(file.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(document))
    return copied


def test_what_is_saved_is_loaded(copied: Path, tmp_path: Path) -> None:
    spec = load_adapter_spec(copied)
    (tmp_path / "again").mkdir()
    save_spec(spec, tmp_path / "again")
    assert (tmp_path / "again" / "policy.json").read_bytes() == (copied / "policy.json").read_bytes()


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["cameras"], None, "cameras is not a list"),
        (["cameras"], [1], "cameras is not a list"),
        (["chunk_size"], "ten", "chunk_size is not a whole number"),
        (["chunk_size"], -8, "chunk_size is -8, not above 0"),
        (["rate_hz"], 0.0, r"rate_hz is 0\.0, not above 0"),
        (["state_names"], ["x"], "1 state names but statistics of 4 dimensions"),
        (["kind"], "magic", "kind is not one of base, lora, bottleneck, full, frozen"),
        (["world"], 1e308, "world is not a mapping or null"),
        (["base", "digest"], -1, "digest is not a word"),
        (["base"], -1, "malformed"),
        (["state", "mean"], "x", "Statistics are incomplete"),
        (["surprise"], 1, "surprise"),
    ],
)
def test_a_malformed_one_is_an_input_error(copied: Path, keys: list[str], value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_spec(altered(copied, *keys, value=value))


@pytest.mark.parametrize("text", ["null", "[]", '"x"'])
def test_another_document_is_an_input_error(copied: Path, text: str) -> None:
    (copied / "policy.json").write_text(text)
    with pytest.raises(InputError, match="malformed"):
        load_spec(copied)


def test_a_base_is_no_adapter(base: Path) -> None:
    assert load_spec(base).kind == "base"
    with pytest.raises(InputError, match="is a base policy"):
        load_adapter_spec(base)


def test_the_parts_of_a_calibration_are_what_its_numbers_say(calibrated: Path, tmp_path: Path) -> None:
    assert load_spec(calibrated).calibration["parts"] == ["look", "camera", "action"]
    edited = Path(shutil.copytree(calibrated, tmp_path / "edited"))
    assert load_spec(altered(edited, "calibration", "ratio", value=None)).calibration["parts"] == ["look", "camera"]
    assert load_spec(altered(edited, "calibration", "looks", value=[None])).calibration["parts"] == ["camera"]
    assert load_spec(altered(edited, "calibration", "delay", value=2)).calibration["parts"] == ["camera", "delay"]
    second = [{"state": 3, "command": 3, "sign": 1, "delay": 2, "middle": [0.0, 0.0]}]
    altered(edited, "calibration", "delay", value=0)
    altered(edited, "calibration", "other_grippers", value=second)
    assert load_spec(edited).calibration["parts"] == ["camera", "delay"]
    with pytest.raises(InputError, match="malformed"):
        load_spec(altered(edited, "calibration", "delay", value="late"))
