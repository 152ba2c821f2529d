"""ALOHA / ACT HDF5: one file an episode, `episode_<i>.hdf5`, or a directory of them.

Layout (ACT's record_episodes.py, and Mobile ALOHA's):

    /                       attrs: sim (bool), compress (bool)
    /observations/qpos      [T, 14] joint positions in rad of both arms, each with its gripper from 0 closed to 1 open
    /observations/qvel      [T, 14]; effort [T, 14] of a real robot only: both kept as `other`
    /observations/images/*  uint8 [T, 480, 640, 3] RGB, or uint8 [T, N]: a JPEG a row, padded with zeros
    /action                 [T, 14] absolute joint positions
    /base_action            [T, 2] Mobile ALOHA's base: linear and angular velocity; an action stream of its own
    /compress_len           [cameras, T] lengths of the JPEGs: not needed, a JPEG does not end in zeros

50 samples a second, no time stamps, no instruction. Whether the JPEGs hold RGB or BGR depends on who wrote them (ACT's
own script hands RGB to a function for BGR), so it is not stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.episode import Episode, Role, Stream, UnusableError
from vla_cli.frames import ArrayFrames, Frames, PictureFrames
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.hdf5_log import OpenFiles, check_format, check_log, claim, entry_of, label
from vla_cli.readers.hdf5_parts import (
    Allowance,
    check_block,
    described,
    is_pictures,
    listed,
    own_attributes,
    why_no_vector,
)

RATE = 50.0
LOOKS_FOR = "HDF5 files with /observations/qpos and /action, one an episode"
WIDTH = 14
LARGEST_ROW = 64 * 2**20
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
NAMES = [f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS]
_ARMS = {
    "units": "rad, gripper 0 to 1",
    "frame": "none",
    "rotation": "joints",
    "quaternion_sign": "none",
    "gripper": "open-high",
}
_BASE = {
    "names": ["linear", "angular"],
    "units": "m/s, rad/s",
    "frame": "base",
    "rotation": "none",
    "quaternion_sign": "none",
    "gripper": "none",
    "mode": "velocity",
}
_READ = {"observations", "action", "base_action", "compress_len"}


def recognise(path: Path) -> str | None:
    """Whether this is an HDF5 file with /observations/qpos and /action, or a directory with such files."""
    return claim(path, "aloha")


def open_log(path: Path, options: Options, warn: Warn) -> AlohaLog:
    """Open the file or the directory.

    Raises:
        InputError: there is no HDF5 file, or the only one is damaged, or of another format.
    """
    return AlohaLog(path, warn)


class AlohaLog:
    """An open recording folder, or one file.

    Args:
        path: the file or directory.
        warn: what the log does not say, and what is not kept.

    Raises:
        InputError: as for `open_log`.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        self.path, self.warn = path, warn
        self.opened = OpenFiles(path)
        try:
            with hdf5.bounded_memory():
                self.files = check_log(path, self.opened, "aloha", LOOKS_FOR, warn)
        except BaseException:
            self.close()
            raise

    def entries(self) -> list[Entry]:
        """A file each, in the order of the numbers in their names."""
        return [entry_of(file, self.path, label(file)) for file in self.files]

    def read(self, entry: Entry) -> Episode:
        """One file.

        Raises:
            UnusableError: it is damaged, of another format, or its parts have unequal lengths.
            ValueError, OSError, KeyError, RuntimeError: it cannot be read.
        """
        with hdf5.bounded_memory():
            return self._read(entry.name, self.opened.find(entry)[0])

    def _read(self, episode: str, path: Path) -> Episode:
        file = self.opened.get(path)
        check_format(file, "aloha")
        notes = [f"the format has no time stamps: ALOHA's {RATE:g} Hz is taken"]
        self.warn(f"ALOHA files have no time stamps: {RATE:g} Hz is taken, the rate of its recorder.")
        if "sim" in file.attrs:
            notes.append(f"the file says sim = {hdf5.attribute(file, 'sim')}")
        streams = list(self._streams(file, notes))
        length = len(next(stream for stream in streams if stream.name == "action"))
        unequal = [f"{s.name} {len(s)}" for s in streams if len(s) != length]
        if unequal:
            raise UnusableError(f"unequal lengths: action {length}, but {listed(unequal)}")
        for name in sorted(set(hdf5.names(file)) - _READ):
            self._leave_out(name, "the format has no such part", notes)
        return Episode(
            name=episode,
            streams=streams,
            instructions=[],
            format="aloha",
            source=path.name,
            notes=notes,
        )

    def close(self) -> None:
        """Close the files."""
        self.opened.close()

    def _streams(self, file: h5py.File, notes: list[str]) -> Iterator[Stream]:
        allowance = Allowance()
        observations = hdf5.group(file, "observations")
        for key in sorted(hdf5.names(observations)):
            if key == "images":
                continue
            if isinstance(hdf5.member(observations, key), h5py.Group):
                self._leave_out(f"observations/{key}", "it is a group", notes)
            elif why_not := why_no_vector(hdf5.dataset(observations, key)):
                self._leave_out(f"observations/{key}", why_not, notes)
            else:
                role: Role = "state" if key == "qpos" else "other"
                yield _vector(role, key, observations, key, allowance, notes)
        if hdf5.has(observations, "images"):
            yield from self._cameras(hdf5.group(observations, "images"), notes)
        yield _vector("action", "action", file, "action", allowance, notes)
        if "base_action" in hdf5.names(file):
            yield _vector("action", "base_action", file, "base_action", allowance, notes)

    def _cameras(self, images: h5py.Group, notes: list[str]) -> Iterator[Stream]:
        for camera in sorted(hdf5.names(images)):
            if isinstance(hdf5.member(images, camera), h5py.Group):
                self._leave_out(f"observations/images/{camera}", "it is a group", notes)
                continue
            found = hdf5.dataset(images, camera)
            frames = _frames(found)
            if frames is None:
                why = f"it is {described(found)}, not uint8 [T, H, W, 3] or [T, N]"
                self._leave_out(f"observations/images/{camera}", why, notes)
                continue
            stream = Stream("image", camera, frames, np.arange(len(frames)) / RATE)
            if isinstance(frames, PictureFrames):
                notes.append(f"{camera} is compressed: whether RGB or BGR was compressed is not said")
            stated: dict[str, Any] = {} if isinstance(frames, PictureFrames) else {"channels": "rgb"}
            stream.attributes = {**stated, "rate_hz": RATE, **own_attributes(found, stream, notes)}
            yield stream

    def _leave_out(self, name: str, why: str, notes: list[str]) -> None:
        notes.append(f"{name} is left out: {why}")
        self.warn(f"{name} is left out: {why}.")


def _vector(role: Role, name: str, parent: h5py.Group, key: str, allowance: Allowance, notes: list[str]) -> Stream:
    values = allowance.table(parent, key)
    stream = Stream(role, name, values, np.arange(len(values)) / RATE)
    stated: dict[str, Any] = {}
    if name == "base_action":
        stated = dict(_BASE) if values.shape[1] == len(_BASE["names"]) else {"mode": "velocity"}
    elif values.shape[1] == WIDTH:
        stated = {"names": NAMES, **(_ARMS if role in ("state", "action") else {})}
    if name == "action":
        stated["mode"] = "absolute"
    stream.attributes = {**stated, "rate_hz": RATE, **own_attributes(hdf5.dataset(parent, key), stream, notes)}
    return stream


def _frames(found: h5py.Dataset) -> Frames | None:
    """The pictures of one camera, or None when they are no such thing.

    Raises:
        ValueError: they are too large, or the first cannot be decoded.
    """
    if is_pictures(found):
        return ArrayFrames(found)
    if len(found.shape) != 2 or hdf5.kind(found) != "u" or found.dtype.itemsize != 1 or 0 in found.shape:
        return None
    if found.shape[1] > LARGEST_ROW:
        raise ValueError(f"{found.name} has rows of {found.shape[1]} bytes")
    name = str(found.name)
    frames = PictureFrames(lambda step: found[step].tobytes().rstrip(b"\0"), len(found), name.rpartition("/")[2])
    check_block(frames.shape, name)
    return frames


READER = Reader(LOOKS_FOR, recognise, open_log)
