"""Cells that another run has published in its `lock_in.json`, taken over as finished.

A run of this size outlives machines. The document keeps of a cell what the tables need, and the digest of what
determined it; a cell is taken over where this plan has one of the same digest, so that a recipe, demonstrations or a
base that have changed since are run again. It does not depend on the version of the tool or on the machine: the page
names every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lock_in_harness.cells import Cell
from lock_in_harness.results import Key, Results
from vla_cli.errors import InputError
from vla_cli.files import write_json


@dataclass(frozen=True)
class Taken:
    """What became of the cells of a document.

    Attributes:
        taken: now files in the work directory.
        there: were filled there already.
        elsewhere: not of this plan.
        changed: of this plan, but something that determines them is another now; to be run again.
    """

    taken: int
    there: int
    elsewhere: int
    changed: tuple[str, ...]

    def words(self, path: Path) -> str:
        """One line, and one more for what has changed."""
        parts = [f"{self.taken} cells taken over from {path}"]
        parts += [f"{self.there} were there"] if self.there else []
        parts += [f"{self.elsewhere} are not of this plan"] if self.elsewhere else []
        lines = [", ".join(parts)]
        if self.changed:
            named = "; ".join(self.changed[:3]) + (" ..." if len(self.changed) > 3 else "")
            lines.append(f"{len(self.changed)} are to be run again, for what determines them has changed: {named}")
        return "\n".join(lines)


def take_over(published: Results, cells: Sequence[Cell], work: Path) -> Taken:
    """Write the files of cells that a document holds.

    Args:
        published: another run's document.
        cells: of this plan.
        work: the work directory; what is filled there already stays.

    Raises:
        InputError: the document does not say what determined its cells.
    """
    if "cells" not in published.document:
        raise InputError(
            "The document to continue does not say what determined its cells",
            expected="a lock_in.json with 'cells', as benchmarks/lock_in.py writes it",
        )
    ours = {_key(cell): cell for cell in cells}
    rows: dict[Key, list[dict[str, Any]]] = {}
    for row in published.rows:
        rows.setdefault((row["label"], row["shift"], row["task"], row["seed"]), []).append(row)
    counts, changed = Counter[str](), list[str]()
    for identity in published.document["cells"]:
        key: Key = (identity["label"], identity["shift"], identity["task"], identity["seed"])
        cell = ours.get(key)
        if cell is None:
            counts["elsewhere"] += 1
        elif cell.digest != identity["digest"]:
            changed.append(f"{cell.shift} {cell.task.name} seed {cell.seed} {cell.row.label}")
        elif cell.done(work):
            counts["there"] += 1
        else:
            _write(cell, identity, rows[key], work)
            counts["taken"] += 1
    return Taken(counts["taken"], counts["there"], counts["elsewhere"], tuple(changed))


def _key(cell: Cell) -> Key:
    return cell.row.label, cell.shift, cell.task.name, cell.seed


def _write(cell: Cell, identity: Mapping[str, Any], rows: Sequence[dict[str, Any]], work: Path) -> None:
    path = cell.path(work)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**identity, "determinants": cell.determinants(), "rows": list(rows)})
