"""Which values an option may have: said at its field, checked in one place.

    episodes: int = from_1(100)
    rho: float = limited(0.05, "a length above 0, such as 0.05", lambda rho: rho > 0)

Standard library only: the configs of the command line are made of it before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

_KEY = "limit"


@dataclass(frozen=True)
class Limit:
    """What a value of the right type must be.

    Attributes:
        text: in words, after "not".
        holds: whether a value is that; NaN must not be.
    """

    text: str
    holds: Callable[[Any], bool]


def limited(default: Any, text: str, holds: Callable[[Any], bool]) -> Any:
    """A dataclass's field with a default and a limit."""
    return field(default=default, metadata={_KEY: Limit(text, holds)})


def from_0(default: Any) -> Any:
    """A field whose value is 0 or more."""
    return limited(default, "0 or more", lambda value: value >= 0)


def from_1(default: Any) -> Any:
    """A field whose value is 1 or more."""
    return limited(default, "1 or more", lambda value: value >= 1)


def above_0(default: Any) -> Any:
    """A field whose value is above 0."""
    return limited(default, "above 0", lambda value: value > 0)


def between(default: Any, low: int, high: int) -> Any:
    """A field whose value is from `low` to `high`."""
    return limited(default, f"from {low} to {high}", lambda value: low <= value <= high)


def share(default: Any) -> Any:
    """A field whose value is from 0 to 1."""
    return limited(default, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def or_word(default: Any, word: str, text: str, holds: Callable[[Any], bool]) -> Any:
    """A field whose value is a word such as "auto", or a number within a limit."""

    def either(value: Any) -> bool:
        return value == word if isinstance(value, str) else holds(value)

    return limited(default, f"{word}, or {text}", either)


def beyond(options: Any) -> dict[str, str]:
    """The fields of a dataclass that are beyond their limits, each to what it should be. None is within any."""
    found = {}
    for f in fields(options):
        limit, value = f.metadata.get(_KEY), getattr(options, f.name)
        if limit is not None and value is not None and not limit.holds(value):
            found[f.name] = limit.text
    return found
