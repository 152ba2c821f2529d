"""Normalisation statistics: how raw units become numbers a network likes, and back.

On disk, `stats.json`:

    {"state":   {"mean": [S], "std": [S], "min": [S], "max": [S], "q01": [S], "q99": [S], "constant": [S],
                 "near_constant": [S], "mask": [S]},          these two only where they say something
     "actions": {... [A]},
     "images":  {camera: {"mean": [3], "std": [3]}}}          pixels scaled to 0..1, RGB

Everything is exact and streamed: an `Accumulator` a vector keeps its values (they are small), one a camera keeps its
histogram. Statistics do not depend on the order in which frames came or accumulators were merged, to the last bit.

The guard for constant dimensions. A joint that never moves has a standard deviation of zero, or of sensor noise;
dividing by it turns the slightest move at deployment into a number of thousands, and the policy falls apart. So:

- a dimension whose whole range is below `CONSTANT_RANGE` (times its size, when that is above 1) is *constant*: it
  normalises to 0 whatever comes in, and un-normalises to its mean. Its recorded std is 1, so that a tool that knows
  nothing of the mask stays calm too;
- a dimension is *near-constant* when its range is below `NEAR_RANGE` of its size (a joint that stands at 1.569 and
  moves by 0.001: openpi issue #814, where a 0 became -3200), when it is below `NEAR_RANGE` and all noise (from frame to
  frame it moves as much as at all), or when q01 equals q99 (all stand still but a few spikes). Its std is at least
  `NEAR_RANGE` and 1/`LARGEST` of its size, so that its noise is not blown up and a 0 stays within ±`LARGEST`;
- any other std is at least 1/`LARGEST` of the range (a rare spike stays within ±`LARGEST`) and at least `STD_FLOOR`.

The mask is OpenVLA's: a dimension whose mask is False (a gripper that is 0 or 1 already) is left alone both ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json

FILE_NAME = "stats.json"
CONSTANT_RANGE = 1e-5
STD_FLOOR = 1e-4
NEAR_RANGE = 1e-3
"""Of a dimension's size, or in its own units: a millimetre, a milliradian. Encoders and teleoperation are no finer."""
NOISE = 0.5
"""Mean square of the steps over twice the variance (von Neumann's ratio, 1941): 1 for white noise, 0 for smooth."""
LARGEST = 20.0
_VECTORS = ("mean", "std", "min", "max", "q01", "q99")
_FLAGS = ("near_constant", "mask")

Mask = Sequence[bool] | np.ndarray | None


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one vector over time, each field [D] float64 in the log's own units.

    Attributes:
        mean, std: what `normalise` subtracts and divides by; std is never 0 (see the module's text).
        min, max, q01, q99: the range, and that of the middle 98%.
        constant: [D] bool, normalises to 0.
        near_constant: [D] bool, hardly moves; all False unless stated.
        mask: [D] bool, False for what is left alone; all True unless stated.
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    constant: np.ndarray
    near_constant: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    mask: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def __post_init__(self) -> None:
        for name, usual in zip(_FLAGS, (False, True), strict=True):
            if len(getattr(self, name)) == 0:
                object.__setattr__(self, name, np.full(len(self.mean), usual))

    def __len__(self) -> int:
        return len(self.mean)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Raw units [..., D] to z-scores [..., D] float32; constant dimensions become 0, masked ones stay."""
        raw = np.asarray(values, np.float64)
        scores = np.where(self.constant, 0.0, (raw - self.mean) / self.std)
        return np.where(self.mask, scores, raw).astype(np.float32)

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `normalise`: z-scores [..., D] to raw units, float32; constant dimensions become the mean."""
        scores = np.asarray(values, np.float64)
        raw = np.where(self.constant, self.mean, scores * self.std + self.mean)
        return np.where(self.mask, raw, scores).astype(np.float32)

    def pick(self, dims: Sequence[int]) -> Statistics:
        """Those of some dimensions, in the order given."""
        chosen = np.asarray(dims, np.int64)
        return Statistics(**{key: getattr(self, key)[chosen] for key in (*_VECTORS, "constant", *_FLAGS)})

    def to_json(self) -> dict[str, list[Any]]:
        """As JSON values."""
        said = {"near_constant": self.near_constant.any(), "mask": not self.mask.all()}
        keys = (*_VECTORS, "constant", *(key for key in _FLAGS if said[key]))
        return {key: getattr(self, key).tolist() for key in keys}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_json`.

        Raises:
            InputError: a list is missing, lengths differ, or a std is not positive and finite.
        """
        try:
            arrays = {key: np.asarray(document[key], np.float64) for key in _VECTORS}
            flags = {"constant": np.asarray(document["constant"], bool)}
            flags |= {key: np.asarray(document[key], bool) for key in _FLAGS if key in document}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"Statistics are incomplete ({error!r})", expected=f"{', '.join(_VECTORS)}, constant"
            ) from None
        if len({a.shape for a in (*arrays.values(), *flags.values())}) != 1 or flags["constant"].ndim != 1:
            raise InputError("Statistics have lists of different lengths", expected="one value a dimension in each")
        if not all(np.all(np.isfinite(a)) for a in arrays.values()) or np.any(arrays["std"] <= 0):
            raise InputError("Statistics hold a value that is not finite, or a std that is not positive")
        return cls(**arrays, **flags)


class Accumulator:
    """Values of one vector, an episode at a time.

    Its result is that of all values at once, to the last bit, in whatever order they came. Only whether a dimension is
    noise is judged by the steps within each part that was added.

    Args:
        mask: [D] bool, False for dimensions that are not to be normalised; None to normalise all.
    """

    def __init__(self, mask: Mask = None) -> None:
        self._mask = None if mask is None else np.asarray(mask, bool)
        self._parts: list[np.ndarray] = []
        self._steps: list[np.ndarray] = []  # [D + 1] a part: the sum of its squared steps, and how many

    def __len__(self) -> int:
        """How many frames there are."""
        return sum(map(len, self._parts))

    def add(self, values: np.ndarray) -> None:
        """Add the frames of one episode, [T, D], copied.

        Raises:
            InputError: the width is another than before, or a value is not finite.
        """
        part = np.array(values, np.float64 if np.asarray(values).dtype.kind != "f" else None)
        width = self._parts[0].shape[1] if self._parts else part.shape[-1] if self._mask is None else len(self._mask)
        if part.ndim != 2 or part.shape[1] != width:
            raise InputError(f"Values of shape {list(part.shape)} do not fit statistics of {width} dimensions")
        if not np.all(np.isfinite(part)):
            raise InputError("Values for statistics are NaN or infinite", expected="finite numbers")
        self._parts.append(part)
        steps = np.diff(part.astype(np.float64), axis=0)
        self._steps.append(np.append(np.sum(steps**2, axis=0), len(steps)))

    def merge(self, other: Accumulator) -> None:
        """Add all that another one was given (it may be one of a single episode)."""
        if not self._parts and self._mask is None:
            self._mask = other._mask
        for part in other._parts:
            self.add(part)

    def result(self) -> Statistics:
        """The statistics of all frames so far; see the module's text for the constant-dimension guard.

        Raises:
            InputError: there are none.
        """
        if not len(self):
            raise InputError("There are no values to compute statistics of", expected="at least one frame")
        # Sorted, so that sums do not depend on the order in which episodes came.
        values = np.sort(np.concatenate(self._parts).astype(np.float64), axis=0)
        mean, spread = values.mean(axis=0), values.std(axis=0)
        low, high = values[0], values[-1]
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
        size = np.abs(mean)
        still = CONSTANT_RANGE * np.maximum(1.0, size)
        constant = high - low <= still
        noise = (high - low <= NEAR_RANGE) & (self._roughness(spread) >= NOISE)
        near = ~constant & ((high - low <= NEAR_RANGE * size) | noise | (q99 - q01 <= still))
        std = np.maximum(spread, np.maximum((high - low) / LARGEST, STD_FLOOR))
        std = np.where(near, np.maximum(std, np.maximum(NEAR_RANGE, size / LARGEST)), std)
        mask = np.ones(len(mean), bool) if self._mask is None else self._mask
        return Statistics(mean, np.where(constant, 1.0, std), low, high, q01, q99, constant, near, mask)

    def _roughness(self, spread: np.ndarray) -> np.ndarray:
        """[D] von Neumann's ratio, see `NOISE`; 0 for what does not move."""
        columns = np.array(self._steps).T
        squares = np.array([math.fsum(column) for column in columns[:-1]])
        variance = 2 * max(1.0, math.fsum(columns[-1])) * spread**2
        return np.divide(squares, variance, out=np.zeros(len(squares)), where=variance > 0)


def compute(values: np.ndarray, mask: Mask = None) -> Statistics:
    """Statistics of values [N, D], N at least 1, in the order of time; `mask` as for `Accumulator`.

    Raises:
        InputError: there are none, or one is not finite.
    """
    accumulator = Accumulator(mask)
    accumulator.add(values)
    return accumulator.result()


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Mean and standard deviation a channel, [3] float64 each, of RGB pixels scaled to 0..1."""

    mean: np.ndarray
    std: np.ndarray

    def to_json(self) -> dict[str, list[float]]:
        """As JSON values."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ImageStatistics:
        """Inverse of `to_json`."""
        return cls(np.asarray(document["mean"], np.float64), np.asarray(document["std"], np.float64))


class ImageAccumulator:
    """Counts of each brightness a channel, a block of pictures at a time: exact, and independent of their order."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, pictures: np.ndarray) -> None:
        """Add pictures [T, H, W, 3] uint8."""
        if pictures.size:
            # Pillow counts four times as fast as numpy.bincount; one tall picture spares it a call each.
            tall = np.ascontiguousarray(pictures).reshape(-1, *pictures.shape[2:])
            self._counts += np.array(Image.fromarray(tall).histogram(), np.int64).reshape(3, 256)

    def merge(self, other: ImageAccumulator) -> None:
        """Add all that another one was given."""
        self._counts += other._counts

    def result(self) -> ImageStatistics:
        """Channel statistics of all pixels so far; zeros when there are none."""
        levels = np.arange(256) / 255.0
        share = self._counts / np.maximum(self._counts.sum(axis=1, keepdims=True), 1)
        mean = share @ levels
        return ImageStatistics(mean, np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0)))


def compute_image(videos: Iterable[np.ndarray]) -> ImageStatistics:
    """Channel statistics over videos (or blocks of them) [T, H, W, 3] uint8."""
    accumulator = ImageAccumulator()
    for video in videos:
        accumulator.add(video)
    return accumulator.result()


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """Statistics of a dataset's training split: state [S], actions [A], and each camera's channels."""

    state: Statistics
    actions: Statistics
    images: dict[str, ImageStatistics]

    def to_json(self) -> dict[str, Any]:
        """As the document of `stats.json`."""
        images = {camera: s.to_json() for camera, s in self.images.items()}
        return {"state": self.state.to_json(), "actions": self.actions.to_json(), "images": images}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DatasetStatistics:
        """Inverse of `to_json`.

        Raises:
            InputError: a part is missing or malformed.
        """
        try:
            images = {camera: ImageStatistics.from_json(s) for camera, s in document["images"].items()}
            return cls(Statistics.from_json(document["state"]), Statistics.from_json(document["actions"]), images)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"Statistics are incomplete ({error!r})", expected="state, actions and images") from None


class DatasetAccumulator:
    """Statistics of a dataset, an episode at a time; one an episode can be merged once the split is known.

    Args:
        state_mask, action_mask: as for `Accumulator`.
    """

    def __init__(self, state_mask: Mask = None, action_mask: Mask = None) -> None:
        self.state, self.actions = Accumulator(state_mask), Accumulator(action_mask)
        self.images: dict[str, ImageAccumulator] = {}

    def add(self, state: np.ndarray, actions: np.ndarray, images: Mapping[str, Iterable[np.ndarray]]) -> None:
        """Add an episode: state [T, S], actions [T, A], and of each camera blocks of pictures [t, H, W, 3] uint8."""
        self.state.add(state)
        self.actions.add(actions)
        for camera, blocks in images.items():
            for block in blocks:
                self.images.setdefault(camera, ImageAccumulator()).add(block)

    def merge(self, other: DatasetAccumulator) -> None:
        """Add all that another one was given."""
        self.state.merge(other.state)
        self.actions.merge(other.actions)
        for camera, counts in other.images.items():
            self.images.setdefault(camera, ImageAccumulator()).merge(counts)

    def result(self) -> DatasetStatistics:
        """The statistics of all that was added.

        Raises:
            InputError: nothing was.
        """
        images = {camera: counts.result() for camera, counts in self.images.items()}
        return DatasetStatistics(self.state.result(), self.actions.result(), images)


def save_statistics(statistics: DatasetStatistics, directory: Path) -> None:
    """Write `stats.json` into `directory`."""
    write_json(directory / FILE_NAME, statistics.to_json())


def load_statistics(directory: Path) -> DatasetStatistics:
    """Read `stats.json` from `directory`.

    Raises:
        InputError: it is missing or malformed.
    """
    return DatasetStatistics.from_json(read_json(directory / FILE_NAME))
