"""What a LeRobot directory says of itself.

The metadata come from elsewhere and are checked: paths they give stay inside the directory, and everything that the
files contradict becomes a sentence. This is what all versions share; the episodes are listed in `lerobot_v2` and
`lerobot_v3`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cli.errors import InputError
from vla_cli.files import text_digest
from vla_cli.readers.lerobot_files import LARGEST_JSON, Files, is_own, read_document

INFO = "meta/info.json"
V2, V3 = ("v2.0", "v2.1"), ("v3.0",)
MOST_EPISODES, MOST_FEATURES = 100_000, 1000
HIGHEST_RATE = 10_000.0
# GR00T's sets keep the flag of `annotation.human.validity` in the list of tasks: no robot is told "valid".
VALIDITY_FLAGS = ("valid", "invalid")
# Bookkeeping of the format itself, and what only reinforcement learning asks for.
_NO_STREAMS = ("timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index")
_NO_STREAM_PREFIXES = ("annotation.", "next.")
_NUMBERS = ("float", "double", "int", "uint", "bool")


@dataclass
class Metadata:
    """A directory's metadata.

    Attributes:
        root: the directory; `files`: what is in it.
        info: `meta/info.json`.
        features: column name to {"dtype", "shape", "names"}.
        tasks: task index to text.
        modality: `meta/modality.json`, or {}.
        videos: video keys that may have files; `images`: keys of pictures inside the tables; `vectors`: of numbers.
        warnings: what the files contradict.
    """

    root: Path
    files: Files
    info: dict[str, Any]
    features: dict[str, dict[str, Any]]
    modality: dict[str, Any]
    tasks: dict[int, str] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Frames a second as stated; 0 when it is not, or is no usable number."""
        fps = self.info.get("fps")
        if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= HIGHEST_RATE:
            return 0.0
        return float(fps)

    def say(self, sentence: str) -> None:
        """Keep a warning, whatever text of the log it quotes."""
        self.warnings.append(" ".join(sentence.split())[:600])


class Statements:
    """What the metadata state of single episodes: where that changes, an episode that was read is read again.

    What other episodes add (totals, splits, tasks that only they name) is no part of it, so that a set which grows is
    not read again from its beginning.

    Args:
        metadata: complete, with its tasks and cameras.
        listed: the tasks that the list of episodes gives each of them.
    """

    def __init__(self, metadata: Metadata, listed: Iterable[Sequence[str]]) -> None:
        named = {text for tasks in listed for text in tasks}
        self._numbers: dict[str, list[int]] = {}
        for number, text in metadata.tasks.items():
            self._numbers.setdefault(text, []).append(number)
        info = metadata.info
        common = {
            "fps": info.get("fps"),
            "features": metadata.features,
            "modality": metadata.modality,
            "cameras": metadata.videos,
            "tasks": {text: numbers for text, numbers in self._numbers.items() if text not in named},
        }
        self._common = text_digest(json.dumps(common, sort_keys=True, default=str))

    def of(self, tasks: Sequence[str], length: Any, more: Any = None) -> str:
        """As text, for one episode.

        Args:
            tasks: those listed for it.
            length: steps as listed, whatever that is.
            more: what a version lists beside these.
        """
        own = [[text, self._numbers.get(text)] for text in tasks]
        return json.dumps([self._common, own, length, more], sort_keys=True, default=str)


def episode_name(index: int) -> str:
    """As the files of v2 are called."""
    return f"episode_{index:06d}"


def is_lerobot(path: Path) -> str | None:
    """Whether this is a directory with a LeRobot `meta/info.json`."""
    info = path / INFO
    if not is_own(path, info):
        return None
    if info.stat().st_size > LARGEST_JSON:
        return "it holds meta/info.json (which is far too large)"
    try:
        document = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "it holds meta/info.json (which is not valid JSON)"
    if isinstance(document, dict) and "codebase_version" in document:
        return f"its meta/info.json says codebase_version {str(document['codebase_version'])[:40]}"
    return None


def load_metadata(root: Path) -> Metadata:
    """Read and check what the versions share.

    Raises:
        InputError: the metadata are missing, damaged or of another version.
    """
    info = read_document(root, INFO)
    _check_info(info, root)
    modality = read_document(root, "meta/modality.json") if (root / "meta/modality.json").is_file() else {}
    try:
        for part in ("state", "action"):
            if not all({"start", "end"} <= span.keys() for span in modality.get(part, {}).values()):
                raise ValueError(f"meta/modality.json has a {part} without start and end")
        metadata = Metadata(root, Files(root), info, info["features"], modality)
        _sort_features(metadata)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise malformed(root, error) from None
    if not metadata.rate:
        metadata.say(f"meta/info.json states no usable fps ({str(info.get('fps'))[:40]}): the time stamps must tell.")
    return metadata


def malformed(root: Path, error: Exception) -> InputError:
    """The error for metadata of another shape than LeRobot's."""
    return InputError(
        f"The metadata in {root / 'meta'} are malformed ({repr(error)[:200]})", expected="LeRobot's own layout"
    )


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


def leave_out_absent(metadata: Metadata, found: dict[str, bool]) -> None:
    """Take out the cameras that the metadata list and of which no episode has a file."""
    for key in [key for key, any_file in found.items() if not any_file]:
        metadata.videos.remove(key)
        metadata.say(
            f"meta/info.json lists the camera '{key}', but there is no video file of it in any episode: it is left out."
        )
    if metadata.files.outside:
        some = ", ".join(sorted(metadata.files.outside)[:3])
        metadata.say(f"{len(metadata.files.outside)} links lead out of the log and are not followed ({some}).")


def texts(value: Any) -> list[str]:
    """A list of texts as such, anything else as an empty one."""
    return [str(item) for item in value] if isinstance(value, list) else []


def index_number(value: Any) -> int:
    """An episode's number.

    Raises:
        ValueError: it is none.
    """
    number = int(value)
    if not 0 <= number < 10**9 or isinstance(value, bool):
        raise ValueError(f"episode_index {number}")
    return number


def _check_info(info: Any, root: Path) -> None:
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in (*V2, *V3):
        raise InputError(
            f"{root / INFO} says codebase_version {repr(version)[:40]}, which this version does not read",
            expected=" or ".join((*V2, *V3)),
            hint="LeRobot's own converter, or ask for this version",
        )
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise InputError(f"{root / INFO} has no 'features'", expected="one entry a column: dtype, shape, names")
    odd = [name for name in features if not name.isprintable() or not 0 < len(name) <= 200]
    if odd or len(features) > MOST_FEATURES:
        raise InputError(
            f"{root / INFO} has {len(features)} features, {len(odd)} of which have no usable name",
            expected=f"at most {MOST_FEATURES}, with printable names",
        )


def _sort_features(metadata: Metadata) -> None:
    """What each feature is read as; what is read as nothing is said."""
    for key, feature in metadata.features.items():
        kind = str(feature.get("dtype", ""))
        if kind == "video":
            if _is_depth(feature):
                metadata.say(f"The camera '{key}' is a depth map: it is left out.")
            else:
                metadata.videos.append(key)
        elif kind == "image":
            metadata.images.append(key)
        elif key in _NO_STREAMS or key.startswith(_NO_STREAM_PREFIXES):
            continue
        elif kind.startswith(_NUMBERS):
            metadata.vectors.append(key)
        else:
            metadata.say(f"The feature '{key}' is of dtype '{kind[:40]}', which is not numbers: it is left out.")


def _is_depth(feature: dict[str, Any]) -> bool:
    details = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    return bool(details.get("video.is_depth_map") or details.get("is_depth_map"))


def say_counts(metadata: Metadata, episodes: int, found: dict[str, int]) -> None:
    """Say where info.json counts otherwise than `found`, and which tasks are none."""
    for split, span in (metadata.info.get("splits") or {}).items():
        end = str(span).partition(":")[2]
        if end.isdecimal() and len(end) < 20 and int(end) > episodes:
            metadata.say(
                f"meta/info.json's split '{split}' is {span}, but there are only {episodes} episodes: all are read."
            )
    for key, number in found.items():
        if key in metadata.info and metadata.info[key] != number:
            metadata.say(f"meta/info.json says {key} {str(metadata.info[key])[:40]}, but there are {number}.")
    for flag in sorted({text for text in metadata.tasks.values() if text in VALIDITY_FLAGS}):
        metadata.say(f"The task '{flag}' in the list of tasks is a validity flag and no instruction: it is left out.")
