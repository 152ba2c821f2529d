"""Normalisation statistics: how raw units become numbers a network likes, and back.

On disk, `stats.json`:

    {"state":   {"mean": [S], "std": [S], "min": [S], "max": [S], "q01": [S], "q99": [S], "constant": [S]},
     "actions": {... [A]},
     "images":  {camera: {"mean": [3], "std": [3]}}}          pixels scaled to 0..1, RGB

The guard for constant dimensions. A joint that never moves has a standard deviation of zero, or of sensor noise;
dividing by it turns the slightest move at deployment into a number of thousands, and the policy falls apart. So:

- a dimension whose whole range is below `CONSTANT_RANGE` (times its size, when that is above 1) is *constant*: it
  normalises to 0 whatever comes in, and un-normalises to its mean. Its recorded std is 1, so that a tool that knows
  nothing of the mask stays calm too;
- any other std is at least 1/`LARGEST` of the range (a rare spike stays within ±`LARGEST`) and at least `STD_FLOOR`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json

FILE_NAME = "stats.json"
CONSTANT_RANGE = 1e-5
STD_FLOOR = 1e-4
LARGEST = 20.0
_VECTORS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one vector over time, each field [D] float64 in the log's own units; `constant` is [D] bool."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    constant: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Raw units [..., D] to z-scores [..., D] float32; constant dimensions become 0."""
        scores = (np.asarray(values, np.float64) - self.mean) / self.std
        return np.where(self.constant, 0.0, scores).astype(np.float32)

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `normalise`: z-scores [..., D] to raw units, float32; constant dimensions become the mean."""
        raw = np.asarray(values, np.float64) * self.std + self.mean
        return np.where(self.constant, self.mean, raw).astype(np.float32)

    def to_json(self) -> dict[str, list[Any]]:
        """As JSON values."""
        return {**{key: getattr(self, key).tolist() for key in _VECTORS}, "constant": self.constant.tolist()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_json`.

        Raises:
            InputError: a list is missing, lengths differ, or a std is not positive and finite.
        """
        try:
            arrays = {key: np.asarray(document[key], np.float64) for key in _VECTORS}
            constant = np.asarray(document["constant"], bool)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"Statistics are incomplete ({error!r})", expected=f"{', '.join(_VECTORS)}, constant"
            ) from None
        if len({a.shape for a in (*arrays.values(), constant)}) != 1 or constant.ndim != 1:
            raise InputError("Statistics have lists of different lengths", expected="one value a dimension in each")
        if not all(np.all(np.isfinite(a)) for a in arrays.values()) or np.any(arrays["std"] <= 0):
            raise InputError("Statistics hold a value that is not finite, or a std that is not positive")
        return cls(**arrays, constant=constant)


def compute(values: np.ndarray) -> Statistics:
    """Statistics of stacked values [N, D], N at least 1; see the module's text for the constant-dimension guard."""
    values = np.asarray(values, np.float64)
    low, high, mean = values.min(axis=0), values.max(axis=0), values.mean(axis=0)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    constant = high - low <= CONSTANT_RANGE * np.maximum(1.0, np.abs(mean))
    std = np.maximum(values.std(axis=0), np.maximum((high - low) / LARGEST, STD_FLOOR))
    return Statistics(mean, np.where(constant, 1.0, std), low, high, q01, q99, constant)


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


def compute_image(videos: Sequence[np.ndarray]) -> ImageStatistics:
    """Channel statistics over videos [T, H, W, 3] uint8, exact (from histograms) and independent of their order."""
    counts = np.zeros((3, 256), np.int64)
    for video in videos:
        for channel in range(3):
            counts[channel] += np.bincount(video[..., channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255.0
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = share @ levels
    return ImageStatistics(mean, np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0)))


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


def save_statistics(statistics: DatasetStatistics, directory: Path) -> None:
    """Write `stats.json` into `directory`."""
    write_json(directory / FILE_NAME, statistics.to_json())


def load_statistics(directory: Path) -> DatasetStatistics:
    """Read `stats.json` from `directory`.

    Raises:
        InputError: it is missing or malformed.
    """
    return DatasetStatistics.from_json(read_json(directory / FILE_NAME))
