"""What a look at an artefact or a log brings to light, gathered as JSON values and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vla_cli.contact_sheet import ContactSheet
from vla_cli.outline import printable
from vla_cli.progress import Progress

MOST_ROWS = 200
"""Rows of a table that people see; the JSON result has them all."""
_LONGEST_CELL = 300
_FEW = 4
_MANY = 64


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        sheet: where pictures go, when a contact sheet is wanted.
        counts: whole numbers by name.
        skipped: episodes that cannot be used, each {"name", "reason"}.
        warnings: sentences a person should read.
        contents: everything else, as JSON values.
        tables: (title, columns, rows) for people.
    """

    sheet: ContactSheet | None = None
    counts: dict[str, int] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    contents: dict[str, Any] = field(default_factory=dict)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Note a sentence once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def tell(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table for people, without the columns that say nothing; none at all where there are no rows."""
        cells = [[printable(cell, _LONGEST_CELL) for cell in row] for row in rows[:MOST_ROWS]]
        kept = [index for index in range(len(columns)) if any(row[index] not in ("-", "") for row in cells)]
        if not kept:
            return
        shown = [[row[index] for index in kept] for row in cells]
        if len(rows) > MOST_ROWS:
            shown.append([f"... {len(rows) - MOST_ROWS} more", *[""] * (len(kept) - 1)])
        self.tables.append((title, [columns[index] for index in kept], shown))

    def tell_texts(self, instructions: Iterable[str], operators: Iterable[str]) -> None:
        """Who was told what, and how often; the most frequent first."""
        for name, texts in (("instructions", instructions), ("operators", operators)):
            counted = dict(sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0])))
            self.contents[name] = counted
            self.tell(name, [name.removesuffix("s"), "episodes"], [[text, n] for text, n in counted.items()])

    def tell_episodes(self, episodes: list[dict[str, Any]]) -> None:
        """Episodes that were read in detail, and what their readers noted."""
        rows = [[e["name"], e["steps"], figure(e["seconds"]), few(e["instructions"]), e["operator"]] for e in episodes]
        self.tell("episodes read in detail", ["episode", "steps", "seconds", "instruction", "operator"], rows)
        notes: dict[str, list[str]] = {}
        for episode in episodes:
            for note in episode["notes"]:
                notes.setdefault(note, []).append(episode["name"])
        self.tell("notes", ["note", "episodes"], [[note, few(names)] for note, names in notes.items()])
        silent = sum(not episode["instructions"] for episode in episodes)
        if silent:
            self.warn(f"{silent} of {len(episodes)} episodes read have no instruction")

    def tell_streams(self, streams: list[dict[str, Any]]) -> None:
        """Streams (see `facts.merge`): what they are, and which conventions are stated and which are not."""
        rows = [
            [
                stream["name"],
                stream["role"],
                _shape(stream["shape"]),
                _span(stream.get("dtype", "-")),
                _span(stream.get("rate_hz")),
                _span(stream.get("seconds")),
                stream.get("episodes", "-"),
            ]
            for stream in streams
        ]
        self.tell("streams", ["stream", "role", "shape", "type", "rate in Hz", "seconds", "episodes"], rows)
        told = [
            [
                stream["name"],
                ", ".join(f"{key}: {_span(value)}" for key, value in stream.get("stated", {}).items()) or "-",
                ", ".join(stream.get("unknown", [])) or "-",
            ]
            for stream in streams
        ]
        self.tell("conventions", ["stream", "stated", "unknown"], told)
        for stream in streams:
            if stream.get("dimensions_differ"):
                self.warn(f"{stream['role']} stream '{stream['name']}' has other dimensions in other episodes")

    def tell_ranges(self, title: str, parts: Iterable[tuple[str, list[dict[str, Any]]]]) -> None:
        """Range of each dimension, and mean and standard deviation where they are known.

        Args:
            title: of the table.
            parts: stream name and its dimensions (see `facts`).
        """
        keys = ("min", "max", "mean", "std")
        shown = [(part, dims if len(dims) <= _MANY else [_together(dims)]) for part, dims in parts]
        rows = [[part, d["name"], *(figure(d.get(key)) for key in keys)] for part, dims in shown for d in dims]
        self.tell(title, ["stream", "dimension", *keys], rows)

    def show(self, progress: Progress) -> None:
        """Everything for people, in the order it was found."""
        for title, columns, rows in self.tables:
            progress.table(title, columns, rows)
        for message in self.warnings:
            progress.note(printable(message, 1000))


def _together(dimensions: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for the many dimensions of an embedding, which nobody reads one by one."""
    lows, highs = ([d[key] for d in dimensions if d[key] is not None] for key in ("min", "max"))
    name = f"{dimensions[0]['name']} to {dimensions[-1]['name']}"
    return {"name": name, "min": min(lows, default=None), "max": max(highs, default=None)}


def few(value: Any) -> str:
    """A value on one line; of a list the first few."""
    if isinstance(value, list):
        more = f", and {len(value) - _FEW} more" if len(value) > _FEW else ""
        return ", ".join(map(str, value[:_FEW])) + more
    if isinstance(value, dict):
        return few([f"{key} {item}" for key, item in value.items()])
    return figure(value) if isinstance(value, float) else str(value)


def figure(value: Any) -> str:
    """A number to four digits; "-" for none."""
    return "-" if value is None else f"{value:.4g}"


def _span(value: Any) -> str:
    """One figure or word, or [least, most] of several."""
    if isinstance(value, list):
        texts = list(dict.fromkeys(map(_span, value)))
        numbers = all(isinstance(item, int | float) for item in value)
        return "..".join(texts) if numbers else " / ".join(texts)
    return str(value) if isinstance(value, str | int) else figure(value)


def _shape(shape: Any) -> str:
    return " x ".join(map(_span, shape)) if isinstance(shape, list) else str(shape)
