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
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_cli.configs import IngestConfig
from vla_cli.conventions import keys_of, parse_settings
from vla_cli.conversion import QUARANTINE, RESULTS, Result, Source, Task, Terms, convert_all, discard, finished
from vla_cli.earlier_episodes import STAGE, earlier_results, is_known, is_update, row_of, take_over, tidy, vanished
from vla_cli.entry_tasks import tasks_of
from vla_cli.episode import load_headers, write_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import (
    building,
    check_apart,
    check_output,
    check_rest,
    digest_file,
    encodable,
    read_json,
)
from vla_cli.ingest_record import complete_record, say_once, show_counts, summary_of
from vla_cli.logs import Options, list_entries
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord
from vla_cli.readers import READERS, LogSource, detect
from vla_cli.source_files import is_settled, let_settle, signature, stamp
from vla_cli.worlds.collecting import WorldSource, is_world

EPISODES = 10
"""That are recorded from a world when no other number is asked for."""
MOST_WORKERS = 4
WORTH_WORKERS = 64 * 2**20  # bytes of source; less is converted before another process has begun
POLL_SECONDS = 1.0
_ANOTHER = "copy the log again, or vla collect-ingest with the path of another one"


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
    earlier = earlier_results(config, request)
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
    if not is_update(config):
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


def _pass(config: IngestConfig, chosen: _Chosen, progress: Progress) -> dict[str, Any]:
    """Convert what is there and not yet converted."""
    record = RunRecord(STAGE, _request(config, chosen))
    record.facts = {"format": chosen.format, "format_because": chosen.because}
    earlier = earlier_results(config, record.request)
    with chosen.source.opened(lambda message: say_once(message, record, progress)) as log:
        tasks = tasks_of(list_entries(log, config.source), record.request)
    waiting = [t for t in tasks if config.follow and not is_settled(t.entry.files, config.settle)]
    tasks = [t for t in tasks if t not in waiting]
    if earlier is not None and all(is_known(task, earlier) for task in tasks):
        return _unchanged(config, waiting)
    with building(
        config.out, record.request, overwrite=config.overwrite, resume=config.resume or bool(earlier)
    ) as folder:
        tidy(folder)
        if earlier is not None:
            take_over(config.out, folder, earlier, record)
        known = {task.stem: result for task in tasks if (result := finished(task, folder))}
        new = [task for task in tasks if task.stem not in known]
        if not config.keyboard:  # a bar would be drawn over the keyboard's screen
            progress.start(f"Reading {chosen.format} episodes", len(new))
        for task in new:
            discard(task, folder)
        results = {**known, **_converted(config, chosen, new, folder, progress)}
        waiting += [task for task in new if task.stem not in results]
        ordered = [results[task.stem] for task in tasks if task.stem in results]
        ordered += vanished(folder, {task.stem for task in tasks})
        _check_settings(config, [result.row for result in ordered if result.row], folder)
        complete_record(config, ordered, waiting, record, progress)
        write_manifest(folder, [row_of(result) for result in ordered if result.row])
        shutil.rmtree(folder / RESULTS)
        if (folder / QUARANTINE).is_dir() and not any((folder / QUARANTINE).iterdir()):
            (folder / QUARANTINE).rmdir()
        record.save(folder)
    show_counts(record, len(new), progress)
    _fail_if_strict(config, record)
    return summary_of(record.document(), config.out, converted=sum(1 for task in new if task.stem in results))


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


def _unchanged(config: IngestConfig, waiting: Sequence[Task]) -> dict[str, Any]:
    """The summary of an output to which nothing is to be added."""
    document = read_json(config.out / RUN_FILE)
    left = {"waiting": [task.entry.name for task in waiting]} if waiting else {}
    return {**summary_of(document, config.out, converted=0), **left}


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


def _fail_if_strict(config: IngestConfig, record: RunRecord) -> None:
    if config.strict and record.skipped:
        reasons = "; ".join(f"{s['name']}: {s['reason']}" for s in record.skipped[:3])
        raise CheckFailed(
            f"--strict, and {len(record.skipped)} of {record.counts['episodes_in']} episodes are unusable ({reasons}); "
            f"{config.out} holds the others and {config.out / QUARANTINE} those",
            hint="without --strict to go on with the others",
        )
