"""Pictures in a zarr array, decoded chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_cli.errors import words
from vla_cli.frames import BLOCK, Frames
from vla_cli.readers.zarr_meta import LARGEST_CHUNK, ArrayFacts


class NotPicturesError(ValueError):
    """Numbers are no pictures of 0 to 255."""


class ZarrFrames(Frames):
    """A stretch of an array [N, H, W, 3] or [N, 3, H, W] of whole numbers from 0 to 255.

    The stretch is cut where the chunks end: one that holds many pictures is decoded once, not once a block.

    Args:
        array: the zarr array.
        facts: what it says of itself.
        start: the first row.
        length: rows.

    Raises:
        ValueError: a picture is too large.
    """

    def __init__(self, array: Any, facts: ArrayFacts, start: int, length: int) -> None:
        self.array, self.facts, self.start = array, facts, start
        self.channels_first = is_channels_first(facts)
        height, width = facts.shape[2:] if self.channels_first else facts.shape[1:3]
        if BLOCK * facts.row_bytes > LARGEST_CHUNK:
            raise ValueError(f"{facts.name} claims pictures of {width}x{height}")
        super().__init__((length, height, width, 3))

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        begin, stop = self.start, self.start + len(self)
        while begin < stop:
            end = min(self._boundary(begin), stop)
            rows = self._rows(begin, end)
            for first in range(0, len(rows), BLOCK):
                yield self._pictures(rows[first : first + BLOCK], begin + first)
            begin = end

    def cut(self, length: int) -> ZarrFrames:
        """See `Frames`."""
        return ZarrFrames(self.array, self.facts, self.start, length)

    def _boundary(self, begin: int) -> int:
        """Where to stop reading: at the end of a chunk, or of several small ones."""
        chunk = self.facts.chunks[0]
        several = max(1, BLOCK // chunk) * chunk
        if several * self.facts.row_bytes > LARGEST_CHUNK:
            several = BLOCK
        return (begin // several + 1) * several

    def _rows(self, begin: int, end: int) -> np.ndarray:
        try:
            return np.asarray(self.array[begin:end])
        except Exception as error:  # each codec raises errors of its own
            label = f"{self.facts.name} cannot be decoded between rows {begin} and {end}"
            raise ValueError(f"{label} ({words(error)})") from None

    def _pictures(self, rows: np.ndarray, first: int) -> np.ndarray:
        rows = rows.transpose(0, 2, 3, 1) if self.channels_first else rows
        if rows.dtype == np.uint8:
            return np.ascontiguousarray(rows)
        with np.errstate(invalid="ignore"):
            whole = rows.astype(np.uint8)
        if not np.array_equal(whole, rows):
            raise NotPicturesError(f"its {rows.dtype} values from row {first} on are not whole numbers from 0 to 255")
        return whole


def is_channels_first(facts: ArrayFacts) -> bool:
    """Whether an array is [N, 3, H, W]."""
    return len(facts.shape) == 4 and facts.shape[1] == 3 and facts.shape[3] != 3
