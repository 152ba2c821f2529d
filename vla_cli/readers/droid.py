"""DROID as recorded: a directory an episode, or a tree of them (`<lab>/success/<date>/<time>/`).

    metadata_<uuid>.json                user, current_task, trajectory_length, success, and of each camera (wrist,
                                        ext1, ext2) `<camera>_cam_serial`, `_mp4_path`, `_cam_extrinsics` (xyz, euler)
    recordings/MP4/<serial>.mp4         the left picture; `<serial>-stereo.mp4` (both side by side) is not read
    trajectory.h5                       T steps at 15 Hz
        observation/robot_state/        joint_positions [T, 7] rad; gripper_position [T], 0 open to 1 closed;
                                        cartesian_position [T, 6] m and rad (extrinsic x, y, z), in the base's frame
        observation/timestamp/          robot_state/read_start, control/step_start, cameras/<serial>_estimated_capture
                                        [T] milliseconds; skip_action [T] bool: nothing was sent to the robot
        action/                         joint_position [T, 7], gripper_position [T]: where to go, absolute; and the
                                        same command as pose, velocities and targets (role "other")

Steps with `skip_action` are left out of every stream. Cameras, robot state and actions keep their own clocks; a clock
that is missing, goes backwards or does not fit 15 Hz is replaced, and that is noted. Needs PyAV (the extra `lerobot`).

Source: github.com/droid-dataset/droid: robot_env.py, franka/robot.py, trajectory_utils/, postprocessing/schema.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vla_cli import hdf5
from vla_cli.episode import Episode, Stream, UnusableError
from vla_cli.errors import InputError
from vla_cli.frames import BLOCK, Frames, VideoFrames
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.droid_steps import Trajectory
from vla_cli.video import probe, require_av

CAMERAS = ("wrist", "ext1", "ext2")
DEEPEST = 6
MOST_DIRECTORIES = 200_000
LARGEST_METADATA = 2**20
_SERIAL = re.compile(r"[\w-]{1,64}")


def recognise(path: Path) -> str | None:
    """Whether one of the first directories here is a DROID episode."""
    for directory, files in _walk(path, 2000):
        if _is_episode(files):
            return f"{directory.name} holds trajectory.h5 and {_metadata_names(files)[0]}"
    return None


def open_log(path: Path, options: Options, warn: Warn) -> DroidLog:
    """Open a directory of episodes."""
    return DroidLog(path, warn)


READER = Reader("a directory with DROID's trajectory.h5 and metadata_*.json, or a tree of them", recognise, open_log)


def _walk(root: Path, most: int) -> Iterator[tuple[Path, list[str]]]:
    """Directories and their file names, at most 6 deep; not those inside an episode, nor those behind links."""
    for seen, (directory, inner, files) in enumerate(os.walk(root)):
        if seen >= most:
            return
        inner.sort()
        here = Path(directory)
        if len(here.relative_to(root).parts) >= DEEPEST or _is_episode(files):
            inner.clear()
        yield here, files


def _metadata_names(files: list[str]) -> list[str]:
    return sorted(name for name in files if name.startswith("metadata_") and name.endswith(".json"))


def _is_episode(files: list[str]) -> bool:
    return "trajectory.h5" in files and bool(_metadata_names(files))


class DroidLog:
    """An open directory of episodes; see `readers.Log`.

    Args:
        root: what the user named.
        warn: takes what is odd about the log.
    """

    def __init__(self, root: Path, warn: Warn) -> None:
        self.root, self.warn = root, warn

    def entries(self) -> list[Entry]:
        """See `Log`; warns of directories that hold half an episode."""
        found, halves, visited = [], [], 0
        for directory, files in _walk(self.root, MOST_DIRECTORIES):
            visited += 1
            if _is_episode(files):
                found.append(self._entry(directory, files))
            elif "trajectory.h5" in files or _metadata_names(files):
                halves.append(directory.relative_to(self.root).as_posix())
        if visited >= MOST_DIRECTORIES:
            raise InputError(f"{self.root} has more than {MOST_DIRECTORIES} directories", expected="a part of it")
        if halves:
            self.warn(
                f"{len(halves)} directories are left out, for they have only one of trajectory.h5 and metadata_*.json: "
                f"{', '.join(sorted(halves)[:5])}."
            )
        return sorted(found, key=lambda entry: entry.locator)

    def _entry(self, directory: Path, files: list[str]) -> Entry:
        place = directory.relative_to(self.root).as_posix()
        videos = directory / "recordings" / "MP4"
        names = sorted(file.name for file in videos.glob("*.mp4") if not file.stem.endswith("-stereo"))[:16]
        read = [directory / _metadata_names(files)[0], directory / "trajectory.h5", *(videos / name for name in names)]
        own = tuple(file for file in read if file.is_file() and self._owns(file))
        return Entry(_name(self.root, place), place, own)

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        require_av()
        directory = self.root / entry.locator
        metadata = self._metadata(directory)
        notes = _oddities(directory, metadata)
        path = self._inside(directory / "trajectory.h5")
        with hdf5.bounded_memory(), hdf5.opened(path) as file:
            trajectory = Trajectory(file, notes)
        videos = dict(self._videos(directory, metadata, notes))
        length = _common_length(trajectory, videos, notes)
        kept = np.flatnonzero(~trajectory.skipped[:length])
        if len(kept) == 0:
            raise UnusableError("all its steps have skip_action set")
        if len(kept) < length:
            notes.append(f"{length - len(kept)} of {length} steps have skip_action set and are left out")
        streams = list(trajectory.streams(kept))
        for camera, (serial, frames) in videos.items():
            clock = trajectory.camera_clock(camera, serial, length)
            streams.append(Stream("image", camera, select(frames, kept), clock[kept], _camera_facts(camera, metadata)))
        _from_zero(streams)
        told = str(metadata.get("current_task") or trajectory.task).strip()
        return Episode(
            name=entry.name,
            streams=streams,
            instructions=[told] if told else [],
            operator=str(metadata.get("user") or "unknown")[:200],
            format="droid",
            source=entry.locator,
            notes=notes,
        )

    def close(self) -> None:
        """See `Log`; nothing is held open."""

    def _metadata(self, directory: Path) -> dict[str, Any]:
        path = self._inside(next(iter(sorted(directory.glob("metadata_*.json")))))
        if path.stat().st_size > LARGEST_METADATA:
            raise UnusableError(f"{path.name} has {path.stat().st_size} bytes")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{path.name} is not valid JSON ({str(error)[:200]})") from None
        if not isinstance(document, dict):
            raise UnusableError(f"{path.name} is no JSON object")
        return document

    def _inside(self, path: Path) -> Path:
        if not self._owns(path):
            raise UnusableError(f"{path.name} is a link that leads out of the log, which is not followed")
        if not path.is_file():  # a named pipe would be waited for
            raise UnusableError(f"{path.name} is not a file")
        return path

    def _owns(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))

    def _videos(
        self, directory: Path, metadata: dict[str, Any], notes: list[str]
    ) -> Iterator[tuple[str, tuple[str, VideoFrames]]]:
        """Camera, serial and pictures of each video that the metadata name and that is there."""
        videos = directory / "recordings" / "MP4"
        stereo = len(list(videos.glob("*-stereo.mp4")))
        if stereo:
            notes.append(f"{stereo} stereo videos are not read, their left pictures are")
        for camera in CAMERAS:
            names = _video_names(camera, metadata)
            path = next((videos / name for name in names if (videos / name).is_file()), None)
            if path is None:
                said = f"no video of camera {camera}" + (f" ({names[0]})" if names else ", which has no serial number")
                notes.append(f"recordings/MP4 has {said}")
                continue
            _, shape = probe(self._inside(path))
            yield camera, (path.stem, VideoFrames(path, shape))


def _name(root: Path, place: str) -> str:
    """A name that stays: where the episode lies; a digest tells apart what letters alone might not."""
    whole = root.resolve().name if place == "." else place.replace("/", "-")
    clean = re.sub(r"[^\w.+-]", "_", whole)
    if clean == place or (place == "." and clean == whole and len(clean) <= 100):
        return clean[-100:]
    return f"{clean[-100:]}-{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _video_names(camera: str, metadata: dict[str, Any]) -> list[str]:
    """File names a camera's video may have. Of a path in the metadata (it begins anywhere) only its end is used."""
    stated, serial = metadata.get(f"{camera}_mp4_path"), metadata.get(f"{camera}_cam_serial")
    names = [PurePosixPath(stated.replace("\\", "/")).name] if isinstance(stated, str) else []
    names += [f"{serial}.mp4"] if isinstance(serial, str | int) else []
    return [name for name in names if name.endswith(".mp4") and _SERIAL.fullmatch(name[:-4]) and "-stereo" not in name]


def _oddities(directory: Path, metadata: dict[str, Any]) -> list[str]:
    files = len(list(directory.glob("metadata_*.json")))
    notes = [f"it has {files} files metadata_*.json, of which the first is used"] if files > 1 else []
    if metadata.get("success") is False:
        notes.append("the log marks it as a failure (success is false)")
    for key in ("lab", "building", "scene_id", "robot_serial"):
        if isinstance(metadata.get(key), str | int) and len(str(metadata[key])) <= 100:
            notes.append(f"{key}: {metadata[key]}")
    return notes


def _camera_facts(camera: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """A camera's serial number and pose: xyz in metres and extrinsic x-y-z angles, in the base's frame."""
    pose = metadata.get(f"{camera}_cam_extrinsics")
    facts: dict[str, Any] = {"channels": "rgb", "rate_hz": 15.0}
    if isinstance(pose, list) and len(pose) == 6 and all(isinstance(v, int | float) and abs(v) < 1e6 for v in pose):
        facts["extrinsics"] = [float(v) for v in pose]
    return facts


def _common_length(trajectory: Trajectory, videos: dict[str, tuple[str, VideoFrames]], notes: list[str]) -> int:
    """Steps that every stream has. A recorder that is stopped between two writes leaves a difference of one.

    Raises:
        UnusableError: lengths differ by more.
    """
    lengths = {**trajectory.lengths, **{f"the video of {c}": len(frames) for c, (_, frames) in videos.items()}}
    shortest, longest = min(lengths.values()), max(lengths.values())
    listed = (
        f"{shortest} in {min(lengths, key=lengths.__getitem__)}, {longest} in {max(lengths, key=lengths.__getitem__)}"
    )
    if longest - shortest > 1:
        raise UnusableError(f"unequal lengths: {listed}")
    if longest > shortest:
        notes.append(f"lengths differ by one ({listed}): what is beyond the shortest is left out")
    if shortest == 0:
        raise UnusableError("it has no steps")
    return shortest


def _from_zero(streams: list[Stream]) -> None:
    """Count every clock from the earliest stamp of all."""
    start = min(float(stream.timestamps[0]) for stream in streams)
    if not math.isfinite(start):
        raise UnusableError("its time stamps are not finite")
    for stream in streams:
        stream.timestamps = stream.timestamps - start


class Selected(Frames):
    """Some pictures of a video.

    Args:
        source: the video.
        steps: which, ascending.
    """

    def __init__(self, source: Frames, steps: np.ndarray) -> None:
        self.source, self.steps = source, steps
        super().__init__((len(steps), *source.shape[1:]))

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        block: list[np.ndarray] = []
        for picture in self.source.take(self.steps):
            block.append(picture)
            if len(block) == BLOCK:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)

    def cut(self, length: int) -> Selected:
        """See `Frames`."""
        return Selected(self.source, self.steps[:length])


def select(video: VideoFrames, steps: np.ndarray) -> Frames:
    """The pictures at some steps; still a stretch of the video where none between them is left out."""
    if steps[-1] - steps[0] + 1 == len(steps):
        return VideoFrames(video.path, (len(steps), *video.shape[1:]), video.start + int(steps[0]))
    return Selected(video.cut(int(steps[-1]) + 1), steps)
