"""Folders of pictures, one a camera, and when each picture was taken."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_cli.frames import PictureFrames
from vla_cli.readers.archive import stays_in
from vla_cli.readers.csv_table import Table, quoted, read_header, read_table

FOLDER, TIMES = "frames", "frames.csv"
ENDINGS = (".jpg", ".jpeg", ".png")
MOST_PICTURES = 1_000_000
LARGEST_FILE = 256 * 2**20
_SECONDS = re.compile(r"\d+\.\d+")
Timed = tuple[list[Path], np.ndarray]  # pictures in order, and their times [T] in seconds
_NANOSECONDS = re.compile(r"\d{16,20}")  # fewer digits are a running number


@dataclass(frozen=True)
class Camera:
    """The pictures of one camera in order.

    Attributes:
        name: its folder's, "frames" for pictures that lie in `frames/` itself.
        files: file name to path.
        strangers: how many other files lie between them.
    """

    name: str
    files: dict[str, Path]
    strangers: int

    @property
    def label(self) -> str:
        """Its folder, as messages name it."""
        return FOLDER if self.name == FOLDER else f"{FOLDER}/{self.name}"

    def find(self, name: str) -> Path | None:
        """A picture by its name, with or without the folders before it."""
        for prefix in (f"{FOLDER}/{self.name}/", f"{self.name}/", f"{FOLDER}/"):
            if name.removeprefix("./").startswith(prefix):
                return self.files.get(name.removeprefix("./").removeprefix(prefix))
        return self.files.get(name.removeprefix("./"))

    def pictures(self, paths: list[Path]) -> PictureFrames:
        """Pictures of it as they lie on disk.

        Raises:
            ValueError: there is none, or the first cannot be decoded.
        """
        return PictureFrames(lambda step: _content(paths[step]), len(paths), self.label)


def find_cameras(episode: Path) -> list[Camera]:
    """The cameras of an episode's `frames/`.

    Raises:
        ValueError: there are too many pictures.
    """
    root = episode / FOLDER
    if not root.is_dir() or not stays_in(root, episode.resolve()):
        return []
    cameras, resolved = [_camera(FOLDER, root)], episode.resolve()
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and stays_in(child, resolved):
            cameras.append(_camera(child.name, child))
    cameras = cameras if cameras[0].files else cameras[1:]
    if sum(camera.name == FOLDER for camera in cameras) > 1:
        raise ValueError(f"pictures lie in {FOLDER}/ and in {FOLDER}/{FOLDER}/, which would be one camera")
    return cameras


def _camera(name: str, folder: Path) -> Camera:
    files, strangers, resolved = [], 0, folder.resolve()
    with os.scandir(folder) as scan:
        for count, entry in enumerate(scan):
            if count > MOST_PICTURES:
                raise ValueError(f"{FOLDER} holds more than {MOST_PICTURES} files")
            path = Path(entry.path)
            if entry.name.startswith(".") or (name == FOLDER and entry.is_dir(follow_symlinks=False)):
                continue
            if path.suffix.lower() in ENDINGS and stays_in(path, resolved) and path.is_file():
                files.append(path)
            else:
                strangers += 1
    files.sort(key=_natural)
    if all(_SECONDS.fullmatch(path.stem) for path in files):
        files.sort(key=lambda path: float(path.stem))
    return Camera(name, {path.name: path for path in files}, strangers)


def _natural(path: Path) -> tuple[list[int | str], str]:
    parts = re.split(r"(\d+)", path.stem)
    return [int(part[:100]) if place % 2 else part for place, part in enumerate(parts)], path.name


def _content(path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{path.name} has more than {LARGEST_FILE} bytes")
    return data


def times_by_row(camera: Camera, table: Table, column: str, clock: np.ndarray) -> Timed:
    """Pictures that the rows name: each once, at the time of the first row of those in a row that name it.

    Raises:
        ValueError: one is not there.
    """
    paths, times, last = [], [], ""
    for row, name in enumerate(table.texts[column]):
        if name and name != last:
            path = camera.find(name)
            if path is None:
                raise ValueError(
                    f"line {table.lines[row]} names the picture {quoted([name])}, which is not among the"
                    f" {len(camera.files)} pictures of {camera.label}"
                )
            paths.append(path)
            times.append(clock[row])
        last = name or last
    if not paths:
        raise ValueError(f"the column {quoted([column])} names no picture")
    return paths, np.array(times)


def read_times(episode: Path, cameras: Sequence[Camera]) -> dict[str, Timed]:
    """What `frames.csv` says, by camera: its columns are `file` and `timestamp`.

    Raises:
        ValueError: it is damaged, names what is not there, or goes back in time.
    """
    path = episode / TIMES
    if not path.is_file() or not stays_in(path, episode.resolve()):
        return {}
    if not {"file", "timestamp"} <= set(header := read_header(path)):
        raise ValueError(f"{TIMES} has the columns {quoted(header)}, where 'file' and 'timestamp' are needed")
    table = read_table(path, ["timestamp"], ["file"])
    by_name, found = {camera.name: camera for camera in cameras}, dict[str, tuple[list[Path], list[float]]]()
    for line, name, time in zip(table.lines, table.texts["file"], table.numbers["timestamp"], strict=True):
        folder = name.removeprefix("./").removeprefix(f"{FOLDER}/").rpartition("/")[0]
        camera = cameras[0] if not folder and len(cameras) == 1 else by_name.get(folder or FOLDER)
        picture = camera.find(name) if camera else None
        if camera is None or picture is None:
            raise ValueError(f"{TIMES} line {line} names {quoted([name])}, which is no picture in {FOLDER}/")
        paths, times = found.setdefault(camera.name, ([], []))
        if times and time < times[-1]:
            raise ValueError(f"{TIMES} line {line} goes back in time within {camera.label}")
        paths.append(picture)
        times.append(time)
    return {name: (paths, np.array(times)) for name, (paths, times) in found.items()}


def named_times(camera: Camera) -> Timed | None:
    """Pictures and times from their names, if these are times."""
    paths = list(camera.files.values())
    if all(_SECONDS.fullmatch(path.stem) for path in paths):
        return paths, np.array([float(path.stem) for path in paths])
    if all(_NANOSECONDS.fullmatch(path.stem) for path in paths):
        return paths, np.array([int(path.stem) / 1e9 for path in paths])
    return None


def unused(camera: Camera, paths: list[Path], lists: str) -> list[str]:
    """What lies in a camera's folder and is not used, one sentence each.

    Args:
        camera: it.
        paths: the pictures that are used.
        lists: what lists them.
    """
    found = []
    if left := len(camera.files) - len(set(paths)):
        found.append(f"{left} pictures of {camera.label} are left out: {lists} does not name them")
    if camera.strangers:
        found.append(f"{camera.strangers} things in {camera.label} are no pictures (JPEG or PNG) and are left out")
    return found
