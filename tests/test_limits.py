"""Values of options: of their field's type, and within its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from vla_cli.limits import beyond, from_0, from_1, ill_typed, limited, or_word, share


@dataclass(frozen=True)
class Options:
    free: float = -5.0
    count: int = from_1(3)
    wait: float | None = from_0(None)
    part: float = share(0.5)
    pair: tuple[float, float] = limited((1.0, 2.0), "the smaller first", lambda pair: pair[0] <= pair[1])
    names: tuple[str, ...] = ()
    weight: float | str = or_word("auto", "auto", "a number above 0", lambda weight: weight > 0)
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


@pytest.mark.parametrize(
    ("key", "inside", "outside", "text"),
    [
        ("count", [1, 9], [0, -1], "1 or more"),
        ("wait", [None, 0.0], [-0.1, math.nan], "0 or more"),
        ("part", [0.0, 1.0], [-0.1, 1.1, math.nan], "a share from 0 to 1"),
        ("pair", [(1.0, 1.0)], [(2.0, 1.0)], "the smaller first"),
        ("weight", ["auto", 0.1], ["automatic", 0.0, math.nan], "auto, or a number above 0"),
        ("free", [-1e9, math.inf], [], ""),
    ],
)
def test_what_is_beyond_its_limit_is_named(key: str, inside: list[Any], outside: list[Any], text: str) -> None:
    for value in inside:
        assert beyond(Options(**{key: value})) == {}
    for value in outside:
        assert beyond(Options(**{key: value})) == {key: text}
