"""The rows and videos of one LeRobot episode, made into streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_cli.episode import Role, Stream, UnusableError
from vla_cli.frames import Frames, PictureFrames, VideoFrames
from vla_cli.pictures import NotColour
from vla_cli.readers.lerobot_meta import VALIDITY_FLAGS, Metadata, dimension_names
from vla_cli.readers.lerobot_parquet import PictureColumn, Table, numbers_of
from vla_cli.video import probe

if TYPE_CHECKING:
    import pyarrow as pa

_ROLES: dict[str, Role] = {"observation.state": "state", "action": "action"}
_ALIASES: dict[str, Role] = {"state": "state", "actions": "action"}  # as openpi's converters call them
# Where the instruction stands, best first; each holds indices into the list of tasks, or the text itself.
_TASK_COLUMNS = ("annotation.human.action.task_description", "annotation.human.task_description", "task_index")
_VALIDITY_COLUMN = "annotation.human.validity"


@dataclass(frozen=True)
class VideoPart:
    """An episode's stretch of a video: the file, its first picture, how many (None: all that follow)."""

    path: Path
    start: int = 0
    length: int | None = None


@dataclass
class Part:
    """One episode, found: its rows of a table, its stretch of each video, and the tasks that are listed for it."""

    table: Table
    start: int
    stop: int
    index: int
    tasks: Sequence[str]
    videos: dict[str, VideoPart]
    notes: list[str] = field(default_factory=list)


def streams_of(metadata: Metadata, part: Part) -> tuple[list[Stream], list[str]]:
    """An episode's streams, and its instructions; `part.notes` grows.

    Raises:
        UnusableError: something is damaged or contradictory, or the log itself marks the episode as invalid.
    """
    wanted = [*metadata.vectors, *_TASK_COLUMNS, _VALIDITY_COLUMN, "timestamp", "episode_index"]
    rows = part.table.read(list(dict.fromkeys(wanted)), part.start, part.stop)
    _check_rows(metadata, part, rows)
    clock = _clock(metadata, rows, part)
    try:
        streams = [*_images(metadata, part, clock), *_vectors(metadata, rows, clock, part)]
    except ValueError as error:
        raise UnusableError(str(error)) from None
    return _trim_to_shortest(streams, part.notes), _instructions(metadata, part, rows)


def _check_rows(metadata: Metadata, part: Part, rows: pa.Table) -> None:
    if "episode_index" in rows.column_names:
        numbers = set(_matrix(rows, "episode_index").reshape(-1).tolist())
        if numbers != {part.index}:
            part.notes.append(f"its column episode_index says {sorted(numbers)[:5]}")
    if "invalid" in _texts_of(metadata, rows, _VALIDITY_COLUMN):
        raise UnusableError(f"the log marks it as invalid ({_VALIDITY_COLUMN})")


def _texts_of(metadata: Metadata, rows: pa.Table, column: str) -> list[str]:
    """Distinct task texts of a column, in order; an index that the list of tasks does not have is left out."""
    if column not in rows.column_names:
        return []
    values = rows[column].unique().to_pylist()  # not more than are different
    return [text for v in values if (text := v if isinstance(v, str) else metadata.tasks.get(v, "")).strip()]


def _instructions(metadata: Metadata, part: Part, rows: pa.Table) -> list[str]:
    for texts in (*(_texts_of(metadata, rows, column) for column in _TASK_COLUMNS), part.tasks):
        real = [text.strip() for text in texts if text.strip() and text not in VALIDITY_FLAGS]
        if real:
            return list(dict.fromkeys(real))
    return []


def _clock(metadata: Metadata, rows: pa.Table, part: Part) -> np.ndarray:
    """Time stamps [T] in seconds: the table's own, else from the stated rate."""
    if "timestamp" in rows.column_names:
        return _matrix(rows, "timestamp").astype(np.float64).reshape(-1)
    if not metadata.rate:
        raise UnusableError("it has no timestamp column and meta/info.json states no fps")
    part.notes.append(f"its table has no timestamp column; its clock runs at the stated {metadata.rate:g} Hz")
    return np.arange(part.stop - part.start) / metadata.rate


def _vectors(metadata: Metadata, rows: pa.Table, clock: np.ndarray, part: Part) -> Iterator[Stream]:
    for key in metadata.vectors:
        if key not in rows.column_names:
            part.notes.append(f"its table has no column '{key}', which meta/info.json lists")
            continue
        values = _matrix(rows, key)
        attributes: dict[str, Any] = {"key": key, **({"rate_hz": metadata.rate} if metadata.rate else {})}
        if names := dimension_names(metadata, key, values.shape[1]):
            attributes["names"] = names
        name = key.removeprefix("observation.").replace("/", ".")
        yield Stream(_role(metadata, key), name, values, clock, attributes)


def _role(metadata: Metadata, key: str) -> Role:
    role = _ALIASES.get(key)
    if role is not None and not any(_ROLES[usual] == role for usual in _ROLES if usual in metadata.features):
        return role
    return _ROLES.get(key, "other")


def _matrix(rows: pa.Table, key: str) -> np.ndarray:
    import pyarrow as pa

    return numbers_of(pa.concat_arrays(rows[key].chunks), key)


def _images(metadata: Metadata, part: Part, clock: np.ndarray) -> Iterator[Stream]:
    stated: dict[str, Any] = {"channels": "rgb", **({"rate_hz": metadata.rate} if metadata.rate else {})}
    for key in metadata.images:
        if key not in part.table.columns:
            raise UnusableError(f"its table has no column '{key}'")
        encoded = PictureColumn(part.table.path, key, part.start, part.stop)
        try:
            frames: Frames = PictureFrames(encoded, part.stop - part.start, key)
        except NotColour as error:
            part.notes.append(f"camera '{_camera(key)}' is left out: {error}")
            continue
        yield Stream("image", _camera(key), frames, clock, {"key": key, **stated})
    for key, stretch in part.videos.items():
        frames = _video(stretch, part.stop - part.start, key)
        yield Stream("image", _camera(key), frames, clock, {"key": key, **stated})


def _video(stretch: VideoPart, rows: int, key: str) -> VideoFrames:
    """A video's frames; one more or less than the table has rows is common and harmless, more is not."""
    _, shape = probe(stretch.path)
    length = shape[0] - stretch.start if stretch.length is None else stretch.length
    if abs(length - rows) > 1 or length < 1:
        raise UnusableError(f"the video of {key} has {max(0, length)} frames, its table has {rows} rows")
    return VideoFrames(stretch.path, (length, *shape[1:]), stretch.start)


def _trim_to_shortest(streams: list[Stream], notes: list[str]) -> list[Stream]:
    """Cut all streams to the common length (they share a clock); a note says by how much."""
    common = min((len(stream) for stream in streams), default=0)
    for stream in streams:
        if len(stream) != common:
            notes.append(f"{stream.role} '{stream.name}' has {len(stream)} frames and is cut to the common {common}")
            stream.values = stream.values.cut(common) if stream.role == "image" else stream.values[:common]
        stream.timestamps = stream.timestamps[:common]
    return streams


def _camera(key: str) -> str:
    for prefix in ("observation.images.", "observation.image.", "observation."):
        key = key.removeprefix(prefix)
    return key.replace("/", ".")
