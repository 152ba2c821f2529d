"""The synchronised dataset: every demonstration on one control clock, ready to train on.

On disk a directory:

    dataset.hdf5    robomimic's layout, which robomimic and its relatives read as it is
        /data               attrs: total, env_args (robomimic's JSON), schema_version, rate_hz, cameras, state_names,
                            action_names, world (JSON each); squared, where `vla preprocess --image-size` was given
        /data/demo_<i>      attrs: num_samples, episode (source name), operator, instructions (JSON list),
                            ep_meta (RoboCasa's JSON: {"lang": first instruction})
            obs/<camera>    [T, H, W, 3] uint8 RGB
            obs/state       [T, S] float32, the log's own units
            actions         [T, A] float32, the log's own units
            rewards, dones  [T] float32 zeros, and 1 at the last frame alone: robomimic asks for both by default, and
                            no log is taken to say more
            timestamps      [T] float64 seconds from the first frame
        /mask/{train,valid} demo names as byte strings
    stats.json      normalisation statistics of the training split
    splits.json     the same split by episode name, for people
    quality.json    facts about each episode: frames, idle frames trimmed, gaps, notes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.errors import InputError, words
from vla_cli.files import replacing, write_json
from vla_cli.provenance import not_an_artefact
from vla_cli.stats import DatasetStatistics, load_statistics, save_statistics

SCHEMA_VERSION = 1
FILE_NAME = "dataset.hdf5"
SPLITS = "splits.json"
QUALITY = "quality.json"
STATE_KEY = "state"
# robomimic's EnvType.GYM_TYPE; its loaders demand an env_args even of real-robot data.
_NO_WORLD = {"env_name": "", "type": 2, "env_kwargs": {}}
_REMAKE = "vla preprocess EPISODES --out {directory} --overwrite"


@dataclass
class Demonstration:
    """One demonstration on the control clock.

    Attributes:
        name: the source episode's name.
        images: camera to [T, H, W, 3] uint8 RGB.
        state: [T, S] float32, the log's own units; S may be 0.
        actions: [T, A] float32, the log's own units; actions[t] is the command given at frame t.
        instructions: what the robot was told; may be empty.
        operator: who demonstrated, or "unknown".
    """

    name: str
    images: dict[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    instructions: list[str]
    operator: str = "unknown"

    def __len__(self) -> int:
        return len(self.actions)


@dataclass
class Dataset:
    """Demonstrations that share clock, cameras, and state and action dimensions.

    Attributes:
        demonstrations: in order of their source.
        train: names of the demonstrations to train on.
        valid: names of those held out; disjoint from `train`, may be empty.
        rate_hz: frames a second of the control clock.
        cameras: camera names in the policy's order.
        state_names: one a state dimension.
        action_names: one an action dimension.
        world: robomimic `env_args` that all demonstrations share, or None.
        statistics: of the training split.
        squared: edge of the squares that pictures were padded and resized to; None where they are as recorded.
    """

    demonstrations: list[Demonstration]
    train: list[str]
    valid: list[str]
    rate_hz: float
    cameras: list[str]
    state_names: list[str]
    action_names: list[str]
    world: dict[str, Any] | None
    statistics: DatasetStatistics
    squared: int | None = None

    def split(self, name: Literal["train", "valid"]) -> list[Demonstration]:
        """The demonstrations of one split, in order."""
        chosen = set(self.train if name == "train" else self.valid)
        return [d for d in self.demonstrations if d.name in chosen]


class DatasetWriter:
    """Writes `dataset.hdf5` one demonstration at a time, so that memory does not grow with their number.

    Args:
        file: an open, empty HDF5 file.
        facts: rate_hz, cameras, state_names, action_names, world and squared, as attributes of `Dataset` are.
    """

    def __init__(self, file: h5py.File, **facts: Any) -> None:
        self.file, self.rate_hz = file, float(facts["rate_hz"])
        self.names: list[str] = []
        self.total = 0
        self.data = file.create_group("data", track_order=True)
        self.data.attrs["total"] = 0
        self.data.attrs["env_args"] = json.dumps(facts["world"] or _NO_WORLD, ensure_ascii=False)
        self.data.attrs["schema_version"] = SCHEMA_VERSION
        self.data.attrs["rate_hz"] = self.rate_hz
        for key in ("cameras", "state_names", "action_names", "world"):
            self.data.attrs[key] = json.dumps(facts[key], ensure_ascii=False)
        if facts.get("squared") is not None:
            self.data.attrs["squared"] = int(facts["squared"])

    def add(self, demonstration: Demonstration) -> None:
        """Append a demonstration."""
        group = self.data.create_group(f"demo_{len(self.names)}", track_order=True)
        _write_demonstration(group, demonstration, self.rate_hz)
        self.names.append(demonstration.name)
        self.total += len(demonstration)
        self.data.attrs["total"] = self.total

    def split(self, **splits: Sequence[str]) -> None:
        """Write `mask/<name>`, each a list of demonstrations by the name of their episode; once, at the end."""
        for split, chosen in splits.items():
            names = [f"demo_{i}".encode() for i, name in enumerate(self.names) if name in set(chosen)]
            self.file.create_dataset(f"mask/{split}", data=np.array(names, dtype="S"))


@contextmanager
def writing_dataset(directory: Path, **facts: Any) -> Iterator[DatasetWriter]:
    """Write `dataset.hdf5` into `directory`, whole or not at all; see `DatasetWriter`."""
    with replacing(directory / FILE_NAME) as partial, h5py.File(partial, "w", track_order=True) as file:
        yield DatasetWriter(file, **facts)


def save_dataset(dataset: Dataset, directory: Path) -> None:
    """Write `dataset.hdf5`, `stats.json` and `splits.json` into `directory`. Equal datasets give equal bytes."""
    facts = {k: getattr(dataset, k) for k in ("rate_hz", "cameras", "state_names", "action_names", "world", "squared")}
    with writing_dataset(directory, **facts) as writer:
        for demonstration in dataset.demonstrations:
            writer.add(demonstration)
        writer.split(train=dataset.train, valid=dataset.valid)
    save_splits(dataset.statistics, dataset.train, dataset.valid, directory)


def save_splits(statistics: DatasetStatistics, train: Sequence[str], valid: Sequence[str], directory: Path) -> None:
    """Write `stats.json` and `splits.json` into `directory`."""
    save_statistics(statistics, directory)
    write_json(directory / SPLITS, {"train": list(train), "valid": list(valid)})


def save_quality(quality: dict[str, Any], directory: Path) -> None:
    """Write `quality.json` into `directory`."""
    write_json(directory / QUALITY, quality)


def load_pictures(directory: Path, index: int) -> dict[str, np.ndarray]:
    """The pictures of one demonstration, camera to [T, H, W, 3] uint8.

    Raises:
        InputError: there is no such demonstration.
    """
    try:
        with hdf5.opened(directory / FILE_NAME) as file:
            data = hdf5.group(file, "data")
            obs = hdf5.group(hdf5.group(data, f"demo_{index}"), "obs")
            return {camera: hdf5.array(obs, camera) for camera in json.loads(hdf5.text(data, "cameras"))}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{directory / FILE_NAME} has no demonstration {index} ({words(error)})") from None


def load_dataset(directory: Path) -> Dataset:
    """Read a dataset that `save_dataset` wrote, all of it into memory.

    Raises:
        InputError: the directory is missing or is no dataset, a file is damaged, or there are no demonstrations.
    """
    path = directory / FILE_NAME
    remake = _REMAKE.format(directory=directory)
    if not path.is_file():
        raise not_an_artefact(directory, FILE_NAME, "preprocess")
    statistics = load_statistics(directory)
    try:
        with hdf5.opened(path) as file:
            dataset = _read_dataset(file, statistics)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as a dataset ({words(error)})",
            expected="a whole HDF5 file written by preprocess",
            hint=remake,
        ) from None
    if not dataset.demonstrations:
        raise InputError(f"{path} holds no demonstrations", expected="at least one", hint=remake)
    _check_consistent(dataset, path, remake)
    return dataset


def _write_demonstration(group: h5py.Group, demonstration: Demonstration, rate_hz: float) -> None:
    instructions = demonstration.instructions
    group.attrs["num_samples"] = len(demonstration)
    group.attrs["episode"] = demonstration.name
    group.attrs["operator"] = demonstration.operator
    group.attrs["instructions"] = json.dumps(instructions, ensure_ascii=False)
    group.attrs["ep_meta"] = json.dumps({"lang": instructions[0] if instructions else ""}, ensure_ascii=False)
    obs = group.create_group("obs", track_order=True)
    for camera, video in demonstration.images.items():
        # One chunk a frame: training reads single frames in random order.
        obs.create_dataset(
            camera, data=video, chunks=(1, *video.shape[1:]), compression="gzip", compression_opts=1, shuffle=True
        )
    obs.create_dataset(STATE_KEY, data=np.asarray(demonstration.state, np.float32))
    group.create_dataset("actions", data=np.asarray(demonstration.actions, np.float32))
    group.create_dataset("rewards", data=np.zeros(len(demonstration), np.float32))
    group.create_dataset("dones", data=(np.arange(len(demonstration)) == len(demonstration) - 1).astype(np.float32))
    group.create_dataset("timestamps", data=np.arange(len(demonstration)) / rate_hz)


def _read_dataset(file: h5py.File, statistics: DatasetStatistics) -> Dataset:
    data, masks = hdf5.group(file, "data"), hdf5.group(file, "mask")
    version = int(hdf5.number(data, "schema_version", 0))
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version}, not {SCHEMA_VERSION}")
    facts = {k: json.loads(hdf5.text(data, k)) for k in ("cameras", "state_names", "action_names", "world")}
    keys = sorted((k for k in hdf5.names(data) if k.startswith("demo_")), key=lambda k: int(k.removeprefix("demo_")))
    demonstrations = {key: _read_demonstration(hdf5.group(data, key), facts["cameras"]) for key in keys}
    train, valid = ([demonstrations[k.decode()].name for k in hdf5.array(masks, s)] for s in ("train", "valid"))
    return Dataset(
        demonstrations=list(demonstrations.values()),
        train=train,
        valid=valid,
        rate_hz=hdf5.number(data, "rate_hz", 0.0),
        statistics=statistics,
        squared=int(hdf5.number(data, "squared", 0)) or None,
        **facts,
    )


def _read_demonstration(group: h5py.Group, cameras: list[str]) -> Demonstration:
    obs = hdf5.group(group, "obs")
    return Demonstration(
        name=hdf5.text(group, "episode"),
        images={camera: hdf5.array(obs, camera) for camera in cameras},
        state=hdf5.array(obs, STATE_KEY),
        actions=hdf5.array(group, "actions"),
        instructions=json.loads(hdf5.text(group, "instructions")),
        operator=hdf5.text(group, "operator"),
    )


def _check_consistent(dataset: Dataset, path: Path, remake: str) -> None:
    """Refuse a dataset whose parts contradict each other: a training run would fail late, or learn nonsense."""
    widths = (len(dataset.statistics.state), len(dataset.statistics.actions))
    for demonstration in dataset.demonstrations:
        lengths = {len(demonstration.state), len(demonstration.actions), *map(len, demonstration.images.values())}
        if len(lengths) != 1:
            raise InputError(f"{path}: '{demonstration.name}' has unequal lengths {sorted(lengths)}", hint=remake)
        found = (demonstration.state.shape[-1], demonstration.actions.shape[-1])
        if found != widths:
            raise InputError(
                f"{path}: '{demonstration.name}' has {found[0]} state and {found[1]} action dimensions",
                expected=f"{widths[0]} and {widths[1]}, as in its stats.json",
                hint=remake,
            )
