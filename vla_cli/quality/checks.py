"""Checks that need the other episodes: what is measured of each, and how they are compared.

    measured in `examine`    compared in `judge`
    path, thumbnails         duplicates   two episodes that are one
    frames                   duration     far longer or shorter than the others
    ending                   early_cut    ends in full motion, or elsewhere, where the others have come to rest
    spread                   constant     a dimension whose 1st and 99th percentile are the same
    sharpness                focus        a camera out of focus all the time
    suspects, usual          unusual      what one episode shows by itself, and the set does not explain

How commands and motion agree: see `answers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vla_cli.quality.facts import LEAST_OTHERS, MOVE_FLOOR, MOVE_SHARE, EpisodeFacts, Finding, Motion, gripper_columns

PATH_POINTS = 64
LENGTH_SCORE, LENGTH_FACTOR, SURE_FACTOR = 3.5, 2.0, 4.0
"""Modified z-score of the log length (Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993: 3.5), with a factor
to the median, as people differ in speed by less than two; and a factor for which a few comparable episodes suffice."""
SLOW_FACTOR = 3.0
"""Times slower than usual at its fastest: people differ by two, and a hesitation does not lower the top speed."""
COMPARABLE = 8
"""Comparable episodes from which a score means something."""
SAME_PATH, SAME_PICTURES, SURELY_SAME = 0.15, 0.5, 0.02
"""Distance of two paths, and of two rows of thumbnails, as shares of the median over all pairs: both that small are one
episode twice. A path closer than the last needs no pictures."""
SAME_SECONDS = 1.25
LEFT = 0.05
MOVING_END, RESTING_END = 0.7, 0.25
"""Speed at the end as a share of the usual top speed: so fast is full motion, so slow is rest. The first is a trade
between cut episodes that are missed and whole ones that are accused (benchmarks/quality.py; docs/quality.md)."""
RESTED = 0.5
"""Share of the others that must end at rest before full motion at the end is wrong."""
SLOWING_END, ALL_RESTED = 0.45, 0.95
"""Where nearly all the others end at rest, less than full motion stands out."""
AGREEING = 0.8
"""Share of the others that must end alike before another end is wrong."""
ELSEWHERE, ELSEWHERE_SHARE = 4.0, 0.2
"""Times the others' own spread of last states, and share of the range they use, from which an end is elsewhere."""
LEAST_PEERS = 8
"""Others with the same instruction from which it is known where such episodes end."""
CONSTANT_SHARE = 0.98
"""Share of frames with one value at which q01 == q99, and normalising by them divides by nothing (openpi issue 814)."""
OUT_OF_FOCUS, FOCUS_SCORE = 0.4, 5.0
"""Median sharpness as a share of the other episodes', and the modified z-score of its logarithm."""


AT_LIMIT = 1e-3
"""Of the largest command of all episodes: so near is at the end of the range."""


def scores(values: np.ndarray) -> np.ndarray:
    """Modified z-scores [N] (Iglewicz & Hoaglin, 1993): 0.6745 (x - median) / MAD; infinite off a MAD of 0."""
    off = values - np.median(values)
    spread = float(np.median(np.abs(off)))
    if spread == 0:
        return np.where(off == 0, 0.0, np.copysign(np.inf, off))
    return 0.6745 * off / spread


def unusual(facts: Sequence[EpisodeFacts], check: str) -> Iterator[Finding]:
    """The suspects of a check whose figure is above the dimension's median over all episodes."""
    for fact in facts:
        for suspect in (s for s in fact.suspects if s.finding.check == check):
            if suspect.figure >= np.median([f.usual[suspect.column] for f in facts if suspect.column in f.usual]):
                yield suspect.finding


def at_limit(facts: Sequence[EpisodeFacts], check: str = "saturation") -> Iterator[Finding]:
    """The suspects of a check whose figure is the end of the range of all episodes.

    Dimensions that have two values at most in most episodes are switches, which have no range to speak of.
    """
    for fact in facts:
        for suspect in (s for s in fact.suspects if s.finding.check == check):
            switches = sum(suspect.column in f.switches for f in facts)
            largest = max(f.usual[suspect.column] for f in facts if suspect.column in f.usual)
            if suspect.figure >= (1 - AT_LIMIT) * largest and 2 * switches < len(facts):
                yield suspect.finding


def duration(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """Episodes far longer or shorter than comparable ones (`LENGTH_SCORE`, `LENGTH_FACTOR`, `SURE_FACTOR`), or slower.

    Comparable are those of the same person with the same instruction where there are enough, else those with the same
    instruction, else all: a slow person is not at fault, nor is a long task. Speed depends on neither the task nor how
    many have done it (`SLOW_FACTOR`).
    """
    slowness = _slowness(facts)
    for i, fact in enumerate(facts):
        others = [f for f in facts if f is not fact]
        told = [f for f in others if f.instruction == fact.instruction]
        shown = [f for f in told if f.operator == fact.operator]
        unlike = _unlike(fact, next((g for g in (shown, told, others) if len(g) >= COMPARABLE), []), LENGTH_FACTOR)
        sure = _unlike(fact, next((g for g in (shown, told) if len(g) >= LEAST_OTHERS), []), SURE_FACTOR, 0.0)
        if found := unlike or sure:
            yield found
        elif slowness[i] > SLOW_FACTOR:
            yield Finding(
                check="length",
                severity="warning",
                episode=fact.name,
                value=slowness[i],
                message=f"{fact.name}: {fact.frames} frames at {fact.rate_hz:.4g} Hz, {slowness[i]:.1f} times "
                "slower than the others.",
            )


def _slowness(facts: Sequence[EpisodeFacts]) -> list[float]:
    """How many times slower than in the median episode the usual top step is; 0 where too few can be compared."""
    if len(facts) <= LEAST_OTHERS or len({len(f.end["tops"]) for f in facts}) != 1:
        return [0.0] * len(facts)
    tops = np.array([f.end["tops"] for f in facts], float).reshape(len(facts), -1)
    usual = np.median(tops, axis=0)
    told = usual > 0  # a gripper's steps are no speed
    if not told.any():
        return [0.0] * len(facts)
    return [float(np.median(usual[told] / np.maximum(own[told], 1e-3 * usual[told]))) for own in tops]


def _unlike(
    fact: EpisodeFacts, group: Sequence[EpisodeFacts], least_factor: float, least_score: float = LENGTH_SCORE
) -> Finding | None:
    """The finding, if the length is off that of a group (which may be empty: then nothing is known)."""
    if not group:
        return None
    frames = np.array([max(f.frames, 1) for f in (fact, *group)], float)
    middle, score = float(np.median(frames)), abs(float(scores(np.log(frames))[0]))
    factor = max(frames[0] / middle, middle / frames[0])
    if score <= least_score or factor <= least_factor:
        return None
    return Finding(
        check="length",
        severity="warning",
        episode=fact.name,
        value=float(frames[0] / middle),
        message=f"{fact.name}: {fact.frames} frames at {fact.rate_hz:.4g} Hz, {factor:.1f} times "
        f"{'longer' if frames[0] > middle else 'shorter'} than the usual {middle:.0f} of comparable episodes.",
    )


def path(motion: Motion) -> list[list[float]]:
    """[PATH_POINTS][D] states at evenly spaced times from the first move to the last; without a state, commands added.

    No time warping: a copy has the timing of its original.
    """
    values = motion.state if motion.state.shape[1] else np.cumsum(motion.actions, axis=0)
    first, last = moving_part(motion)
    clock = np.linspace(first, max(last, first), PATH_POINTS)
    columns = [np.interp(clock, np.arange(len(values)), column) for column in values.T]
    return [[round(float(v), 5) for v in row] for row in np.stack(columns, axis=1)]


def moving_part(motion: Motion) -> tuple[int, int]:
    """Last frame at the first state, and first frame at the last one; what lies between is the motion.

    A state is left when any dimension is `LEFT` of its range away from it: noise of the encoders leaves none.
    """
    state = motion.state if motion.state.shape[1] else np.cumsum(motion.actions, axis=0)
    spread = np.ptp(state, axis=0)
    scaled = state[:, spread > MOVE_FLOOR] / spread[spread > MOVE_FLOOR]
    away = np.flatnonzero(np.abs(scaled - scaled[:1]).max(axis=1, initial=0.0) > LEFT)
    before = np.flatnonzero(np.abs(scaled - scaled[-1:]).max(axis=1, initial=0.0) > LEFT)
    if not len(away) or not len(before) or away[0] > before[-1] + 1:
        return 0, len(motion) - 1
    return max(int(away[0]) - 1, 0), min(int(before[-1]) + 1, len(motion) - 1)


def usual_step(steps: np.ndarray) -> float:
    """The usual top step: 75th percentile of the steps [N] that move at all; 0 for none."""
    moving = steps[steps > 0]
    return float(np.percentile(moving, 75)) if len(moving) else 0.0


def duplicates(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """Pairs that are one episode twice (`SAME_PATH`, `SAME_PICTURES`): they count double, and leak across a split."""
    if len(facts) < 2 or len({np.shape(f.path) for f in facts}) != 1:
        return
    apart = _path_distances(np.array([f.path for f in facts], np.float64))
    seen = _picture_distances(facts)
    pairs = np.triu_indices(len(facts), 1)
    usual_path, usual_seen = float(np.median(apart[pairs])), float(np.median(seen[pairs]))
    for a, b in zip(*(axis.tolist() for axis in pairs), strict=True):
        near, alike = apart[a, b] / max(usual_path, 1e-12), seen[a, b] / max(usual_seen, 1e-12)
        longer, shorter = sorted((facts[a].seconds, facts[b].seconds), reverse=True)
        if longer > SAME_SECONDS * max(shorter, 1e-9):
            continue
        if near < SURELY_SAME or (near < SAME_PATH and alike < SAME_PICTURES):
            yield Finding(
                check="duplicates",
                severity="warning",
                episode=facts[b].name,
                also=(facts[a].name,),
                value=float(near),
                message=f"{facts[b].name}: nearly the same as {facts[a].name}: their paths are {near:.1%} as far apart "
                f"as two episodes usually are{f', their pictures {alike:.0%}' if np.isfinite(alike) else ''}.",
            )


def _path_distances(paths: np.ndarray) -> np.ndarray:
    """[N, N] root mean square over points and dimensions [N, P, D], each dimension by its spread in all episodes."""
    spread = paths.std(axis=(0, 1))
    kept = spread > 1e-9
    if not kept.any():
        return np.ones((len(paths), len(paths)))  # nobody ever moved: nothing tells two episodes apart, or equal
    flat = (paths[:, :, kept] / spread[kept]).reshape(len(paths), -1)
    return np.stack([np.sqrt(np.mean((flat - row) ** 2, axis=1)) for row in flat])


def _picture_distances(facts: Sequence[EpisodeFacts]) -> np.ndarray:
    """[N, N] mean absolute difference of thumbnails, over the cameras that all have; infinite where there is none."""
    cameras = set.intersection(*(set(f.thumbnails) for f in facts))
    if not cameras:
        return np.full((len(facts), len(facts)), np.inf)
    rows = np.stack([np.concatenate([np.ravel(f.thumbnails[c]) for c in sorted(cameras)]) for f in facts]).astype(float)
    return np.stack([np.abs(rows - row).mean(axis=1) for row in rows])


def ending(motion: Motion) -> dict[str, Any]:
    """How the episode ends, one figure a state dimension.

    "steps": the smaller of the last two steps, 0 where they go opposite ways or the dimension is a gripper's; "tops":
    the usual top step; "last": the last state; "low", "high": the range.
    """
    gripper = gripper_columns(motion.state, motion.state_names)
    steps, tops = [], []
    for column, passed in zip(motion.state.T, gripper, strict=True):
        own = np.diff(column)
        steady = len(own) > 1 and own[-1] * own[-2] > 0 and not passed
        steps.append(float(np.abs(own[-2:]).min()) if steady else 0.0)
        tops.append(usual_step(np.where(np.abs(own) > MOVE_SHARE * np.ptp(column), np.abs(own), 0.0)))
    state = motion.state
    return {
        "steps": steps,
        "tops": tops,
        "last": state[-1].tolist(),
        "low": state.min(axis=0).tolist(),
        "high": state.max(axis=0).tolist(),
    }


def end_speeds(facts: Sequence[EpisodeFacts]) -> np.ndarray:
    """[N] speed at the end: of the fastest dimension, as a share of its usual top step in this and all episodes."""
    usual = np.median([f.end["tops"] for f in facts], axis=0)
    tops = [np.maximum(np.maximum(f.end["tops"], usual), 1e-12) for f in facts]
    return np.array([np.max(np.array(f.end["steps"]) / top, initial=0.0) for f, top in zip(facts, tops, strict=True)])


def early_cut(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """Episodes that end in full motion where the others are at rest, or in another state than all others end in.

    Where most end in full motion nobody stands out; that is said once for the whole set.
    """
    if len(facts) <= LEAST_OTHERS or len({len(f.end["last"]) for f in facts}) != 1:
        return
    speeds = end_speeds(facts)
    fast = int((speeds > MOVING_END).sum())
    if 2 * fast > len(facts):
        yield Finding(
            check="early_cut",
            severity="info",
            episode="",
            value=fast / len(facts),
            message=f"{fast} of {len(facts)} episodes end in full motion: no policy can learn from them how to stop.",
        )
    for i, fact in enumerate(facts):
        rested = (np.delete(speeds, i) < RESTING_END).mean()
        hurried = bool(rested >= RESTED and speeds[i] > (SLOWING_END if rested >= ALL_RESTED else MOVING_END))
        where = _elsewhere(facts, i)
        if not (hurried or where):
            continue
        moving = f"ends at {speeds[i]:.0%} of its top speed, where the others have come to rest"
        yield Finding(
            check="early_cut",
            severity="warning",
            episode=fact.name,
            value=float(speeds[i]),
            message=f"{fact.name}: {' and '.join([moving] * int(hurried) + where)}: the recording may be cut off.",
        )


def _elsewhere(facts: Sequence[EpisodeFacts], index: int) -> list[str]:
    """Dimensions in which an episode ends where hardly any other of its instruction does."""
    fact = facts[index]
    peers = [f for i, f in enumerate(facts) if i != index and f.instruction == fact.instruction]
    if len(peers) < LEAST_PEERS or not fact.end["last"]:
        return []
    last = np.array([f.end["last"] for f in peers])
    span = np.max([f.end["high"] for f in peers], axis=0) - np.min([f.end["low"] for f in peers], axis=0)
    middle = np.median(last, axis=0)
    spread = np.quantile(np.abs(last - middle), AGREEING, axis=0)
    off = np.abs(np.array(fact.end["last"]) - middle)
    far = (off > ELSEWHERE * spread) & (off > ELSEWHERE_SHARE * span) & (span > 0) & (spread < 0.1 * span)
    return [
        f"ends with {fact.state_names[i]} at {fact.end['last'][i]:.3g}, where the others end at {middle[i]:.3g}"
        for i in np.flatnonzero(far)[:2]
    ]


def spread(motion: Motion) -> dict[str, Any]:
    """{"state name" or "action name": [commonest value, its count, lowest, highest, frames]} for each dimension."""
    found = {}
    groups = (("state", motion.state, motion.state_names), ("action", motion.actions, motion.action_names))
    for kind, values, names in groups:
        for column, name in zip(values.T, names, strict=True):
            kinds, counts = np.unique(column, return_counts=True)
            most = int(counts.argmax())
            found[f"{kind} {name}"] = [
                float(kinds[most]),
                int(counts[most]),
                float(kinds[0]),
                float(kinds[-1]),
                len(column),
            ]
    return found


def constant(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """Dimensions with one value in `CONSTANT_SHARE` of all frames: a warning where the few others would explode."""
    whole: list[str] = []
    for name in facts[0].spread if facts else ():
        rows = [f.spread[name] for f in facts if name in f.spread]
        counts: Counter[float] = Counter()
        for value, count, *_ in rows:
            counts[value] += count
        value, count = counts.most_common(1)[0]
        frames = sum(row[4] for row in rows)
        low, high = min(row[2] for row in rows), max(row[3] for row in rows)
        if low == high:
            whole.append(name)
        elif count >= CONSTANT_SHARE * frames:
            # on one side only, 1% and more of the frames move one of the two
            same = "are" if count > 0.99 * frames else "are, or are nearly,"
            yield Finding(
                check="constant",
                severity="warning",
                episode="",
                value=count / frames,
                message=f"{name} is {value:.4g} in {count} of {frames} frames and from {low:.4g} to {high:.4g} in the "
                f"others: its 1st and 99th percentile {same} the same, and normalised by them those few explode.",
            )
    if whole:
        yield Finding(
            check="constant",
            severity="info",
            episode="",
            value=float(len(whole)),
            message=f"{len(whole)} dimension(s) never change in any episode: {', '.join(whole[:8])}"
            f"{f' and {len(whole) - 8} more' if len(whole) > 8 else ''}.",
        )


def focus(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """A camera far less sharp in a whole episode than in the others (`OUT_OF_FOCUS`, `FOCUS_SCORE`)."""
    for camera in sorted({c for f in facts for c in f.sharpness}):
        known = [f for f in facts if f.sharpness.get(camera, 0.0) > 0]
        if len(known) <= LEAST_OTHERS:
            continue
        sharp = np.array([f.sharpness[camera] for f in known])
        shares = sharp / np.median(sharp)
        for fact, share, score in zip(known, shares, scores(np.log(sharp)), strict=True):
            if share < OUT_OF_FOCUS and score < -FOCUS_SCORE:
                yield Finding(
                    check="focus",
                    severity="warning",
                    episode=fact.name,
                    stream=camera,
                    value=float(share),
                    message=f"{fact.name}: camera {camera} has {share:.0%} of its usual sharpness in the whole "
                    "episode: out of focus, dirty, or moved.",
                )
