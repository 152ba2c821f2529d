"""The record every artefact carries: `run.json`.

It holds what determines the artefact (tool version, stage, resolved config, seed, digests of the inputs), what was
counted, what was warned about, and every skipped item by name with its reason. No clock time and no path of the
machine goes in beyond what the user named: the same request gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cli import __version__
from vla_cli.files import digest, write_json

FILE_NAME = "run.json"


@dataclass
class RunRecord:
    """What one run did, gathered while it runs and saved beside its output.

    Attributes:
        stage: the subcommand.
        request: resolved config, seed and input digests (what `--resume` compares).
        counts: whole numbers by name (episodes_in, frames_out, ...).
        warnings: sentences a person should read.
        skipped: items left out, each {"name", "reason"}.
        facts: anything else a later stage or person needs.
    """

    stage: str
    request: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def count(self, name: str, by: int = 1) -> None:
        """Add `by` to the count called `name`."""
        self.counts[name] = self.counts.get(name, 0) + by

    def warn(self, message: str) -> None:
        """Note a sentence once, in the order first said."""
        if message not in self.warnings:
            self.warnings.append(message)

    def skip(self, name: str, reason: str) -> None:
        """Name one item that was left out, and why."""
        self.skipped.append({"name": name, "reason": reason})

    def document(self) -> dict[str, Any]:
        """The record as a JSON document."""
        return {
            "tool": "vla-cli",
            "version": __version__,
            "stage": self.stage,
            "request": self.request,
            "counts": self.counts,
            "warnings": self.warnings,
            "skipped": self.skipped,
            "facts": self.facts,
        }

    def save(self, directory: Path) -> None:
        """Write `run.json` into `directory`."""
        write_json(directory / FILE_NAME, self.document())


def describe_input(path: Path) -> dict[str, str]:
    """Name and digest of an input, as recorded in a request (the name, not the place: places differ by machine)."""
    return {"name": path.name, "digest": digest(path)}
