"""Colours of things: the commonest ones in some pixels, and the light that brings them onto a palette."""

from __future__ import annotations

import numpy as np

BIN = 24
"""Edge in grey levels of the colour bins in which modes are looked for."""
NEAR = 22.0
"""Grey levels within which two colours are taken for the same."""


def colour_modes(pixels: np.ndarray, least: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Most frequent colours [K, 3] of pixels [N, 3] and their shares [K]: peaks of a coarse colour histogram.

    Args:
        pixels: 0..255.
        least: share of the pixels that a mode must have around it.
    """
    if len(pixels) == 0:
        return np.empty((0, 3)), np.empty(0)
    edge = 256 // BIN + 1
    bins = (pixels // BIN).astype(int)
    flat = (bins[:, 0] * edge + bins[:, 1]) * edge + bins[:, 2]
    order = np.argsort(-np.bincount(flat, minlength=edge**3), kind="stable")
    modes: list[np.ndarray] = []
    shares: list[float] = []
    for code in order[:64]:
        inside = flat == code
        if not inside.any():
            break
        centre = np.median(pixels[inside], axis=0)
        near = np.abs(pixels - centre).max(-1) < BIN
        if near.mean() < least:
            continue
        centre = np.median(pixels[near], axis=0)
        if all(np.abs(centre - mode).max() > 1.5 * BIN for mode in modes):
            modes.append(centre)
            shares.append(float((np.abs(pixels - centre).max(-1) < BIN).mean()))
    return np.array(modes, float).reshape(-1, 3), np.array(shares)


def match_palette(modes: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, int]:
    """The gain [3] under which most modes [M, 3] fall onto colours of the palette [K, 3]; and how many do.

    Dark modes fit under any gain and do not count. Searched on a grid in log gain, then refined by least squares over
    the matched pairs.
    """
    bright = modes[modes.max(-1) > 60] if len(modes) else modes
    if len(bright) < 2 or len(palette) < 2:
        return np.ones(3), 0
    steps = np.exp(np.linspace(np.log(0.6), np.log(3.0), 24))
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    # illuminants are nearly grey: a gain that differs a lot between channels is less likely
    tint = np.std(np.log(grid), axis=1)
    score = np.zeros(len(grid))
    for mode in bright:
        distance = np.linalg.norm(np.minimum(grid * mode, 255.0)[:, None] - palette[None], axis=-1).min(1)
        score += np.exp(-0.5 * (distance / NEAR) ** 2)
    light = grid[np.argmax(score - 0.5 * tint)]
    for _ in range(5):
        moved = np.minimum(light * bright, 255.0)
        distance = np.linalg.norm(moved[:, None] - palette[None], axis=-1)
        near, best = distance.min(1) < 1.5 * NEAR, distance.argmin(1)
        if not near.any():
            break
        x, y = bright[near], palette[best[near]]
        light = (x * y).sum(0) / np.maximum((x * x).sum(0), 1.0)
    distance = np.linalg.norm(np.minimum(light * bright, 255.0)[:, None] - palette[None], axis=-1)
    near = distance.min(1) < NEAR
    matched = len(set(distance.argmin(1)[near].tolist()))
    return light, matched if near.mean() > 0.5 else 0


def nearest(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance [N] of each colour [N, 3] to the nearest of others [M, 3]."""
    if len(others) == 0:
        return np.full(len(colours), np.inf)
    return np.min([np.linalg.norm(colours - other, axis=-1) for other in others], axis=0)
