"""robomimic HDF5: one file (or a directory of them), `/data/demo_<i>` with `actions` and `obs/<key>`.

Layout (robomimic's own documentation, and RoboCasa's additions):

    /data               attrs: env_args (JSON: env_name, type, env_kwargs with control_freq)
    /data/demo_<i>      attrs: num_samples, ep_meta (JSON with "lang") or language_instruction
        actions         [T, A], in [-1, 1] by convention
        actions_abs     [T, A] the same as absolute targets, if the log has them: kept beside, not as actions
        obs/<key>       uint8 [T, H, W, 3] is a camera; floating [T] or [T, D] is a state stream of its own
        timestamps      [T] seconds, if the log has them
    /mask/<filter key>  demo names; a filter key `operator_<name>` says who demonstrated, others (train, valid) are
                        noted

Simulator states, rewards, dones, next_obs and action_dict are not read: a policy for a robot cannot use them. LIBERO's
files have this layout too; `readers.libero` knows what more they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.episode import Episode, Role, Stream, UnusableError
from vla_cli.errors import InputError, words
from vla_cli.frames import ArrayFrames
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.hdf5_log import OpenFiles, check_format, check_log, claim, demo_names, entry_of, label
from vla_cli.readers.hdf5_parts import (
    HIGHEST_RATE,
    Allowance,
    is_pictures,
    listed,
    own_attributes,
    parse_json,
    why_no_vector,
)

ASSUMED_RATE = 20.0  # robomimic's and robosuite's default control_freq
MOST_NAMED = 1_000_000  # in all filter keys together
LOOKS_FOR = "an HDF5 file with /data/demo_<i> groups"
# The simulator's own object poses: no robot has them, so they are no part of its state.
_PRIVILEGED = ("object", "object-state")


def recognise(path: Path) -> str | None:
    """Whether this is an HDF5 file with /data/demo_<i> groups that LIBERO did not record (or one too damaged to tell).

    Of a directory, its `.hdf5` and `.h5` files are looked at.
    """
    return claim(path, "robomimic")


def open_log(path: Path, options: Options, warn: Warn) -> DemoLog:
    """Open the file or the directory.

    Raises:
        InputError: there is no HDF5 file, or the only one is damaged, of another format, or without demonstrations.
    """
    return DemoLog(path, warn)


@dataclass
class FileFacts:
    """What one file says of all its demos.

    Attributes:
        env_args: robomimic's description of the world; empty when it has none.
        rate: samples a second; 0 when the file does not say.
        masks: demo name to the filter keys that name it.
        said: what is wrong with this, one sentence each.
    """

    env_args: dict[str, Any] = field(default_factory=dict)
    rate: float = 0.0
    masks: dict[str, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


@dataclass
class _Moment:
    """What the streams of one demo share: its group, the clock [T] in seconds, the stated rate, and where notes go."""

    demo: h5py.Group
    clock: np.ndarray
    rate: dict[str, Any]
    notes: list[str]
    allowance: Allowance


class DemoLog:
    """An open log of demos.

    Args:
        path: the file or directory.
        warn: what the log says of itself and does not keep.

    Raises:
        InputError: as for `open_log`.
    """

    format = "robomimic"
    looks_for = LOOKS_FOR

    def __init__(self, path: Path, warn: Warn) -> None:
        self.path, self.warn = path, warn
        self.opened = OpenFiles(path)
        self._facts: dict[Path, FileFacts] = {}
        try:
            with hdf5.bounded_memory():
                self.files = check_log(path, self.opened, self.format, self.looks_for, warn)
            if path.is_file() and not demo_names(self.opened.get(path)):
                raise InputError(
                    f"{path} has no demonstrations",
                    expected="groups /data/demo_0, /data/demo_1, ...",
                    hint="vla collect-ingest with the log that holds them",
                )
        except BaseException:
            self.close()
            raise

    def entries(self) -> list[Entry]:
        """Each demo in the order of its number, file by file; a file without any, or damaged, is one entry."""
        found = []
        for file in self.files:
            prefix = f"{label(file)}_" if self.path.is_dir() else ""
            demos = [entry_of(file, self.path, prefix + name, name) for name in self._demos(file)]
            found += demos or [entry_of(file, self.path, label(file))]
        return found

    def _demos(self, file: Path) -> list[str]:
        try:
            with hdf5.bounded_memory():
                opened = self.opened.get(file)
                check_format(opened, self.format)
                return demo_names(opened)
        except (UnusableError, OSError, ValueError, KeyError, RuntimeError):
            return []  # `read` says why

    def read(self, entry: Entry) -> Episode:
        """One demo.

        Raises:
            UnusableError: its file is damaged, or its parts have unequal lengths.
            ValueError, OSError, KeyError, RuntimeError: it cannot be read.
        """
        with hdf5.bounded_memory():
            return self._read(entry.name, *self.opened.find(entry))

    def _read(self, episode: str, file: Path, name: str) -> Episode:
        opened = self.opened.get(file)
        check_format(opened, self.format)
        if not name:
            raise UnusableError(f"{file.name} has no demonstrations")
        facts = self._facts_of(file, opened)
        for sentence in facts.said:
            self.warn(f"{file.name}: {sentence}.")
        demo = hdf5.group(opened, f"data/{name}")
        notes: list[str] = []
        streams = self._streams(demo, facts, notes, file)
        operator = self._operator(facts.masks.get(name, []), notes, f"{file.name}: {name}")
        return Episode(
            name=episode,
            streams=streams,
            instructions=self.instructions(demo, file, notes),
            operator=operator,
            format=self.format,
            source=f"{file.name}:/data/{name}",
            # Without a name it is only a carrier of settings, as in a file made from a real robot's data.
            world=facts.env_args if facts.env_args.get("env_name") else None,
            notes=notes,
        )

    def close(self) -> None:
        """Close the files."""
        self.opened.close()

    def role(self, key: str, obs: h5py.Group) -> Role:
        """What a vector of obs may be used as."""
        return "other" if key in _PRIVILEGED or hdf5.kind(hdf5.dataset(obs, key)) != "f" else "state"

    def attributes(self, stream: Stream, data: h5py.Group) -> dict[str, Any]:
        """What the format says of every such stream."""
        return {"channels": "rgb"} if stream.role == "image" else {}

    def assumed_rate(self, notes: list[str], where: str) -> tuple[float, dict[str, Any]]:
        """The rate where neither time stamps nor env_args state it, and what to state of it."""
        note = f"no rate is stated (no timestamps, no control_freq in env_args): {ASSUMED_RATE:g} Hz is assumed"
        notes.append(note)
        self.warn(f"{where}: {note}.")
        return ASSUMED_RATE, {}

    def instructions(self, demo: h5py.Group, file: Path, notes: list[str]) -> list[str]:
        """Our own `instructions`, RoboCasa's `ep_meta` "lang", or `language_instruction`: the first that says one."""
        try:
            own = parse_json(hdf5.text(demo, "instructions", "[]"), "instructions")
            meta = parse_json(hdf5.text(demo, "ep_meta", "{}"), "ep_meta")
        except ValueError as error:
            notes.append(str(error))
            own, meta = [], {}
        language = meta.get("lang", "") if isinstance(meta, dict) else ""
        said = own if isinstance(own, list) and own else [language or hdf5.text(demo, "language_instruction", "")]
        return list(dict.fromkeys(text.strip() for text in said if isinstance(text, str) and text.strip()))

    def beside(self, demo: h5py.Group) -> list[str]:
        """Datasets of a demo beside `obs` to keep as `other`."""
        return [key for key in ("actions_abs",) if hdf5.has(demo, key)]

    def _facts_of(self, file: Path, opened: h5py.File) -> FileFacts:
        if file not in self._facts:
            self._facts[file] = _read_facts(opened)
        return self._facts[file]

    def _streams(self, demo: h5py.Group, facts: FileFacts, notes: list[str], file: Path) -> list[Stream]:
        allowance = Allowance()
        actions = allowance.table(demo, "actions")
        said = hdf5.number(demo, "num_samples", len(actions))
        if said != len(actions):
            notes.append(f"num_samples says {said:g}, actions has {len(actions)} rows")
        reach = float(np.max(np.abs(actions), initial=0.0, where=np.isfinite(actions)))
        if reach > 1:
            notes.append(f"actions reach {reach:.4g}, robomimic expects [-1, 1]")
        moment = self._moment(demo, len(actions), facts, notes, file.name, allowance)
        streams = list(self._observations(moment))
        streams += [self._vector("other", key, demo, key, moment) for key in self.beside(demo)]
        streams.append(self._stream("action", "action", actions, hdf5.dataset(demo, "actions"), moment))
        unequal = [f"{s.name} {len(s)}" for s in streams if len(s) != len(actions)]
        if len(moment.clock) != len(actions):
            unequal.append(f"timestamps {len(moment.clock)}")
        if unequal:
            raise UnusableError(f"unequal lengths: actions {len(actions)}, but {listed(unequal)}")
        return streams

    def _observations(self, moment: _Moment) -> Iterator[Stream]:
        obs = hdf5.group(moment.demo, "obs")
        for key in sorted(hdf5.names(obs)):
            if isinstance(hdf5.member(obs, key), h5py.Group):
                why_not = "it is a group"
            elif is_pictures(found := hdf5.dataset(obs, key)):
                yield self._stream("image", key, ArrayFrames(found), found, moment)
                continue
            else:
                why_not = why_no_vector(found)
            if why_not:
                moment.notes.append(f"obs/{key} is left out: {why_not}")
                self.warn(f"obs/{key} is left out: {why_not}.")
            else:
                yield self._vector(self.role(key, obs), key, obs, key, moment)

    def _vector(self, role: Role, name: str, parent: h5py.Group, key: str, moment: _Moment) -> Stream:
        return self._stream(role, name, moment.allowance.table(parent, key), hdf5.dataset(parent, key), moment)

    def _stream(self, role: Role, name: str, values: Any, found: h5py.Dataset, moment: _Moment) -> Stream:
        stream = Stream(role, name, values, moment.clock)
        stated = self.attributes(stream, hdf5.group(moment.demo.file, "data"))
        stream.attributes = {**stated, **moment.rate, **own_attributes(found, stream, moment.notes)}
        return stream

    def _moment(
        self, demo: h5py.Group, length: int, facts: FileFacts, notes: list[str], where: str, allowance: Allowance
    ) -> _Moment:
        """The clock, and what to state of its rate."""
        rate, stated = facts.rate, {"rate_hz": facts.rate} if facts.rate else {}
        if hdf5.has(demo, "timestamps"):
            clock = allowance.table(demo, "timestamps").astype(np.float64).reshape(-1)
            return _Moment(demo, clock, stated, notes, allowance)
        if not rate:
            rate, stated = self.assumed_rate(notes, where)
        return _Moment(demo, np.arange(length) / rate, stated, notes, allowance)

    def _operator(self, keys: list[str], notes: list[str], where: str) -> str:
        operators = [key.removeprefix("operator_") for key in keys if key.startswith("operator_")]
        splits = [key for key in keys if not key.startswith("operator_")]
        if splits:
            notes.append(f"the log's own filter keys name it: {listed(splits)}")
        if len(operators) > 1:
            self.warn(f"{where} is in two operator masks; operator '{operators[0]}' is kept.")
        return operators[0] if operators and operators[0] else "unknown"


READER = Reader(LOOKS_FOR, recognise, open_log)


def _read_facts(opened: h5py.File) -> FileFacts:
    facts = FileFacts()
    data = hdf5.group(opened, "data")
    try:
        env_args = parse_json(hdf5.text(data, "env_args", "{}"), "env_args")
        facts.env_args = env_args if isinstance(env_args, dict) else {}
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        facts.said.append(f"{error}, so world and rate are unknown")
    settings = facts.env_args.get("env_kwargs")
    rate = settings.get("control_freq") if isinstance(settings, dict) else None
    facts.rate = float(rate) if isinstance(rate, int | float) and 0 < rate <= HIGHEST_RATE else 0.0
    try:
        masks = hdf5.group(opened, "mask") if "mask" in hdf5.names(opened) else None
        named = 0
        for key in hdf5.names(masks) if masks is not None else []:
            found = dict.fromkeys(hdf5.words(hdf5.group(opened, "mask"), key))
            named += len(found)
            if named > MOST_NAMED:
                raise ValueError(f"it names more than {MOST_NAMED} demos")
            for demo in found:
                facts.masks.setdefault(demo, []).append(key)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        facts.said.append(f"/mask cannot be read ({words(error)}), so operators are unknown")
    return facts
