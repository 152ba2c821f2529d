"""Black bars along a picture's edges, as `vla preprocess --image-size` pads wide ones: neither table nor things."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Bars = tuple[int, int, int, int]
"""Rows above and below, columns left and right."""
NO_BARS: Bars = (0, 0, 0, 0)
BLACK = 4
"""Grey level up to which a pixel is black: a compressed video leaves a little in its bars."""


def find_bars(videos: Sequence[np.ndarray]) -> Bars:
    """Rows and columns along the edges that are black in every frame of videos [T, H, W, 3] uint8.

    Pictures that are black all over have no bars.
    """
    bright = np.max([video.max(axis=(0, 3)) for video in videos], axis=0) > BLACK
    if not bright.any():
        return NO_BARS
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    height, width = bright.shape
    return int(rows[0]), height - 1 - int(rows[-1]), int(columns[0]), width - 1 - int(columns[-1])


def within(images: np.ndarray, bars: Bars) -> np.ndarray:
    """The part of images [..., H, W, 3] that no bar covers, as a view."""
    above, below, left, right = bars
    return images[..., above : images.shape[-3] - below, left : images.shape[-2] - right, :]


def without_bars(videos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The parts of a camera's videos [T, H, W, 3] that no bar covers, as views."""
    bars = find_bars(videos)
    return [within(video, bars) for video in videos]
