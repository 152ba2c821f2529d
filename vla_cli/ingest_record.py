"""The record of a run that ingests: what went in, came out and stayed behind, and what the user should know of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_cli.configs import IngestConfig
from vla_cli.conversion import Result, Task
from vla_cli.earlier_episodes import STAGE, UNTOLD
from vla_cli.errors import InputError
from vla_cli.files import encodable, text_digest
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord

_NUMBERS = re.compile(r"\d[\d.e+-]*")


def complete_record(
    config: IngestConfig, results: Sequence[Result], waiting: Sequence[Task], record: RunRecord, progress: Progress
) -> None:
    """Fill the record; refuse a result that nobody can use, and say what the user should know of the others."""
    rows = [result.row for result in results if result.row]
    for message in sorted({message for result in results for message in result.warnings}):
        say_once(message, record, progress)
    for result in results:
        if result.row is None:
            record.skip(result.name, result.reason)
    if not rows:
        reasons = "; ".join(f"{s['name']}: {s['reason']}" for s in record.skipped[:3])
        raise InputError(
            f"{config.source} has no usable episode"
            + (f" ({len(record.skipped)} skipped: {reasons})" if reasons else "")
            + (f" ({len(waiting)} are still being written)" if waiting else ""),
            expected="at least one with pictures and actions",
            hint="vla collect-ingest again once the log is mended, or with the log as the robot first wrote it",
        )
    record.request = {
        **record.request,
        "input": {
            "name": encodable(config.source.name),
            "digest": text_digest("".join(r.source_digest for r in results)),
        },
    }
    _warn_of_silence(config, rows, record, progress)
    unknown = _unknown(results)
    if unknown:
        keys = "; ".join(f"{stream}: {', '.join(missing)}" for stream, missing in unknown.items())
        record.facts["unknown_conventions"] = unknown
        progress.note(f"The log does not say, and nothing was guessed: {keys}. State what you know: --set KEY=VALUE.")
    if waiting:
        names = ", ".join(task.entry.name for task in waiting[:5])
        record.facts["waiting"] = [task.entry.name for task in waiting]
        progress.note(f"{len(waiting)} recording(s) are still being written and left for the next run: {names}.")
    record.counts |= {
        "episodes_in": len(results),
        "steps": sum(row["steps"] for row in rows),
        "episodes_out": len(rows),
        "episodes_skipped": len(record.skipped),
    }
    record.facts |= {
        "instructions": sorted({text for row in rows for text in row["instructions"]}),
        "operators": dict(sorted(Counter(row["operator"] for row in rows).items())),
        "cameras": dict(sorted(Counter(camera for row in rows for camera in row["cameras"]).items())),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
    }


def say_once(message: str, record: RunRecord, progress: Progress) -> None:
    """Note a warning in the record and tell it, unless it is there."""
    message = encodable(message)
    if message not in record.warnings:
        record.warn(message)
        progress.note(message)


def _warn_of_silence(config: IngestConfig, rows: list[dict[str, Any]], record: RunRecord, progress: Progress) -> None:
    silent = [row["name"] for row in rows if not row["instructions"]]
    if silent:
        message = (
            f"{len(silent)} of {len(rows)} {UNTOLD}{', '.join(silent[:3])}"
            f"{', ...' if len(silent) > 3 else ''}); a policy that follows language needs one: the same command with "
            '--overwrite --instruction "..." gives it'
        )
        say_once(message, record, progress)


def _unknown(results: Sequence[Result]) -> dict[str, list[str]]:
    """Stream to the conventions that are unknown in any episode."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for stream, missing in result.unknown.items():
            found.setdefault(stream, {}).update(dict.fromkeys(missing))
    return {stream: list(missing) for stream, missing in sorted(found.items())}


def show_counts(record: RunRecord, attempted: int, progress: Progress) -> None:
    """The table of what went in, came out, and stayed behind by reason."""
    counts = record.counts
    rows: list[list[Any]] = [["in", counts["episodes_in"]], ["out", counts["episodes_out"]]]
    rows.append(["in quarantine", counts["episodes_skipped"]])
    reasons = Counter(_NUMBERS.sub("..", skipped["reason"])[:90] for skipped in record.skipped)
    rows += [[f"  {reason}", number] for reason, number in reasons.most_common()]
    if waiting := record.facts.get("waiting"):
        rows.append(["left for the next run", len(waiting)])
    rows.append(["read in this run", attempted])
    progress.table("Episodes", ["", "number"], rows)


def summary_of(document: dict[str, Any], out: Path, converted: int) -> dict[str, Any]:
    """The JSON result of a finished run, from its record."""
    chosen = {key: document[key] for key in ("counts", "skipped", "warnings")}
    return {"stage": STAGE, "out": str(out), "converted": converted, **chosen, **document["facts"]}
