"""LeRobot v3.0: tables and videos that many episodes share.

    meta/info.json                             as in v2, with codebase_version v3.0
    meta/tasks.parquet                         task_index, and the text as column `task` or as pandas's index
    meta/episodes/chunk-000/file-000.parquet   a row an episode: episode_index, tasks (list), length,
                                               data/{chunk_index, file_index},
                                               videos/<key>/{chunk_index, file_index, from_timestamp, to_timestamp}
    data/chunk-000/file-000.parquet            rows of many episodes, told apart by the column episode_index
    videos/<key>/chunk-000/file-000.mp4        pictures of many episodes, one after the other

An episode's first picture is the one whose presentation time is nearest to `from_timestamp`; a picture a row follows.
A writer that was killed leaves a Parquet file without its footer: what is in it is lost, the rest is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.episode import Episode, UnusableError
from vla_cli.errors import InputError, words
from vla_cli.readers import Entry, Warn
from vla_cli.readers.lerobot_files import fill
from vla_cli.readers.lerobot_meta import (
    INFO,
    MOST_EPISODES,
    Metadata,
    Statements,
    episode_name,
    index_number,
    leave_out_absent,
    malformed,
    say_counts,
    texts,
)
from vla_cli.readers.lerobot_parquet import Table
from vla_cli.readers.lerobot_streams import Part, VideoPart, streams_of
from vla_cli.video import probe

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
TASKS = "meta/tasks.parquet"


@dataclass
class SharedVideo:
    """An episode's stretch of a shared video file, in seconds of its clock; `file` is None when it is missing."""

    file: Path | None
    begins: float
    ends: float


@dataclass
class ListedEpisode:
    """A row of meta/episodes, and the files found for it.

    Attributes:
        index: its number.
        tasks: its instructions; may be empty.
        length: steps as listed, whatever that is.
        table: None when there is no such file.
        videos: one a video key.
    """

    index: int
    tasks: list[str]
    length: Any
    table: Path | None
    videos: dict[str, SharedVideo] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the files of v2 are called."""
        return episode_name(self.index)

    @property
    def spans(self) -> dict[str, tuple[float, float]]:
        """Video key to where in its file the episode begins and ends, in seconds."""
        return {key: (video.begins, video.ends) for key, video in self.videos.items()}


class V3Log:
    """An open log of v3.0.

    Args:
        metadata: what the versions share; its tasks, warnings and cameras are completed.
        warn: where to say what is found while episodes are read.

    Raises:
        InputError: the metadata are damaged, or lead out of the directory.
    """

    def __init__(self, metadata: Metadata, warn: Warn) -> None:
        self.metadata, self.warn = metadata, warn
        self._table: Table | None = None
        self._damaged: dict[str, tuple[Path, str]] = {}
        try:
            metadata.tasks = _tasks(metadata)
            self._listed = self._load()
            self._contradictions()
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise malformed(metadata.root, error) from None

    def entries(self) -> list[Entry]:
        """See `Log`; a file of the list itself that cannot be read is an entry like the rest."""
        stated = Statements(self.metadata, (e.tasks for e in self._listed.values()))
        episodes = [
            Entry(e.name, str(e.index), self._files(e), stated.of(e.tasks, e.length, e.spans))
            for e in self._listed.values()
        ]
        return episodes + [Entry(name, name, (path,)) for name, (path, _) in self._damaged.items()]

    def _files(self, listed: ListedEpisode) -> tuple[Path, ...]:
        found = [file for file in (listed.table, *(v.file for v in listed.videos.values())) if file is not None]
        return tuple(found or [self.metadata.root / INFO])

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        if entry.locator in self._damaged:
            raise UnusableError(f"the episodes that it lists cannot be found: {self._damaged[entry.locator][1]}")
        listed = self._listed[int(entry.locator)]
        if listed.table is None:
            raise UnusableError("it is listed in meta/episodes but its table below data/ is missing")
        missing = [key for key in self.metadata.videos if listed.videos[key].file is None]
        if missing:
            raise UnusableError(f"it has no video file of {', '.join(missing)}, which other episodes have")
        table = self._open(listed.table)
        spans = table.spans()
        if listed.index not in spans:
            raise UnusableError(f"{self._place(listed.table)} has no rows of it")
        start, stop = spans[listed.index]
        part = Part(table, start, stop, listed.index, listed.tasks, {})
        if listed.length is not None and listed.length != stop - start:
            said = str(listed.length)[:40]
            part.notes.append(f"meta/episodes says {said} frames, the table has {stop - start} rows")
        for key, shared in listed.videos.items():
            part.videos[key] = _stretch(shared, stop - start, key, part.notes)
        streams, instructions = streams_of(self.metadata, part)
        source = f"{self._place(listed.table)}#{listed.index}"
        return Episode(listed.name, streams, instructions, format="lerobot", source=source, notes=part.notes)

    def close(self) -> None:
        """See `Log`."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def _open(self, path: Path) -> Table:
        """The table of a file; the one that was used last stays open, as the next episode is likely in it."""
        if self._table is None or self._table.path != path:
            self.close()
            self._table = Table(path)
            unlisted = sorted(set(self._table.spans()) - set(self._listed))
            if unlisted:
                some = ", ".join(str(index) for index in unlisted[:5])
                self.warn(
                    f"{self._place(path)} has rows of {len(unlisted)} episodes that meta/episodes does not list "
                    f"({some}): they are not read."
                )
        return self._table

    def _place(self, path: Path) -> str:
        return path.relative_to(self.metadata.root).as_posix()

    def _load(self) -> dict[int, ListedEpisode]:
        """Every listed episode by its number, in order."""
        metadata, found = self.metadata, dict[int, ListedEpisode]()
        columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
        parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        columns += [f"videos/{key}/{part}" for key in metadata.videos for part in parts]
        for path in metadata.files.below("meta/episodes", ".parquet"):
            try:
                for row in _rows(path, columns):
                    listed = self._locate(row)
                    if listed.index in found:
                        metadata.say(f"meta/episodes lists episode {listed.index} twice: the first row counts.")
                        continue
                    found[listed.index] = listed
                    if len(found) > MOST_EPISODES:
                        raise InputError(
                            f"{metadata.root} lists more than {MOST_EPISODES} episodes", expected="the log of one robot"
                        )
            except (UnusableError, KeyError, TypeError, ValueError) as error:
                place = self._place(path)
                self._damaged[place.removesuffix(".parquet").replace("/", "_")] = (path, f"{place}: {error}")
        videos = {key: any(e.videos[key].file for e in found.values()) for key in metadata.videos}
        if found:
            leave_out_absent(metadata, videos)
        for listed in found.values():
            listed.videos = {key: listed.videos[key] for key in metadata.videos}
        return dict(sorted(found.items()))

    def _locate(self, row: dict[str, Any]) -> ListedEpisode:
        files, info = self.metadata.files, self.metadata.info
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = files.get(fill(str(info.get("data_path") or DATA), _numbered(place)))
        listed = ListedEpisode(index_number(row["episode_index"]), texts(row.get("tasks")), row.get("length"), table)
        for key in self.metadata.videos:
            place = {part: row.get(f"videos/{key}/{part}") for part in ("chunk_index", "file_index")}
            times = [_seconds(row.get(f"videos/{key}/{part}")) for part in ("from_timestamp", "to_timestamp")]
            file = None
            if None not in place.values():
                values = {**_numbered(place), "video_key": key}
                file = files.get(fill(str(info.get("video_path") or VIDEOS), values))
            listed.videos[key] = SharedVideo(file, *times)
        return listed

    def _contradictions(self) -> None:
        lengths = [listed.length for listed in self._listed.values()]
        found = {"total_episodes": len(lengths), "total_tasks": len(self.metadata.tasks)}
        if all(isinstance(length, int) for length in lengths) and not self._damaged:
            found["total_frames"] = sum(lengths)
        say_counts(self.metadata, len(lengths), found)
        needed = {listed.table for listed in self._listed.values()}
        unused = [file for file in self.metadata.files.below("data", ".parquet") if file not in needed]
        if unused:
            some = ", ".join(self._place(file) for file in unused[:3])
            self.metadata.say(f"No listed episode is in {some} ({len(unused)} file(s) in all): not read.")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    table = Table(path)
    try:
        yield from table.records(columns)
    finally:
        table.close()


def _tasks(metadata: Metadata) -> dict[int, str]:
    """Task index to text."""
    path = metadata.files.get(TASKS)
    if path is None:
        metadata.say(f"There is no {TASKS}: instructions are those that meta/episodes gives.")
        return {}
    try:
        rows = list(_rows(path, ("task", "__index_level_0__", "task_index")))
    except UnusableError as error:
        metadata.say(f"{TASKS} cannot be read ({words(error)}): instructions are those that meta/episodes gives.")
        return {}
    return {int(row["task_index"]): str(row.get("task", row.get("__index_level_0__", ""))) for row in rows}


def _numbered(place: dict[str, Any]) -> dict[str, int]:
    """Chunk and file as numbers for a path.

    Raises:
        ValueError: one is none.
    """
    numbers = {key: int(value) for key, value in place.items()}
    if not all(0 <= number < 10**9 for number in numbers.values()):
        raise ValueError(f"the place {place}")
    return numbers


def _seconds(value: Any) -> float:
    """A time of the metadata; NaN when there is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _stretch(shared: SharedVideo, rows: int, key: str, notes: list[str]) -> VideoPart:
    """The pictures that belong to an episode: from the nearest to `from_timestamp` to the last before `to_timestamp`.

    Raises:
        UnusableError: the video cannot be opened, or has none at that time.
    """
    assert shared.file is not None
    try:
        times, _ = probe(shared.file)
    except ValueError as error:
        raise UnusableError(str(error)) from None
    half = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.05
    if not math.isfinite(shared.begins):
        raise UnusableError(f"meta/episodes does not say where in the video of {key} it begins")
    start = int(np.argmin(np.abs(times - shared.begins)))
    away = abs(float(times[start]) - shared.begins)
    if away > 2 * half + 1e-4:
        raise UnusableError(
            f"the video of {key} has no picture at {shared.begins:.6g} s, where it begins "
            f"(the nearest is at {times[start]:.6g} s)"
        )
    if away > half / 2:
        notes.append(f"the picture of {key} nearest to its beginning is {away * 1000:.0f} ms away")
    stop = start + rows
    if math.isfinite(shared.ends) and shared.ends > shared.begins:
        stop = int(np.searchsorted(times, shared.ends - half))
    return VideoPart(shared.file, start, min(stop, len(times)) - start)
