"""Whether values from YAML or JSON are of the type that a dataclass or a typed dictionary says."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "null"}


def ill_typed(kind: type, given: Mapping[str, Any]) -> dict[str, str]:
    """The values from YAML or JSON that are not of their field's type, each to what it should be.

    A whole number is a number too; NaN and infinity are not; a list is a tuple.
    """
    hints = _hints(kind)
    return {key: _in_words(hints[key]) for key, value in given.items() if not _is(value, hints[key])}


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


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
