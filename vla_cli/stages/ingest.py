"""`vla collect-ingest`: a robot log becomes one HDF5 file an episode.

    out/<episode>.hdf5      one a usable episode
    out/manifest.jsonl      what each file is, with its digest
    out/run.json            counts, warnings, and every skipped episode with its reason

A resumed run reads the log again but keeps the episode files that already stand: they appear whole or not at all, and
only a run with the same source digest and options may resume.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_cli.configs import IngestConfig
from vla_cli.episode import Episode, Skipped, manifest_row, problems, save_episode, write_manifest
from vla_cli.errors import CheckFailed, InputError
from vla_cli.files import building, check_apart, check_output, is_complete, read_json
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.readers import READERS, Reader, detect

STAGE = "collect-ingest"
_ANOTHER = "copy the log again, or vla collect-ingest with the path of another one"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def plan(config: IngestConfig) -> dict[str, Any]:
    """What `run` would do: the format and why, and the number of episodes when the log states it cheaply.

    Raises:
        InputError: the source is missing, empty or of no known format.
        ConfigError: there is no such format, or the output stands in the way.
    """
    _check(config)
    name, why = _choose(config)
    reader: Reader = READERS.get(name)
    return {
        "stage": STAGE,
        "dry_run": True,
        "source": str(config.source),
        "out": str(config.out),
        "format": name,
        "format_because": why,
        "episodes": reader.count(config.source),
    }


def run(config: IngestConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `episodes/` and return its summary.

    Raises:
        InputError: the source is missing, damaged or of no known format, or no episode in it is usable.
        ConfigError: there is no such format, or the output stands in the way.
        MissingDependency: the format needs an optional package.
        CheckFailed: `strict`, and an episode had to be skipped.
    """
    _check(config)
    name, why = _choose(config)
    reader: Reader = READERS.get(name)
    request = {**config.request(), "format": name, "input": describe_input(config.source)}
    if is_complete(config.out, request, resume=config.resume):
        return _summary(read_json(config.out / RUN_FILE), config.out)
    record = RunRecord(STAGE, request, facts={"format": name, "format_because": why})
    with building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial:
        progress.start(f"Reading {name} episodes", reader.count(config.source) or 0)
        rows = [_keep(episode, partial, record) for episode in _usable(config, reader, record, progress)]
        _check_result(config, rows, record, progress)
        write_manifest(partial, rows)
        record.save(partial)
    return _summary(record.document(), config.out)


def _check(config: IngestConfig) -> None:
    source = config.source
    if not source.exists():
        raise InputError(
            f"The source {source} does not exist",
            expected="a robot log: a file or a directory",
            hint=f"ls {source.parent}, then vla collect-ingest with the path of the log",
        )
    if source.is_dir() and not any(source.iterdir()):
        raise InputError(f"The source directory {source} is empty", expected="a robot log", hint=_ANOTHER)
    if source.is_file() and source.stat().st_size == 0:
        raise InputError(f"The source file {source} is empty", expected="a robot log", hint=_ANOTHER)
    check_apart(config.out, source)
    check_output(config.out, overwrite=config.overwrite, resume=config.resume)


def _choose(config: IngestConfig) -> tuple[str, str]:
    """The format's name, and why."""
    if config.format == "auto":
        return detect(config.source)
    READERS.get(config.format)  # a name that does not exist is told at once
    return config.format, "--format says so"


def _usable(config: IngestConfig, reader: Reader, record: RunRecord, progress: Progress) -> Iterator[Episode]:
    """The log's usable episodes under safe, distinct names; all others are skipped by name in the record."""
    taken: set[str] = set()

    def warn(message: str) -> None:
        if message not in record.warnings:
            record.warn(message)
            progress.note(message)

    for item in reader.read(config.source, warn):
        record.count("episodes_in")
        found = [item.reason] if isinstance(item, Skipped) else problems(item)
        if isinstance(item, Skipped) or found:
            record.skip(item.name, "; ".join(found))
        else:
            item.name = _free_name(item.name, taken)
            yield _overridden(item, config)
        progress.advance()


def _free_name(name: str, taken: set[str]) -> str:
    """A file name without surprises that no other episode has (also where case does not count)."""
    safe = _UNSAFE.sub("_", name).strip(".")[:100] or "episode"
    free, number = safe, 1
    while free.lower() in taken:
        number += 1
        free = f"{safe}_{number}"
    taken.add(free.lower())
    return free


def _overridden(episode: Episode, config: IngestConfig) -> Episode:
    if config.instruction is not None:
        episode.instructions = [config.instruction.strip()] if config.instruction.strip() else []
    if config.operator is not None:
        episode.operator = config.operator
    return episode


def _keep(episode: Episode, partial: Path, record: RunRecord) -> dict[str, Any]:
    path = partial / f"{episode.name}.hdf5"
    if not path.is_file():
        save_episode(episode, path)
    record.count("steps", len(episode.of_role("action")[0]))
    return manifest_row(episode, path)


def _check_result(config: IngestConfig, rows: list[dict[str, Any]], record: RunRecord, progress: Progress) -> None:
    """Refuse a result that nobody can use, and say what the user should know of the others."""
    reasons = "; ".join(f"{s['name']}: {s['reason']}" for s in record.skipped[:3])
    if not rows:
        raise InputError(
            f"{config.source} has no usable episode"
            + (f" ({len(record.skipped)} skipped: {reasons})" if reasons else ""),
            expected="at least one with pictures and actions",
            hint="vla collect-ingest again once the log is mended, or with the log as the robot first wrote it",
        )
    if config.strict and record.skipped:
        raise CheckFailed(
            f"--strict, and {len(record.skipped)} of {record.counts['episodes_in']} episodes are unusable ({reasons})",
            hint="without --strict to go on with the others",
        )
    silent = [row["name"] for row in rows if not row["instructions"]]
    if silent:
        message = (
            f"{len(silent)} of {len(rows)} episodes have no instruction ({', '.join(silent[:3])}"
            f"{', ...' if len(silent) > 3 else ''}); a policy that follows language needs one: vla collect-ingest "
            f'{config.source.name} --out {config.out.name} --overwrite --instruction "..."'
        )
        record.warn(message)
        progress.note(message)
    record.counts |= {"episodes_out": len(rows), "episodes_skipped": len(record.skipped)}
    record.facts |= {
        "instructions": sorted({text for row in rows for text in row["instructions"]}),
        "operators": dict(sorted(Counter(row["operator"] for row in rows).items())),
        "cameras": dict(sorted(Counter(camera for row in rows for camera in row["cameras"]).items())),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
    }


def _summary(document: dict[str, Any], out: Path) -> dict[str, Any]:
    """The JSON result of a finished run, from its record."""
    chosen = {key: document[key] for key in ("counts", "skipped", "warnings")}
    return {"stage": STAGE, "out": str(out), **chosen, **document["facts"]}
