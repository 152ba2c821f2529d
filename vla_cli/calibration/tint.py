"""The median colour of pictures, by which a deployment is told from the base's own domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_cli.calibration.robust import NotIdentified

DARKEST, BRIGHTEST = 4.0, 250.0
"""Grey levels beyond which a pixel is saturated."""
TOLD_APART = 0.08
"""Log distance of the domains' median colours below which they cannot be told apart by a picture."""
ALWAYS, BY_PICTURE = "always", "pictures nearer to this deployment's median colour"
"""When the transforms are on, as `policy.json` says it."""


def median_colour(images: np.ndarray) -> np.ndarray:
    """Median colour [3] of the unsaturated pixels of images [..., 3].

    Raises:
        NotIdentified: most of the pixels are saturated.
    """
    pixels = images.reshape(-1, 3)
    fair = ((pixels > DARKEST) & (pixels < BRIGHTEST)).all(axis=1)
    if fair.mean() < 0.3:
        raise NotIdentified(f"{1 - fair.mean():.0%} of the picture is saturated", "less or more light")
    return np.median(pixels[fair], axis=0).astype(np.float64)


def tint_of(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Median colour [3] of a camera's videos [T, H, W, 3], of saturated pixels too where hardly any other is left."""
    pictures = np.concatenate([video[::5] for video in videos])
    try:
        return median_colour(pictures)
    except NotIdentified:
        return np.median(pictures.reshape(-1, 3), axis=0).astype(np.float64)


def are_told_apart(base_medians: Sequence[Any], medians: Sequence[Any]) -> bool:
    """Whether the median colours [3] of two domains, one a camera, say which of them a picture is from."""
    pairs = zip(np.array(base_medians, float), np.array(medians, float), strict=True)
    return bool(max(log_distance(a, b) for a, b in pairs) > TOLD_APART)


def is_always(when: Any) -> bool:
    """Whether the transforms are on whatever a picture looks like, as `policy.json` says it.

    Raises:
        ValueError: it says neither.
    """
    if when not in (ALWAYS, BY_PICTURE):
        raise ValueError(f"on is {when}, neither {ALWAYS} nor {BY_PICTURE}")
    return bool(when == ALWAYS)


def log_distance(a: np.ndarray, b: np.ndarray) -> Any:
    """Largest distance of two colours [..., 3] in the log of a channel, dark ones taken for brighter than they are."""
    return np.abs(np.log(a + 4.0) - np.log(b + 4.0)).max(-1)
