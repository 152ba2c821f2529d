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
from vla_cli.errors import InputError
from vla_cli.files import RUN_FILE, digest, read_json, write_json

FILE_NAME = RUN_FILE


@dataclass(frozen=True)
class Artefact:
    """What a stage writes, for messages.

    Attributes:
        noun: what it is.
        name: how the command line calls it.
        source: what it is made of, by the command line's name.
        options: what else must be given to make it.
        use: what is done with one; {here} is where it is.
    """

    noun: str
    name: str
    source: str
    options: str
    use: str


ARTEFACTS = {
    "collect-ingest": Artefact("episodes", "EPISODES", "SOURCE", "", "vla preprocess {here} --out DATASET"),
    "preprocess": Artefact("a dataset", "DATASET", "EPISODES", "", "vla finetune {here} --base BASE --out ADAPTER"),
    "finetune": Artefact("an adapter", "ADAPTER", "DATASET", " --base BASE", "vla eval-steer {here} --out REPORT"),
    "eval-steer": Artefact("a report", "REPORT", "ADAPTER", "", "vla inspect {here}, which names its adapters"),
    "export-adapter": Artefact("a bundle", "BUNDLE", "ADAPTER", "", "vla inspect {here}"),
}
"""By stage, in the order of the pipeline."""


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


def not_an_artefact(here: Path, file: str, stage: str) -> InputError:
    """The error for a path that should be what `stage` writes, and does not hold `file`.

    It says what the path is instead, and never proposes to write over something that is there.

    Args:
        here: the path that was given.
        file: what was looked for in it.
        stage: whose artefact it should be.
    """
    wanted = ARTEFACTS[stage]
    # what is there and none of ours may be a log
    source = here if stage == "collect-ingest" and here.exists() else wanted.source
    hint = f"vla {stage} {source}{wanted.options} --out {wanted.name if here.exists() else here}"
    problem = f"{here} holds no {file}"
    if not here.is_dir():
        problem = f"{here} {'is a file' if here.exists() else 'does not exist'}"
    elif (writer := written_by(here)) and writer != stage:
        problem = f"{here} is {ARTEFACTS[writer].noun}, written by {writer}"
        hint = ARTEFACTS[writer].use.format(here=here)
    return InputError(problem, expected=f"{wanted.noun}: a directory written by {stage}", hint=hint)


def written_by(directory: Path) -> str:
    """The stage that wrote a directory, as its `run.json` says; empty where none of ours is told."""
    try:
        document = read_json(directory / FILE_NAME)
    except InputError:
        return ""
    stage = document.get("stage") if isinstance(document, dict) else None
    return stage if isinstance(stage, str) and stage in ARTEFACTS else ""


def describe_input(path: Path) -> dict[str, str]:
    """Name and digest of an input, as recorded in a request (the name, not the place: places differ by machine)."""
    return {"name": path.name, "digest": digest(path)}
