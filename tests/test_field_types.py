"""Values that were read are of their field's type, or named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from vla_cli.field_types import ill_typed


@dataclass(frozen=True)
class Options:
    free: float = -5.0
    count: int = 3
    wait: float | None = None
    part: float = 0.5
    pair: tuple[float, float] = (1.0, 2.0)
    names: tuple[str, ...] = ()
    weight: float | str = "auto"
    switch: bool = False
    anything: Any = None


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("free", "x", "a number"),
        ("free", True, "a number"),
        ("free", None, "a number"),
        ("free", math.nan, "a number"),
        ("free", math.inf, "a number"),
        ("free", 10**400, "a number"),
        ("count", 2.0, "a whole number"),
        ("count", True, "a whole number"),
        ("wait", "soon", "a number or null"),
        ("pair", 3, "a list of 2 numbers"),
        ("pair", [1], "a list of 2 numbers"),
        ("pair", [1, "x"], "a list of 2 numbers"),
        ("names", "one", "a list of any number of words"),
        ("names", [["one"]], "a list of any number of words"),
        ("weight", [], "a number or a word"),
        ("switch", 1, "true or false"),
    ],
)
def test_what_is_of_another_type_is_named(key: str, value: Any, text: str) -> None:
    assert ill_typed(Options, {key: value}) == {key: text}


def test_what_fits_passes() -> None:
    given = {"free": 3, "count": 1, "wait": None, "part": 1, "pair": [2, 2.5], "names": [], "weight": "auto"}
    assert ill_typed(Options, {**given, "switch": True, "anything": object()}) == {}
    assert ill_typed(Options, {"weight": 2.5, "names": ("a", "b"), "wait": 0}) == {}
