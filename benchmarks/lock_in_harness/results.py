"""What the benchmark found, as one document: `lock_in.json`. Tables and plot are made from it alone.

    rows      {method, label, shift, base_data, task, seed, condition, metric, k, n, seconds, bits}
    plan      rows with their summaries, shifts, tasks with layouts, seeds, episodes
    cells     {label, shift, task, seed, digest, machine} of every cell that is there: what determined it (see `cells`)
    made_by   command, versions, machines, sessions with wall seconds
    not_run   cells of the plan that are missing, counted by row and shift, with a reason where one is known

`seconds` is fine-tuning's CPU time, which other work on the machine does not stretch; 0 for rows without. `bits`, with
metric success only, holds each episode's success: hexadecimal, the first episode in the highest of n bits.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from lock_in_harness.cells import METRICS, Cell, count, machine
from lock_in_harness.rows import MethodRow
from lock_in_harness.tasks import BenchTask
from vla_cli import __version__
from vla_cli.files import read_json, to_json, write_text

Key = tuple[str, str, str, int]
"""(label, shift, task, seed) of a cell."""
IDENTITY = ("label", "shift", "task", "seed", "digest", "machine")


def pack(outcomes: str) -> str:
    """Outcomes of 0 and 1 as hexadecimal digits, four episodes each."""
    return f"{int(outcomes, 2):0{-(-len(outcomes) // 4)}x}"


def unpack(bits: str, n: int) -> str:
    """Inverse of `pack` for n episodes."""
    return f"{int(bits, 16):0{n}b}"


@dataclass(frozen=True)
class Figure:
    """k successes in n episodes, pooled over so many cells; `lowest` and `highest` are the shares of single cells."""

    k: int
    n: int
    cells: int
    lowest: float
    highest: float

    @property
    def value(self) -> float:
        """k / n."""
        return self.k / self.n


@dataclass(frozen=True)
class Results:
    """The document, with the questions that tables ask of it.

    Attributes:
        document: see the module's docstring.
    """

    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The figures of every cell, one a condition and metric."""
        return self.document["rows"]

    @property
    def labels(self) -> list[str]:
        """Rows of the plan, in its order."""
        return [row["label"] for row in self.document["plan"]["rows"]]

    @property
    def shifts(self) -> list[str]:
        """Shifts of the plan, in its order."""
        return list(self.document["plan"]["shifts"])

    @cached_property
    def _index(self) -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
        found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault((row["label"], row["shift"], row["condition"], row["metric"]), []).append(row)
        return found

    def figure(self, label: str, shift: str, conditions: str | Sequence[str], metric: str = "success") -> Figure | None:
        """A row's figure, pooled over conditions, tasks and seeds; None where nothing was measured."""
        names = [conditions] if isinstance(conditions, str) else conditions
        rows = [row for name in names for row in self._index.get((label, shift, name, metric), []) if row["n"]]
        if not rows:
            return None
        cells: dict[tuple[str, int], list[int]] = {}
        for row in rows:
            pooled = cells.setdefault((row["task"], row["seed"]), [0, 0])
            pooled[0] += row["k"]
            pooled[1] += row["n"]
        shares = [k / n for k, n in cells.values()]
        total = sum(row["k"] for row in rows), sum(row["n"] for row in rows)
        return Figure(*total, len(cells), min(shares), max(shares))

    def shares(self, label: str, shift: str, condition: str) -> dict[tuple[str, int], float]:
        """A row's success under one condition by (task, seed)."""
        rows = self._index.get((label, shift, condition, "success"), [])
        return {(row["task"], row["seed"]): row["k"] / row["n"] for row in rows}

    def paired(self, a: str, b: str, shift: str, conditions: Sequence[str]) -> tuple[str, str, int]:
        """Successes of two rows in the cells that both have, as outcome strings, and how many cells those are."""
        left, right, cells = [], [], set()
        for condition in conditions:
            theirs = {(r["task"], r["seed"]): r for r in self._index.get((b, shift, condition, "success"), [])}
            for row in self._index.get((a, shift, condition, "success"), []):
                other = theirs.get((row["task"], row["seed"]))
                if other is not None and other["n"] == row["n"]:
                    left.append(unpack(row["bits"], row["n"]))
                    right.append(unpack(other["bits"], other["n"]))
                    cells.add((row["task"], row["seed"]))
        return "".join(left), "".join(right), len(cells)

    @cached_property
    def _machines(self) -> dict[Key, str]:
        return {(c["label"], c["shift"], c["task"], c["seed"]): c["machine"] for c in self.document["cells"]}

    @cached_property
    def _seconds(self) -> dict[Key, float]:
        rows = (row for row in self.rows if (row["condition"], row["metric"]) == ("trained", "success"))
        return {(row["label"], row["shift"], row["task"], row["seed"]): row["seconds"] for row in rows}

    def seconds(self, label: str, shift: str) -> list[float]:
        """Fine-tuning's CPU seconds, one number a cell."""
        return [found for key, found in self._seconds.items() if key[:2] == (label, shift)]

    def time_ratios(self, label: str, shift: str, other: str) -> list[float]:
        """Fine-tuning's CPU time as a multiple of another row's, one number a cell.

        The other row's time is that of the same shift, task and seed where the same machine ran it, else the median of
        all its cells on that machine: how long one machine takes says nothing about another.
        """
        ratios = []
        for key, own in self._seconds.items():
            if key[:2] == (label, shift):
                where, beside = self._machines[key], (other, *key[1:])
                there = [t for k, t in self._seconds.items() if k[0] == other and self._machines[k] == where]
                reference = self._seconds[beside] if self._machines.get(beside) == where else median(there or [0])
                ratios += [own / reference] if reference else []
        return ratios


def load_results(path: Path) -> Results:
    """Read `lock_in.json`.

    Raises:
        InputError: it is missing or not JSON.
    """
    return Results(read_json(path))


def save_results(results: Results, path: Path) -> None:
    """Write `lock_in.json`, a line for every row and cell, so that changes can be read."""
    parts = []
    for key, value in results.document.items():
        if key in ("rows", "cells"):
            lines = ",\n".join("    " + _one_line(row) for row in value)
            parts.append(f'  "{key}": [\n{lines}\n  ]' if lines else f'  "{key}": []')
        else:
            body = to_json(value).rstrip("\n").replace("\n", "\n  ")
            parts.append(f'  "{key}": {body}')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def _one_line(row: Mapping[str, Any]) -> str:
    return " ".join(to_json(row).split())


def cell_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one cell's file."""
    if "rows" in result:  # taken over from another run's document, which keeps no more
        return result["rows"]
    rows = []
    for condition, outcomes in result["conditions"].items():
        for metric in METRICS:
            k, n = count(outcomes[metric])
            if n:
                rows.append(
                    {
                        **{key: result[key] for key in ("method", "label", "shift", "base_data", "task", "seed")},
                        "condition": condition,
                        "metric": metric,
                        "k": k,
                        "n": n,
                        "seconds": result["seconds"]["train_cpu"],
                        **({"bits": pack(outcomes[metric])} if metric == "success" else {}),
                    }
                )
    return rows


def collect(
    cells: Sequence[Cell],
    work: Path,
    *,
    rows: Iterable[MethodRow],
    tasks: Iterable[BenchTask],
    command: str,
    base: str,
    sessions: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
) -> Results:
    """Everything of a plan that is in the work directory, in the plan's order."""
    done = [cell for cell in cells if cell.done(work)]
    missing = [cell for cell in cells if not cell.done(work)]
    loaded = [cell.load(work) for cell in done]
    gaps: dict[str, dict[str, int]] = {}
    for cell in missing:
        counts = gaps.setdefault(cell.row.label, {})
        counts[cell.shift] = counts.get(cell.shift, 0) + 1
    plan = {
        "rows": [{"label": row.label, "method": row.name, "summary": row.summary} for row in rows],
        "shifts": list(dict.fromkeys(cell.shift for cell in cells)),
        "tasks": [_task_document(task) for task in tasks],
        "seeds": sorted({cell.seed for cell in cells}),
        "episodes": cells[0].episodes,
        "cells": len(cells),
        "cells_done": len(done),
    }
    made_by = {
        "command": command,
        "base": base,
        "versions": {"vla-cli": __version__, **_versions()},
        "machines": list(dict.fromkeys([session["machine"] for session in sessions] or [machine()])),
        "sessions": [dict(session) for session in sessions],
    }
    not_run = {"missing": gaps, "failed": dict(failed)}
    filled = [{key: result[key] for key in IDENTITY} for result in loaded]
    found = [row for result in loaded for row in cell_rows(result)]
    return Results({"plan": plan, "made_by": made_by, "not_run": not_run, "cells": filled, "rows": found})


def _task_document(task: BenchTask) -> dict[str, Any]:
    layout = task.layout.document()
    objects = [" ".join(pair) for pair in layout["objects"]]
    return {"name": task.name, "demonstrated": task.task.phrasings[0], "objects": objects, "cells": layout["cells"]}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "peft")}}
