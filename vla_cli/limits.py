"""Which values an option may have: said at its field, checked in one place.

    episodes: int = from_1(100)
    rho: float = limited(0.05, "a length above 0, such as 0.05", lambda rho: rho > 0)

Standard library only: the configs of the command line are made of it before anything heavy is loaded.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_KEY = "limit"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "null"}


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


def ill_typed(kind: type, given: Mapping[str, Any]) -> dict[str, str]:
    """The values from YAML or JSON that are not of their field's type, each to what it should be.

    A whole number is a number too; NaN and infinity are not; a list is a tuple.
    """
    hints = get_type_hints(kind)
    return {key: _in_words(hints[key]) for key, value in given.items() if not _is(value, hints[key])}


def _is(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if not isinstance(value, (list, tuple)):
            return False
        if parts[-1] is ...:
            return all(_is(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_is, value, parts))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        key, item = get_args(hint)
        return isinstance(value, dict) and all(_is(k, key) and _is(v, item) for k, v in value.items())
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        count = "any number of" if parts[-1] is ... else str(len(parts))
        return f"a list of {count} {_WORDS[parts[0]].split()[-1]}s"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (list, dict):
        return "a list" if get_origin(hint) is list else "a mapping"
    return _WORDS.get(hint, str(hint))
