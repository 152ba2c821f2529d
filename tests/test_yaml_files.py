"""YAML that people write is read safely, and what is wrong with a file is said."""

import os
from pathlib import Path

import pytest
import yaml

from vla_cli.errors import ConfigError
from vla_cli.yaml_files import compose, parse, read_options, read_yaml

NOT_WHAT_IT_SAYS = ["a: 2026-13-45", "a: !!bool maybe", "a: !!int ''", "a: !!timestamp now", f"a: {'9' * 5000}"]


def test_plain_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    values = {"rate": 2.0e-3, "names": ["a", "ü"], "nested": {"deep": [1, None, True]}}
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert read_yaml(path) == read_options(path) == parse(path.read_bytes()) == values


@pytest.mark.parametrize("text", NOT_WHAT_IT_SAYS)
def test_a_value_that_cannot_be_built_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml is not valid YAML: a value is not what it is written as"):
        read_yaml(tmp_path / "a.yaml")
    assert compose(text) is not None, "as text it is fine"


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object/apply:os.getcwd []", "a\0b", "[" * 5000])
def test_what_is_no_yaml_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml is not valid YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "a.yaml")


def test_what_is_no_file_is_said_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("", "is a folder"), ("pipe", "is not a file"), ("nowhere.yaml", "does not exist")):
        with pytest.raises(ConfigError, match=rf"{said}.*a list of words"):
            read_yaml(tmp_path / name, expected="a list of words")


@pytest.mark.parametrize(("text", "held"), [("", "nothing"), ("[]", "a list"), ("word", "a str")])
def test_options_are_a_mapping(text: str, held: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"holds {held}.*a mapping of options"):
        read_options(tmp_path / "a.yaml")
