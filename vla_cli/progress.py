"""How library code tells of its progress without knowing who listens.

A stage calls these methods; `console` draws them with rich on stderr, tests and scripts leave them silent.
"""

from __future__ import annotations

from typing import Any


class Progress:
    """Receives progress; this base class is silent."""

    def start(self, description: str, total: int) -> None:
        """A phase of `total` steps begins."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """`steps` more are done; `figures` are worth showing beside the bar (loss, success)."""

    def note(self, message: str) -> None:
        """A sentence a person should read now."""

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A small result table for people."""


SILENT = Progress()
