"""Pictures of a deployment, as a lab has them at hand, sorted by camera and scene.

    episodes/                     a directory written by collect-ingest: each episode is a scene
    episode.hdf5                  one of its files
    run.mp4                       a video of the only camera: one scene
    frames/*.png                  JPEG or PNG pictures of the only camera: one scene
    frames/SCENE/*.png            the same, of several scenes
    frames/CAMERA/*.png           pictures by camera; a video in place of a folder is called CAMERA.mp4
    frames/CAMERA/SCENE/*.png     and by camera and scene; SCENE may be a video

A scene is one arrangement of things. Pictures of several that lie in one folder are taken for one scene, which is safe:
the comparison then trusts them less than it could.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from vla_cli.episode import MANIFEST, load_episode, read_manifest
from vla_cli.errors import InputError, MissingDependency, words
from vla_cli.frames import Frames, PictureFrames, VideoFrames
from vla_cli.video import probe

_T = TypeVar("_T")
PICTURES = {".png", ".jpg", ".jpeg"}
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
EPISODES = {".hdf5", ".h5"}
MOST_SCENES = 50
"""Scenes read of each camera, evenly over all of them: more tell no more."""


def load_pictures(path: Path, cameras: Collection[str]) -> Mapping[str, list[Frames]]:
    """The scenes of each camera, uint8 RGB [T, H, W, 3], decoded as they are asked for.

    Args:
        path: see the layouts above.
        cameras: the demonstrations' cameras, by which folders are told from scenes.

    Returns:
        Camera to scenes, cameras in name order; only those of `cameras` that are there.

    Raises:
        InputError: nothing is there, it cannot be read, or it does not tell which pictures are whose.
        MissingDependency: it takes PyAV to read a video.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist", expected=_expected(cameras))
    try:
        found = _load(path, sorted(cameras))
    except MissingDependency:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({words(error)})", expected=_expected(cameras)) from None
    kept = {camera: _evenly(found[camera]) for camera in sorted(found) if camera in cameras and found[camera]}
    if not kept:
        others = f", but of {', '.join(sorted(found))}" if found else ""
        raise InputError(
            f"{path} holds no pictures of {', '.join(sorted(cameras))}{others}", expected=_expected(cameras)
        )
    return kept


def _load(path: Path, cameras: list[str]) -> dict[str, list[Frames]]:
    if path.is_file():
        return _episodes([path]) if path.suffix.lower() in EPISODES else {_only(cameras, path): [_scene(path)]}
    if (path / MANIFEST).is_file():
        return _episodes([path / row["file"] for row in read_manifest(path)])
    named = {entry.stem if entry.suffix.lower() in VIDEOS else entry.name: entry for entry in _in(path)}
    if any(camera in named for camera in cameras):
        return {camera: _scenes(named[camera]) for camera in cameras if camera in named}
    return {_only(cameras, path): _scenes(path)} if named else {}


def _episodes(files: list[Path]) -> dict[str, list[Frames]]:
    found: dict[str, list[Frames]] = {}
    for file in _evenly(files):
        for stream in load_episode(file).of_role("image"):
            found.setdefault(stream.name, []).append(stream.values)
    return found


def _only(cameras: list[str], path: Path) -> str:
    if len(cameras) != 1:
        raise InputError(f"{path} does not tell whose pictures it holds", expected=_expected(cameras))
    return cameras[0]


def _scenes(path: Path) -> list[Frames]:
    """The scenes of one camera: the pictures lying here are one, each folder and each video another."""
    if path.is_file():
        return [_scene(path)]
    scenes = [_scene(path)] if any(_is_picture(entry) for entry in _in(path)) else []
    inner = [e for e in _in(path) if (e.is_dir() or e.suffix.lower() in VIDEOS) and not _is_picture(e)]
    return scenes + [_scene(e) for e in inner if e.is_file() or any(_is_picture(p) for p in _in(e))]


def _scene(path: Path) -> Frames:
    """A video, a picture, or the pictures of a folder in name order."""
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return VideoFrames(path, probe(path)[1])
    if path.is_file() and not _is_picture(path):
        raise ValueError(f"{path.name} is neither a picture nor a video nor an episode")
    files = [path] if path.is_file() else [entry for entry in _in(path) if _is_picture(entry)]
    return PictureFrames(lambda step: files[step].read_bytes(), len(files), str(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _in(path: Path) -> Iterator[Path]:
    """What a folder holds, in name order, hidden names left out; numbers in names by their value."""
    yield from sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=lambda e: _key(e.name))


def _key(name: str) -> list[tuple[int, str]]:
    """Text and numbers by turns, so that frame_10 comes after frame_9; the name itself settles what is left."""
    parts = re.split(r"([0-9]+)", name)
    return [*((int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)), (0, name)]


def _evenly(items: list[_T]) -> list[_T]:
    if len(items) <= MOST_SCENES:
        return items
    return [items[round(i * (len(items) - 1) / (MOST_SCENES - 1))] for i in range(MOST_SCENES)]


def _expected(cameras: Collection[str]) -> str:
    names = ", ".join(sorted(cameras))
    if len(cameras) == 1:
        return f"JPEG or PNG pictures of camera {names} in one folder, a video of it, or a directory of episodes"
    return f"a folder for each camera ({names}) with JPEG or PNG pictures, or a directory of episodes"
