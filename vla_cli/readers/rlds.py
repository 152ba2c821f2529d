"""RLDS as TFDS stores it (BridgeData V2, Open X-Embodiment): TFRecord shards, one `tf.Example` an episode.

    <dataset>/<version>/features.json                               names, shapes and dtypes of all features
    <dataset>/<version>/dataset_info.json                           name, splits and their shard lengths
    <dataset>/<version>/<name>-<split>.tfrecord-00000-of-00001

Features are flat: `steps/action`, `steps/observation/<key>`, `steps/language_instruction`, `episode_metadata/...`; each
is concatenated over the steps. Cameras are the `observation` pictures, the state its floating tensors (embeddings have
the role "other"), actions `steps/action` or everything below it. The format states no control rate and no time stamps:
both are assumed, and that is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.episode import Episode, Role, Skipped, Stream
from vla_cli.errors import InputError
from vla_cli.files import digest_file, read_json
from vla_cli.readers import Reader, Warn
from vla_cli.readers.pictures import decode_pictures
from vla_cli.readers.tfrecord import DamagedRecordError, Feature, parse_example, read_records

ASSUMED_RATE = 10.0
KNOWN_RATES = {"bridge": 5.0}  # a dataset whose name begins so (formats of Open X-Embodiment)
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d+)-of-(?P<total>\d+)")
_INSTRUCTIONS = ("steps/language_instruction", "steps/observation/natural_language_instruction")


@dataclass(frozen=True)
class _Shard:
    path: Path
    dataset: str
    split: str
    number: int
    total: int


@dataclass(frozen=True)
class _Leaf:
    """One entry of features.json: "tensor", "image" or "text", its shape a step, its dtype and how it is encoded."""

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = "none"


def recognise(path: Path) -> str | None:
    """Whether this is a TFDS dataset: features.json beside TFRecord shards, here or one level down."""
    versions = _versions(path)
    return f"{versions[0].name} holds features.json and TFRecord shards" if versions else None


def count(path: Path) -> int | None:
    """Episodes that dataset_info.json states for the shards that are there; None when it does not."""
    directory = _version(path)
    stated = [_stated_length(directory, shard) for shard in _shards(directory)]
    return sum(stated) if all(stated) else None  # pyright: ignore[reportArgumentType, reportCallIssue]


def read(path: Path, warn: Warn) -> Iterator[Episode | Skipped]:
    """Yield each episode, shard by shard.

    Raises:
        InputError: there are no shards, features.json is damaged, or there are several versions.
    """
    directory = _version(path)
    shards, leaves = _shards(directory), _leaves(directory / "features.json")
    if not shards or not any(key.startswith("steps/") for key in leaves):
        raise InputError(f"{directory} has no episodes", expected="TFRecord shards, and 'steps' in features.json")
    for message in _contradictions(directory, shards):
        warn(message)
    log = _Log(directory, leaves, _rate(shards[0].dataset, warn), warn)
    for shard in shards:
        yield from log.read_shard(shard)


READER = Reader("a TFDS directory with features.json and TFRecord shards", recognise, count, read)


def _versions(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    candidates = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    return [c for c in candidates if (c / "features.json").is_file() and _shards(c)]


def _version(path: Path) -> Path:
    versions = _versions(path)
    if len(versions) == 1:
        return versions[0]
    if versions:
        names = ", ".join(v.name for v in versions)
        raise InputError(
            f"{path} holds several versions ({names})", expected="one", hint=f"{versions[-1]} as the source"
        )
    raise InputError(f"{path} is no TFDS dataset", expected=READER.looks_for)


def _shards(directory: Path) -> list[_Shard]:
    found = []
    for file in sorted(directory.iterdir()):
        if (match := _SHARD.fullmatch(file.name)) and file.is_file():
            numbers = int(match["number"]), int(match["total"])
            found.append(_Shard(file, match["name"], match["split"], *numbers))
    return found


def _splits(directory: Path) -> list[dict[str, Any]]:
    info = directory / "dataset_info.json"
    document = read_json(info) if info.is_file() else {}
    splits = document.get("splits", []) if isinstance(document, dict) else []
    return [split for split in splits if isinstance(split, dict) and "name" in split and _lengths(split) is not None]


def _lengths(split: dict[str, Any]) -> list[int] | None:
    """Episodes in each shard as stated; None when that is not a list of numbers."""
    lengths = split.get("shardLengths", [])
    stated = isinstance(lengths, list) and all(str(length).isdigit() for length in lengths)
    return [int(length) for length in lengths] if stated else None


def _stated_length(directory: Path, shard: _Shard) -> int | None:
    for split in _splits(directory):
        lengths = _lengths(split) or []
        if split["name"] == shard.split and shard.number < len(lengths) == shard.total:
            return lengths[shard.number]
    return None


def _contradictions(directory: Path, shards: list[_Shard]) -> list[str]:
    found = []
    present = {shard.split for shard in shards}
    for split in _splits(directory):
        if split["name"] not in present:
            found.append(
                f"dataset_info.json lists the split '{split['name']}' with {sum(_lengths(split) or [])} episodes, but "
                f"there is no file of it: only {', '.join(sorted(present))} is read."
            )
    for split in sorted(present):
        total = max(shard.total for shard in shards if shard.split == split)
        absent = sorted(set(range(total)) - {shard.number for shard in shards if shard.split == split})
        if absent:
            numbers = ", ".join(str(number) for number in absent[:5])
            found.append(f"Split '{split}' has {total} shards, but {len(absent)} are not there (number {numbers}).")
    return found


def _rate(dataset: str, warn: Warn) -> float:
    known = [rate for prefix, rate in KNOWN_RATES.items() if dataset.startswith(prefix)]
    rate = known[0] if known else ASSUMED_RATE
    why = f"the rate of {dataset.partition('_')[0]} recordings" if known else "a guess"
    warn(f"The log states no control rate: {rate:g} Hz is assumed ({why}); preprocess --rate resamples from it.")
    return rate


def _leaves(path: Path) -> dict[str, _Leaf]:
    document = read_json(path)
    try:
        return _flatten(document)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is malformed ({error!r})", expected="features as TFDS writes them") from None


def _flatten(node: Any, path: str = "") -> dict[str, _Leaf]:
    """features.json as flat feature names. Entries of kinds that are not needed here are left out."""
    found: dict[str, _Leaf] = {}
    if not isinstance(node, dict):
        return found
    for key, child in node.get("featuresDict", {}).get("features", {}).items():
        found |= _flatten(child, f"{path}/{key}" if path else key)
    for wrapper in ("sequence", "dataset"):
        if wrapper in node:
            found |= _flatten(node[wrapper].get("feature"), path)
    for kind in ("tensor", "image", "text"):
        if kind in node:
            entry = node[kind]
            shape = tuple(int(size) for size in entry.get("shape", {}).get("dimensions", []))
            encoding = entry.get("encoding", "none") if kind == "tensor" else "none"
            found[path] = _Leaf(kind, shape, str(entry.get("dtype", "")), encoding)
    return found


class _Log:
    """What all episodes of one dataset share."""

    def __init__(self, directory: Path, leaves: dict[str, _Leaf], rate: float, warn: Warn) -> None:
        self.directory, self.leaves, self.rate, self.warn = directory, leaves, rate, warn
        self.cameras = {k: v for k, v in leaves.items() if k.startswith("steps/observation/") and v.kind == "image"}
        self.vectors: dict[str, Role] = {k: role for k, leaf in leaves.items() if (role := _role(k, leaf))}

    def read_shard(self, shard: _Shard) -> Iterator[Episode | Skipped]:
        """Yield the shard's episodes; warns when there are fewer than stated."""
        digest, seen = digest_file(shard.path), 0
        prefix = shard.split if shard.total == 1 else f"{shard.split}_s{shard.number:05d}"
        for index, record in enumerate(read_records(shard.path)):
            name = f"{prefix}_{index:05d}"
            if record.damage:
                rest = ", and nothing after it can be found" if record.last else ""
                yield Skipped(name, f"{shard.path.name} is damaged: {record.damage}{rest}")
                continue
            seen += 1
            try:
                yield self._read_episode(name, shard, digest, parse_example(record.payload))
            except (DamagedRecordError, ValueError) as error:
                yield Skipped(name, str(error))
        stated = _stated_length(self.directory, shard)
        if stated is not None and stated != seen:
            self.warn(
                f"dataset_info.json states {stated} episodes in {shard.path.name}, of which {seen} were found whole."
            )

    def _read_episode(self, name: str, shard: _Shard, digest: str, example: dict[str, Feature]) -> Episode:
        notes = [f"no rate is stated: {self.rate:g} Hz is assumed, time stamps are counted from it"]
        clock = np.arange(self._steps(example)) / self.rate
        streams = [*self._images(example, clock, notes), *self._streams(example, clock, notes)]
        return Episode(
            name=name,
            streams=streams,
            instructions=_instructions(example),
            format="rlds",
            source=f"{shard.path.name}:{name}",
            source_digest=digest,
            notes=notes,
        )

    def _steps(self, example: dict[str, Feature]) -> int:
        """Steps of the episode: as many as its actions."""
        for key, role in self.vectors.items():
            if role == "action" and key in example:
                return len(example[key]) // max(1, math.prod(self.leaves[key].shape))
        raise ValueError("it has no 'steps/action'")

    def _images(self, example: dict[str, Feature], clock: np.ndarray, notes: list[str]) -> Iterator[Stream]:
        for key, leaf in sorted(self.cameras.items()):
            camera = _short(key)
            if leaf.shape[-1:] not in ((3,), (4,)):
                notes.append(f"camera {camera} is left out: its shape is {list(leaf.shape)}, not colour")
                continue
            encoded = example.get(key, [])
            if not isinstance(encoded, list) or len(encoded) != len(clock):
                raise ValueError(f"unequal lengths: {len(clock)} actions, but {len(encoded)} pictures of {camera}")
            frames = decode_pictures(encoded, camera)
            if not self._is_placeholder(example, camera, frames, notes):
                yield Stream("image", camera, frames, clock, {"key": key})

    def _is_placeholder(self, example: dict[str, Feature], camera: str, frames: np.ndarray, notes: list[str]) -> bool:
        """Whether a camera only fills the format's slot. The pictures decide: real logs have flags that are wrong."""
        stated = _flag(example, f"episode_metadata/has_{camera}")
        flat = int(frames.min()) == int(frames.max())
        if flat:
            notes.append(f"camera {camera} is left out: every picture is one flat colour, a placeholder")
            self.warn(f"Camera {camera} is a placeholder (one flat colour) in some or all episodes: left out there.")
        elif stated is False:
            notes.append(f"has_{camera} is false, but the camera's pictures are real: it is kept")
            self.warn(f"episode_metadata/has_{camera} is false, but its pictures are real: the camera is kept.")
        return flat

    def _streams(self, example: dict[str, Feature], clock: np.ndarray, notes: list[str]) -> Iterator[Stream]:
        steps = len(clock)
        for key, role in self.vectors.items():
            leaf, values = self.leaves[key], example.get(key)
            if leaf.encoding != "none" or not isinstance(values, np.ndarray):
                notes.append(f"{key} is left out: it is missing, or stored as {leaf.encoding or 'bytes'}")
                continue
            width = math.prod(leaf.shape)
            if len(values) != steps * width:
                raise ValueError(
                    f"unequal lengths: {steps} actions, but {key} has {len(values)} values of {width} a step"
                )
            matrix = values.reshape(steps, width)
            yield Stream(role, _short(key), matrix, clock, {"key": key, "shape": list(leaf.shape)})


def _role(key: str, leaf: _Leaf) -> Role | None:
    if leaf.kind != "tensor" or leaf.dtype in ("string", "object"):
        return None
    if key == "steps/action" or key.startswith("steps/action/"):
        return "action"
    if not key.startswith("steps/observation/"):
        return None
    is_state = leaf.dtype.startswith(("float", "bfloat")) and len(leaf.shape) < 2 and "embedding" not in key
    return "state" if is_state else "other"


def _short(key: str) -> str:
    return key.removeprefix("steps/observation/").removeprefix("steps/").replace("/", ".")


def _flag(example: dict[str, Feature], key: str) -> bool | None:
    values = example.get(key)
    return bool(values[0]) if isinstance(values, np.ndarray) and len(values) else None


def _instructions(example: dict[str, Feature]) -> list[str]:
    if _flag(example, "episode_metadata/has_language") is False:
        return []
    for key in _INSTRUCTIONS:
        said = example.get(key, [])
        texts = [text.decode("utf-8", "replace").strip() for text in said] if isinstance(said, list) else []
        if any(texts):
            return [text for text in dict.fromkeys(texts) if text]
    return []
