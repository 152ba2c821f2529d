"""One RLDS episode: from the flat features of a `tf.Example` to streams.

Every feature below `steps/` holds all steps one after the other: float32 or int64 numbers, one byte string a step
(pictures; tensors with the encoding "bytes" or "zlib"; texts), or one byte string for all steps (bools of some
writers). A sequence within the steps has `<key>/ragged_flat_values` and `<key>/ragged_row_lengths_0` instead.

Source: tensorflow_datasets/core/example_serializer.py and features/tensor_feature.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vla_cli.episode import Episode, Role, Stream, UnusableError
from vla_cli.errors import words
from vla_cli.frames import BLOCK, ArrayFrames, Frames, PictureFrames
from vla_cli.pictures import LARGEST_PICTURE
from vla_cli.readers import Warn
from vla_cli.readers.tf_example import Example, Feature, Items
from vla_cli.readers.tfds_meta import Leaf, label_names

ASSUMED_RATE = 10.0
WIDEST = 4096  # numbers a step of a vector; anything wider is a depth map or the like
LARGEST_MATRIX = 128 * 2**20  # bytes of one stream of numbers
_SHORT = 200  # letters of a text that is worth a note
_MOST_NOTES = 24
_INSTRUCTIONS = (
    *(f"steps/language_instruction{suffix}" for suffix in ("", "_2", "_3")),
    "steps/observation/natural_language_instruction",
    "steps/observation/instruction",
)
_TASKS = ("task", "instruction", "language")


class Steps:
    """The streams of one episode.

    Args:
        example: the episode.
        features: features.json.
        directory: of the version, for the names of class labels.
        rate: assumed samples a second.
        warn: takes what is odd.
    """

    def __init__(self, example: Example, features: dict[str, Leaf], directory: Path, rate: float, warn: Warn) -> None:
        self.example, self.features, self.directory, self.rate, self.warn = example, features, directory, rate, warn
        self.notes: list[str] = []

    def episode(self, name: str) -> Episode:
        """The whole of it.

        Raises:
            UnusableError: it has no actions, no steps, or features of unequal lengths.
            ValueError: pictures cannot be decoded, or the record is malformed.
        """
        self.notes.append(f"no rate is stated: {self.rate:g} Hz is assumed, time stamps are counted from it")
        clock = np.arange(self._count()) / self.rate
        streams = [*self._images(clock), *self._vectors(clock)]
        instructions = self._instructions()
        self.notes += self._texts()
        return Episode(name=name, streams=streams, instructions=instructions, format="rlds", notes=self.notes)

    def _count(self) -> int:
        """Steps of the episode: as many as its actions."""
        for key, leaf in self.features.items():
            if _role(key, leaf) == "action" and (values := self.example.get(key)) is not None:
                count = _steps_of(values, leaf, self.example)
                if count < 1:
                    raise UnusableError("it has no steps")
                return count
        raise UnusableError("it has no 'steps/action'")

    def _images(self, clock: np.ndarray) -> Iterator[Stream]:
        for key, leaf in sorted(self.features.items()):
            if key.startswith("steps/") and _is_camera(key, leaf):
                camera = _short(key)
                frames = self._frames(key, leaf, camera, len(clock))
                if frames is not None and not self._is_placeholder(camera, frames):
                    attributes = {"key": key}
                    if isinstance(frames, PictureFrames):
                        attributes["channels"] = "rgb"  # which JPEG and PNG define
                    yield Stream("image", camera, frames, clock, attributes)

    def _frames(self, key: str, leaf: Leaf, camera: str, steps: int) -> Frames | None:
        """A camera's pictures, still packed; None (and a note) when they are none of colour."""
        if leaf.shape[-1:] not in ((3,), (4,)) or leaf.depth > 1:
            why = "a video in each step" if leaf.depth > 1 else f"its shape is {list(leaf.shape)}, not colour"
            self.notes.append(f"camera {camera} is left out: {why}")
            return None
        encoded = self.example.get(key)
        if encoded is None:
            self.notes.append(f"camera {camera} is left out: features.json lists it, but the episode has none of it")
            return None
        if leaf.kind == "tensor":
            return _tensor_frames(encoded, leaf, camera, steps)
        if not isinstance(encoded, Items) or len(encoded) != steps:
            raise UnusableError(f"unequal lengths: {steps} actions, but {len(encoded)} pictures of {camera}")
        return PictureFrames(encoded.__getitem__, steps, camera)

    def _is_placeholder(self, camera: str, frames: Frames) -> bool:
        """Whether a camera only fills the format's slot. The pictures decide: real logs have flags that are wrong."""
        stated = self._flag(f"episode_metadata/has_{camera}")
        flat = _is_flat(frames)
        if flat:
            self.notes.append(f"camera {camera} is left out: every picture is one flat colour, a placeholder")
            self.warn(f"Camera {camera} is a placeholder (one flat colour) in some or all episodes: left out there.")
        elif stated is False:
            self.notes.append(f"has_{camera} is false, but the camera's pictures are real: it is kept")
            self.warn(f"episode_metadata/has_{camera} is false, but its pictures are real: the camera is kept.")
        return flat

    def _vectors(self, clock: np.ndarray) -> Iterator[Stream]:
        for key, leaf in self.features.items():
            role = None if _is_camera(key, leaf) else _role(key, leaf)
            if role is None:
                continue
            try:
                matrix = self._matrix(key, leaf, len(clock))
            except _LeftOutError as reason:
                self.notes.append(f"{key} is left out: {reason}")
                continue
            yield Stream(role, _short(key), matrix, clock, {"key": key, "shape": list(leaf.shape)})

    def _matrix(self, key: str, leaf: Leaf, steps: int) -> np.ndarray:
        """A tensor's numbers [T, D].

        Raises:
            _LeftOutError: it is of a kind that is no vector.
        """
        values, width = self.example.get(key), leaf.width
        if leaf.depth > 1:
            values, repeats = self._regular(key, steps)
            width = None if width is None else width * repeats
        if values is None:
            raise _LeftOutError("it is missing" + (", or its shape changes" if leaf.width is None else ""))
        if max(width or 0, len(values) // steps if isinstance(values, np.ndarray) else 0) > WIDEST:
            raise _LeftOutError(f"it has {width} numbers a step")
        if isinstance(values, Items) and (len(values) or not width):
            values = _unpacked(values, leaf, steps)
        width = len(values) // steps if width is None else width
        if len(values) != steps * width:
            raise UnusableError(
                f"unequal lengths: {steps} actions, but {key} has {len(values)} values of {width} a step"
            )
        return np.asarray(values).reshape(steps, width)

    def _regular(self, key: str, steps: int) -> tuple[Feature | None, int]:
        """Values of a sequence in each step, and how many a step; only where all steps have equally many."""
        lengths = self.example.get(f"{key}/ragged_row_lengths_0")
        if not isinstance(lengths, np.ndarray) or f"{key}/ragged_row_lengths_1" in self.example:
            return None, 0
        if len(lengths) != steps or np.any(lengths != lengths[0]) or not 0 < lengths[0] <= WIDEST:
            raise _LeftOutError("it is a sequence whose length changes from step to step")
        return self.example.get(f"{key}/ragged_flat_values"), int(lengths[0])

    def _flag(self, key: str) -> bool | None:
        values = self.example.get(key)
        return bool(values[0]) if isinstance(values, np.ndarray) and len(values) else None

    def _instructions(self) -> list[str]:
        if self._flag("episode_metadata/has_language") is False:
            return []
        said = [text for key in _INSTRUCTIONS for text in self._said(key)]
        if not said:  # a data set of tasks by number
            labels = [k for k, v in self.features.items() if v.kind == "classLabel" and k.endswith(_TASKS)]
            said = [text for key in labels for text in self._said(key)]
        return list(dict.fromkeys(said))

    def _said(self, key: str) -> list[str]:
        """Distinct texts of a feature: texts, letters as numbers (Language-Table), or the names of a class label."""
        values, leaf = self.example.get(key), self.features.get(key)
        if isinstance(values, Items):
            short = (values[i] for i in range(len(values)) if values.length(i) <= 10_000)
            texts = [text.decode("utf-8", "replace") for text in dict.fromkeys(short)]
        elif values is None or leaf is None:
            texts = []
        elif leaf.kind == "classLabel":
            names = label_names(self.directory, key)
            texts = [names[i] if 0 <= i < len(names) else str(i) for i in dict.fromkeys(values.tolist())]
        else:
            width = max(1, leaf.width or len(values))
            rows = dict.fromkeys(
                tuple(row) for row in values[: len(values) // width * width].reshape(-1, width).tolist()
            )
            letters = [bytes(c for c in map(int, row) if 0 < c < 256) for row in rows] if width > 1 else []
            texts = [text.decode("utf-8", "replace") for text in letters]
        return [text for text in dict.fromkeys(text.strip() for text in texts) if text]

    def _texts(self) -> list[str]:
        """Short facts that stand beside the streams: the episode's metadata, texts and labels of the steps."""
        told = []
        for key, leaf in self.features.items():
            episode = key.startswith("episode_metadata/") and leaf.depth == 0
            if (
                key in _INSTRUCTIONS
                or key.startswith("episode_metadata/has_")
                or not (episode or leaf.kind in ("text", "classLabel"))
            ):
                continue
            values = self.example.get(key)
            if leaf.kind == "tensor" and isinstance(values, np.ndarray):
                texts = [str(values[0].item())] if len(values) == 1 else []
            else:
                texts = self._said(key)
            if len(texts) == 1 and len(texts[0]) <= _SHORT:
                told.append(f"{key.removeprefix('episode_metadata/')}: {' '.join(texts[0].split())}")
        return told[:_MOST_NOTES]


class _LeftOutError(Exception):
    """Why a feature becomes no stream."""


class _TensorFrames(Frames):
    """Pictures that a log keeps as tensors of bytes, one a step.

    Args:
        raw: step -> its numbers.
        shape: [T, H, W, 3 or 4].
    """

    def __init__(self, raw: Callable[[int], np.ndarray], shape: tuple[int, ...]) -> None:
        self.raw, self.stored = raw, shape[1:]
        super().__init__((*shape[:3], 3))

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        for begin in range(0, len(self), BLOCK):
            steps = range(begin, min(begin + BLOCK, len(self)))
            yield np.stack([self.raw(step).reshape(self.stored)[..., :3] for step in steps])

    def cut(self, length: int) -> _TensorFrames:
        """See `Frames`."""
        return _TensorFrames(self.raw, (length, *self.stored))


def _tensor_frames(values: Feature, leaf: Leaf, camera: str, steps: int) -> Frames:
    shape, width = (steps, *leaf.shape), leaf.width
    if width is None or width > LARGEST_PICTURE * 4 or width < 1:
        raise UnusableError(f"camera {camera} has pictures of the shape {list(leaf.shape)}")
    if isinstance(values, Items):
        if len(values) != steps:
            raise UnusableError(f"unequal lengths: {steps} actions, but {len(values)} pictures of {camera}")
        return _TensorFrames(lambda step: _decoded(values[step], leaf, width), shape)
    if len(values) != steps * width:
        raise UnusableError(f"unequal lengths: {steps} actions, but {camera} has {len(values)} values of {width}")
    if np.any((values < 0) | (values > 255)):
        raise UnusableError(f"camera {camera} has values beyond 0 to 255")
    return ArrayFrames(np.ascontiguousarray(values.astype(np.uint8).reshape(shape)[..., :3]))


def _is_flat(frames: Frames) -> bool:
    """Whether all pictures have one value throughout; a real camera tells in its first block."""
    lowest, highest = 255, 0
    for block in frames.blocks():
        lowest, highest = min(lowest, int(block.min())), max(highest, int(block.max()))
        if lowest != highest:
            return False
    return True


def _unpacked(values: Items, leaf: Leaf, steps: int) -> np.ndarray:
    """Numbers of a tensor that is stored as bytes: a byte string a step, or one for all of them."""
    dtype, size = _dtype(leaf), sum(values.length(index) for index in range(len(values)))
    if size > LARGEST_MATRIX or (leaf.width or 1) * dtype.itemsize * steps > LARGEST_MATRIX:
        raise _LeftOutError(f"it has {size} bytes")
    if len(values) == 1 and steps > 1:  # never packed: each step is, where the encoding is zlib
        if size % dtype.itemsize:
            raise UnusableError(f"a tensor of {leaf.dtype} has {size} bytes")
        return np.frombuffer(values[0], dtype)
    if leaf.width is None and leaf.encoding == "zlib":
        raise _LeftOutError("its shape changes")
    if leaf.width is None and len({values.length(index) for index in range(len(values))}) > 1:
        raise _LeftOutError("its shape changes")
    width = leaf.width if leaf.width is not None else values.length(0) // dtype.itemsize
    return np.concatenate([_decoded(values[index], leaf, width) for index in range(len(values))])


def _decoded(data: bytes, leaf: Leaf, width: int) -> np.ndarray:
    """One step of an encoded tensor, flat; never more than its shape says."""
    dtype = _dtype(leaf)
    size = width * dtype.itemsize
    if leaf.encoding == "zlib":
        try:
            data = zlib.decompressobj().decompress(data, size + 1)
        except zlib.error as error:
            raise UnusableError(f"a tensor of {leaf.dtype} cannot be unpacked ({words(error)})") from None
    if len(data) != size:
        raise UnusableError(f"a tensor of {width} {leaf.dtype} has {len(data)} bytes a step")
    return np.frombuffer(data, dtype)


def _dtype(leaf: Leaf) -> np.dtype:
    """The dtype of a tensor's bytes."""
    if leaf.dtype == "bool":
        return np.dtype(np.uint8)
    if leaf.dtype not in ("float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))):
        raise _LeftOutError(f"it is stored as bytes of {leaf.dtype or 'no dtype'}")
    return np.dtype(leaf.dtype).newbyteorder("<")


def _steps_of(values: Feature, leaf: Leaf, example: Example) -> int:
    """Steps of an action: its values by their width, its byte strings, or (of no fixed width) the steps' flags."""
    if isinstance(values, Items) and len(values) != 1:
        return len(values)
    if leaf.width and isinstance(values, Items):
        size = leaf.width * _itemsize(leaf)
        return 1 if leaf.encoding == "zlib" else values.length(0) // size
    if leaf.width:
        return len(values) // leaf.width
    flags = example.get("steps/is_first")
    if flags is None:
        raise UnusableError("the width of its actions is not stated")
    return flags.length(0) if isinstance(flags, Items) and len(flags) == 1 else len(flags)


def _itemsize(leaf: Leaf) -> int:
    try:
        return _dtype(leaf).itemsize
    except _LeftOutError as reason:
        raise UnusableError(f"its actions cannot be read: {reason}") from None


def _is_camera(key: str, leaf: Leaf) -> bool:
    """Pictures, or tensors that can be nothing else."""
    if leaf.kind in ("image", "video"):
        return True
    tensor = leaf.kind == "tensor" and leaf.dtype == "uint8" and len(leaf.shape) == 3
    return tensor and leaf.shape[-1] in (3, 4) and key.startswith("steps/observation/")


def _role(key: str, leaf: Leaf) -> Role | None:
    if leaf.kind != "tensor" or leaf.dtype in ("string", "object") or not key.startswith("steps/"):
        return None
    if key == "steps/action" or key.startswith("steps/action/"):
        return "action"
    floating = leaf.dtype.startswith(("float", "bfloat")) and len(leaf.shape) < 2 and "embedding" not in key
    return "state" if floating and key.startswith("steps/observation/") else "other"


def _short(key: str) -> str:
    return key.removeprefix("steps/observation/").removeprefix("steps/").replace("/", ".")
