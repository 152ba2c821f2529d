"""What a TFDS version directory says of itself: its shards, its splits, and the features of an episode.

    features.json                                    a tree of feature kinds with shapes and dtypes
    dataset_info.json                                file format, splits and how many episodes each shard has
    <name>-<split>.tfrecord-00000-of-00001           the shards
    <feature, joined by '-'>.labels.txt              names of a class label's values, one a line

Source: tensorflow_datasets/core/proto/feature.proto and dataset_info.proto, written as JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_cli.errors import InputError
from vla_cli.files import read_json

LARGEST_JSON = 16 * 2**20
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{1,9})-of-(?P<total>\d{1,9})")
_KINDS = ("tensor", "image", "video", "text", "classLabel")


@dataclass(frozen=True)
class Shard:
    """One TFRecord file of a dataset."""

    path: Path
    dataset: str
    split: str
    number: int
    total: int


@dataclass(frozen=True)
class Leaf:
    """One feature.

    Attributes:
        kind: "tensor", "image", "video", "text" or "classLabel".
        shape: of one step; -1 where it is not fixed.
        dtype: as TFDS names it.
        encoding: "none", "bytes" or "zlib".
        depth: how many sequences it lies in; more than one is ragged.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = "none"
    depth: int = 0

    @property
    def width(self) -> int | None:
        """Numbers a step; None when that is not fixed."""
        return None if any(size < 0 for size in self.shape) else math.prod(self.shape)


def is_version(path: Path) -> bool:
    """Whether a directory holds a dataset, or what is left of one."""
    described = (path / "features.json").is_file()
    return next(shards(path), None) is not None or (described and (path / "dataset_info.json").is_file())


def shards(directory: Path) -> Iterator[Shard]:
    """The shards that are there, in order of name."""
    for file in sorted(directory.iterdir()):
        if match := _SHARD.fullmatch(file.name):
            yield Shard(file, match["name"], match["split"], int(match["number"]), int(match["total"]))


class Info:
    """dataset_info.json; one that is missing, and splits that are malformed, say nothing.

    Args:
        directory: the version directory.

    Raises:
        InputError: it is not JSON at all, or absurdly large.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "dataset_info.json"
        document = _document(path) if path.is_file() else {}
        document = document if isinstance(document, dict) else {}
        self.file_format = str(document.get("fileFormat", "tfrecord"))[:40]
        splits = document.get("splits", [])
        self.lengths: dict[str, list[int]] = {
            str(split["name"])[:100]: lengths
            for split in (splits if isinstance(splits, list) else [])
            if isinstance(split, dict) and "name" in split and (lengths := _lengths(split)) is not None
        }

    def stated(self, shard: Shard) -> int | None:
        """Episodes that a shard should have; None when it does not say."""
        lengths = self.lengths.get(shard.split, [])
        return lengths[shard.number] if shard.number < len(lengths) == shard.total else None

    def contradictions(self, found: list[Shard]) -> list[str]:
        """What it lists that is not there, a sentence each."""
        present = {shard.split for shard in found}
        said = [
            f"dataset_info.json lists the split '{split}' with {sum(lengths)} episodes, but there is no file of it: "
            f"only {', '.join(sorted(present))} is read."
            for split, lengths in self.lengths.items()
            if split not in present
        ]
        for split in sorted(present):
            numbers = {shard.number for shard in found if shard.split == split}
            total = max(shard.total for shard in found if shard.split == split)
            # Never a list as long as a file name claims.
            absent = [number for number in range(min(total, len(numbers) + 5)) if number not in numbers][:5]
            missing = total - sum(number < total for number in numbers)
            if missing:
                listed = ", ".join(str(number) for number in absent)
                said.append(f"Split '{split}' has {total} shards, but {missing} are not there (number {listed}).")
        return said


def _lengths(split: dict[str, Any]) -> list[int] | None:
    """Episodes in each shard as stated; None when that is not a list of numbers."""
    lengths = split.get("shardLengths", [])
    plain = isinstance(lengths, list) and all(re.fullmatch(r"\d{1,12}", str(length)) for length in lengths)
    return [int(length) for length in lengths] if plain else None


def _document(path: Path) -> Any:
    if path.is_file() and path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path} has {path.stat().st_size >> 20} MiB", expected=f"at most {LARGEST_JSON >> 20} MiB")
    return read_json(path)


def leaves(path: Path) -> dict[str, Leaf]:
    """The features of an episode by their flat names ("steps/observation/state").

    Raises:
        InputError: features.json is missing or malformed.
    """
    document = _document(path)
    try:
        return dict(_flatten(document, "", 0))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is malformed ({type(error).__name__}: {str(error)[:200]})", expected="features as TFDS writes them"
        ) from None


def _flatten(node: Any, path: str, depth: int) -> Iterator[tuple[str, Leaf]]:
    """Flat names; kinds that have no use here (audio, boxes, translations) are left out."""
    if not isinstance(node, dict):
        return
    for key, child in node.get("featuresDict", {}).get("features", {}).items():
        yield from _flatten(child, f"{path}/{key}" if path else key, depth)
    for wrapper in ("sequence", "dataset"):
        if wrapper in node:
            yield from _flatten(node[wrapper].get("feature"), path, depth + 1)
    if "optional" in node:
        yield from _flatten(node["optional"].get("feature"), path, depth)
    for kind in _KINDS:
        if kind in node:
            entry = node[kind]
            shape = tuple(int(size) for size in entry.get("shape", {}).get("dimensions", []))
            encoding = str(entry.get("encoding") or "none") if kind == "tensor" else "none"
            yield path, Leaf(kind, shape, str(entry.get("dtype", "")), encoding, depth)


def label_names(directory: Path, key: str) -> list[str]:
    """Names of a class label's values; empty when there is no file of them (the values are then their own names)."""
    parts = key.split("/")
    for first in range(len(parts)):
        path = directory / ("-".join(parts[first:]) + ".labels.txt")
        if path.is_file() and path.stat().st_size <= LARGEST_JSON:
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []
