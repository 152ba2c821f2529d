"""How a camera's picture has shifted, turned and changed its light against a reference: robust registration.

    picture(T(x)) = gain * reference(x)          T(x) = c + zoom * R(turn) (x - c) + shift,  c the picture's centre

Pixels are weighed by how still they stand: one over the variance that the reference's own episodes show there. So a
textured table, a border or a wall settles the pose to parts of a pixel, things that are put down anew each time count
as little as they vary, and what the reference never saw (an arm, a new thing) is cut off by Tukey's biweight.

First a search over turns, and over all whole-pixel shifts at once by correlation in the Fourier domain (weighted and
masked, after D. Padfield, IEEE Trans. Image Process. 21, 2012); then refinement by second-order minimisation (S.
Benhimane and E. Malis, IROS 2004) from the best few candidates and from no change at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

LONG_SIDE = 64
"""Pixels of the longer edge on which pictures are registered: parts of a pixel are found, so that more adds little."""
SMOOTH = 2.0
"""Standard deviation in pixels of the smoothing before: gradients must reach over the step that is to be found. On the
tabletop 2 tells 3 pixels and 5 degrees apart from none better than 1 (benchmarks/fingerprint.py)."""
NOISE = 2.0
"""Grey levels below which no pixel's spread is believed: rounding, compression and the sensor's noise."""
CUT = 10.0
"""Robust deviations at which Tukey's biweight cuts off. Wider than the usual 4.7: the edge of a plate that is put back
by hand is an outlier at each end of its play, and is all that a plain table has to show."""
TRIAL, ROUNDS = 4, 16
"""Rounds of refinement for every candidate, and for the best one after that."""
SETTLED = 0.02
"""Pixels: a smaller step ends the refinement."""
TURNS = np.arange(-24.0, 25.0, 4.0)
LEAST_OVERLAP = 0.5
"""Share of the reference's weight that a candidate must keep in view."""
CANDIDATES = 2
CLEARLY = 0.85
"""Factor by which a candidate from the search must lower the cost against no change."""
_PRIOR = np.array([0.1, 0.1, 0.1, 0.1])


@dataclass(frozen=True)
class Pose:
    """How a picture lies against the reference.

    Attributes:
        right, down: pixels (of the registered size) by which the view's content has moved.
        turn: degrees by which it has turned counter-clockwise, as the picture shows it.
        zoom: factor by which it is larger.
        gain: [3] factor on red, green and blue.
        residual: mean robust cost per pixel, 0 (as the episodes among themselves) to 1 (nothing fits).
    """

    right: float
    down: float
    turn: float
    zoom: float
    gain: np.ndarray
    residual: float


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) to which pictures of a size are reduced: the longer edge `LONG_SIDE`, never enlarged."""
    factor = min(1.0, LONG_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


class Reference:
    """What stands still in a camera's picture, and how still.

    Args:
        backdrop: [h, w, 3] grey levels 0..255.
        spread: [h, w] standard deviation of the backdrop from episode to episode, grey levels.
    """

    def __init__(self, backdrop: np.ndarray, spread: np.ndarray) -> None:
        self.backdrop = _smooth(backdrop)
        self.variance = np.asarray(spread, np.float32) ** 2 + NOISE**2
        height, width = self.variance.shape
        rows, columns = np.mgrid[:height, :width]
        self.grid = (columns - (width - 1) / 2) + 1j * (rows - (height - 1) / 2)
        self.half = max(height, width) / 2

    def register(self, picture: np.ndarray) -> Pose:
        """The pose and light of a picture [h, w, 3] 0..255 of the reference's size."""
        smooth = _smooth(picture)
        candidates = [(1.0 + 0j, 0j), *self._search(smooth)]
        tried = [self._refine(smooth, spin, shift, TRIAL) for spin, shift in candidates]
        # no change at all is far likelier than any one of the others: they must fit clearly better
        best = min(range(len(tried)), key=lambda i: tried[i][2].residual * (CLEARLY if i == 0 else 1.0))
        return self._refine(smooth, *tried[best][:2], ROUNDS)[2]

    @cached_property
    def _turned(self) -> list[tuple[complex, np.ndarray]]:
        """Each turn with the Fourier transforms [3, 2h, 2w] of weight, weight * luma and weight * luma ** 2."""
        weight, luma = 1.0 / self.variance, self.backdrop.mean(-1)
        luma = luma - np.median(luma)
        found = []
        for turn in TURNS:
            spin = complex(np.exp(-1j * np.deg2rad(turn)))
            places = self.grid / spin
            w = self._sample(weight, places)
            r = self._sample(luma, places)
            found.append((spin, np.conj(_fourier(np.stack([w, w * r, w * r * r])))))
        return found

    def _search(self, smooth: np.ndarray) -> list[tuple[complex, complex]]:
        """The `CANDIDATES` (spin, shift) of least weighted squared difference, at different turns."""
        luma = smooth.mean(-1) * float(np.median(self.backdrop.mean(-1)) / max(np.median(smooth.mean(-1)), 1.0))
        luma = luma - np.median(luma)
        seen = _fourier(np.stack([np.ones_like(luma), luma, luma * luma]))
        height, width = luma.shape
        total = float((1.0 / self.variance).sum())
        found = []
        for spin, (w, wr, wrr) in self._turned:
            squares = _back(np.stack([wrr * seen[0] - 2 * wr * seen[1] + w * seen[2], w * seen[0]]))
            cost = np.where(squares[1] > LEAST_OVERLAP * total, squares[0] / np.maximum(squares[1], 1e-9), np.inf)
            row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
            down = row if row < height else row - 2 * height
            right = column if column < width else column - 2 * width
            found.append((float(cost[row, column]), spin, complex(right, down)))
        found.sort(key=lambda candidate: candidate[0])
        return [(spin, shift) for _, spin, shift in found[:CANDIDATES]]

    def _refine(self, smooth: np.ndarray, spin: complex, shift: complex, rounds: int) -> tuple[complex, complex, Pose]:
        """Iteratively reweighted least squares for spin, shift and gain from a first guess; and what was found."""
        residual, gain = 1.0, np.ones(3)
        for _ in range(rounds):
            seen, inside = self._warp(smooth, spin, shift)
            gain = self._gain(seen, inside)
            step, residual = self._step(seen / gain.astype(np.float32), inside)
            spin, shift = spin * np.exp(step[2] + 1j * step[3]), spin * complex(step[0], step[1]) + shift
            if abs(shift) > self.half or not 0.5 < abs(spin) < 2.0:
                return 1.0 + 0j, 0j, Pose(0.0, 0.0, 0.0, 1.0, gain, 1.0)
            if np.abs(step * [1, 1, self.half, self.half]).max() < SETTLED:
                break
        turn = -float(np.rad2deg(np.angle(spin)))
        return spin, shift, Pose(shift.real, shift.imag, turn, abs(spin), gain, residual)

    def _warp(self, picture: np.ndarray, spin: complex, shift: complex) -> tuple[np.ndarray, np.ndarray]:
        places = self.grid * spin + shift
        half_height, half_width = (np.array(self.grid.shape) - 1) / 2
        inside = (np.abs(places.real) <= half_width) & (np.abs(places.imag) <= half_height)
        return np.stack([self._sample(picture[..., i], places) for i in range(3)], -1), inside

    def _sample(self, values: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Values [h, w] at places (complex, from the centre); 0 outside."""
        height, width = self.grid.shape
        at = np.stack([np.imag(places) + (height - 1) / 2, np.real(places) + (width - 1) / 2])
        return ndimage.map_coordinates(values, at, order=1, mode="constant")

    def _gain(self, seen: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """[3] weighted median of the ratio of the picture to the reference, saturated and black pixels left out."""
        gains = np.ones(3)
        for i in range(3):
            here, there = seen[..., i], self.backdrop[..., i]
            fair = inside & (here > 4) & (here < 250) & (there > 4) & (there < 250)
            if fair.sum() >= 16:
                ratio, weight = here[fair] / there[fair], there[fair] ** 2 / self.variance[fair]
                order = np.argsort(ratio)
                climb = np.cumsum(weight[order])
                gains[i] = ratio[order][np.searchsorted(climb, climb[-1] / 2)]
        return gains

    def _step(self, seen: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
        """One step (right, down, log zoom, clockwise radians) [4], and the robust cost before it."""
        left = self.backdrop - seen
        rows, columns = np.gradient((self.backdrop + seen) / 2, axis=(0, 1))
        x, y = (part.astype(np.float32)[..., None] for part in (self.grid.real, self.grid.imag))
        slopes = np.stack([columns, rows, x * columns + y * rows, x * rows - y * columns], -1)
        scaled = np.abs(left).max(-1) / np.sqrt(self.variance)
        scale = max(1.0, 1.4826 * float(np.median(scaled[inside]))) if inside.any() else 1.0
        kept = np.maximum(1 - (scaled / np.float32(CUT * scale)) ** 2, 0)
        weight = np.where(inside, kept**2 / (self.variance * np.float32(scale**2)), np.float32(0))[..., None]
        unit = np.array([1.0, 1.0, 1 / self.half, 1 / self.half], np.float32)  # every direction in pixels
        flat = (slopes * unit).reshape(-1, 4)
        weighed = flat * np.broadcast_to(weight, left.shape).reshape(-1, 1)
        step = np.linalg.solve(weighed.T @ flat + np.diag(_PRIOR), weighed.T @ left.reshape(-1)) * unit
        # cost at a scale of its own, so that candidates compare; what is out of view counts as half lost
        rho = 1 - np.maximum(1 - (scaled / CUT) ** 2, 0.0) ** 3
        believed = 1.0 / self.variance
        cost = (np.where(inside, rho, 0.5) * believed).sum() / believed.sum()
        return step, float(cost)


def _smooth(picture: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(np.asarray(picture, np.float32), (SMOOTH, SMOOTH, 0), mode="nearest")


def _fourier(values: np.ndarray) -> np.ndarray:
    """Transforms of [K, h, w], padded with zeros to twice the size so that shifts do not wrap around."""
    return np.fft.rfft2(values, (2 * values.shape[1], 2 * values.shape[2]))


def _back(values: np.ndarray) -> np.ndarray:
    return np.fft.irfft2(values, (values.shape[1], 2 * (values.shape[2] - 1)))
