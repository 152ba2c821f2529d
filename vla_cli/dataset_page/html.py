"""Small pieces of the dataset's page: text, tables and JSON values as HTML, escaped and within bounds.

Logs are hostile: whatever they name may hold markup, control characters or a megabyte of one letter. `text` is the only
way by which a value reaches the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from vla_cli.outline import printable

MOST_ROWS = 300
"""Rows of a table; what is beyond is counted, and stands in the JSON files."""
MOST_LISTED = 6
MOST_COLUMNS = 9
_LONGEST = 600
_TONES = {"error": "bad", "warning": "open"}
_WORDY = 24
_DEEPEST = 3


@dataclass(frozen=True)
class Tone:
    """A severity, written in its colour."""

    severity: str


def text(value: object, limit: int = _LONGEST) -> str:
    """A value as escaped text of one line: numbers to four digits, what cannot be seen as an escape, the rest cut."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or value is None:
        value = {True: "yes", False: "no", None: "-"}[value]
    elif isinstance(value, float):
        value = f"{value:.4g}" if math.isfinite(value) else str(value)
    elif not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return escape(printable(value, limit))


def listed(value: Any, most: int = MOST_LISTED) -> str:
    """Plain text: of a list the first few, of a mapping its pairs, "-" for nothing."""
    if isinstance(value, Mapping):
        value = [f"{key}: {_plain(item)}" for key, item in value.items()]
    if isinstance(value, str) or not isinstance(value, Sequence):
        return "-" if value in (None, "") else str(value)
    if len(value) > most and all(isinstance(item, float) for item in value):
        return f"{len(value)} figures"
    more = f" and {len(value) - most} more" if len(value) > most else ""
    texts = [_plain(item) for item in value[:most]]
    return (" " if any(t.endswith(".") for t in texts) else "; ").join(texts) + more if texts else "-"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(heads: Sequence[object], rows: Sequence[Sequence[Any]]) -> str:
    """A table of at most `MOST_ROWS` rows."""
    top = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows[:MOST_ROWS])
    more = f'<p class="legend">and {len(rows) - MOST_ROWS} more rows</p>' if len(rows) > MOST_ROWS else ""
    scroll, inner = '<div class="scroll"><table class="full">', f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f"{scroll}{inner}</table></div>{more}"


def _cell(value: Any) -> str:
    if isinstance(value, Tone):
        return f'<td class="{_TONES.get(value.severity, "")}"><span class="tone">{text(value.severity)}</span></td>'
    written = text(listed(value) if isinstance(value, Mapping | list | tuple) else value)
    return f'<td class="words">{written}</td>' if len(written) > _WORDY else f"<td>{written}</td>"


def records(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table whose columns are the rows' keys, in the order in which they first appear; turned where it is wide."""
    keys = list(dict.fromkeys(str(key) for row in rows for key in row))
    heads = [key.replace("_", " ") for key in keys]
    if len(keys) > MOST_COLUMNS and len(rows) < MOST_COLUMNS:
        first, *others = keys
        lines = [[head, *(row.get(key) for row in rows)] for key, head in zip(others, heads[1:], strict=True)]
        return table([heads[0], *(row.get(first, "-") for row in rows)], lines)
    return table(heads, [[row.get(key) for key in keys] for row in rows])


def definitions(values: Mapping[str, Any]) -> str:
    """Names and values."""
    items = "".join(
        f"<div><dt>{text(str(key).replace('_', ' '))}</dt><dd>"
        f"{text(listed(value) if isinstance(value, Mapping | list | tuple) else value)}</dd></div>"
        for key, value in values.items()
    )
    return f'<dl class="settings">{items}</dl>'


def anything(document: Mapping[str, Any], depth: int = 0) -> str:
    """JSON values as HTML: sentences as paragraphs, rows as tables, plain values as a list of names and values."""
    sentences = [value for key, value in document.items() if "sentence" in str(key)]
    parts = [f'<p class="prose">{text(line)}</p>' for value in sentences for line in _lines(value)]
    rest = {str(key): value for key, value in document.items() if "sentence" not in str(key)}
    nested = {key: value for key, value in rest.items() if _is_nested(value)}
    simple = {key: value for key, value in rest.items() if key not in nested}
    if simple:
        parts.append(definitions(simple))
    for key, value in nested.items():
        parts.append(f"<h3>{text(key.replace('_', ' '))}</h3>{_nested(value, depth)}")
    return "".join(parts)


def _lines(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_nested(value: Any) -> bool:
    """Whether a value holds mappings, and so is a table or a part of its own."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(isinstance(item, Mapping) for item in inner)


def _nested(value: Any, depth: int) -> str:
    """A list of mappings is a table, a mapping of plain mappings too; deeper ones go on for a while."""
    if isinstance(value, Mapping):
        rows = [{"name": key, **item} for key, item in value.items() if isinstance(item, Mapping)]
        flat = len(rows) == len(value) and not any(_is_nested(item) for row in rows for item in row.values())
        if flat or depth >= _DEEPEST:
            return records(rows) if flat else f"<p>{text(value)}</p>"
        return anything(value, depth + 1)
    return records([item if isinstance(item, Mapping) else {"value": item} for item in value])
