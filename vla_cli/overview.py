"""What vla-cli's own artefacts hold, looked at without loading them: for `vla inspect`.

Which artefact a path is, is told by what lies in it. Sizes are compared with bounds before anything is read: an
artefact that was sent by somebody else is no safer than a log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from vla_cli import hdf5
from vla_cli.adapter import FILE_NAME as POLICY_FILE
from vla_cli.dataset import FILE_NAME as DATASET_FILE
from vla_cli.dataset import SPLITS, STATE_KEY
from vla_cli.episode import MANIFEST, Episode, Stream
from vla_cli.errors import InputError, words
from vla_cli.files import read_json
from vla_cli.frames import ArrayFrames
from vla_cli.outline import LARGEST_JSON, in_bytes
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.report import REPORT_FILE
from vla_cli.stats import FILE_NAME as STATS_FILE
from vla_cli.stats import load_statistics

LARGEST_MANIFEST = 32 * 2**20
LARGEST_VECTORS = 256 * 2**20


def recognise(path: Path) -> tuple[str, str] | None:
    """The artefact that a path is, and how that was told; None when it is none of ours.

    Returns:
        episodes, episode, dataset, report, bundle, adapter or base, and a clause.
    """
    return _recognise_folder(path) if path.is_dir() else _recognise_file(path)


def _recognise_folder(path: Path) -> tuple[str, str] | None:
    if (path / MANIFEST).is_file() and b'"digest"' in _head(path / MANIFEST):
        return "episodes", f"it has a {MANIFEST} of episodes"
    if (path / DATASET_FILE).is_file():
        return "dataset", f"it has a {DATASET_FILE}"
    if (path / REPORT_FILE).is_file() and b'"policies"' in _head(path / REPORT_FILE):
        return "report", f"it has a {REPORT_FILE} of policies"
    if (path / POLICY_FILE).is_file():
        from vla_cli.bundle import DIGESTS  # brings scipy, which a look at a log need not wait for

        if (path / DIGESTS).is_file():
            return "bundle", f"it has a {POLICY_FILE} and {DIGESTS}"
        kind = "base" if b'"kind": "base"' in _head(path / POLICY_FILE) else "adapter"
        return kind, f"it has a {POLICY_FILE} of {'a base' if kind == 'base' else 'an adapted policy'}"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return "base", "it has a config.json and safetensors weights"
    return None


def _recognise_file(path: Path) -> tuple[str, str] | None:
    if not is_hdf5(path):
        return None
    try:
        with hdf5.opened(path) as file:
            if "schema_version" in file.attrs and hdf5.has(file, "streams"):
                return "episode", "it is HDF5 with a schema_version and streams"
            data: Any = hdf5.member(file, "data") if hdf5.has(file, "data") else None
            if data is not None and all(key in data.attrs for key in ("schema_version", "rate_hz", "action_names")):
                return "dataset", "it is HDF5 with robomimic's layout and a rate_hz"
    except (OSError, RuntimeError, KeyError, ValueError):
        pass  # a damaged file is told by who reads it
    return None


def is_hdf5(path: Path) -> bool:
    """Whether a regular file is HDF5."""
    return path.is_file() and h5py.is_hdf5(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4096)


def check_small(path: Path, limit: int = LARGEST_JSON) -> None:
    """Refuse a file that is too large to be what it says it is.

    Raises:
        InputError: it has more than `limit` bytes.
    """
    if path.is_file() and (size := path.stat().st_size) > limit:
        raise InputError(f"{path} has {in_bytes(size)}", expected=f"at most {in_bytes(limit)}")


def record_facts(directory: Path) -> dict[str, Any]:
    """What `run.json` says of the run that made an artefact; empty when there is none."""
    path = directory / RUN_FILE
    if not path.is_file():
        return {}
    check_small(path)
    document = read_json(path)
    wanted = ("version", "stage", "request", "counts", "warnings", "skipped")
    return {key: document[key] for key in wanted if key in document} if isinstance(document, dict) else {}


def check_vectors(path: Path) -> None:
    """Refuse an episode file whose vectors would fill the memory: a few bytes may claim any shape.

    Raises:
        InputError: they would.
    """
    total = 0
    try:
        with hdf5.opened(path) as file:
            streams = hdf5.group(file, "streams")
            for role in hdf5.names(streams):
                for name in hdf5.names(hdf5.group(streams, role)):
                    stream = hdf5.group(hdf5.group(streams, role), name)
                    keys = ("timestamps", "offsets") if role == "image" else ("timestamps", "values")
                    total += sum(hdf5.size(hdf5.dataset(stream, key)) for key in keys if hdf5.has(stream, key))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as an episode ({words(error)})", expected="a whole HDF5 file"
        ) from None
    if total > LARGEST_VECTORS:
        raise InputError(f"{path} claims {in_bytes(total)} of vectors", expected=f"at most {in_bytes(LARGEST_VECTORS)}")


@dataclass
class DatasetFile:
    """An open `dataset.hdf5`.

    Attributes:
        data: its `/data`.
        keys: `demo_<i>`, in order.
        facts: rate_hz, cameras, state_names, action_names, world.
    """

    data: h5py.Group
    keys: list[str]
    facts: dict[str, Any]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Name, length, instructions and operator of each demonstration."""
        for key in self.keys:
            demo = hdf5.group(self.data, key)
            yield {
                "name": hdf5.text(demo, "episode"),
                "steps": hdf5.dataset(demo, "actions").shape[0],
                "instructions": json.loads(hdf5.text(demo, "instructions")),
                "operator": hdf5.text(demo, "operator"),
            }

    def episode(self, key: str) -> Episode:
        """One demonstration as an episode, its pictures left in the file.

        Raises:
            ValueError: something is missing, or too large.
        """
        demo = hdf5.group(self.data, key)
        obs, clock = hdf5.group(demo, "obs"), _vector(demo, "timestamps")
        rate = self.facts["rate_hz"]
        said = {key: {"rate_hz": rate, "names": self.facts[key]} for key in ("state_names", "action_names")}
        images = [
            Stream("image", camera, ArrayFrames(hdf5.dataset(obs, camera)), clock, {"rate_hz": rate})
            for camera in map(str, self.facts["cameras"])
        ]
        state = Stream("state", STATE_KEY, _vector(obs, STATE_KEY), clock, said["state_names"])
        action = Stream("action", "actions", _vector(demo, "actions"), clock, said["action_names"])
        return Episode(
            name=hdf5.text(demo, "episode"),
            streams=[*images, *([state] if state.values.shape[-1] else []), action],
            instructions=json.loads(hdf5.text(demo, "instructions")),
            operator=hdf5.text(demo, "operator"),
        )


def _vector(group: h5py.Group, name: str) -> Any:
    if (claimed := hdf5.size(hdf5.dataset(group, name))) > LARGEST_VECTORS // 4:
        raise ValueError(f"{group.name}/{name} would take {in_bytes(claimed)} of memory")
    return hdf5.array(group, name)


@contextmanager
def opened_dataset(path: Path) -> Iterator[DatasetFile]:
    """Open a `dataset.hdf5`; what it lacks raises ValueError, KeyError or OSError."""
    with hdf5.opened(path) as file:
        data = hdf5.group(file, "data")
        keys = [key for key in hdf5.names(data) if key.startswith("demo_")]
        facts = {k: json.loads(hdf5.text(data, k)) for k in ("cameras", "state_names", "action_names", "world")}
        facts["rate_hz"] = hdf5.number(data, "rate_hz", 0.0)
        yield DatasetFile(data, sorted(keys, key=lambda key: int(key.removeprefix("demo_"))), facts)


def dataset_files(directory: Path) -> dict[str, Any]:
    """`splits.json` and `stats.json` of a dataset, as far as they are there."""
    found: dict[str, Any] = {}
    check_small(directory / SPLITS)
    check_small(directory / STATS_FILE)
    if (directory / SPLITS).is_file():
        splits = read_json(directory / SPLITS)
        found["splits"] = {name: list(names) for name, names in splits.items()}
    if (directory / STATS_FILE).is_file():
        found["statistics"] = load_statistics(directory)
    return found
