"""LeRobot v2.0 and v2.1: one table, and one video a camera, for each episode.

meta/info.json                      codebase_version, fps, data_path, video_path, features, splits, totals
meta/episodes.jsonl                 {"episode_index", "tasks", "length"}
meta/tasks.jsonl                    {"task_index", "task"}
meta/modality.json                  GR00T's addition: names for ranges of the state and action vectors
data/chunk-000/episode_000000.parquet
videos/chunk-000/<video key>/episode_000000.mp4
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cli.episode import Episode, UnusableError
from vla_cli.errors import InputError
from vla_cli.readers import Entry
from vla_cli.readers.lerobot_files import fill, read_rows
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

STANDARD = {
    "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "videos": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}


@dataclass
class ListedEpisode:
    """An episode that the metadata list, and the files found for it.

    Attributes:
        index: its number.
        tasks: its instructions; may be empty.
        length: steps as listed, whatever that is.
        table: None when there is no such file.
        videos: one a video key; None when missing.
    """

    index: int
    tasks: list[str]
    length: Any = None
    table: Path | None = None
    videos: dict[str, Path | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As its files are called."""
        return episode_name(self.index)


class V2Log:
    """An open log of v2.0 or v2.1.

    Args:
        metadata: what the versions share; its warnings and cameras are completed.

    Raises:
        InputError: the metadata are damaged, or lead out of the directory.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.metadata, self._info = metadata, metadata.root / INFO
        self._listed = {episode.index: episode for episode in load_episodes(metadata)}

    def entries(self) -> list[Entry]:
        """See `Log`."""
        stated = Statements(self.metadata, (e.tasks for e in self._listed.values()))
        return [
            Entry(e.name, str(e.index), self._files(e), stated.of(e.tasks, e.length)) for e in self._listed.values()
        ]

    def _files(self, episode: ListedEpisode) -> tuple[Path, ...]:
        found = [file for file in (episode.table, *episode.videos.values()) if file is not None]
        return tuple(found or [self._info])

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        listed = self._listed[int(entry.locator)]
        if listed.table is None:
            raise UnusableError("it is listed in meta/episodes.jsonl but has no table below data/")
        missing = [key for key, file in listed.videos.items() if file is None]
        if missing:
            raise UnusableError(f"it has no video file of {', '.join(missing)}, which other episodes have")
        table = Table(listed.table)
        try:
            return self._episode(listed, table)
        finally:
            table.close()

    def _episode(self, listed: ListedEpisode, table: Table) -> Episode:
        if table.rows == 0:
            raise UnusableError(f"{table.path.name} has no rows")
        videos = {key: VideoPart(file) for key, file in listed.videos.items() if file is not None}
        part = Part(table, 0, table.rows, listed.index, listed.tasks, videos)
        if listed.length is not None and listed.length != table.rows:
            said = str(listed.length)[:40]
            part.notes.append(f"meta/episodes.jsonl says {said} frames, the table has {table.rows} rows")
        streams, instructions = streams_of(self.metadata, part)
        source = table.path.relative_to(self.metadata.root).as_posix()
        return Episode(listed.name, streams, instructions, format="lerobot", source=source, notes=part.notes)

    def close(self) -> None:
        """See `Log`; nothing stays open."""


def load_episodes(metadata: Metadata) -> list[ListedEpisode]:
    """Find the episodes and their files.

    Raises:
        InputError: the metadata are damaged, or lead out of the directory.
    """
    root = metadata.root
    try:
        for row in read_rows(root, "meta/tasks.jsonl", "task_index", "task"):
            metadata.tasks[int(row["task_index"])] = str(row["task"])
        episodes = _listed(metadata)
        _locate_all(metadata, episodes)
        _contradictions(metadata, episodes)
        return episodes
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise malformed(root, error) from None


def _listed(metadata: Metadata) -> list[ListedEpisode]:
    """Episodes of `meta/episodes.jsonl`; without that file, those that have a table."""
    root = metadata.root
    if not (root / "meta/episodes.jsonl").is_file():
        return [ListedEpisode(index, []) for index in sorted(_by_number(metadata))]
    found: dict[int, ListedEpisode] = {}
    for row in read_rows(root, "meta/episodes.jsonl", "episode_index"):
        index = index_number(row["episode_index"])
        if index in found:
            metadata.say(f"meta/episodes.jsonl lists {episode_name(index)} twice: the first line counts.")
            continue
        found[index] = ListedEpisode(index, texts(row.get("tasks")), row.get("length"))
        if len(found) > MOST_EPISODES:
            raise InputError(f"{root} lists more than {MOST_EPISODES} episodes", expected="the log of one robot")
    return list(found.values())


def _by_number(metadata: Metadata) -> dict[int, Path]:
    """Every table below data/, by the number in its name."""
    names = {file.stem[8:]: file for file in metadata.files.below("data", ".parquet") if file.stem[:8] == "episode_"}
    return {int(number): file for number, file in names.items() if number.isdecimal() and len(number) < 10}


def _locate_all(metadata: Metadata, episodes: list[ListedEpisode]) -> None:
    """Find the files of every listed episode and camera, and say where the metadata led astray."""
    finder = _Finder(metadata)
    for episode in episodes:
        episode.table = finder.find("data", episode.index, "")
        episode.videos = {key: finder.find("videos", episode.index, key) for key in metadata.videos}
    leave_out_absent(metadata, {key: any(e.videos[key] for e in episodes) for key in metadata.videos})
    for episode in episodes:
        episode.videos = {key: episode.videos[key] for key in metadata.videos}
    metadata.warnings.extend(finder.astray())


class _Finder:
    """Finds files: as info.json's template says, else at the standard place, else by name; and remembers which."""

    def __init__(self, metadata: Metadata) -> None:
        self.files = metadata.files
        self.chunk_size = max(1, int(metadata.info.get("chunks_size") or 1000))
        self.templates = {
            "data": str(metadata.info.get("data_path") or STANDARD["data"]),
            "videos": str(metadata.info.get("video_path") or STANDARD["videos"]),
        }
        self.resorts: dict[tuple[str, str], int] = {}

    def find(self, kind: str, index: int, video_key: str) -> Path | None:
        """The file, or None. Raises InputError for a template or key that leads out of the directory."""
        values = {"episode_chunk": index // self.chunk_size, "episode_index": index, "video_key": video_key}
        place, usual = fill(self.templates[kind], values), fill(STANDARD[kind], values)
        literal = self.files.get(place)
        if literal is not None:
            return literal
        standard = self.files.get(usual) if usual != place else None
        if standard is not None:
            return self._resort(kind, "at the standard place", standard)
        for file in self.files.named(kind, usual.rpartition("/")[2]):
            if not video_key or video_key in file.relative_to(self.files.root).parts:
                return self._resort(kind, "by name", file)
        return None

    def _resort(self, kind: str, how: str, file: Path) -> Path:
        self.resorts[kind, how] = self.resorts.get((kind, how), 0) + 1
        return file

    def astray(self) -> list[str]:
        """A sentence for each way in which a template missed files that are there."""
        option = {"data": "data_path", "videos": "video_path"}
        return [
            f"meta/info.json's {option[kind]} '{self.templates[kind][:200]}' does not lead to {count} file(s); "
            f"they were found {how}."
            for (kind, how), count in self.resorts.items()
        ]


def _contradictions(metadata: Metadata, episodes: list[ListedEpisode]) -> None:
    """Compare what info.json counts with what is there."""
    info, count = metadata.info, len(episodes)
    chunks = {e.index // max(1, int(info.get("chunks_size") or 1000)) for e in episodes}
    found = {"total_episodes": count, "total_chunks": len(chunks), "total_tasks": len(metadata.tasks)}
    lengths = [episode.length for episode in episodes]
    if all(isinstance(length, int) for length in lengths):
        found["total_frames"] = sum(length for length in lengths if length)
    say_counts(metadata, count, found)
    listed = {episode.index for episode in episodes}
    unlisted = [file.stem for number, file in _by_number(metadata).items() if number not in listed]
    if unlisted:
        metadata.say(f"meta/episodes.jsonl does not list {', '.join(unlisted[:5])} ({len(unlisted)} in all): not read.")
