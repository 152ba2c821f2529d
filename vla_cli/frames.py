"""The pictures of one camera, decoded block by block, so that a long episode never stands in memory.

A log's own packing is kept: what a camera wrote as JPEG, PNG or video stays those bytes (no loss, no growth), and what
it wrote as plain numbers stays plain. Every `Frames` promises

- `shape` [T, H, W, 3] and dtype uint8 before anything is decoded,
- `blocks()`: the pictures in order, RGB, in arrays [t, H, W, 3] of at most `BLOCK` pictures, T in all; called again,
  it begins again. What cannot be decoded raises ValueError with the step in words.

A NumPy array does where a `Frames` is asked for: see `blocks_of`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli.pictures import decode_picture
from vla_cli.video import decode_blocks

BLOCK = 16
LARGEST_BLOCK = 64 * 2**20  # bytes decoded at once: large pictures come fewer at a time


class Frames(ABC):
    """Pictures in order, uint8 RGB.

    Args:
        shape: [T, H, W, 3].
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(size) for size in shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def block(self) -> int:
        """Most pictures at a time."""
        return max(1, min(BLOCK, LARGEST_BLOCK // max(1, math.prod(self.shape[1:]))))

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """The pictures in order, at most `BLOCK` at a time.

        Raises:
            ValueError: one cannot be decoded, is of another size, or there are fewer than promised.
        """

    @abstractmethod
    def cut(self, length: int) -> Frames:
        """The first `length` pictures."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, np.uint8)
        done = 0
        for block in self.blocks():
            whole[done : done + len(block)] = block
            done += len(block)
        return whole if dtype is None else whole.astype(dtype)

    def take(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Pictures [H, W, 3] at ascending indices (repeats allowed), decoding each once."""
        wanted, start = 0, 0
        for block in self.blocks():
            while wanted < len(indices) and indices[wanted] < start + len(block):
                yield block[indices[wanted] - start]
                wanted += 1
            start += len(block)
            if wanted == len(indices):
                return


class ArrayFrames(Frames):
    """Plain pictures in anything that can be sliced: a NumPy array, an HDF5 dataset, a zarr array.

    Args:
        source: [T, H, W, 3] uint8.
        length: pictures to use from the first on; None for all.
        start: the first one.
    """

    def __init__(self, source: Any, length: int | None = None, start: int = 0) -> None:
        self.source, self.start = source, start
        super().__init__((source.shape[0] - start if length is None else length, *source.shape[1:]))

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        for begin in range(self.start, self.start + len(self), self.block):
            yield np.asarray(self.source[begin : min(begin + self.block, self.start + len(self))])

    def cut(self, length: int) -> ArrayFrames:
        """See `Frames`."""
        return ArrayFrames(self.source, length, self.start)

    @property
    def as_stored(self) -> h5py.Dataset | None:
        """The HDF5 dataset that holds these pictures and no others, if there is one."""
        whole = isinstance(self.source, h5py.Dataset) and self.start == 0 and len(self) == len(self.source)
        return self.source if whole else None


class PictureFrames(Frames):
    """Compressed pictures (JPEG or PNG), one a step.

    Args:
        encoded: step -> bytes, for steps 0 to T - 1; called once a step in each pass.
        length: T.
        label: the camera, for messages.

    Raises:
        ValueError: there is none, or the first cannot be decoded.
    """

    def __init__(self, encoded: Callable[[int], bytes], length: int, label: str) -> None:
        if length < 1:
            raise ValueError(f"{label} has no pictures")
        self.encoded, self.label = encoded, label
        super().__init__((length, *decode_picture(encoded(0), f"{label} step 0").shape))

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        for begin in range(0, len(self), self.block):
            yield np.stack([self._decoded(step) for step in range(begin, min(begin + self.block, len(self)))])

    def verified(self) -> Iterator[bytes]:
        """The compressed pictures in order, each after it was decoded.

        Raises:
            ValueError: as for `blocks`.
        """
        for step in range(len(self)):
            data = self.encoded(step)
            self._decoded(step, data)
            yield data

    def _decoded(self, step: int, data: bytes | None = None) -> np.ndarray:
        picture = decode_picture(self.encoded(step) if data is None else data, f"{self.label} step {step}")
        if picture.shape != self.shape[1:]:
            raise ValueError(f"{self.label} step {step} is {list(picture.shape)}, step 0 is {list(self.shape[1:])}")
        return picture

    def cut(self, length: int) -> PictureFrames:
        """See `Frames`."""
        return PictureFrames(self.encoded, length, self.label)


class VideoFrames(Frames):
    """A stretch of a video file.

    Args:
        path: the file.
        shape: [T, H, W, 3], from `video.probe`.
        start: index of the first picture to use, counted from the beginning of the file.
    """

    def __init__(self, path: Path, shape: Sequence[int], start: int = 0) -> None:
        self.path, self.start = path, start
        super().__init__(shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        yield from decode_blocks(self.path, start=self.start, length=len(self), size=self.shape[1:3], block=self.block)

    def cut(self, length: int) -> VideoFrames:
        """See `Frames`."""
        return VideoFrames(self.path, (length, *self.shape[1:]), self.start)


def blocks_of(values: np.ndarray | Frames) -> Iterator[np.ndarray]:
    """Pictures block by block, whichever way they are held."""
    return (values if isinstance(values, Frames) else ArrayFrames(values)).blocks()
