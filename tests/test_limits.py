"""Values of options are within their field's limit, or named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from vla_cli.limits import above_0, between, beyond, from_0, from_1, limited, or_word, share


@dataclass(frozen=True)
class Options:
    free: float = -5.0
    count: int = from_1(3)
    wait: float | None = from_0(None)
    part: float = share(0.5)
    rate: float = above_0(0.5)
    rank: int = between(8, 1, 64)
    pair: tuple[float, float] = limited((1.0, 2.0), "the smaller first", lambda pair: pair[0] <= pair[1])
    weight: float | str = or_word("auto", "auto", "a number above 0", lambda weight: weight > 0)


@pytest.mark.parametrize(
    ("key", "inside", "outside", "text"),
    [
        ("count", [1, 9], [0, -1], "1 or more"),
        ("wait", [None, 0.0], [-0.1, math.nan], "0 or more"),
        ("part", [0.0, 1.0], [-0.1, 1.1, math.nan], "a share from 0 to 1"),
        ("rate", [1e-9], [0.0, -1.0, math.nan], "above 0"),
        ("rank", [1, 64], [0, 65], "from 1 to 64"),
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
