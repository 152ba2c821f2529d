"""One entry of a log becomes one episode file, or one file in quarantine that says why not; in this process or several.

    FOLDER/<stem>.hdf5              the episode
    FOLDER/quarantine/<stem>.json   why an entry is no episode: its name, the reason, its files and their digest
    FOLDER/quarantine/<stem>.hdf5   the same entry as far as it can be read, where it can
    FOLDER/.results/<stem>.json     what became of the entry, written last: a run that goes on trusts nothing else

Workers open the log themselves, convert entry after entry, and die with the process that began them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_cli import __version__
from vla_cli.conventions import complete, stated, unknowns
from vla_cli.digests import digest_recording
from vla_cli.episode import Episode, UnusableError, manifest_row, pauses, problems, save_episode
from vla_cli.errors import words
from vla_cli.files import encodable, read_json, write_json
from vla_cli.logs import Entry, Log, Warn, read_entry
from vla_cli.video import limit_threads

QUARANTINE = "quarantine"
RESULTS = ".results"
MOST_NAMED = 5
"""Pauses of one episode that a sentence lists; the manifest has all."""
SETTINGS = Sequence[tuple[str, str, str]]


class Source(Protocol):
    """Something to convert: opened anew in each process, so it must be picklable."""

    def opened(self, warn: Warn) -> AbstractContextManager[Log]:
        """The open log."""
        ...


@dataclass(frozen=True)
class Task:
    """One entry to convert.

    Attributes:
        entry: of the log.
        stem: file name without its ending, safe and distinct.
        digest: of the entry's source files.
    """

    entry: Entry
    stem: str
    digest: str


@dataclass(frozen=True)
class Terms:
    """What the user states of every episode.

    Attributes:
        format: the reader's name.
        instruction: wins over the log's; None leaves it.
        operator: likewise.
        settings: conventions, from `conventions.parse_settings`.
    """

    format: str
    instruction: str | None = None
    operator: str | None = None
    settings: tuple[tuple[str, str, str], ...] = ()


@dataclass
class Result:
    """What became of an entry.

    Attributes:
        name: the entry's.
        stem: its file's.
        source_digest: of its source files.
        row: its line of the manifest, or None when it cannot be used.
        reason: why not.
        warnings: what reading it said.
        unknown: stream to the conventions that nobody stated.
        version: of the tool.
    """

    name: str
    stem: str
    source_digest: str
    row: dict[str, Any] | None = None
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    version: str = __version__


def convert(log: Log, task: Task, terms: Terms, folder: Path, said: list[str]) -> Result:
    """Convert one entry.

    Args:
        log: the open log.
        task: the entry.
        terms: what the user states.
        folder: where to.
        said: the log's `warn` appends here.

    Raises:
        VlaError: nothing can be read here (a package is missing).
    """
    said.clear()
    result = Result(task.entry.name, task.stem, task.digest)
    try:
        episode = _stated(read_entry(log, task.entry), task, terms)
        said += _leave_out_unmeasured(episode)
        if found := problems(episode):
            _keep_for_inspection(episode, folder / QUARANTINE / f"{task.stem}.hdf5")
            raise UnusableError("; ".join(found))
        said += _note_pauses(episode)
        path = folder / f"{task.stem}.hdf5"
        _save(episode, path)
        result.row = manifest_row(episode, path)
        result.unknown = {
            f"{s.role}/{s.name}": missing for s in episode.streams if (missing := unknowns(s.role, s.attributes))
        }
    except UnusableError as error:
        result.reason = encodable(str(error))
        _quarantine(task, result, folder)
    result.warnings = [encodable(message) for message in dict.fromkeys(said)]
    write_json(folder / RESULTS / f"{task.stem}.json", asdict(result))
    return result


def finished(task: Task, folder: Path) -> Result | None:
    """What an earlier run in the same folder made of an entry, if that is complete and of the same source files."""
    path = folder / RESULTS / f"{task.stem}.json"
    if not path.is_file():
        return None
    result = Result(**read_json(path))
    if (result.name, result.source_digest, result.version) != (task.entry.name, task.digest, __version__):
        return None
    file = folder / f"{task.stem}.hdf5"
    whole = result.row is None or (file.is_file() and digest_recording(file) == result.row["digest"])
    return result if whole else None


def discard(task: Task, folder: Path) -> None:
    """Remove whatever was made of an entry."""
    for path in (
        folder / f"{task.stem}.hdf5",
        *(folder / QUARANTINE / f"{task.stem}.{ending}" for ending in ("json", "hdf5")),
        folder / RESULTS / f"{task.stem}.json",
    ):
        path.unlink(missing_ok=True)


def _stated(episode: Episode, task: Task, terms: Terms) -> Episode:
    episode.name, episode.source_digest, episode.format = task.stem, task.digest, terms.format
    episode.source, episode.notes = encodable(episode.source), [encodable(note) for note in episode.notes]
    if terms.instruction is not None:
        episode.instructions = [terms.instruction.strip()] if terms.instruction.strip() else []
    if terms.operator is not None:
        episode.operator = terms.operator
    for stream in episode.streams:
        own = {**stream.attributes, **stated(stream.role, stream.name, terms.settings)}
        stream.attributes = complete(stream.role, own)
    return episode


def _leave_out_unmeasured(episode: Episode) -> list[str]:
    """Take out streams beside state and action that hold no numbers in places, as ALOHA's effort; returns notes.

    Nobody trains on them, so that they are no reason to lose the episode.
    """
    holes = [
        stream
        for stream in episode.of_role("other")
        if np.issubdtype(stream.values.dtype, np.floating) and not np.all(np.isfinite(stream.values))
    ]
    episode.streams = [stream for stream in episode.streams if not any(stream is one for one in holes)]
    notes = [f"'{stream.name}' is left out: it has values that are NaN or infinite" for stream in holes]
    episode.notes = [*episode.notes, *notes]
    return [f"{note}." for note in notes]


def _note_pauses(episode: Episode) -> list[str]:
    """Say in the episode's notes when nothing was recorded; returns the same for the log's warnings."""
    found = pauses(episode)
    if not found:
        return []
    listed = ", ".join(f"{length:.2f} s after {start:.2f} s" for start, length in found[:MOST_NAMED])
    listed += f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    note = (
        f"nothing was recorded {len(found)} time(s), {sum(length for _, length in found):.2f} s in all ({listed}): a "
        "paused recorder or skipped steps; preprocess holds or blends what was recorded around it"
    )
    episode.notes = [*episode.notes, note]
    return [f"{episode.name}: {note}."]


def _save(episode: Episode, path: Path) -> None:
    try:
        save_episode(episode, path)
    except (ValueError, OSError, TypeError, KeyError, RuntimeError) as error:
        raise UnusableError(f"it cannot be read ({words(error)})") from None


def _keep_for_inspection(episode: Episode, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    try:
        save_episode(episode, path)
    except Exception:  # only a courtesy: the reason is what counts
        path.unlink(missing_ok=True)


def _quarantine(task: Task, result: Result, folder: Path) -> None:
    (folder / QUARANTINE).mkdir(exist_ok=True)
    facts = {"name": result.name, "reason": result.reason, "files": [encodable(file.name) for file in task.entry.files]}
    facts |= {"source_digest": task.digest, "version": __version__}
    write_json(folder / QUARANTINE / f"{task.stem}.json", facts)


def convert_all(source: Source, tasks: Sequence[Task], terms: Terms, folder: Path, workers: int) -> Iterator[Result]:
    """Convert entries, in any order.

    Args:
        source: the log.
        tasks: what to convert.
        terms: what the user states.
        folder: where to; it exists.
        workers: processes; 1 converts in this one.

    Yields:
        one result an entry, as soon as it is there.
    """
    (folder / RESULTS).mkdir(exist_ok=True)
    if workers <= 1 or len(tasks) <= 1:
        said: list[str] = []
        with source.opened(said.append) as log:
            for task in tasks:
                yield convert(log, task, terms, folder, said)
        return
    done: set[str] = set()
    try:
        for result in _in_pool(source, tasks, terms, folder, min(workers, len(tasks))):
            done.add(result.stem)
            yield result
    except BrokenProcessPool:
        # one entry killed its reader (a fault in a library, or memory): the others go on, each by itself
        for task in tasks:
            if task.stem not in done:
                yield _alone(source, task, terms, folder)


def _in_pool(source: Source, tasks: Sequence[Task], terms: Terms, folder: Path, workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    begin = partial(_begin, source, terms, folder, os.getpid(), threads)
    pool = ProcessPoolExecutor(workers, context, initializer=begin)
    futures: list[Future[Result]] = []
    try:
        futures = [pool.submit(_convert_here, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(source: Source, task: Task, terms: Terms, folder: Path) -> Result:
    earlier = finished(task, folder)
    if earlier is not None:
        return earlier
    try:
        return next(_in_pool(source, [task], terms, folder, 1))
    except BrokenProcessPool:
        result = Result(task.entry.name, task.stem, task.digest)
        result.reason = "the process that read it died: it is damaged, or too large for this machine's memory"
        _quarantine(task, result, folder)
        write_json(folder / RESULTS / f"{task.stem}.json", asdict(result))
        return result


class _Worker:
    """What one process keeps from entry to entry."""

    def __init__(self, source: Source, terms: Terms, folder: Path) -> None:
        self.terms, self.folder = terms, folder
        self.said: list[str] = []
        self.stack = ExitStack()
        self.log = self.stack.enter_context(source.opened(self.said.append))


_worker: _Worker | None = None


def _begin(source: Source, terms: Terms, folder: Path, parent: int, threads: int) -> None:
    global _worker
    limit_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _worker = _Worker(source, terms, folder)


def _die_with(parent: int) -> None:
    """End this process when its parent has: nobody may write into a folder that another run goes on with."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


def _convert_here(task: Task) -> Result:
    assert _worker is not None
    return convert(_worker.log, task, _worker.terms, _worker.folder, _worker.said)
