"""A recipe is written by hand: whatever stands in it, an impossible option is refused by its name and its method's."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from vla_cli.errors import ConfigError
from vla_cli.retention import RETENTION

ODD: list[Any] = [None, -1, 0, 0.5, 2, 10**400, math.nan, math.inf, True, "", "auto", "x", [], [1], ["x"], [[1]], {}]


def options_of(name: str) -> list[str]:
    built = RETENTION.get(name)()
    return [f.name for f in fields(built.options)]


@pytest.mark.parametrize("name", list(RETENTION))
def test_only_our_errors_come_of_odd_options(name: str) -> None:
    for option in options_of(name):
        refused = 0
        for value in ODD:
            try:
                RETENTION.get(name)(**{option: value})
            except ConfigError as error:
                refused += 1
                assert name in str(error) and option in str(error)
        assert refused >= 5, f"{option} takes nearly anything"


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("rehearsal", "style_probability", 2, "a share from 0 to 1"),
        ("rehearsal", "zoom", [1.2, 0.9], "two magnifications above 0, the smaller first"),
        ("rehearsal", "zoom", "x", "a list of 2 numbers"),
        ("distillation", "windows", 2.5, "a whole number"),
        ("distillation", "gripper_threshold", "open", "a number or null"),
        ("ewc", "weight", math.inf, "a number or a word"),
        ("ewc", "weight", "much", "auto, or a number from 0"),
        ("l2", "modalities", ["vision", "smell"], "a list from vision, language, action"),
        ("merge", "action", 1.5, "auto, or a number from 0 to 1"),
        ("merge", "gripper_dim", 0.5, "a whole number"),
    ],
)
def test_what_is_wrong_is_said(name: str, option: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RETENTION.get(name)(**{option: value})
    assert f"{name}'s {option} is {value!r}. Expected {expected}" in str(caught.value)
