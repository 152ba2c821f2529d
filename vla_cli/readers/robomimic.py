"""robomimic HDF5: one file (or a directory of them), `/data/demo_<i>` with `actions` and `obs/<key>`.

Layout (robomimic's own documentation, and RoboCasa's additions):

    /data               attrs: env_args (JSON: env_name, type, env_kwargs with control_freq)
    /data/demo_<i>      attrs: num_samples, ep_meta (JSON with "lang") or language_instruction
        actions         [T, A]
        obs/<key>       uint8 [T, H, W, 3] is a camera; floating [T] or [T, D] is a state stream of its own
        timestamps      [T] seconds, if the log has them
    /mask/<filter key>  demo names; a filter key `operator_<name>` says who demonstrated

Simulator states, rewards, dones, next_obs and action_dict are not read: a policy for a robot cannot use them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.episode import Episode, Skipped, Stream
from vla_cli.errors import InputError
from vla_cli.files import digest_file
from vla_cli.readers import Reader, Warn

ASSUMED_RATE = 20.0  # robomimic's and robosuite's default control_freq
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# The simulator's own object poses: no robot has them, so they are no part of its state.
_PRIVILEGED = ("object", "object-state")


def recognise(path: Path) -> str | None:
    """Whether this is an HDF5 file with /data/demo_<i> groups (or one too damaged to tell)."""
    files = _files(path)
    for file in files:
        try:
            with h5py.File(file, "r") as opened:
                if _demo_names(opened):
                    return f"{file.name} is an HDF5 file with /data/demo_<i> groups"
                if "data" in opened and len(opened.keys() - {"data", "mask"}) == 0:
                    return f"{file.name} is an HDF5 file with a /data group"
        except OSError:
            return f"{file.name} has the signature of an HDF5 file"
    return None


def count(path: Path) -> int | None:
    """Demos in the file(s); None when one cannot be opened."""
    total = 0
    for file in _files(path):
        try:
            with h5py.File(file, "r") as opened:
                total += len(_demo_names(opened))
        except OSError:
            return None
    return total


def read(path: Path, warn: Warn) -> Iterator[Episode | Skipped]:
    """Yield each demo in the order of its number.

    Raises:
        InputError: a file cannot be opened, or there are no demos at all.
    """
    files = _files(path)
    if not files:
        raise InputError(
            f"{path} is no HDF5 file and holds none",
            expected="an HDF5 file with /data/demo_<i> groups",
            hint="vla collect-ingest with --format auto",
        )
    found = 0
    for file in files:
        prefix = f"{file.stem}_" if len(files) > 1 else ""
        with _opened(file) as opened:
            log = _Log(file, opened, prefix, warn)
            for name in _demo_names(opened):
                found += 1
                yield log.read_demo(name)
    if not found:
        raise InputError(
            f"{path} has no demonstrations",
            expected="groups /data/demo_0, /data/demo_1, ...",
            hint="vla collect-ingest with the log that holds them",
        )


READER = Reader("an HDF5 file with /data/demo_<i> groups", recognise, count, read)


def _files(path: Path) -> list[Path]:
    candidates = [path] if path.is_file() else sorted(path.glob("*.hdf5")) + sorted(path.glob("*.h5"))
    return [file for file in candidates if file.is_file() and _has_signature(file)]


def _has_signature(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_SIGNATURE)) == _SIGNATURE


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise InputError(
            f"{file} cannot be opened as HDF5 ({error})",
            expected="a whole file",
            hint="copy it again: it was probably cut short",
        ) from None
    with opened:
        yield opened


def _demo_names(opened: h5py.File) -> list[str]:
    data = opened.get("data")
    if not isinstance(data, h5py.Group):
        return []
    names = [name for name in hdf5.names(data) if name.startswith("demo_") and name[5:].isdigit()]
    return sorted(names, key=lambda name: (int(name[5:]), name))


class _Log:
    """One open file, and what it says of all its demos."""

    def __init__(self, file: Path, opened: h5py.File, prefix: str, warn: Warn) -> None:
        self.file, self.prefix, self.warn = file, prefix, warn
        self.data = hdf5.group(opened, "data")
        self.digest = digest_file(file)
        self.env_args = self._env_args()
        # Without a name it is only a carrier of settings, as in a file made from a real robot's data.
        self.world = self.env_args if self.env_args.get("env_name") else None
        self.rate = self._control_rate()
        self.operators = self._operators(opened)

    def read_demo(self, name: str) -> Episode | Skipped:
        """Read one demo; whatever is wrong with it becomes the reason for leaving it out."""
        try:
            return self._read_demo(name, hdf5.group(self.data, name))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            return Skipped(self.prefix + name, f"it cannot be read ({error})")

    def _read_demo(self, name: str, demo: h5py.Group) -> Episode | Skipped:
        notes: list[str] = []
        actions = hdf5.array(demo, "actions")
        said = hdf5.number(demo, "num_samples", len(actions))
        if said != len(actions):
            notes.append(f"num_samples says {said:g}, actions has {len(actions)} rows")
        clock, rate = self._clock(demo, len(actions), notes)
        streams = list(self._observations(demo, clock, rate, notes))
        streams.append(Stream("action", "action", _columns(actions), clock, _facts(demo["actions"], rate)))
        unequal = [f"{s.name} {len(s)}" for s in streams if len(s) != len(actions)]
        if len(clock) != len(actions):
            unequal.append(f"timestamps {len(clock)}")
        if unequal:
            return Skipped(self.prefix + name, f"unequal lengths: actions {len(actions)}, but {', '.join(unequal)}")
        return Episode(
            name=self.prefix + name,
            streams=streams,
            instructions=_instructions(demo, notes),
            operator=self.operators.get(name, "unknown"),
            format="robomimic",
            source=f"{self.file.name}:/data/{name}",
            source_digest=self.digest,
            world=self.world,
            notes=notes,
        )

    def _observations(self, demo: h5py.Group, clock: np.ndarray, rate: float, notes: list[str]) -> Iterator[Stream]:
        obs = hdf5.group(demo, "obs")
        for key in sorted(hdf5.names(obs)):
            found = hdf5.dataset(obs, key)
            role, why_not = _role(key, found)
            if why_not:
                notes.append(f"obs/{key} is left out: {why_not}")
                self.warn(f"obs/{key} is left out: {why_not}.")
                continue
            values = hdf5.array(obs, key)
            yield Stream(role, key, values if role == "image" else _columns(values), clock, _facts(found, rate))

    def _clock(self, demo: h5py.Group, length: int, notes: list[str]) -> tuple[np.ndarray, float]:
        """Time stamps [T] in seconds, and the rate the log states (0 when it states none)."""
        if "timestamps" in demo:
            return hdf5.array(demo, "timestamps").astype(np.float64).reshape(-1), self.rate
        if not self.rate:
            message = f"no rate is stated (no timestamps, no control_freq in env_args): {ASSUMED_RATE:g} Hz is assumed"
            notes.append(message)
            self.warn(f"{self.file.name}: {message}.")
        return np.arange(length) / (self.rate or ASSUMED_RATE), self.rate

    def _env_args(self) -> dict[str, Any]:
        try:
            env_args = json.loads(hdf5.text(self.data, "env_args", "{}"))
        except json.JSONDecodeError as error:
            self.warn(f"{self.file.name}: env_args is not valid JSON ({error}), so world and rate are unknown.")
            return {}
        return env_args if isinstance(env_args, dict) else {}

    def _control_rate(self) -> float:
        settings = self.env_args.get("env_kwargs")
        rate = settings.get("control_freq") if isinstance(settings, dict) else None
        return float(rate) if isinstance(rate, int | float) and np.isfinite(rate) and rate > 0 else 0.0

    def _operators(self, opened: h5py.File) -> dict[str, str]:
        found: dict[str, str] = {}
        masks = opened.get("mask")
        for key in hdf5.names(masks) if isinstance(masks, h5py.Group) else []:
            if not key.startswith("operator_"):
                continue
            for name in hdf5.array(opened["mask"], key).reshape(-1).tolist():  # pyright: ignore[reportArgumentType]
                demo = name.decode() if isinstance(name, bytes) else str(name)
                if demo in found:
                    self.warn(f"{self.file.name}: {demo} is in two operator masks; operator '{found[demo]}' is kept.")
                found.setdefault(demo, key.removeprefix("operator_"))
        return found


def _role(key: str, found: h5py.Dataset) -> tuple[Any, str]:
    """The role of an observation, or why it has none."""
    shape, dtype = found.shape, found.dtype
    described = f"{dtype}{list(shape)}"
    if dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3:
        return "image", ""
    if len(shape) == 4 and shape[1] == 3:
        return "", f"it is {described}, channels first; uint8 [T, H, W, 3] is expected"
    if len(shape) > 2:
        return "", f"it is {described}, neither a uint8 [T, H, W, 3] picture nor a [T, D] vector"
    if dtype.kind not in "fiub":
        return "", f"it is {described}, which is no number"
    if key in _PRIVILEGED or dtype.kind != "f":
        return "other", ""
    return "state", ""


def _columns(values: np.ndarray) -> np.ndarray:
    """[T] or [T, D] numbers as [T, D]."""
    return values.reshape(len(values), -1) if values.ndim == 1 else values


def _facts(found: Any, rate: float) -> dict[str, Any]:
    """What the file states of a stream: its own attributes, and the rate."""
    facts: dict[str, Any] = {"rate_hz": rate} if rate else {}
    for key in sorted(found.attrs):
        value = found.attrs[key]
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value.startswith("["):
            value = _parsed(value)
        if isinstance(value, str | int | float) or (isinstance(value, list) and _is_flat(value)):
            facts[key] = value
    return facts


def _parsed(text: str) -> Any:
    """A list kept as JSON text, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _is_flat(values: list[Any]) -> bool:
    return all(isinstance(value, str | int | float) for value in values)


def _instructions(demo: h5py.Group, notes: list[str]) -> list[str]:
    """Our own `instructions`, RoboCasa's `ep_meta` "lang", or `language_instruction`: the first that says something."""
    try:
        own = json.loads(hdf5.text(demo, "instructions", "[]"))
        meta = json.loads(hdf5.text(demo, "ep_meta", "{}"))
    except json.JSONDecodeError as error:
        notes.append(f"instructions or ep_meta is not valid JSON ({error})")
        own, meta = [], {}
    language = meta.get("lang", "") if isinstance(meta, dict) else ""
    said = [*own] if own else [language or hdf5.text(demo, "language_instruction", "")]
    return list(dict.fromkeys(text.strip() for text in said if isinstance(text, str) and text.strip()))
