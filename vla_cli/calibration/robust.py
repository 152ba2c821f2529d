"""Robust linear regression, and the error that says what the demonstrations do not show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TUKEY = 4.685
"""Cut-off of Tukey's biweight in robust standard deviations: 95% as efficient as least squares on normal errors."""
ROUNDS = 25


class NotIdentified(Exception):
    """A parameter cannot be told from the demonstrations.

    Args:
        found: what was seen, in words.
        wanted: what to demonstrate so that it can be told.
    """

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(f"{found}; it takes {wanted}")
        self.found, self.wanted = found, wanted


def tried(what: str, reasons: dict[str, str], measure: Callable[[], Any]) -> Any:
    """What `measure` returns, or None with its reason noted."""
    try:
        return measure()
    except NotIdentified as refused:
        reasons[what] = str(refused)
        return None


@dataclass(frozen=True)
class Fit:
    """y = x @ slope + intercept, with Tukey's biweight.

    Attributes:
        slope: [P, Q]. intercept: [Q].
        explained: [Q] share of the variance explained, over the points that were kept.
        spread: [Q] robust standard deviation of the residuals.
        covariance: [P + 1, P + 1] of the coefficients for a unit spread (intercept last).
        kept: share of the points with a weight above one half.
    """

    slope: np.ndarray
    intercept: np.ndarray
    explained: np.ndarray
    spread: np.ndarray
    covariance: np.ndarray
    kept: float

    def error_at(self, x: np.ndarray) -> np.ndarray:
        """Standard error [Q] of the fitted value at `x` [P]."""
        full = np.append(x, 1.0)
        return self.spread * np.sqrt(max(float(full @ self.covariance @ full), 0.0))

    @property
    def slope_error(self) -> np.ndarray:
        """Standard errors of the slope [P, Q]."""
        return np.sqrt(np.maximum(np.diag(self.covariance)[:-1], 0.0))[:, None] * self.spread


def robust_fit(x: np.ndarray, y: np.ndarray, least_spread: np.ndarray | float = 0.0) -> Fit:
    """Fit by iteratively reweighted least squares; a point far off in any output loses its weight in all.

    Args:
        x: [N, P]. y: [N, Q].
        least_spread: [Q] or for all; the residuals' spread is taken for no smaller: what lies this near is kept.

    Raises:
        NotIdentified: there are fewer points than coefficients.
    """
    if len(x) <= x.shape[1]:
        raise NotIdentified(f"there are only {len(x)} pair(s) of successive frames", "longer demonstrations")
    full = np.c_[x, np.ones(len(x))]
    weight = np.ones(len(x))
    coefficients, spread = np.zeros((full.shape[1], y.shape[1])), np.ones(y.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(weight)[:, None]
        coefficients = np.linalg.lstsq(full * root, y * root, rcond=None)[0]
        residual = y - full @ coefficients
        spread = np.maximum(1.4826 * np.median(np.abs(residual), axis=0) + 1e-9, least_spread)
        far = np.linalg.norm(residual / spread, axis=1) / np.sqrt(y.shape[1])
        weight = np.maximum(1 - (far / TUKEY) ** 2, 0.0) ** 2
    mean = (weight[:, None] * y).sum(0) / weight.sum()
    total = (weight[:, None] * (y - mean) ** 2).sum(0)
    left = (weight[:, None] * (y - full @ coefficients) ** 2).sum(0)
    return Fit(
        slope=coefficients[:-1],
        intercept=coefficients[-1],
        explained=1 - left / np.maximum(total, 1e-12),
        spread=spread,
        covariance=np.linalg.pinv(full.T @ (full * weight[:, None])),
        kept=float((weight > 0.5).mean()),
    )
