"""RLDS as TFDS stores it (BridgeData V2, Open X-Embodiment): TFRecord shards, one `tf.Example` an episode.

    <dataset>/<version>/features.json                               names, shapes and dtypes of all features
    <dataset>/<version>/dataset_info.json                           name, splits and their shard lengths
    <dataset>/<version>/<name>-<split>.tfrecord-00000-of-00001      plain, or packed with gzip

Features are flat: `steps/action`, `steps/observation/<key>`, `steps/language_instruction`, `episode_metadata/...`; each
is concatenated over the steps. Cameras are the `observation` pictures, the state its floating tensors (embeddings have
the role "other"), actions `steps/action` or everything below it; other numbers of the steps have the role "other". The
format states no control rate and no time stamps: both are assumed, and that is said. Nor does it state what a number
means; what is known of BridgeData V2 is stated for its data sets (see `_BRIDGE`).

Episodes are found by the lengths of the records alone; one is named after its split and place (`train_00000`, or
`train_s00003_00000` in the fourth of several shards).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_cli.episode import Episode, Stream, UnusableError
from vla_cli.errors import InputError
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.rlds_steps import ASSUMED_RATE, Steps
from vla_cli.readers.tf_example import Example
from vla_cli.readers.tfds_meta import Info, Leaf, Shard, is_version, leaves, shards
from vla_cli.readers.tfrecord import DamagedRecordError, RecordFile

KNOWN_RATES = {"bridge": 5.0}  # a dataset whose name begins so (formats of Open X-Embodiment)
MOST_RECORDS = 500_000  # far beyond any dataset: a hostile shard is made of nothing but empty records

_POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
_STATED = {"units": "m, rad", "rotation": "euler-xyz", "gripper": "open-high", "quaternion_sign": "none"}
# BridgeData V2's own words: "7-dimensional: 6 relative end-effector pose (x, y, z, roll, pitch, yaw), 1 gripper
# (open 1, closed 0)" for actions; its state is the absolute pose and the same gripper.
_BRIDGE = {"action": {**_STATED, "mode": "delta", "names": _POSE}, "state": {**_STATED, "names": _POSE}}


def recognise(path: Path) -> str | None:
    """Whether this is a TFDS dataset: features.json beside TFRecord shards, here or one level down."""
    versions = _versions(path)
    return f"{versions[0].name} holds features.json and TFRecord shards" if versions else None


def open_log(path: Path, options: Options, warn: Warn) -> RldsLog:
    """Open a dataset.

    Raises:
        InputError: there are no shards, features.json is missing or damaged, or there are several versions.
    """
    directory = _version(path)
    info, found, features = Info(directory), list(shards(directory)), leaves(directory / "features.json")
    if not found or not any(key.startswith("steps/") for key in features):
        kind = "" if info.file_format == "tfrecord" else f" (its files are of the format {info.file_format})"
        raise InputError(f"{directory} has no episodes{kind}", expected="TFRecord shards, and 'steps' in features.json")
    return RldsLog(directory, info, found, features, warn)


READER = Reader("a TFDS directory with features.json and TFRecord shards", recognise, open_log)


def _versions(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    candidates = [path, *sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())]
    return [candidate for candidate in candidates if is_version(candidate)]


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


@dataclass(frozen=True)
class _Place:
    """Where an episode is: its shard and the byte where its record begins."""

    shard: Shard
    offset: int

    def __str__(self) -> str:
        return f"{self.shard.path.name}@{self.offset}"


class RldsLog:
    """An open dataset; see `readers.Log`.

    Args:
        directory: of the version.
        info: what dataset_info.json says.
        found: the shards that are there.
        features: what features.json says.
        warn: takes what is odd about the log, each once.
    """

    def __init__(self, directory: Path, info: Info, found: list[Shard], features: dict[str, Leaf], warn: Warn) -> None:
        self.directory, self.info, self.shards, self.features = directory, info, found, features
        self._warn, self._said = warn, set[str]()
        self._open: tuple[Path, RecordFile] | None = None
        for message in info.contradictions(found):
            self.warn(message)
        self.dataset = found[0].dataset
        self.rate = self._rate()

    def warn(self, message: str) -> None:
        """Say a sentence, unless it was said before."""
        if message not in self._said:
            self._said.add(message)
            self._warn(message)

    def _rate(self) -> float:
        known = [rate for prefix, rate in KNOWN_RATES.items() if self.dataset.startswith(prefix)]
        rate = known[0] if known else ASSUMED_RATE
        why = f"the rate of {self.dataset.partition('_')[0]} recordings" if known else "a guess"
        self.warn(
            f"The log states no control rate: {rate:g} Hz is assumed ({why}); preprocess --rate resamples from it."
        )
        return rate

    def entries(self) -> list[Entry]:
        """See `Log`; warns where a shard has other episodes than dataset_info.json states."""
        listed: list[Entry] = []
        for shard, prefix in zip(self.shards, _prefixes(self.shards), strict=True):
            whole = 0
            files = (*((shard.path,) if self._owns(shard) else ()), self.directory / "features.json")
            for index, (place, damage) in enumerate(self._records(shard)):
                whole += not damage
                listed.append(Entry(f"{prefix}_{index:05d}", str(place), files))
                if len(listed) > MOST_RECORDS:
                    raise InputError(f"{self.directory} has more than {MOST_RECORDS} records", expected="episodes")
            stated = self.info.stated(shard)
            if stated is not None and stated != whole:
                where = shard.path.name
                self.warn(f"dataset_info.json states {stated} episodes in {where}, of which {whole} were found whole.")
        return listed

    def _records(self, shard: Shard) -> Iterator[tuple[_Place, str]]:
        try:
            for record in self._file(shard).records():
                yield _Place(shard, record.offset), record.damage
        except (DamagedRecordError, UnusableError, OSError) as error:
            yield _Place(shard, 0), str(error)

    def _owns(self, shard: Shard) -> bool:
        return shard.path.resolve().is_relative_to(self.directory.resolve())

    def _file(self, shard: Shard) -> RecordFile:
        """The shard's file; the one before is let go."""
        if self._open and self._open[0] == shard.path:
            return self._open[1]
        if not self._owns(shard):
            raise UnusableError(f"{shard.path.name} is a link that leads out of the log, which is not followed")
        self.close()
        self._open = shard.path, RecordFile(shard.path)
        return self._open[1]

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        name, _, offset = entry.locator.rpartition("@")
        shard = next(shard for shard in self.shards if shard.path.name == name)
        try:
            payload = self._file(shard).load(int(offset))
        except (DamagedRecordError, OSError) as error:
            raise UnusableError(f"{name} is damaged: {error}") from None
        try:
            steps = Steps(Example(payload), self.features, self.directory, self.rate, self.warn)
            episode = steps.episode(entry.name)
        except DamagedRecordError as error:
            raise UnusableError(str(error)) from None
        episode.source = f"{name}:{entry.name}"
        for stream in episode.streams:
            self._state(stream)
        return episode

    def _state(self, stream: Stream) -> None:
        """Add what is known of the dataset's numbers."""
        known = _BRIDGE.get(stream.role, {}) if self.dataset.startswith("bridge") else {}
        if isinstance(stream.values, np.ndarray) and stream.values.shape[1:] == (len(_POSE),):
            stream.attributes |= known

    def close(self) -> None:
        """See `Log`."""
        if self._open:
            self._open[1].close()
            self._open = None


def _prefixes(found: list[Shard]) -> list[str]:
    """What the names of each shard's episodes begin with: its split, and whatever else tells it from the others."""
    several = len({shard.dataset for shard in found}) > 1
    prefixes: list[str] = []
    for shard in found:
        prefix = shard.split if shard.total == 1 else f"{shard.split}_s{shard.number:05d}"
        prefix = re.sub(r"[^\w.-]", "_", f"{shard.dataset}_{prefix}" if several else prefix)
        while prefix in prefixes:  # left behind by another division into shards, or told apart by odd letters only
            prefix += f"_of{shard.total}"
        prefixes.append(prefix)
    return prefixes
