"""What varies over the picture by a fixed function: the table's wood grain, and light that falls off."""

from __future__ import annotations

import numpy as np

PLANK_WIDTH = 0.17
"""Metres across a plank; planks run along x."""
_PLANK_TONES = np.array([0.9, -0.8, 0.3, -0.4, 1.0, -1.0, 0.5])
_SHARES = np.array([0.40, 0.30, 0.20, 0.10])
"""How much of the amplitude the planks and the three waves have; they sum to 1."""
_CHANNELS = np.array([[1.0, 1.0, 1.0, 1.0], [0.9, 1.0, 0.7, 0.5], [0.6, 0.8, 1.0, -0.6]])
"""[RGB, planks and waves]: blue follows the planks less than red, so no change of brightness undoes the grain."""


def wood_grain(xy: np.ndarray, amplitude: float) -> np.ndarray:
    """The factor by which wood grain brightens or darkens the bare table.

    Planks of different tones, and three waves whose lengths share no common period.

    Args:
        xy: table coordinates [..., 2] in metres; the grain goes on beyond the table.
        amplitude: largest relative deviation from 1.

    Returns:
        [..., 3] float64 factors for red, green and blue, within 1 +- amplitude.
    """
    along, across = xy[..., 0], xy[..., 1]
    plank = np.floor(across / PLANK_WIDTH).astype(int) % len(_PLANK_TONES)
    # each plank is cut from another place: its waves start elsewhere
    shift = 1.7 * plank
    wobble = 0.8 * np.sin(2 * np.pi * 0.71 * along + shift)
    waves = np.stack(
        [
            _PLANK_TONES[plank],
            np.sin(2 * np.pi * 9.1 * across + wobble + shift),
            np.sin(2 * np.pi * (14.3 * across + 1.9 * along) + 2.0 * shift),
            np.sin(2 * np.pi * (4.3 * along - 2.1 * across)),
        ],
        axis=-1,
    )
    return 1.0 + amplitude * np.einsum("...k,ck->...c", waves, _SHARES * _CHANNELS)


def falloff(size: int, gradient: float) -> np.ndarray:
    """Light that falls off linearly from the upper left to the lower right of the picture.

    Args:
        size: edge of the picture in pixels.
        gradient: share of the light that is lost at the far corner.

    Returns:
        [size, size] float64 (rows, columns): 1 at the upper left corner, 1 - gradient at the lower right.
    """
    way = np.arange(size) / (2 * (size - 1))
    return 1.0 - gradient * (way[:, None] + way[None, :])
