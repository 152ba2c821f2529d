"""What a few pictures of one scene from one camera show: the median picture, sharpness, edges, features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vla_cli.fingerprint.registration import reduced_size
from vla_cli.frames import ArrayFrames, Frames

GLIMPSE = 5
"""Pictures in a row that a deployment can be expected to show of one scene: half a second at 10 Hz."""
BACKGROUND = 24
"""Pictures, evenly over an episode, whose median is its background: a moving arm covers no place in half of them."""
GRID, ORIENTATIONS = 4, 8

Features = Callable[[np.ndarray], np.ndarray]
"""Pictures uint8 RGB [t, H, W, 3] to features [t, F] of a frozen vision tower."""


@dataclass(frozen=True)
class Scene:
    """What is kept of an episode's, or a deployment's, pictures from one camera.

    Attributes:
        size: (height, width) of the pictures.
        background, glimpse: [h, w, 3] uint8 median pictures, of the whole and of a few in a row, reduced.
        sharpness: log of the glimpse's median variance of the Laplacian.
        pictures: how many there were.
        features: [F] their mean over the glimpse; None without.
    """

    size: tuple[int, int]
    background: np.ndarray
    glimpse: np.ndarray
    sharpness: float
    pictures: int
    features: np.ndarray | None = None


def observe(
    pictures: np.ndarray | Frames,
    features: Features | None = None,
    *,
    place: float = 0.5,
    reduced: tuple[int, int] | None = None,
) -> Scene:
    """Keep what is needed of pictures uint8 RGB [T, H, W, 3], decoding them once.

    Args:
        pictures: from one camera, of one scene, in order.
        features: see `Features`.
        reduced: (height, width) of the median pictures; by default as `reduced_size` has it.
        place: where the glimpse begins, 0 at the first picture to 1 at the last possible.

    Raises:
        ValueError: one cannot be decoded, or there are none.
    """
    frames = pictures if isinstance(pictures, Frames) else ArrayFrames(pictures)
    count = len(frames)
    if not count:
        raise ValueError("there are no pictures")
    spread = np.unique(np.linspace(0, count - 1, min(count, BACKGROUND)).round().astype(int))
    first = round(place * max(0, count - GLIMPSE))
    row = np.arange(first, min(first + GLIMPSE, count))
    wanted = np.union1d(spread, row)
    size = reduced or reduced_size(*frames.shape[1:3])
    small: dict[int, np.ndarray] = {}
    whole: list[np.ndarray] = []
    for index, picture in zip(wanted.tolist(), frames.take(wanted), strict=True):
        small[index] = reduce(picture, size)
        if first <= index <= row[-1]:
            whole.append(np.array(picture))
    return Scene(
        size=(frames.shape[1], frames.shape[2]),
        background=median_picture([small[i] for i in spread.tolist()]),
        glimpse=median_picture([small[i] for i in row.tolist()]),
        sharpness=float(np.log(max(float(np.median([laplacian_variance(p) for p in whole])), 1e-3))),
        pictures=count,
        features=None if features is None else np.asarray(features(np.stack(whole)), np.float64).mean(0),
    )


def reduce(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 [H, W, 3] at another (height, width), each pixel the mean of what it covers."""
    if picture.shape[:2] == size:
        return np.asarray(picture)
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def edge_layout(picture: np.ndarray) -> np.ndarray:
    """Gradient energy by place and orientation of a picture [h, w, 3]: [GRID * GRID * ORIENTATIONS], of length 1."""
    luma = np.sqrt(picture.astype(np.float32).mean(-1))  # as noise of light grows with its root
    rows, columns = np.gradient(luma)
    angle = (np.arctan2(rows, columns) % np.pi) * (ORIENTATIONS / np.pi)
    height, width = luma.shape
    row = np.minimum(np.arange(height) * GRID // height, GRID - 1)[:, None]
    column = np.minimum(np.arange(width) * GRID // width, GRID - 1)[None, :]
    cell = (row * GRID + column) * ORIENTATIONS + np.minimum(angle.astype(int), ORIENTATIONS - 1)
    energy = np.bincount(cell.ravel(), np.hypot(rows, columns).ravel(), GRID * GRID * ORIENTATIONS)
    return energy / max(float(np.linalg.norm(energy)), 1e-9)


def laplacian_variance(picture: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of a picture [H, W, 3], over means of 2 x 2 pixels where large enough.

    The mean takes out most of the sensor's noise, which no lens blurs.
    """
    luma = picture.astype(np.float32).mean(-1)
    if min(luma.shape) >= 16:
        height, width = (size // 2 * 2 for size in luma.shape)
        luma = luma[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    if min(luma.shape) < 3:
        return 0.0
    inner = luma[1:-1, 1:-1]
    return float((luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner).var())


def median_picture(pictures: list[np.ndarray]) -> np.ndarray:
    """Median [h, w, 3] uint8 of pictures of one size."""
    return np.round(np.median(np.stack(pictures), axis=0)).astype(np.uint8)
