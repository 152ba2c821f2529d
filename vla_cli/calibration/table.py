"""The bare table in a camera's pictures: what stands still in every demonstration, its brightness, its picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from vla_cli.calibration.palette import NEAR, colour_modes, nearest
from vla_cli.calibration.robust import TUKEY
from vla_cli.calibration.tint import DARKEST

SAME = 0.04
"""Relative difference (beyond noise) up to which a pixel shows the table."""
STILL = 0.012
"""Relative spread between episodes (beyond noise) up to which a pixel stands still."""
LEAST_TABLE = 0.25
"""Share of the picture that the table must fill."""
PART_OF_TABLE = 0.25
"""Size, against the largest region that stands still, above which another one is table and no thing's middle."""
MOST_TABLE = 0.98
"""Share of the picture above which nothing was moved between the demonstrations, so that things look like table."""
MOVES = 0.02
"""Relative spread within an episode (beyond noise) from which on a pixel changes and does not stand still."""
CARRIED = (1 / 3, 0.2)
"""Shares of what does not look the same in all episodes, and of the picture, that change where the robot carries the
camera; of the tabletop's, which stands still, 0.05 and 0.01 do."""
RING = 48
"""Colours of the table beside a thing that are compared with."""


def sensor_noise(videos: Sequence[np.ndarray]) -> float:
    """Standard deviation of the sensor's noise in grey levels: most pixels do not change between two frames."""
    changes = [np.median(np.abs(np.diff(_first(v).astype(np.float32), axis=0))) for v in videos if len(v) > 1]
    return max(float(np.median(changes)) * 1.4826 / np.sqrt(2), 0.5) if changes else 0.5


def _first(video: np.ndarray) -> np.ndarray:
    return video[:12]


def still_region(episodes: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The table, and all that looks the same in all episodes [E, H, W, 3], both [H, W] bool; None if none is told."""
    middle = np.median(episodes, axis=0)
    spread = 1.4826 * np.median(np.abs(episodes - middle), axis=0)
    # a rim that a thing crosses in a fifth of the episodes is no table: look at the tails as well
    tails = np.quantile(episodes, 0.9, axis=0) - np.quantile(episodes, 0.1, axis=0)
    varies = np.maximum(spread, tails / 2.56).max(-1)
    # a median over some twenty frames has little of the sensor's noise left
    same = varies < 0.5 * noise + STILL * middle.max(-1)
    # a round picture's black corners are no table either
    same = np.asarray(ndimage.binary_opening(same & (middle.max(-1) > DARKEST)), bool)
    labels, _ = regions(same)
    sizes = np.bincount(labels[same]) if same.any() else np.zeros(1, int)
    # a row of things can cut the table in two: what is nearly as large as the largest region is table as well
    region = np.isin(labels, np.flatnonzero(sizes > PART_OF_TABLE * sizes.max()))
    return (region, same) if LEAST_TABLE < region.mean() < MOST_TABLE else None


def is_carried(videos: Sequence[np.ndarray], still: np.ndarray) -> bool:
    """Whether what stands still [H, W] bool is the robot itself, seen by a camera that it carries.

    A camera that stands still shows things that were put down anew: they differ between the episodes, but within one
    most of them stand still for most of the time. What a wrist camera sees beside the gripper changes all the time.

    Args:
        videos: frames [T, H, W, 3] uint8 of each episode, spread over it.
        still: what looks the same in all episodes.
    """
    noise = sensor_noise([video[:, still] for video in videos])
    changing = np.stack([_changes(video, noise) for video in videos])
    of_the_rest, of_all = (
        np.median(part.mean(axis=1)) for part in (changing[:, ~still], changing.reshape(len(videos), -1))
    )
    return bool(of_the_rest > CARRIED[0] and of_all > CARRIED[1])


def _changes(video: np.ndarray, noise: float) -> np.ndarray:
    """[H, W] bool: where frames [T, H, W, 3] of one episode differ for about half of the time."""
    middle = np.median(video, axis=0)
    spread = 1.4826 * np.median(np.abs(video - middle), axis=0).max(-1)
    return np.asarray(spread > 3 * noise + MOVES * middle.max(-1))


def regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the 4-connected regions of a mask [H, W] bool: labels [H, W] from 1, 0 outside, and how many."""
    found: Any = ndimage.label(mask)
    return np.asarray(found[0]), int(found[1])


def basis(height: int, width: int) -> np.ndarray:
    """Polynomials of degree two over the picture, [H * W, 6]: 1, x, y, x^2, x y, y^2 with x, y in -1..1."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)


def lighting_of(backdrop: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Coefficients [6] of the log brightness of the table, its mean over the picture 0, robustly."""
    rows = still.reshape(-1)
    brightness = np.log(np.maximum(backdrop.reshape(-1, 3), 1.0)).mean(-1)
    full = basis(*still.shape)
    x, y, weight = full[rows], brightness[rows], np.ones(int(rows.sum()))
    coefficients = np.zeros(6)
    for _ in range(30):
        root = np.sqrt(weight)
        coefficients = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        residual = y - x @ coefficients
        spread = 1.4826 * np.median(np.abs(residual)) + 1e-6
        weight = np.maximum(1 - (residual / (TUKEY * spread)) ** 2, 0.0) ** 2
    coefficients[0] -= (full @ coefficients).mean()
    return coefficients


def table_tolerance(backdrop: np.ndarray, noise: float) -> np.ndarray:
    """[H, W] grey levels within which a pixel shows the bare table [H, W, 3]."""
    return (4 * noise + SAME * np.nan_to_num(backdrop).max(axis=-1)).astype(np.float32)


def table_picture(episodes: np.ndarray, table: np.ndarray, islands: np.ndarray) -> np.ndarray:
    """The bare table [H, W, 3], NaN where no episode shows it.

    Around a thing, a pixel shows the thing in some episodes and the table in others, because it stands a little
    elsewhere each time. Which is which is told by the table right beside and by the thing's middle.

    Args:
        episodes: [E, H, W, 3] median picture of each.
        table: [H, W] bool, known to be table.
        islands: [H, W] bool, looks the same in all episodes but is cut off from the table: the middle of a thing.
    """
    picture = np.where(table[..., None], np.median(episodes, axis=0), np.nan).astype(np.float32)
    labels, count = regions(~table)
    for number in range(1, count + 1):
        region = labels == number
        ring = picture[ndimage.binary_dilation(region, iterations=3) & table]
        if len(ring) == 0:
            continue
        ring = ring[:: max(1, len(ring) // RING)]
        things = _thing_colours(episodes, region, islands & region, ring)
        rim = region & ~islands
        if len(things) and rim.any():
            picture[rim] = _shown_table(episodes[:, rim], ring, things)
        elif rim.any():
            # nothing stands here: the gripper rests or passes in some episodes
            picture[rim] = np.median(episodes[:, rim], axis=0)
    return picture


def _thing_colours(episodes: np.ndarray, region: np.ndarray, islands: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Colours [K, 3] in a region that are not the table's beside it."""
    modes, _ = colour_modes(episodes[:, region].reshape(-1, 3), least=0.03)
    foreign = modes[nearest(modes, ring) > NEAR]
    middles, count = regions(islands)
    own = [np.median(episodes[:, middles == i].reshape(-1, 3), axis=0) for i in range(1, count + 1)]
    return np.concatenate([foreign, np.array(own).reshape(-1, 3)])


def _shown_table(values: np.ndarray, ring: np.ndarray, things: np.ndarray) -> np.ndarray:
    """Median over the episodes [E, N, 3] in which a pixel looks more like the table beside it; NaN where too few do."""
    flat = values.reshape(-1, 3)
    is_table = (nearest(flat, ring) < 0.7 * nearest(flat, things)).reshape(values.shape[:2])
    enough = is_table.sum(0) >= max(2, len(values) // 10)
    chosen = np.where(is_table[..., None], values, np.nan)
    found = np.full(values.shape[1:], np.nan, np.float32)
    found[enough] = np.nanmedian(chosen[:, enough], axis=0)
    return found
