"""LeRobot v2.0 and v2.1: a directory of Parquet tables and videos, one of each (and camera) an episode.

    meta/info.json                      codebase_version, fps, data_path, video_path, features, splits, totals
    meta/episodes.jsonl                 {"episode_index", "tasks", "length"}
    meta/tasks.jsonl                    {"task_index", "task"}
    meta/modality.json                  GR00T's addition: names for ranges of the state and action vectors
    data/chunk-000/episode_000000.parquet
    videos/chunk-000/<video key>/episode_000000.mp4

`observation.state` becomes the state, `action` the action, other vectors under `observation.` or `action.` keep the
role "other"; cameras lose the prefix `observation.images.`. Needs pyarrow and PyAV (the extra `lerobot`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_cli.episode import Episode, Role, Skipped, Stream
from vla_cli.errors import InputError, MissingDependency
from vla_cli.files import digest_together
from vla_cli.readers import Reader, Warn
from vla_cli.readers.lerobot_meta import (
    VALIDITY_FLAGS,
    ListedEpisode,
    Metadata,
    dimension_names,
    is_lerobot,
    load_metadata,
)
from vla_cli.readers.pictures import decode_pictures
from vla_cli.readers.video import decode_video, require_av

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST_TABLE = 8 * 2**30
_ROLES: dict[str, Role] = {"observation.state": "state", "action": "action"}
# Where the instruction stands, best first; each holds indices into tasks.jsonl, or the text itself.
_TASK_COLUMNS = ("annotation.human.action.task_description", "annotation.human.task_description", "task_index")
_VALIDITY_COLUMN = "annotation.human.validity"


def count(path: Path) -> int | None:
    """Episodes that the metadata list."""
    return len(load_metadata(path).episodes)


def read(path: Path, warn: Warn) -> Iterator[Episode | Skipped]:
    """Yield each listed episode.

    Raises:
        InputError: the metadata are damaged or of another version, or list no episode.
        MissingDependency: pyarrow or PyAV is missing.
    """
    metadata = load_metadata(path)
    _require_pyarrow()
    if metadata.cameras:
        require_av()
    for message in metadata.warnings:
        warn(message)
    if not metadata.episodes:
        raise InputError(f"{path} has no episodes", expected="meta/episodes.jsonl, or tables below data/")
    for listed in metadata.episodes:
        try:
            yield _read_episode(metadata, listed)
        except _UnusableError as reason:
            yield Skipped(listed.name, str(reason))


READER = Reader("a directory with LeRobot's meta/info.json", is_lerobot, count, read)


class _UnusableError(Exception):
    """Why one episode is left out."""


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingDependency("pyarrow", extra="lerobot", purpose="Reading a LeRobot log") from None


def _read_episode(metadata: Metadata, listed: ListedEpisode) -> Episode:
    if listed.table is None:
        raise _UnusableError("it is listed in meta/episodes.jsonl but has no table below data/")
    missing = [key for key, file in listed.videos.items() if file is None]
    if missing:
        raise _UnusableError(f"it has no video file of {', '.join(missing)}, which other episodes have")
    table = _read_table(listed.table)
    notes = _oddities(metadata, listed, table)
    clock = _clock(metadata, table)
    videos = [file for file in listed.videos.values() if file is not None]
    streams = _trim_to_shortest([*_images(metadata, listed, table, clock), *_vectors(metadata, table, clock)], notes)
    return Episode(
        name=listed.name,
        streams=streams,
        instructions=_instructions(metadata, listed, table),
        format="lerobot",
        source=listed.table.relative_to(metadata.root).as_posix(),
        source_digest=digest_together([listed.table, *videos]),
        notes=notes,
    )


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = (file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if sum(groups) > LARGEST_TABLE:
                raise _UnusableError(f"{path.name} claims more than {LARGEST_TABLE / 2**30:.0f} GiB")
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise _UnusableError(f"{path.name} cannot be read as Parquet ({error})") from None
    if table.num_rows == 0:
        raise _UnusableError(f"{path.name} has no rows")
    return table


def _oddities(metadata: Metadata, listed: ListedEpisode, table: pa.Table) -> list[str]:
    """What the table says against the metadata.

    Raises:
        _UnusableError: the log itself marks the episode as invalid.
    """
    notes = []
    if listed.length is not None and listed.length != table.num_rows:
        notes.append(f"meta/episodes.jsonl says {listed.length} frames, the table has {table.num_rows} rows")
    if "episode_index" in table.column_names:
        numbers = set(table["episode_index"].to_pylist())
        if numbers != {listed.index}:
            notes.append(f"its column episode_index says {sorted(numbers, key=str)}")
    if "invalid" in _texts_of(metadata, table, _VALIDITY_COLUMN):
        raise _UnusableError(f"the log marks it as invalid ({_VALIDITY_COLUMN})")
    return notes


def _texts_of(metadata: Metadata, table: pa.Table, column: str) -> list[str]:
    """Distinct task texts of a column, in order; an index that tasks.jsonl does not have is left out."""
    if column not in table.column_names:
        return []
    values = dict.fromkeys(table[column].to_pylist())
    return [text for v in values if (text := v if isinstance(v, str) else metadata.tasks.get(v, "")).strip()]


def _instructions(metadata: Metadata, listed: ListedEpisode, table: pa.Table) -> list[str]:
    for texts in (*(_texts_of(metadata, table, column) for column in _TASK_COLUMNS), listed.tasks):
        real = [text.strip() for text in texts if text.strip() and text not in VALIDITY_FLAGS]
        if real:
            return list(dict.fromkeys(real))
    return []


def _clock(metadata: Metadata, table: pa.Table) -> np.ndarray:
    """Time stamps [T] in seconds: the table's own, else from the stated rate."""
    if "timestamp" in table.column_names:
        return _matrix(table, "timestamp").astype(np.float64).reshape(-1)
    if not metadata.rate:
        raise _UnusableError("it has no timestamp column and meta/info.json states no fps")
    return np.arange(table.num_rows) / metadata.rate


def _vectors(metadata: Metadata, table: pa.Table, clock: np.ndarray) -> Iterator[Stream]:
    for key in metadata.features:
        role = _role(key)
        if role is None or key in (*metadata.images, *metadata.cameras) or key not in table.column_names:
            continue
        values = _matrix(table, key)
        attributes: dict[str, Any] = {"key": key, **({"rate_hz": metadata.rate} if metadata.rate else {})}
        if names := dimension_names(metadata, key, values.shape[1]):
            attributes["names"] = names
        yield Stream(role, key.removeprefix("observation.").replace("/", "."), values, clock, attributes)


def _role(key: str) -> Role | None:
    if key in _ROLES:
        return _ROLES[key]
    return "other" if key.startswith(("observation.", "action.")) else None


def _matrix(table: pa.Table, key: str) -> np.ndarray:
    """A column of numbers, or of equally long lists of them, as [T, D].

    Raises:
        _UnusableError: it is of another kind, has missing values, or its rows differ in length.
    """
    import pyarrow as pa

    column = pa.concat_arrays(table[key].chunks)
    width = 1
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = set(column.value_lengths().to_pylist())
        if len(lengths) != 1 or None in lengths:
            raise _UnusableError(f"column '{key}' has rows of unequal length {sorted(lengths, key=str)[:4]}")
        width, column = lengths.pop(), column.flatten()
    if column.null_count:
        raise _UnusableError(f"column '{key}' has {column.null_count} missing values")
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise _UnusableError(f"column '{key}' holds {column.type}, not numbers")
    return np.array(column.to_numpy(zero_copy_only=False)).reshape(table.num_rows, width)


def _images(metadata: Metadata, listed: ListedEpisode, table: pa.Table, clock: np.ndarray) -> Iterator[Stream]:
    try:
        for key in metadata.images:
            if key not in table.column_names:
                raise _UnusableError(f"its table has no column '{key}'")
            encoded = [row["bytes"] if isinstance(row, dict) else row for row in table[key].to_pylist()]
            if not all(isinstance(data, bytes) for data in encoded):
                raise _UnusableError(f"column '{key}' holds no picture bytes")
            yield Stream("image", _camera(key), decode_pictures(encoded, key), clock, {"key": key})
        for key, file in listed.videos.items():
            if file is not None:
                frames = _video(file, table.num_rows, key)
                yield Stream("image", _camera(key), frames, clock, {"key": key, "rate_hz": metadata.rate})
    except ValueError as error:
        raise _UnusableError(str(error)) from None


def _video(file: Path, rows: int, key: str) -> np.ndarray:
    """A video's frames; one more or less than the table has rows is common and harmless, more is not."""
    frames = decode_video(file, rows + 2)
    if abs(len(frames) - rows) > 1:
        found = f"{len(frames)} frames" if len(frames) < rows else f"more than {rows + 1} frames"
        raise _UnusableError(f"the video of {key} has {found}, its table has {rows} rows")
    return frames


def _trim_to_shortest(streams: list[Stream], notes: list[str]) -> list[Stream]:
    """Cut all streams to the common length (they share a clock); a note says by how much."""
    common = min(len(stream) for stream in streams)
    for stream in streams:
        if len(stream) != common:
            notes.append(f"{stream.role} '{stream.name}' has {len(stream)} frames and is cut to the common {common}")
        stream.values, stream.timestamps = stream.values[:common], stream.timestamps[:common]
    return streams


def _camera(key: str) -> str:
    for prefix in ("observation.images.", "observation.image.", "observation."):
        key = key.removeprefix(prefix)
    return key.replace("/", ".")
