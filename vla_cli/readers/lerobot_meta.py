"""What a LeRobot v2 directory says of itself, and where its files really are.

The metadata come from elsewhere and are checked: paths they give stay inside the directory, and everything that the
files contradict becomes a sentence.
"""

from __future__ import annotations

import json
import os
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cli.errors import InputError
from vla_cli.files import read_json

INFO = Path("meta/info.json")
VERSIONS = ("v2.0", "v2.1")
STANDARD = {
    "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "videos": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
# GR00T's sets keep the flag of `annotation.human.validity` in the list of tasks: no robot is told "valid".
VALIDITY_FLAGS = ("valid", "invalid")
_SPEC = re.compile(r"0?\d?d?")


@dataclass
class ListedEpisode:
    """A line of `meta/episodes.jsonl`, and the files found for it ("data" and one a video key; None when missing)."""

    index: int
    tasks: list[str]
    length: int | None
    table: Path | None = None
    videos: dict[str, Path | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"episode_{self.index:06d}"


@dataclass
class Metadata:
    """A directory's metadata.

    Attributes:
        root: the directory.
        info: `meta/info.json`.
        features: column name to {"dtype", "shape", "names"}.
        tasks: task index to text.
        episodes: those listed, with their files.
        modality: `meta/modality.json`, or {}.
        cameras: video keys that have files; `images`: keys of pictures inside the tables.
        warnings: what the files contradict.
    """

    root: Path
    info: dict[str, Any]
    features: dict[str, dict[str, Any]]
    tasks: dict[int, str]
    episodes: list[ListedEpisode]
    modality: dict[str, Any]
    cameras: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Frames a second as stated; 0 when it is not."""
        fps = self.info.get("fps")
        return float(fps) if isinstance(fps, int | float) and fps > 0 else 0.0


def is_lerobot(path: Path) -> str | None:
    """Whether this is a directory with a LeRobot `meta/info.json`."""
    info = path / INFO
    if not info.is_file():
        return None
    try:
        document = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it holds meta/info.json (which is not valid JSON)"
    if isinstance(document, dict) and "codebase_version" in document:
        return f"its meta/info.json says codebase_version {document['codebase_version']}"
    return None


def load_metadata(root: Path) -> Metadata:
    """Read and check the metadata, and find every episode's files.

    Raises:
        InputError: the metadata are missing, damaged, of another version, or lead out of the directory.
    """
    info = read_json(root / INFO)
    _check_info(info, root)
    try:
        return _load(root, info)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"The metadata in {root / 'meta'} are malformed ({error!r})", expected="LeRobot's own layout"
        ) from None


def _load(root: Path, info: dict[str, Any]) -> Metadata:
    tasks = {int(row["task_index"]): str(row["task"]) for row in _rows(root / "meta/tasks.jsonl", "task_index", "task")}
    modality = read_json(root / "meta/modality.json") if (root / "meta/modality.json").is_file() else {}
    for part in ("state", "action"):
        if not all({"start", "end"} <= span.keys() for span in modality.get(part, {}).values()):
            raise ValueError(f"meta/modality.json has a {part} without start and end")
    metadata = Metadata(root, info, info["features"], tasks, _listed(root), modality)
    metadata.images = [key for key, feature in metadata.features.items() if feature.get("dtype") == "image"]
    _locate_all(metadata)
    _contradictions(metadata)
    return metadata


def dimension_names(metadata: Metadata, key: str, width: int) -> list[str]:
    """Names of a vector's dimensions, [] when none are stated: ranges of modality.json, else names of info.json."""
    part = {"observation.state": "state", "action": "action"}.get(key, "")
    named: dict[int, str] = {}
    for name, span in metadata.modality.get(part, {}).items():
        start, end = int(span["start"]), int(span["end"])
        if span.get("original_key", key) == key and 0 <= start <= end <= width:
            named |= {start + i: f"{name}[{i}]" for i in range(end - start)}
    if sorted(named) == list(range(width)):
        return [named[i] for i in range(width)]
    names = metadata.features.get(key, {}).get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    return [str(name) for name in names] if isinstance(names, list) and len(names) == width else []


def _check_info(info: Any, root: Path) -> None:
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in VERSIONS:
        raise InputError(
            f"{root / INFO} says codebase_version {version!r}, which this version does not read",
            expected=" or ".join(VERSIONS),
            hint="LeRobot's own converter, or ask for this version",
        )
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise InputError(f"{root / INFO} has no 'features'", expected="one entry a column: dtype, shape, names")


def _listed(root: Path) -> list[ListedEpisode]:
    """Episodes of `meta/episodes.jsonl`; without that file, those that have a table."""
    path = root / "meta/episodes.jsonl"
    if path.is_file():
        rows = _rows(path, "episode_index")
        return [ListedEpisode(int(r["episode_index"]), _texts(r.get("tasks")), r.get("length")) for r in rows]
    return [ListedEpisode(index, [], None) for index in sorted(_by_number(root))]


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _by_number(root: Path) -> dict[int, Path]:
    """Every table below data/, by the number in its name."""
    found = sorted((root / "data").rglob("episode_*.parquet"))
    return {int(file.stem[8:]): file for file in found if file.stem[8:].isdigit()}


def _rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Lines of a JSONL file, each an object with `keys`; none when there is no such file."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                rows.append({**row, **{key: row[key] for key in keys}})
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} line {number} is damaged ({error!r})", expected=f"an object with {keys}"
                ) from None
    return rows


def _locate_all(metadata: Metadata) -> None:
    """Find the files of every listed episode and camera, and say where the metadata led astray."""
    videos = [k for k, f in metadata.features.items() if f.get("dtype") == "video" and not _is_depth(metadata, k, f)]
    finder = _Finder(metadata)
    for episode in metadata.episodes:
        episode.table = finder.find("data", episode.index, "")
        episode.videos = {key: finder.find("videos", episode.index, key) for key in videos}
    for key in videos:
        if any(episode.videos[key] for episode in metadata.episodes):
            metadata.cameras.append(key)
        else:
            metadata.warnings.append(
                f"meta/info.json lists the camera '{key}', but there is no video file of it in any episode: "
                "it is left out."
            )
            for episode in metadata.episodes:
                del episode.videos[key]
    metadata.warnings.extend(finder.astray())


def _is_depth(metadata: Metadata, key: str, feature: dict[str, Any]) -> bool:
    details = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if details.get("video.is_depth_map"):
        metadata.warnings.append(f"The camera '{key}' is a depth map: it is left out.")
        return True
    return False


class _Finder:
    """Finds files: as info.json's template says, else at the standard place, else by name; and remembers which."""

    def __init__(self, metadata: Metadata) -> None:
        self.root = metadata.root
        self.chunk_size = max(1, int(metadata.info.get("chunks_size") or 1000))
        self.templates = {
            "data": str(metadata.info.get("data_path") or STANDARD["data"]),
            "videos": str(metadata.info.get("video_path") or STANDARD["videos"]),
        }
        self.resorts: dict[tuple[str, str], int] = {}
        self.by_name: dict[str, dict[str, list[Path]]] = {}

    def find(self, kind: str, index: int, video_key: str) -> Path | None:
        """The file, or None. Raises InputError for a template or key that leads out of the directory."""
        values = {"episode_chunk": index // self.chunk_size, "episode_index": index, "video_key": video_key}
        literal = _inside(self.root, _fill(self.templates[kind], values))
        if literal.is_file():
            return literal
        standard = _inside(self.root, _fill(STANDARD[kind], values))
        if standard.is_file():
            return self._resort(kind, "at the standard place", standard)
        for file in self._named(kind).get(standard.name, []):
            if not video_key or video_key in file.relative_to(self.root).parts:
                return self._resort(kind, "by name", file)
        return None

    def _named(self, kind: str) -> dict[str, list[Path]]:
        """Every file below data/ or videos/ by its name; listed once, and only when a path led astray."""
        if kind not in self.by_name:
            self.by_name[kind] = {}
            for file in sorted(path for path in (self.root / kind).rglob("*") if path.is_file()):
                self.by_name[kind].setdefault(file.name, []).append(file)
        return self.by_name[kind]

    def _resort(self, kind: str, how: str, file: Path) -> Path:
        self.resorts[kind, how] = self.resorts.get((kind, how), 0) + 1
        return file

    def astray(self) -> list[str]:
        """A sentence for each way in which a template missed files that are there."""
        option = {"data": "data_path", "videos": "video_path"}
        return [
            f"meta/info.json's {option[kind]} '{self.templates[kind]}' does not lead to {count} file(s); "
            f"they were found {how}."
            for (kind, how), count in self.resorts.items()
        ]


def _fill(template: str, values: dict[str, Any]) -> str:
    """Fill a path template: only the known fields, with a plain width; nothing else of Python's format language."""
    filled = []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"The path template '{template}' in meta/info.json is malformed ({error})") from None
    for text, name, spec, conversion in parts:
        filled.append(text)
        if name is None:
            continue
        if name not in values or conversion or not _SPEC.fullmatch(spec or ""):
            raise InputError(
                f"The path template '{template}' in meta/info.json has the field '{name}:{spec}'",
                expected=f"only {', '.join(values)}",
            )
        filled.append(format(values[name], spec or ""))
    return "".join(filled)


def _inside(root: Path, relative: str) -> Path:
    """The path below root. Links are not resolved: a hub cache is made of them."""
    joined = Path(os.path.normpath(root / relative))
    if not joined.is_relative_to(os.path.normpath(root)):
        raise InputError(
            f"meta/info.json leads to '{relative}', which is outside {root}", expected="paths inside the directory"
        )
    return joined


def _contradictions(metadata: Metadata) -> None:
    """Compare what info.json counts with what is there."""
    info, warn = metadata.info, metadata.warnings.append
    count = len(metadata.episodes)
    for split, span in (info.get("splits") or {}).items():
        end = str(span).partition(":")[2]
        if end.isdigit() and int(end) > count:
            warn(f"meta/info.json's split '{split}' is {span}, but there are only {count} episodes: all are read.")
    lengths = [episode.length for episode in metadata.episodes]
    chunks = {e.index // max(1, int(info.get("chunks_size") or 1000)) for e in metadata.episodes}
    found = {"total_episodes": count, "total_chunks": len(chunks), "total_tasks": len(metadata.tasks)}
    if all(isinstance(length, int) for length in lengths):
        found["total_frames"] = sum(length for length in lengths if length)
    for key, number in found.items():
        if key in info and info[key] != number:
            warn(f"meta/info.json says {key} {info[key]}, but there are {number}.")
    flags = sorted({text for text in metadata.tasks.values() if text in VALIDITY_FLAGS})
    for flag in flags:
        warn(f"The task '{flag}' in meta/tasks.jsonl is a validity flag and no instruction: it is left out.")
    listed = {episode.index for episode in metadata.episodes}
    unlisted = [file.stem for number, file in _by_number(metadata.root).items() if number not in listed]
    if unlisted:
        warn(f"meta/episodes.jsonl does not list {', '.join(unlisted[:5])} ({len(unlisted)} in all): not read.")
