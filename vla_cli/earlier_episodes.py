"""What an earlier run has ingested: a finished `episodes/` to which what is new is added, or a killed run's rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_cli import __version__
from vla_cli.configs import IngestConfig
from vla_cli.conversion import QUARANTINE, RESULTS, Result, Task
from vla_cli.episode import read_manifest
from vla_cli.files import check_same, read_json, write_json
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord

STAGE = "collect-ingest"
UNTOLD = "episodes have no instruction ("
"""What the warning about them says after its counts."""


def is_update(config: IngestConfig) -> bool:
    """Whether the output is a finished one of this stage, to which what is new is added."""
    record = config.out / RUN_FILE
    return not config.overwrite and record.is_file() and read_json(record).get("stage") == STAGE


def earlier_results(config: IngestConfig, request: dict[str, Any]) -> list[Result] | None:
    """What a finished output holds already; None when there is none to go on with.

    Raises:
        ConfigError: it was made with other options.
    """
    if not is_update(config):
        return None
    document = read_json(config.out / RUN_FILE)
    recorded = {key: value for key, value in document["request"].items() if key != "input"}
    check_same(config.out, recorded, request)
    version = document["version"]
    results = []
    for row in read_manifest(config.out):
        entry, source_digest, unknown = (row.pop(key, "") for key in ("entry", "source_digest", "unknown"))
        stem = Path(row["file"]).stem
        results.append(Result(entry, stem, source_digest, row, unknown=unknown or {}, version=version))
    for file in sorted((config.out / QUARANTINE).glob("*.json")):
        facts = read_json(file)
        results.append(
            Result(facts["name"], file.stem, facts["source_digest"], reason=facts["reason"], version=facts["version"])
        )
    return results


def row_of(result: Result) -> dict[str, Any]:
    """A line of the manifest: the episode, where it came from, and what nobody said of it."""
    assert result.row is not None
    return {**result.row, "entry": result.name, "source_digest": result.source_digest, "unknown": result.unknown}


def is_known(task: Task, earlier: Sequence[Result]) -> bool:
    """Whether an earlier run made something of the same entry, from the same files, with this version."""
    wanted = (task.stem, task.entry.name, task.digest, __version__)
    return any((r.stem, r.name, r.source_digest, r.version) == wanted for r in earlier)


def tidy(folder: Path) -> None:
    """Remove what a killed run was about to write."""
    for file in folder.rglob(".*.partial"):
        file.unlink(missing_ok=True)


def take_over(out: Path, folder: Path, earlier: Sequence[Result], record: RunRecord) -> None:
    """Let a new output begin as the finished one, without copying (hard links)."""
    for file in sorted([*out.glob("*.hdf5"), *(out / QUARANTINE).glob("*")]):
        target = folder / file.relative_to(out)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, target)
    (folder / RESULTS).mkdir(exist_ok=True)
    for result in earlier:
        path = folder / RESULTS / f"{result.stem}.json"
        if not path.exists():
            write_json(path, asdict(result))
    for message in read_json(out / RUN_FILE)["warnings"]:
        if UNTOLD not in message:  # counted again, with what is new
            record.warn(message)


def vanished(folder: Path, stems: set[str]) -> list[Result]:
    """Episodes of earlier runs that the source does not hold any more: they stay."""
    files = sorted((folder / RESULTS).glob("*.json"))
    return [Result(**read_json(file)) for file in files if file.stem not in stems]
