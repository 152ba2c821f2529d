"""Whether anything moves, judged alike at every rate.

At 50 Hz each single step of a slow, careful motion is small: by steps, an insertion looks like standing still. So a
change counts over a step of `STEP_RATE`, however many frames that takes.

    state   0  0  1  2  3  3  3         moves on the way to the next frame, over 1 frame     - x x x - -
                                                                             over 2 frames   x x x x x -
"""

from __future__ import annotations

import numpy as np

STEP_RATE = 10.0
"""Hz."""


def moves(values: np.ndarray, least: np.ndarray | float, rate_hz: float) -> np.ndarray:
    """Which dimensions move on the way to the next frame: part of a step of `STEP_RATE` that goes far enough.

    Args:
        values: [T, D].
        least: [D] or one, in the values' units: a step that is not larger is no move.
        rate_hz: frames a second.

    Returns:
        [T - 1, D] bool.
    """
    count = max(len(values) - 1, 0)
    window = min(max(1, round(rate_hz / STEP_RATE)), max(count, 1))
    far = np.abs(values[window:] - values[:-window]) > least
    found = np.zeros((count, values.shape[1]), bool)
    for start in range(window):
        found[start : start + len(far)] |= far
    return found
