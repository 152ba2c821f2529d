"""How late the pictures are against the robot's own sensors, from the log alone.

When the arm moves, pictures change: the change from picture to picture (motion energy) and the speed of the state are
one signal on two clocks. The lag at which they correlate best is the camera's latency.

    energy   mean |change| of small grey pictures, between two pictures
    speed    length of the state's change a second, each dimension in units of its own typical change; grippers aside
    both     less their floor (pixel noise), and the square root, for the change of a picture saturates with speed
    lag      both on one fine grid, Pearson's correlation at every lag, the peak by a parabola through its neighbours

A demonstration in which little moves, or whose pictures show something else than the state, gives no answer, and says
so. Two demonstrations of one task move alike: pictures paired with the wrong episode are not found this way.

Measured: of the 20 sample demonstrations (10 Hz, about 30 steps) 18 answer, 17 or 18 of them within 40 ms of a latency
put in, pooled within 7 ms; of five GR00T simulations (20 Hz, 400 steps) 4 answer, within 45 ms and pooled
within 17 ms. Pictures of noise: 0 of 75 answer.

Where the arm moves slowly the peak is wide, and noise, which a line between two samples averages away, draws it to
where the samples of both fall between each other: rendered blobs that took 4 to 8 s a move were told up to 20 ms off at
10 Hz and 9 ms at 30 Hz, a quarter of a picture's time. `pool` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_cli.episode import Episode, Stream, median_rate
from vla_cli.frames import Frames, blocks_of
from vla_cli.synchrony.dimensions import parts_of

LEAST_CORRELATION = 0.5
LEAST_SIGMAS = 4.0  # of Fisher's z, whose deviation is 1 / sqrt(steps - 3); many lags are tried, so that 2 are too few
LONGEST = 0.5  # seconds of latency either way that are searched
GRID_STEPS = 4  # grid points a period of the slower stream
_SMALL = 8  # pixels of the longer side that pictures are averaged down to: finer ones saturate with speed
_FLOOR = 0.05  # quantile of a signal that is taken for stillness
_FEWEST_STEPS = 12
_RIVAL = 0.9  # of the best peak: another one as high, more than a picture away, leaves it open


@dataclass(frozen=True)
class Estimate:
    """A latency.

    Attributes:
        seconds: by how much the pictures' stamps are late; below 0 when the state's are. NaN when nothing can be said.
        correlation: Pearson's, at the best lag.
        confident: whether to believe it.
        reason: why not, or what it rests on; a plain sentence.
        period: seconds between two pictures, against which the answer is to be read.
    """

    seconds: float
    correlation: float
    confident: bool
    reason: str
    period: float = 0.0


def estimate_latency(episode: Episode, camera: str | None = None, *, longest: float = LONGEST) -> Estimate:
    """Estimate a camera's latency against the state, in one pass over its pictures.

    Args:
        episode: with state; pictures are decoded a block at a time.
        camera: the image stream; None for the first by name.
        longest: seconds either way that are searched.

    Raises:
        KeyError: there is no such camera.
        ValueError: a picture cannot be decoded.
    """
    cameras = {stream.name: stream for stream in episode.of_role("image")}
    if not cameras:
        return _nothing("there are no pictures")
    stream = cameras[camera if camera is not None else next(iter(cameras))]
    if len(stream) <= _FEWEST_STEPS:
        return _nothing(f"there are fewer than {_FEWEST_STEPS} steps")
    moving = speed(episode.of_role("state"))
    if moving is None:
        return _nothing("there is no state that moves")
    seen = (_middles(stream.timestamps), motion_energy(stream.values))
    return align(seen, moving, longest=longest)


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """One latency for a camera from its episodes': the median of those to be believed.

    It is confident when three episodes and at least half of them are, and agree to half a picture's time.
    """
    good = [estimate for estimate in estimates if estimate.confident]
    if not good:
        return _nothing(f"none of {len(estimates)} episodes tells it" + _first_reason(estimates))
    seconds = np.array([estimate.seconds for estimate in good])
    middle, spread = float(np.median(seconds)), float(np.median(np.abs(seconds - np.median(seconds))))
    period = float(np.median([estimate.period for estimate in good]))
    enough = len(good) >= 3 and 2 * len(good) >= len(estimates) and spread <= 0.5 * period
    return Estimate(
        middle,
        float(np.median([estimate.correlation for estimate in good])),
        enough,
        f"the median of {len(good)} of {len(estimates)} episodes, half of which are within {1e3 * spread:.0f} ms of it "
        f"(of slow motion it may be a quarter of a picture's time off: {250 * period:.0f} ms)",
        period,
    )


def motion_energy(values: np.ndarray | Frames) -> np.ndarray:
    """Mean absolute change [T - 1] float64 (grey levels) from picture to picture, averaged down to `_SMALL` pixels."""
    found, before = [], None
    for block in blocks_of(values):
        small = _shrunk(block)
        whole = small if before is None else np.concatenate([before, small])
        found.append(np.abs(np.diff(whole, axis=0)).mean(axis=(1, 2)))
        before = small[-1:]
    return np.concatenate(found) if found else np.empty(0)


def speed(states: Sequence[Stream]) -> tuple[np.ndarray, np.ndarray] | None:
    """Times [N] and speeds [N] of the state, between its samples; None when nothing but grippers ever moves.

    The mean of the streams' speeds (of their squares), on the clock of the one with most samples.
    """
    parts = [found for stream in states if (found := _speed_of(stream)) is not None]
    if not parts:
        return None
    times = max((times for times, _ in parts), key=len)
    return times, np.sqrt(np.mean([np.interp(times, t, squares) for t, squares in parts], axis=0))


def align(
    seen: tuple[np.ndarray, np.ndarray], moving: tuple[np.ndarray, np.ndarray], *, longest: float = LONGEST
) -> Estimate:
    """The lag of one signal against another.

    Args:
        seen: times [N] in seconds and values [N] of the signal that may be late.
        moving: likewise of the other.
        longest: seconds either way that are searched.
    """
    if min(len(seen[0]), len(moving[0])) < _FEWEST_STEPS:
        return _nothing(f"there are fewer than {_FEWEST_STEPS} steps")
    if min(float(np.std(seen[1])), float(np.std(moving[1]))) < 1e-9:
        return _nothing("the pictures do not change, or the state moves evenly throughout")
    rates = [median_rate(times) for times, _ in (seen, moving)]
    if min(rates) <= 0:
        return _nothing("a clock stands still")
    step, period = 1.0 / (GRID_STEPS * min(rates)), 1.0 / rates[0]
    lags = np.arange(-int(np.ceil(longest / step)), int(np.ceil(longest / step)) + 1)
    one, other = (seen[0], _compressed(seen[1])), (moving[0], _compressed(moving[1]))
    scores, shares = np.array([_correlation(one, other, lag * step, step) for lag in lags]).T
    if shares.max() <= 0:
        return _nothing(f"pictures and state go on together for fewer than {_FEWEST_STEPS} steps")
    # Fisher's z times the root of the overlap: a high correlation over a short overlap is often chance.
    weights = np.arctanh(np.clip(scores, -0.999, 0.999)) * np.sqrt(shares)
    best = int(np.argmax(weights))
    correlation = max(float(scores[best]), -1.0)
    words = f"pictures and state correlate by {correlation:.2f}"
    steps = min(len(seen[0]), len(moving[0]))
    if not correlation >= max(LEAST_CORRELATION, np.tanh(LEAST_SIGMAS / np.sqrt(steps - 3))):
        return Estimate(float("nan"), correlation, False, f"{words} at best over {steps} steps", period)
    if best in (0, len(lags) - 1):
        words = f"they correlate best at the end of the {longest:g} s searched"
        return Estimate(float(lags[best] * step), correlation, False, words, period)
    peaks = 1 + np.flatnonzero((weights[1:-1] >= weights[:-2]) & (weights[1:-1] >= weights[2:]))
    rivals = peaks[np.abs(peaks - best) * step > period]
    if len(rivals) and weights[rivals].max() > _RIVAL * weights[best]:
        words = f"they correlate nearly as well ({scores[rivals].max():.2f}) at another lag"
        return Estimate(float("nan"), correlation, False, words, period)
    low, middle, high = weights[best - 1 : best + 2]
    bend = low - 2 * middle + high
    offset = 0.5 * (low - high) / bend if bend < 0 else 0.0
    return Estimate(float((lags[best] + np.clip(offset, -0.5, 0.5)) * step), correlation, True, words, period)


def _compressed(signal: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(signal - np.quantile(signal, _FLOOR), 0.0))


def _correlation(
    seen: tuple[np.ndarray, np.ndarray], moving: tuple[np.ndarray, np.ndarray], lag: float, step: float
) -> tuple[float, float]:
    """Pearson's correlation while both go on when the first is `lag` late, and for what share of the time they do.

    -1 and 0 when that is too short.
    """
    start = max(seen[0][0] - lag, moving[0][0])
    end = min(seen[0][-1] - lag, moving[0][-1])
    if end - start < _FEWEST_STEPS * GRID_STEPS * step:
        return -1.0, 0.0
    grid = np.arange(start, end, step)
    one, other = np.interp(grid + lag, *seen), np.interp(grid, *moving)
    one, other = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    share = (end - start) / (moving[0][-1] - moving[0][0])
    return (float(one @ other) / size, share) if size > 0 else (-1.0, 0.0)


def _shrunk(block: np.ndarray) -> np.ndarray:
    """Pictures [t, H, W, 3] as grey [t, h, w] float32, averaged over whole squares of pixels."""
    steps, height, width, _ = block.shape
    side = max(1, max(height, width) // _SMALL)
    rows, columns = height // side, width // side
    squares = block[:, : rows * side, : columns * side].reshape(steps, rows, side, columns, side * 3)
    return squares.mean(axis=4, dtype=np.float32).mean(axis=2)


def _speed_of(stream: Stream) -> tuple[np.ndarray, np.ndarray] | None:
    """Squared speeds of one stream, each dimension in units of its own."""
    values = np.asarray(stream.values, np.float64)
    grippers = parts_of(stream).grippers
    columns = [i for i in range(values.shape[1]) if i not in grippers and len(np.unique(values[:, i])) > 2]
    steps = np.diff(stream.timestamps)
    kept = steps > 0
    if not columns or kept.sum() < _FEWEST_STEPS:
        return None
    changes = np.diff(values[:, columns], axis=0)
    # An angle that wraps, or a quaternion that changes sign, is no motion.
    changes = np.where(np.abs(changes) > 0.5 * np.ptp(values[:, columns], axis=0), 0.0, changes)[kept]
    rates = changes / steps[kept, None]
    typical = np.sqrt(np.mean(rates**2, axis=0))
    moving = typical > 0
    if not moving.any():
        return None
    times = _middles(stream.timestamps)[kept]
    return times, np.mean((rates[:, moving] / typical[moving]) ** 2, axis=1)


def _middles(clock: np.ndarray) -> np.ndarray:
    return 0.5 * (clock[1:] + clock[:-1])


def _nothing(reason: str) -> Estimate:
    return Estimate(float("nan"), 0.0, False, reason)


def _first_reason(estimates: Sequence[Estimate]) -> str:
    return f" ({estimates[0].reason})" if estimates else ""
