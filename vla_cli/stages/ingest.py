"""`vla collect-ingest`: a robot log, or a world to record in, becomes one HDF5 file an episode.

    out/<episode>.hdf5      one a usable episode
    out/manifest.jsonl      what each file is, with its digest and that of its source
    out/quarantine/         every episode that cannot be used: the reason, and as much of it as can be read
    out/run.json            counts, warnings, and every skipped episode with its reason

A second run with the same options converts what is new or has changed and keeps the rest, told by the digests of the
source files and of what the log states of an episode elsewhere. An interrupted run is gone on with by `--resume`: what
it finished stands whole, the rest is done, and the result is the same bytes. `--follow` repeats this for a folder into
which somebody records.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vla_cli import __version__
from vla_cli.configs import IngestConfig
from vla_cli.conventions import keys_of, parse_settings
from vla_cli.conversion import QUARANTINE, RESULTS, Result, Source, Task, Terms, convert_all, discard, finished
from vla_cli.episode import load_headers, read_manifest, write_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import (
    building,
    check_apart,
    check_output,
    check_rest,
    check_same,
    digest_file,
    encodable,
    read_json,
    text_digest,
    write_json,
)
from vla_cli.logs import Entry, Options, list_entries
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord
from vla_cli.readers import READERS, LogSource, detect
from vla_cli.source_files import digest_once, is_settled, let_settle, signature, stamp
from vla_cli.worlds.collecting import WorldSource, is_world

STAGE = "collect-ingest"
EPISODES = 10
"""That are recorded from a world when no other number is asked for."""
MOST_WORKERS = 4
WORTH_WORKERS = 64 * 2**20  # bytes of source; less is converted before another process has begun
POLL_SECONDS = 1.0
_ANOTHER = "copy the log again, or vla collect-ingest with the path of another one"
LONGEST_STEM = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NUMBERS = re.compile(r"\d[\d.e+-]*")


@dataclass(frozen=True)
class _Chosen:
    """What to convert: the source, its format, and why that one."""

    source: Source
    format: str
    because: str


def plan(config: IngestConfig) -> dict[str, Any]:
    """What `run` would do: the format and why, and how many episodes there are.

    Raises:
        InputError: the source is missing, empty or of no known format.
        ConfigError: there is no such format, or the output stands in the way or was made with other options.
    """
    _check(config)
    chosen = _choose(config)
    request = _request(config, chosen)
    earlier = _earlier(config, request)
    check_rest(config.out, request, resume=config.resume or bool(earlier))
    warnings: list[str] = []
    with chosen.source.opened(lambda message: warnings.append(encodable(message))) as log:
        entries = list_entries(log, config.source)
    return {
        "stage": STAGE,
        "dry_run": True,
        "source": str(config.source),
        "out": str(config.out),
        "format": chosen.format,
        "format_because": chosen.because,
        "episodes": len(entries),
        "warnings": warnings,
    }


def run(config: IngestConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `episodes/` and return its summary.

    Raises:
        InputError: the source is missing, damaged or of no known format, or no episode in it is usable.
        ConfigError: there is no such format, or the output stands in the way.
        MissingDependency: the format needs an optional package.
        CheckFailed: `strict`, and an episode had to be put into quarantine.
    """
    _check(config)
    return _follow(config, progress) if config.follow else _pass(config, _choose(config), progress)


def _follow(config: IngestConfig, progress: Progress) -> dict[str, Any]:
    """Pass after pass until nothing new came for `stop_after_idle` seconds, or Ctrl-C between passes."""
    progress.note(f"Following {config.source}; Ctrl-C ends it, what was ingested stays.")
    summary: dict[str, Any] = {"stage": STAGE, "out": str(config.out), "counts": {}}
    seen: list[tuple[str, int, int]] = []
    pending, last_new, converted = True, time.monotonic(), 0
    while True:
        found = signature(config.source)
        if found != seen:
            seen, pending, last_new = found, True, time.monotonic()
        if found and pending:
            try:
                summary = _pass(config, _choose(config), progress)
                converted += summary["converted"]
                pending = bool(summary.get("waiting"))
            except InputError as error:  # nothing usable yet: looked at again when it changes, or is whole at last
                pending = not is_settled([Path(name) for name, _, _ in found], config.settle + 2 * POLL_SECONDS)
                _ = pending or progress.note(str(error))
        if config.stop_after_idle is not None and time.monotonic() - last_new > config.stop_after_idle:
            return {**summary, "converted": converted}
        try:
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            return {**summary, "converted": converted}


def _check(config: IngestConfig) -> None:
    _check_options(config)
    if not is_world(str(config.source)):
        _check_source(config)
    for source in config.inputs():
        check_apart(config.out, source)
    parse_settings(config.settings)
    if not _is_update(config):
        check_output(config.out, overwrite=config.overwrite, resume=config.resume)


def _check_options(config: IngestConfig) -> None:
    """Refuse options of worlds for a log, and of logs for a world: neither would do anything.

    Raises:
        ConfigError: there are some.
    """
    world = is_world(str(config.source))
    if world:
        given = {"--follow": config.follow, "--topics": config.topics, "--format": config.format != "auto"}
    else:
        given = {"--expert": config.expert, "--keyboard": config.keyboard, "--episodes": config.episodes}
    if strangers := [option for option, value in given.items() if value]:
        raise ConfigError(
            f"{config.source} is {'a world' if world else 'no world'}, and {' and '.join(strangers)} would do nothing",
            expected=f"{'a log' if world else 'a world such as tabletop:V'}, or the same without",
        )


def _check_source(config: IngestConfig) -> None:
    source = config.source
    if not source.exists():
        raise InputError(
            f"The source {source} does not exist",
            expected="a robot log: a file or a directory; or a world such as tabletop:V",
            hint=f"ls {source.parent}, then vla collect-ingest with the path of the log",
        )
    if source.is_dir() and not any(source.iterdir()) and not config.follow:
        raise InputError(f"The source directory {source} is empty", expected="a robot log", hint=_ANOTHER)
    if source.is_file() and source.stat().st_size == 0:
        raise InputError(f"The source file {source} is empty", expected="a robot log", hint=_ANOTHER)


def _choose(config: IngestConfig) -> _Chosen:
    """What to open, and why it is taken for that."""
    if is_world(str(config.source)):
        return _Chosen(_world_source(config), config.source.name.partition(":")[0], "it names a world")
    name, why = (config.format, "--format says so") if config.format != "auto" else detect(config.source)
    READERS.get(name)  # a name that does not exist is told at once
    return _Chosen(LogSource(name, config.source, Options(topics=config.topics)), name, encodable(why))


def _world_source(config: IngestConfig) -> WorldSource:
    if config.expert == config.keyboard:
        raise ConfigError(
            f"{config.source} is a world, and it is not said who demonstrates in it",
            expected="one of --expert and --keyboard",
            hint=f'vla collect-ingest {config.source} --expert --episodes 20 --instruction "..." --out episodes',
        )
    actor = "expert" if config.expert else "keyboard"
    episodes = EPISODES if config.episodes is None else config.episodes
    return WorldSource(str(config.source), actor, episodes, config.instruction, config.seed, config.operator)


def _request(config: IngestConfig, chosen: _Chosen) -> dict[str, Any]:
    mapped = digest_file(config.topics) if config.topics is not None and config.topics.is_file() else None
    return {**config.request(), "format": chosen.format, "topics_digest": mapped}


def _is_update(config: IngestConfig) -> bool:
    """Whether the output is a finished one of this stage, to which what is new is added."""
    record = config.out / RUN_FILE
    return not config.overwrite and record.is_file() and read_json(record).get("stage") == STAGE


def _pass(config: IngestConfig, chosen: _Chosen, progress: Progress) -> dict[str, Any]:
    """Convert what is there and not yet converted."""
    record = RunRecord(STAGE, _request(config, chosen))
    record.facts = {"format": chosen.format, "format_because": chosen.because}
    earlier = _earlier(config, record.request)
    with chosen.source.opened(lambda message: _say(message, record, progress)) as log:
        tasks = _tasks(list_entries(log, config.source), record.request)
    waiting = [t for t in tasks if config.follow and not is_settled(t.entry.files, config.settle)]
    tasks = [t for t in tasks if t not in waiting]
    if earlier is not None and all(_is_known(task, earlier) for task in tasks):
        return _unchanged(config, waiting)
    with building(
        config.out, record.request, overwrite=config.overwrite, resume=config.resume or bool(earlier)
    ) as folder:
        _tidy(folder)
        if earlier is not None:
            _take_over(config.out, folder, earlier, record)
        known = {task.stem: result for task in tasks if (result := finished(task, folder))}
        new = [task for task in tasks if task.stem not in known]
        if not config.keyboard:  # a bar would be drawn over the keyboard's screen
            progress.start(f"Reading {chosen.format} episodes", len(new))
        for task in new:
            discard(task, folder)
        results = {**known, **_converted(config, chosen, new, folder, progress)}
        waiting += [task for task in new if task.stem not in results]
        ordered = [results[task.stem] for task in tasks if task.stem in results]
        ordered += _vanished(folder, {task.stem for task in tasks})
        _check_settings(config, [result.row for result in ordered if result.row], folder)
        _complete(config, ordered, waiting, record, progress)
        write_manifest(folder, [_row(result) for result in ordered if result.row])
        shutil.rmtree(folder / RESULTS)
        if (folder / QUARANTINE).is_dir() and not any((folder / QUARANTINE).iterdir()):
            (folder / QUARANTINE).rmdir()
        record.save(folder)
    _show(record, len(new), progress)
    _fail_if_strict(config, record)
    return _summary(record.document(), config.out, converted=sum(1 for task in new if task.stem in results))


def _row(result: Result) -> dict[str, Any]:
    """A line of the manifest: the episode, where it came from, and what nobody said of it."""
    assert result.row is not None
    return {**result.row, "entry": result.name, "source_digest": result.source_digest, "unknown": result.unknown}


def _earlier(config: IngestConfig, request: dict[str, Any]) -> list[Result] | None:
    """What a finished output holds already; None when there is none to go on with.

    Raises:
        ConfigError: it was made with other options.
    """
    if not _is_update(config):
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


def _check_settings(config: IngestConfig, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Refuse a `--set` that states something of a stream which no episode has: it would state nothing.

    Raises:
        ConfigError: there is one.
    """
    parsed = zip(config.settings, parse_settings(config.settings), strict=True)
    named = [(text, stream, key) for text, (stream, key, _) in parsed if stream]
    if not (named and rows):
        return
    roles: dict[str, str] = {}
    for row in rows:
        roles.update(dict.fromkeys(row["cameras"], "image"))
        roles.update({stream.name: stream.role for stream in load_headers(folder / row["file"])})
    for text, stream, key in named:
        fitting = [name for name, role in roles.items() if key in keys_of(role)]
        if stream not in fitting:
            raise ConfigError(
                f"--set '{text}' states nothing: no episode has a stream '{stream}' with a convention '{key}'",
                expected=f"one of {', '.join(fitting)}" if fitting else f"a stream that has a convention '{key}'",
                hint=f"vla inspect {config.source}, which lists the streams",
            )


def _is_known(task: Task, earlier: Sequence[Result]) -> bool:
    wanted = (task.stem, task.entry.name, task.digest, __version__)
    return any((r.stem, r.name, r.source_digest, r.version) == wanted for r in earlier)


def _unchanged(config: IngestConfig, waiting: Sequence[Task]) -> dict[str, Any]:
    """The summary of an output to which nothing is to be added."""
    document = read_json(config.out / RUN_FILE)
    left = {"waiting": [task.entry.name for task in waiting]} if waiting else {}
    return {**_summary(document, config.out, converted=0), **left}


def _say(message: str, record: RunRecord, progress: Progress) -> None:
    message = encodable(message)
    if message not in record.warnings:
        record.warn(message)
        progress.note(message)


def _tasks(entries: Sequence[Entry], request: dict[str, Any]) -> list[Task]:
    """The entries with names that can be written, safe and distinct file names, and the digests of their sources."""
    taken: set[str] = set()
    entries = [replace(entry, name=encodable(entry.name)) for entry in entries]
    return [Task(entry, _free_name(entry.name, taken), _digest(entry, request)) for entry in entries]


def _digest(entry: Entry, request: dict[str, Any]) -> str:
    """Digest of an entry's source files and of what is stated of it elsewhere; of the request for a world's episode."""
    if not entry.files:
        return text_digest(f"{entry.locator} {sorted(request.items())}")
    found = [digest_once(file) for file in entry.files]
    found += [text_digest(entry.stated)] if entry.stated else []
    return found[0] if len(found) == 1 else text_digest("".join(digest + "\n" for digest in found))


def _free_name(name: str, taken: set[str]) -> str:
    """A file name without surprises that no other episode has (also where case does not count).

    What is cut, or not ASCII and so lost, is told apart by a digest of the name and not by its place among the others:
    those come and go between runs.
    """
    safe = _UNSAFE.sub("_", name).strip(".") or "episode"
    if len(safe) > LONGEST_STEM or not name.isascii():
        safe = f"{safe[: LONGEST_STEM - 9]}-{text_digest(name)[-8:]}"
    free, number = safe, 1
    while free.lower() in taken:
        number += 1
        free = f"{safe}_{number}"
    taken.add(free.lower())
    return free


def _tidy(folder: Path) -> None:
    """Remove what a killed run was about to write."""
    for file in folder.rglob(".*.partial"):
        file.unlink(missing_ok=True)


def _take_over(out: Path, folder: Path, earlier: Sequence[Result], record: RunRecord) -> None:
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
        record.warn(message)


def _converted(
    config: IngestConfig, chosen: _Chosen, tasks: Sequence[Task], folder: Path, progress: Progress
) -> dict[str, Result]:
    """Convert entries; those whose files are still being written are left out, and nothing is kept of them."""
    terms = Terms(chosen.format, config.instruction, config.operator, tuple(parse_settings(config.settings)))
    before = {file: stamp(file) for task in tasks for file in task.entry.files}
    by_stem = {task.stem: task for task in tasks}
    results: dict[str, Result] = {}
    for result in convert_all(chosen.source, tasks, terms, folder, _workers(config, tasks)):
        results[result.stem] = result
        progress.advance()
    let_settle([f for r in results.values() if r.row is None for f in by_stem[r.stem].entry.files], config.settle)
    for stem in list(results):
        if any(stamp(file) != before[file] for file in by_stem[stem].entry.files):
            discard(by_stem[stem], folder)
            del results[stem]
    return results


def _workers(config: IngestConfig, tasks: Sequence[Task]) -> int:
    if config.keyboard:
        return 1
    if config.workers > 0:
        return config.workers
    size = sum(stamp(file)[0] for file in {file for task in tasks for file in task.entry.files})
    return min(MOST_WORKERS, os.cpu_count() or 1) if size > WORTH_WORKERS else 1


def _vanished(folder: Path, stems: set[str]) -> list[Result]:
    """Episodes of earlier runs that the source does not hold any more: they stay."""
    files = sorted((folder / RESULTS).glob("*.json"))
    return [Result(**read_json(file)) for file in files if file.stem not in stems]


def _complete(
    config: IngestConfig, results: Sequence[Result], waiting: Sequence[Task], record: RunRecord, progress: Progress
) -> None:
    """Fill the record; refuse a result that nobody can use, and say what the user should know of the others."""
    rows = [result.row for result in results if result.row]
    for message in sorted({message for result in results for message in result.warnings}):
        _say(message, record, progress)
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


def _warn_of_silence(config: IngestConfig, rows: list[dict[str, Any]], record: RunRecord, progress: Progress) -> None:
    silent = [row["name"] for row in rows if not row["instructions"]]
    if silent:
        message = (
            f"{len(silent)} of {len(rows)} episodes have no instruction ({', '.join(silent[:3])}"
            f"{', ...' if len(silent) > 3 else ''}); a policy that follows language needs one: the same command with "
            '--overwrite --instruction "..." gives it'
        )
        _say(message, record, progress)


def _unknown(results: Sequence[Result]) -> dict[str, list[str]]:
    """Stream to the conventions that are unknown in any episode."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for stream, missing in result.unknown.items():
            found.setdefault(stream, {}).update(dict.fromkeys(missing))
    return {stream: list(missing) for stream, missing in sorted(found.items())}


def _show(record: RunRecord, attempted: int, progress: Progress) -> None:
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


def _fail_if_strict(config: IngestConfig, record: RunRecord) -> None:
    if config.strict and record.skipped:
        reasons = "; ".join(f"{s['name']}: {s['reason']}" for s in record.skipped[:3])
        raise CheckFailed(
            f"--strict, and {len(record.skipped)} of {record.counts['episodes_in']} episodes are unusable ({reasons}); "
            f"{config.out} holds the others and {config.out / QUARANTINE} those",
            hint="without --strict to go on with the others",
        )


def _summary(document: dict[str, Any], out: Path, converted: int) -> dict[str, Any]:
    """The JSON result of a finished run, from its record."""
    chosen = {key: document[key] for key in ("counts", "skipped", "warnings")}
    return {"stage": STAGE, "out": str(out), "converted": converted, **chosen, **document["facts"]}
