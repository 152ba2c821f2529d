"""What streams and episodes hold, as JSON values for `vla inspect`: lengths, rates, ranges, and what nobody has stated.

    stream      {role, name, shape, dtype, rate_hz, seconds, dimensions: [{name, min, max}], stated, unknown, other}
    episode     {name, steps, seconds, instructions, operator, format, source, world, notes, streams}

`merge` puts the streams of several episodes together: shortest and longest, lowest and highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vla_cli.conventions import keys_of, unknowns
from vla_cli.episode import Episode, Stream, native_rate
from vla_cli.outline import printable
from vla_cli.stats import Statistics

MOST_DIMENSIONS = 256
_LONGEST = 1000
_OWN_KEYS = ("names", "rate_hz")


def stream_facts(stream: Stream) -> dict[str, Any]:
    """One stream; of pictures only the shape is asked for."""
    clock, values = np.asarray(stream.timestamps, np.float64).reshape(-1), stream.values
    attributes = stream.attributes
    stated = {key: attributes[key] for key in keys_of(stream.role) if key not in unknowns(stream.role, attributes)}
    facts: dict[str, Any] = {
        "role": stream.role,
        "name": stream.name,
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "rate_hz": rounded(native_rate(stream)) if len(clock) > 1 else None,
        "seconds": rounded(clock[-1] - clock[0]) if len(clock) else 0.0,
        "stated": stated,
        "unknown": unknowns(stream.role, attributes),
        "other": {k: v for k, v in attributes.items() if k not in _OWN_KEYS and k not in keys_of(stream.role)},
    }
    if stream.role != "image" and values.ndim == 2:
        facts["dimensions"] = dimension_facts(values, attributes.get("names"))
        facts["dimensions_left_out"] = values.shape[1] - len(facts["dimensions"])
    return facts


def dimension_facts(values: np.ndarray, names: Any = None) -> list[dict[str, Any]]:
    """Name and range of each dimension of [T, D], NaN and infinities left out; at most `MOST_DIMENSIONS`."""
    width = min(values.shape[1], MOST_DIMENSIONS)
    labels = _labels(names, values.shape[1])
    rows = []
    for index in range(width):
        column = values[:, index]
        whole = column[np.isfinite(column)] if np.issubdtype(column.dtype, np.floating) else column
        low, high = (rounded(whole.min()), rounded(whole.max())) if len(whole) else (None, None)
        rows.append({"name": labels[index], "min": low, "max": high})
    return rows


def _labels(names: Any, width: int) -> list[str]:
    """The names that a log gives, when there is one for each dimension, else the dimensions' numbers."""
    fits = isinstance(names, list | tuple) and len(names) == width
    return [str(name) for name in names] if fits else [str(index) for index in range(width)]


def statistics_facts(statistics: Statistics, names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, range, mean and standard deviation of each dimension of normalisation statistics."""
    rows = []
    for index, label in enumerate(_labels(list(names), len(statistics))[:MOST_DIMENSIONS]):
        figures = {key: rounded(getattr(statistics, key)[index]) for key in ("min", "max", "mean", "std")}
        rows.append({"name": label, **figures, "constant": bool(statistics.constant[index])})
    return rows


def episode_facts(episode: Episode) -> dict[str, Any]:
    """One episode; `steps` and `seconds` are those of its actions, or of its longest stream when it has none."""
    streams = [stream_facts(stream) for stream in sorted(episode.streams, key=lambda s: (_order(s.role), s.name))]
    clocks = [facts for facts in streams if facts["role"] == "action"] or streams
    return {
        "name": episode.name,
        "steps": max((facts["shape"][0] for facts in clocks), default=0),
        "seconds": max((facts["seconds"] for facts in clocks), default=0.0),
        "instructions": list(episode.instructions),
        "operator": episode.operator,
        "format": episode.format,
        "source": episode.source,
        "world": episode.world,
        "notes": list(episode.notes),
        "streams": streams,
    }


def _order(role: str) -> int:
    roles = ("image", "state", "action", "other")
    return roles.index(role) if role in roles else len(roles)


def merge(episodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Streams of one role and name over several episodes: how many have it, and what varies as [least, most].

    A shape that varies has [least, most] in place of that axis; a stated convention that varies lists its values.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for episode in episodes:
        for stream in episode["streams"]:
            found.setdefault((stream["role"], stream["name"]), []).append(stream)
    ordered = sorted(found.items(), key=lambda item: (_order(item[0][0]), item[0][1]))
    return [_merged(role, name, streams) for (role, name), streams in ordered]


def ranges(streams: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Name and dimensions of each stream that has dimensions."""
    return [(stream["name"], stream["dimensions"]) for stream in streams if "dimensions" in stream]


def _merged(role: str, name: str, streams: list[dict[str, Any]]) -> dict[str, Any]:
    shapes = [tuple(stream["shape"]) for stream in streams]
    same = len({len(shape) for shape in shapes}) == 1
    keys = list(dict.fromkeys(key for stream in streams for key in stream["stated"]))
    merged: dict[str, Any] = {
        "role": role,
        "name": name,
        "episodes": len(streams),
        "shape": [_span(sizes) for sizes in zip(*shapes, strict=True)] if same else "differs",
        "dtype": _one_of(stream["dtype"] for stream in streams),
        "rate_hz": _span([stream["rate_hz"] for stream in streams if stream["rate_hz"] is not None]),
        "seconds": _span([stream["seconds"] for stream in streams if stream["seconds"] is not None]),
        "stated": {key: _one_of(stream["stated"].get(key, "unknown") for stream in streams) for key in keys},
        "unknown": list(dict.fromkeys(key for stream in streams for key in stream["unknown"] if key not in keys)),
    }
    dimensions = [stream["dimensions"] for stream in streams if "dimensions" in stream]
    if dimensions and len({tuple(d["name"] for d in row) for row in dimensions}) == 1:
        merged["dimensions"] = [_merged_dimension(rows) for rows in zip(*dimensions, strict=True)]
    elif dimensions:
        merged["dimensions_differ"] = True
    return merged


def _merged_dimension(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    lows, highs = ([row[key] for row in rows if row[key] is not None] for key in ("min", "max"))
    return {"name": rows[0]["name"], "min": min(lows, default=None), "max": max(highs, default=None)}


def _span(values: Sequence[Any]) -> Any:
    """One value where all are equal, else [least, most]; None where there is none."""
    low, high = min(values, default=None), max(values, default=None)
    return low if low == high else [low, high]


def _one_of(values: Iterable[Any]) -> Any:
    different = list(dict.fromkeys(map(str, values)))
    return different[0] if len(different) == 1 else different


def rounded(value: Any) -> float | None:
    """A number that JSON has, of seven significant digits (what float32 holds); None for one that is not finite."""
    number = float(value)
    return float(f"{number:.7g}") if math.isfinite(number) else None


def safe(value: Any) -> Any:
    """JSON values that can be printed anywhere: no text that steers a terminal, nothing endless, nothing not finite."""
    if isinstance(value, dict):
        return {printable(key, _LONGEST): safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [safe(item) for item in value]
    if isinstance(value, str):
        return printable(value, _LONGEST)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return value.item() if isinstance(value, np.integer) else printable(value, _LONGEST)
