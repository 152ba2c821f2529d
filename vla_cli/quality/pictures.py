"""Checks on pictures: one pass over each camera measures every picture, and the checks judge the measurements.

    black    luma of nearly all pixels at the bottom, or no contrast at all
    frozen   the same picture again while the arm moves
    blur     sharpness far below the camera's own usual in this episode
    dropped  holes in the camera's clock

Each function is one check; its thresholds stand above it, with where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vla_cli.episode import Stream, median_rate
from vla_cli.frames import blocks_of
from vla_cli.quality.facts import Finding, Motion, length, listed, stretches, times

LUMA = (77, 150, 29)
"""Parts of 256 of red, green and blue: 0.299, 0.587 and 0.114 of ITU-R BT.601, section 2.5.1."""
BLACK = 20.0
"""Luma under which 99% of the pixels of a black picture lie: 16 is black in ITU-R BT.601 video, plus sensor noise."""
BLANK = 1.0
"""Standard deviation of luma under which a picture shows nothing: a uniform one, whatever its colour."""
SAME_SHARE = 0.02
"""A picture that differs from the one before by less than this share of the usual difference is that picture again: a
codec may repeat one not quite exactly, while two pictures of a moving arm differ by noise and motion."""
MOVING_SHARE = 0.25
"""Of the median moving step: the arm goes at least this far, else two equal pictures are no wonder."""
REPEATS = 2
"""That many repeats in a row harm. A single one is a camera a little slower than the control loop."""
BLURRED = 0.4
"""Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) as a share of the episode's median for this camera. The
measure has no absolute scale (it depends on the scene), so only the camera's own usual serves; what the arm hides or
uncovers has been seen to halve it in small pictures."""
BLUR_DEVIATIONS = 5.0
"""And that many robust deviations (1.4826 MAD) below the median."""
HOLE = 1.75
"""Of the median period: a longer step misses a picture. As `episode.is_whole`."""
LOST_IN_A_ROW, LOST_SHARE = 2, 0.02
"""Pictures lost at once, or in all, from which a hole harms: the policy is shown a stale picture for that long."""
MOMENTS, THUMBNAIL = 8, 12
_CONTRAST = 1e-6


@dataclass(frozen=True)
class PictureFacts:
    """What one pass measures of a camera's T pictures.

    Attributes:
        bright: [T] 99th percentile of luma, 0..255.
        contrast: [T] standard deviation of luma.
        sharpness: [T] variance of the Laplacian of luma, averaged over 2 x 2 pixels where the picture allows.
        change: [T] mean absolute difference from the picture before, 0..255; the first is infinite.
        thumbnails: [MOMENTS, THUMBNAIL ** 2] uint8 mean luma of cells, at moments evenly spaced.
    """

    bright: np.ndarray
    contrast: np.ndarray
    sharpness: np.ndarray
    change: np.ndarray
    thumbnails: np.ndarray


def measure(stream: Stream) -> PictureFacts:
    """Measure a camera's pictures, decoding each once and holding one block at a time.

    Raises:
        ValueError: a picture cannot be decoded.
    """
    count = len(stream)
    bright, contrast, sharpness, change = (np.full(count, np.inf) for _ in range(4))
    moments = np.round(np.linspace(0, count - 1, MOMENTS)).astype(int)
    thumbnails: dict[int, np.ndarray] = {}
    previous: np.ndarray | None = None
    for t, picture in enumerate(p for block in blocks_of(stream.values) for p in block):
        luma = _luma(picture)
        bright[t], contrast[t] = _brightest(luma), luma.std(dtype=np.float32)
        sharpness[t] = _sharpness(luma)
        if previous is not None:
            change[t] = (np.maximum(picture, previous) - np.minimum(picture, previous)).mean()
        if t in moments:
            thumbnails[t] = _thumbnail(luma)
        previous = picture
    return PictureFacts(bright, contrast, sharpness, change, np.stack([thumbnails[int(m)] for m in moments]))


def _luma(picture: np.ndarray) -> np.ndarray:
    """[H, W] uint8 from [H, W, 3] uint8."""
    red, green, blue = (picture[..., i].astype(np.uint16) for i in range(3))
    return ((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) >> 8).astype(np.uint8)


def _brightest(luma: np.ndarray) -> float:
    """The 99th percentile of [H, W] uint8, from its histogram: sorting would take most of the pass."""
    counts = np.cumsum(np.bincount(luma.ravel(), minlength=256))
    return float(np.searchsorted(counts, 0.99 * luma.size))


def _sharpness(luma: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of [H, W] uint8.

    Summing 2 x 2 pixels first takes out most of the sensor's noise and little of an edge.
    """
    height, width = (size // 2 * 2 for size in luma.shape)
    grey, area = luma.astype(np.int32), 1
    if min(height, width) >= 16:
        grey = grey[0:height:2, :width] + grey[1:height:2, :width]
        grey, area = grey[:, 0::2] + grey[:, 1::2], 4
    inner = 4 * grey[1:-1, 1:-1]
    if inner.size == 0:
        return 0.0
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - inner
    return float(laplacian.var(dtype=np.float32)) / area**2


def _thumbnail(luma: np.ndarray) -> np.ndarray:
    rows, columns = (np.linspace(0, size, THUMBNAIL + 1).astype(int)[:-1] for size in luma.shape)
    sums = np.add.reduceat(np.add.reduceat(luma.astype(np.int64), rows, axis=0), columns, axis=1)
    counts = np.add.reduceat(np.add.reduceat(np.ones(luma.shape, np.int64), rows, axis=0), columns, axis=1)
    return np.round(sums / counts).astype(np.uint8).ravel()


def black(name: str, camera: Stream, facts: PictureFacts) -> Iterator[Finding]:
    """Pictures that are black (`BLACK`) or show nothing at all (`BLANK`): an error, they teach acting blindly."""
    spans = stretches(_blank(facts))
    if spans:
        count = length(spans)
        where = "all its pictures" if count == len(camera) else f"{listed(spans, 'pictures')} of {len(camera)}"
        yield Finding(
            check="black",
            severity="error",
            episode=name,
            stream=camera.name,
            frames=spans,
            seconds=times(spans, camera.timestamps),
            value=count / len(camera),
            message=f"{name}: camera {camera.name} is black or blank in {where}.",
        )


def _blank(facts: PictureFacts) -> np.ndarray:
    return (facts.bright < BLACK) | (facts.contrast < BLANK)


def frozen(name: str, camera: Stream, facts: PictureFacts, motion: Motion) -> Iterator[Finding]:
    """The same picture again (`SAME_SHARE`) while the arm moves (`MOVING_SHARE`), in rows of `REPEATS` or more.

    A camera that is slower than the loop that records it repeats each picture: that is told, and is no fault. Of such a
    one rows count that lose `REPEATS` of its own pictures.
    """
    usual = facts.change[1:][np.isfinite(facts.change[1:]) & (facts.change[1:] > 0)]
    if not len(usual) and len(facts.change) < 3:
        return
    same = facts.change <= (SAME_SHARE * float(np.median(usual)) if len(usual) else 0.0)
    spans = stretches(same & ~_blank(facts))
    moves = _moves(motion, camera.timestamps)
    # the arm must move in the greater part of a stretch, not just in its first picture
    spans = tuple((a, b) for a, b in spans if moves[a : b + 1].mean() > 0.5)
    every = _usual_interval(same)
    if every > REPEATS:
        yield _slow(name, camera, every)
        spans = tuple((a, b) for a, b in spans if b - a + 1 >= every * (REPEATS + 1) - 1)
    if not spans:
        return
    share, longest = length(spans) / len(camera), max(b - a + 1 for a, b in spans)
    yield Finding(
        check="frozen",
        severity="warning" if longest >= REPEATS else "info",
        episode=name,
        stream=camera.name,
        frames=spans,
        seconds=times(spans, camera.timestamps),
        value=share,
        message=f"{name}: camera {camera.name} repeats the picture before while the arm moves, in "
        f"{listed(spans, 'pictures')} ({length(spans)} of {len(camera)}).",
    )


def _usual_interval(same: np.ndarray) -> int:
    """How many steps it usually takes until there is another picture, from [T] whether one is that before it."""
    new = np.flatnonzero(~same)
    return max(1, int(np.median(np.diff(new)))) if len(new) > MOMENTS else 1


def _slow(name: str, camera: Stream, every: int) -> Finding:
    rate = median_rate(camera.timestamps) / every
    return Finding(
        check="frozen",
        severity="info",
        episode=name,
        stream=camera.name,
        value=1 - 1 / every,
        message=f"{name}: camera {camera.name} has another picture at every {every} steps only, about {rate:.3g} a "
        f"second: it is slower than what recorded it (vla preprocess --rate {rate:.3g} leaves the repeats out).",
    )


def _moves(motion: Motion, clock: np.ndarray) -> np.ndarray:
    """[T] bool: whether the arm moved on the way to each picture."""
    if len(motion) < 2:
        return np.zeros(len(clock), bool)
    steps = motion.steps()
    typical = float(np.median(steps[steps > 0])) if (steps > 0).any() else np.inf
    way = np.concatenate([[0.0], np.cumsum(steps)])
    gone = np.diff(np.interp(clock, motion.timestamps, way), prepend=np.nan)
    period = np.diff(clock, prepend=np.nan) * motion.rate_hz
    return np.nan_to_num(gone / np.maximum(period, 1e-3)) > MOVING_SHARE * typical


def blur(name: str, camera: Stream, facts: PictureFacts) -> Iterator[Finding]:
    """Pictures far less sharp than usual here (`BLURRED`, `BLUR_DEVIATIONS`). A whole episode out of focus: `judge`."""
    seen = ~_blank(facts)
    if seen.sum() < 5:
        return
    sharp = np.log(np.maximum(facts.sharpness, _CONTRAST))
    middle = float(np.median(sharp[seen]))
    deviation = 1.4826 * float(np.median(np.abs(sharp[seen] - middle)))
    below = middle - sharp
    spans = stretches(seen & (below > -np.log(BLURRED)) & (below > BLUR_DEVIATIONS * deviation))
    if spans:
        worst = float(np.exp(-below[[t for a, b in spans for t in range(a, b + 1)]].max()))
        yield Finding(
            check="blur",
            severity="warning",
            episode=name,
            stream=camera.name,
            frames=spans,
            seconds=times(spans, camera.timestamps),
            value=worst,
            message=f"{name}: camera {camera.name} is blurred in {listed(spans, 'pictures')}: down to {worst:.0%} of "
            "its usual sharpness in this episode.",
        )


def dropped(name: str, camera: Stream) -> Iterator[Finding]:
    """Holes in the camera's clock (`HOLE`): a warning from `LOST_IN_A_ROW` pictures or a share of `LOST_SHARE`."""
    clock, rate = camera.timestamps, median_rate(camera.timestamps)
    steps = np.diff(clock) * rate
    holes = np.flatnonzero(steps > HOLE)
    if not len(holes):
        return
    lost = np.round(steps[holes]).astype(int) - 1
    lost = np.maximum(lost, 1)
    spans = tuple((int(t), int(t) + 1) for t in holes)
    share = int(lost.sum()) / (len(clock) + int(lost.sum()))
    longest = float(np.diff(clock)[holes].max())
    yield Finding(
        check="dropped",
        severity="warning" if lost.max() >= LOST_IN_A_ROW or share >= LOST_SHARE else "info",
        episode=name,
        stream=camera.name,
        frames=spans,
        seconds=tuple((float(clock[t]), float(clock[t + 1])) for t in holes),
        value=share,
        message=f"{name}: camera {camera.name} lost about {lost.sum()} pictures ({share:.0%}) in {len(holes)} "
        f"{'holes' if len(holes) > 1 else 'hole'} of its clock, {longest:.2f} s at most, between "
        f"{listed(spans, 'pictures')}: the dataset holds the one before.",
    )
