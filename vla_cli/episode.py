"""One demonstration: streams with their own clocks, the instruction(s), and where it came from.

On disk an episode is one HDF5 file (written to a partial path and moved), so that a crash while writing one loses
one:

    /                       attrs: schema_version, name, format, source, source_digest, operator, instructions (JSON),
                            world (JSON or empty), notes (JSON)
    /streams/<role>/<name>  attrs: attributes (JSON): names, rate_hz, and the conventions (see `conventions`)
        values              [T, ...]   images uint8 RGB [T, H, W, 3]; vectors float32 or float64 [T, D]
        timestamps          [T]        float64 seconds on the stream's own clock, not decreasing

Pictures keep the packing of the log (see `stored_frames`): instead of `values` a camera may have its JPEG or PNG
pictures or its video.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.digests import digest_recording
from vla_cli.errors import InputError, words
from vla_cli.field_types import ill_typed
from vla_cli.files import replacing, write_text
from vla_cli.provenance import not_an_artefact
from vla_cli.stored_frames import load_frames, save_frames

SCHEMA_VERSION = 2
MANIFEST = "manifest.jsonl"


LONGEST_CLOCK = 1e15
"""Seconds beyond which a clock is damaged, whatever its unit: ten days in nanoseconds are fewer."""


class _ManifestRow(TypedDict):
    """What every line of the manifest has at least."""

    file: str
    digest: str
    name: str
    instructions: list[str]
    operator: str
    steps: int
    seconds: float
    rate_hz: float
    cameras: dict[str, list[int]]
    state_dim: int
    action_dim: int


Role = Literal["image", "state", "action", "other"]


@dataclass
class Stream:
    """Values over time on one clock.

    Attributes:
        role: what the policy may use it as.
        name: camera or vector name as the log gives it.
        values: [T, H, W, 3] uint8 RGB for images (an array, or `Frames` that are decoded as they are asked for), [T, D]
            float for vectors.
        timestamps: [T] float64 seconds, not decreasing.
        attributes: what the log says of it: "names" (one per dimension), "rate_hz", and the conventions of
            `conventions.KEYS`. What the log does not say is left out, never guessed.
    """

    role: Role
    name: str
    values: Any
    timestamps: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class Episode:
    """One demonstration as recorded, before any resampling.

    Attributes:
        name: unique within its source, safe as a file name.
        streams: every stream, any order; (role, name) is unique.
        instructions: what the robot was told, as the log gives it; may be empty.
        operator: who demonstrated, or "unknown".
        format: the reader's name.
        source: the log it came from, relative to what the user named.
        source_digest: "blake3:..." of the source file, or "sha256:..." over those of several.
        world: robomimic `env_args` when the log names its environment, else None.
        notes: plain sentences about oddities met while reading.
    """

    name: str
    streams: list[Stream]
    instructions: list[str]
    operator: str = "unknown"
    format: str = ""
    source: str = ""
    source_digest: str = ""
    world: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def of_role(self, role: Role) -> list[Stream]:
        """The streams of one role, in name order."""
        return sorted((s for s in self.streams if s.role == role), key=lambda s: s.name)


class UnusableError(Exception):
    """An episode cannot be used; the message is the reason, a plain sentence without the episode's name."""


@dataclass(frozen=True)
class Skipped:
    """An episode that cannot be used: its name (or that of the part of the log) and the reason, a plain sentence."""

    name: str
    reason: str


def problems(episode: Episode) -> list[str]:
    """Why an episode cannot be used, one sentence each; empty when it can.

    Checks that there are images and actions, that each stream's values and timestamps have equal lengths, that
    vectors are finite, that timestamps do not go backwards, that names are distinct, and that nothing is empty.
    """
    found = []
    if not episode.of_role("image"):
        found.append("it has no images")
    if not episode.of_role("action"):
        found.append("it has no actions")
    keys = [(stream.role, stream.name) for stream in episode.streams]
    for stream in episode.streams:
        label = f"{stream.role} stream '{stream.name}'"
        if keys.count((stream.role, stream.name)) > 1 or "/" in stream.name or stream.name in ("", ".", ".."):
            found.append(f"{label} has a name that is taken, empty, or a path")
        if len(stream.values) == 0:
            found.append(f"{label} is empty")
        if len(stream.values) != len(stream.timestamps):
            found.append(f"{label} has {len(stream.values)} values but {len(stream.timestamps)} timestamps")
        elif not np.all(np.isfinite(stream.timestamps)) or np.any(np.diff(stream.timestamps) < 0):
            found.append(f"{label} has timestamps that are not finite or go backwards")
        elif len(stream.timestamps) and float(stream.timestamps[-1]) - float(stream.timestamps[0]) > LONGEST_CLOCK:
            found.append(f"{label} has timestamps that are over {LONGEST_CLOCK:g} seconds apart")
        if stream.role == "image":
            if stream.values.ndim != 4 or stream.values.shape[-1] != 3 or stream.values.dtype != np.uint8:
                found.append(f"{label} is {stream.values.dtype}{list(stream.values.shape)}, not uint8 [T, H, W, 3]")
        elif stream.values.ndim != 2:
            found.append(f"{label} is {stream.values.dtype}{list(stream.values.shape)}, not [T, D]")
        elif np.issubdtype(stream.values.dtype, np.floating) and not np.all(np.isfinite(stream.values)):
            bad = int(np.sum(~np.isfinite(stream.values).reshape(len(stream.values), -1).all(axis=1)))
            found.append(f"{label} has NaN or infinite values in {bad} of {len(stream.values)} steps")
    return found


def save_episode(episode: Episode, path: Path) -> None:
    """Write an episode whole or not at all, decoding every picture once. Equal episodes give equal bytes.

    Raises:
        ValueError: a picture cannot be decoded.
    """
    with replacing(path) as partial, h5py.File(partial, "w", track_order=True) as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        for key in ("name", "format", "source", "source_digest", "operator"):
            file.attrs[key] = getattr(episode, key)
        file.attrs["instructions"] = json.dumps(episode.instructions, ensure_ascii=False)
        file.attrs["world"] = json.dumps(episode.world, ensure_ascii=False)
        file.attrs["notes"] = json.dumps(episode.notes, ensure_ascii=False)
        for stream in episode.streams:
            group = file.create_group(f"streams/{stream.role}/{stream.name}")
            if stream.role == "image":
                save_frames(stream.values, group)
            else:
                group.create_dataset("values", data=stream.values)
            group.create_dataset("timestamps", data=np.asarray(stream.timestamps, np.float64))
            group.attrs["attributes"] = json.dumps(stream.attributes, ensure_ascii=False)


def load_episode(path: Path) -> Episode:
    """Read an episode that `save_episode` wrote; its pictures are decoded when they are asked for.

    Raises:
        InputError: the file is missing, truncated, or not one of ours.
    """
    with _reading(path) as file:
        facts = {k: hdf5.text(file, k) for k in ("name", "format", "source", "source_digest", "operator")}
        return Episode(
            streams=list(_read_streams(hdf5.group(file, "streams"))),
            instructions=json.loads(hdf5.text(file, "instructions")),
            world=json.loads(hdf5.text(file, "world")),
            notes=json.loads(hdf5.text(file, "notes")),
            **facts,
        )


def load_headers(path: Path) -> list[Stream]:
    """The vector streams of an episode file without their steps: values [0, D] and no timestamps.

    Raises:
        InputError: the file is missing, truncated, or not one of ours.
    """
    with _reading(path) as file:
        found = _stored_streams(hdf5.group(file, "streams"))
        return [
            Stream(
                role=role,
                name=name,
                values=np.empty((0, *hdf5.dataset(stream, "values").shape[1:])),
                timestamps=np.empty(0),
                attributes=json.loads(hdf5.text(stream, "attributes")),
            )
            for role, name, stream in found
            if role != "image"
        ]


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """An open episode file; whatever cannot be read of it is an InputError."""
    try:
        with hdf5.opened(path) as file:
            version = int(hdf5.number(file, "schema_version", 0))
            if version != SCHEMA_VERSION or "streams" not in file:
                raise InputError(
                    f"{path} is not an episode file of this version (schema_version {version})",
                    expected=f"schema_version {SCHEMA_VERSION}",
                    hint="vla collect-ingest SOURCE --out episodes/ to make it again",
                )
            yield file
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as an episode ({words(error)})",
            expected="a whole HDF5 file written by collect-ingest",
            hint="vla collect-ingest SOURCE --out episodes/ to make it again",
        ) from None


def _stored_streams(streams: h5py.Group) -> Iterator[tuple[Role, str, h5py.Group]]:
    for role in hdf5.names(streams):
        for name in hdf5.names(hdf5.group(streams, role)):
            yield cast("Role", role), name, hdf5.group(hdf5.group(streams, role), name)


def _read_streams(streams: h5py.Group) -> Iterator[Stream]:
    for role, name, stream in _stored_streams(streams):
        yield Stream(
            role=role,
            name=name,
            values=load_frames(stream) if role == "image" else hdf5.array(stream, "values"),
            timestamps=hdf5.array(stream, "timestamps"),
            attributes=json.loads(hdf5.text(stream, "attributes")),
        )


def manifest_row(episode: Episode, file: Path) -> dict[str, Any]:
    """What `manifest.jsonl` says of an episode saved as `file`: enough to plan a dataset without opening it.

    `cameras` maps each camera to its [height, width]; `rate_hz` is the action stream's `native_rate`; `pauses`, where
    there are any, are [start, length] in seconds.
    """
    actions = episode.of_role("action")
    clock = actions[0].timestamps
    paused = [[round(value, 6) for value in pause] for pause in pauses(episode)]
    return {
        "file": file.name,
        "digest": digest_recording(file),
        "name": episode.name,
        "instructions": episode.instructions,
        "operator": episode.operator,
        "steps": len(clock),
        "seconds": round(float(clock[-1] - clock[0]), 6),
        "rate_hz": round(native_rate(actions[0]), 6),
        "cameras": {s.name: list(s.values.shape[1:3]) for s in episode.of_role("image")},
        "state_dim": sum(s.values.shape[1] for s in episode.of_role("state")),
        "action_dim": sum(s.values.shape[1] for s in actions),
        **({"pauses": paused} if paused else {}),
    }


def pauses(episode: Episode) -> list[tuple[float, float]]:
    """When nothing was recorded: the holes of the first camera's clock beside which every other stream has one too.

    Returns:
        (start, length) of each in seconds, the start counted from the episode's first stamp. A recorder that was paused
        leaves such, and steps that a format marks as not sent.
    """
    streams = [stream for role in ("image", "state", "action") for stream in episode.of_role(role)]
    holes = [_holes(stream.timestamps) for stream in streams]
    origin = min((float(stream.timestamps[0]) for stream in streams), default=0.0)
    return [
        (float(start) - origin, float(end - start))
        for start, end in (holes[0] if holes else ())
        if all(np.any((other[:, 0] < end) & (other[:, 1] > start)) for other in holes[1:])
    ]


def _holes(timestamps: np.ndarray) -> np.ndarray:
    """Start and end [N, 2] of each step of a clock that misses a tick (see `is_whole`)."""
    clock = np.asarray(timestamps, np.float64)
    before = np.flatnonzero(np.diff(clock) * median_rate(clock) >= _WHOLE[1])
    return np.stack([clock[before], clock[before + 1]], axis=1)


_WHOLE = (0.25, 1.75)


def median_rate(timestamps: np.ndarray) -> float:
    """Samples a second of a clock [T] in seconds, from its median step; 0 when it has none."""
    steps = np.diff(timestamps)
    middle = float(np.median(steps)) if len(steps) else 0.0
    return 1.0 / middle if middle > 0 else 0.0


def is_whole(timestamps: np.ndarray) -> bool:
    """Whether no tick of a clock [T] is missing or doubled: each step is between 1/4 and 7/4 of the median one."""
    steps = np.diff(timestamps) * median_rate(timestamps)
    return len(steps) > 0 and bool(np.all((steps > _WHOLE[0]) & (steps < _WHOLE[1])))


def native_rate(stream: Stream) -> float:
    """Samples a second of a stream: as the log states it, unless its time stamps say otherwise; 0 when unknown.

    The median step of a few jittered stamps is off by several percent. Over a clock without holes the mean step is far
    better, and a stated rate that agrees with it within a tenth is better still.
    """
    clock = stream.timestamps
    measured = (len(clock) - 1) / float(clock[-1] - clock[0]) if is_whole(clock) else median_rate(clock)
    stated = float(stream.attributes.get("rate_hz") or 0.0)
    return stated if stated > 0 and abs(measured - stated) <= 0.1 * stated else measured


def write_manifest(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write `manifest.jsonl`: one line an episode, in order."""
    write_text(directory / MANIFEST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_manifest(directory: Path) -> list[dict[str, Any]]:
    """Read `manifest.jsonl` and check that every episode file is there, unchanged.

    Raises:
        InputError: the directory is not an `episodes/` artefact, or a file is missing or was changed.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise not_an_artefact(directory, MANIFEST, "collect-ingest")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({words(error)})", expected="one JSON object a line") from None
    # Not splitlines(): an instruction may hold a character that it takes for the end of a line.
    lines = [line for line in text.split("\n") if line]
    rows = [_manifest_row(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]
    for row in rows:
        file = directory / row["file"]
        if not file.is_file() or digest_recording(file) != row["digest"]:
            raise InputError(
                f"{file} is {'changed' if file.is_file() else 'missing'} since it was ingested",
                hint="vla collect-ingest again with --overwrite",
            )
    return rows


def _manifest_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not valid JSON ({words(error)})", expected="one JSON object a line") from None
    keys = _ManifestRow.__required_keys__
    if not isinstance(row, dict) or (missing := sorted(keys - set(row))):
        lacking = missing if isinstance(row, dict) else "keys"
        raise InputError(f"{where} lacks {lacking}", hint="vla collect-ingest to make it again")
    wrong = ill_typed(_ManifestRow, {key: row[key] for key in keys})
    if not wrong and Path(row["file"]).name != row["file"]:
        wrong = {"file": "a plain file name"}
    if not wrong and not 0 <= row["seconds"] <= LONGEST_CLOCK:
        wrong = {"seconds": f"a length from 0 to {LONGEST_CLOCK:g}"}
    if wrong:
        said = "; ".join(f"{key} is not {expected}" for key, expected in wrong.items())
        raise InputError(f"{where} cannot be used ({said})", hint="vla collect-ingest to make it again")
    return row
