"""How the arm answers its commands: when, and how far. Figures of one episode, and the checks that compare them.

    lag_curve   when       offset     commands and motion of another time than in the other episodes, or late in all
    gains       how far    clipping   the arm goes on where the recorded command stops

The thresholds stand above the functions, with where they come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vla_cli.quality.facts import LEAST_OTHERS, EpisodeFacts, Finding, Motion, gripper_columns
from vla_cli.synchrony.clocks import SAME_RATE
from vla_cli.synchrony.latency import LEAST_SIGMAS

LAG_SECONDS = 0.5
LEAST_AGREEMENT, LAG_SCORE = 0.5, 2.5
"""Correlation at the best lag that identifies a delay, and by how many standard errors it must beat that at the usual
lag (Fisher's z: atanh r has the standard error 1 / sqrt(n - 3))."""
LAG_FRAMES = 2
"""Frames off the other episodes' delay that are another clock; one is within a control step's jitter."""
LATE_SECONDS = 0.3
"""Delay of the whole set that is a clock's rather than an arm's: position loops settle within 0.05 to 0.2 s (0.05 s and
0.2 s in the two real sets this was tried on)."""
OVERSHOOT = 1.25
"""Motion per command at the limit, as a multiple of that within it: more, and the command was cut off."""
LEAST_LIMIT, LEAST_FREE, FOLLOWS = 4, 3, 0.6
"""Frames at the limit and within it that tell, and correlation from which a state dimension may follow a command."""


def lag_curve(motion: Motion) -> dict[str, Any]:
    """Correlation of command and motion by lag in frames, averaged over the action dimensions that have any.

    Positive lags: the motion comes after the command. Two readings of a command are tried, and the better one kept:
    "change", a[t] against s[t + 1] - s[t], and "target", a[t] - a[t - 1] against the same.
    """
    moves = np.diff(motion.state[:, ~gripper_columns(motion.state, motion.state_names)], axis=0)
    commands = motion.actions[:, ~gripper_columns(motion.actions, motion.action_names)]
    most = int(np.clip(round(LAG_SECONDS * motion.rate_hz), 4, 25))
    most = min(most, len(motion) // 3)
    if moves.shape[1] == 0 or commands.shape[1] == 0 or most < 2:
        return {}
    found = {"change": _curve(commands[:-1], moves, most)}
    found["target"] = _curve(np.diff(commands, axis=0, prepend=commands[:1])[:-1], moves, most)
    reading = max(found, key=lambda key: max(found[key], default=0.0))
    lags = list(range(-most, most + 1))
    return {"reading": reading, "lags": lags, "agreement": found[reading], "frames": len(moves)}


def _curve(commands: np.ndarray, moves: np.ndarray, most: int) -> list[float]:
    """Mean over commands [T, A] of the best |correlation| with any move [T, S], at each lag."""
    at_lag = []
    for lag in range(-most, most + 1):
        x = commands[max(0, -lag) : len(commands) - max(0, lag)]
        y = moves[max(0, lag) : len(moves) - max(0, -lag)]
        at_lag.append(np.abs(_correlations(x, y)))
    table = np.stack(at_lag)  # [lags, A, S]
    partner = table.max(axis=0).argmax(axis=1)  # the state that follows a command is the same at every lag
    each = np.take_along_axis(table, partner[None, :, None], axis=2)[:, :, 0]
    alive = each.max(axis=0) > 0.3
    return [round(float(v), 5) for v in each[:, alive].mean(axis=1)] if alive.any() else [0.0] * len(table)


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[A, S] correlations of the columns of [T, A] and [T, S]; 0 where one is constant."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm(x, axis=0)[:, None] * np.linalg.norm(y, axis=0)[None]
    return np.where(norm > 1e-9, x.T @ y / np.where(norm > 1e-9, norm, 1.0), 0.0)


def offset(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """Commands and motion that do not belong to one time: in an episode unlike the others, or in all of them."""
    known = [f for f in facts if f.lag and max(f.lag["agreement"]) >= LEAST_AGREEMENT]
    if not known:
        return
    usual = _usual_lag(known)
    for f in known:
        curve = dict(zip(f.lag["lags"], f.lag["agreement"], strict=True))
        lag = max(curve, key=lambda k: curve[k])
        left = f.lag["frames"] - max(abs(lag), abs(usual)) - 3
        better = np.arctanh(min(curve[lag], 0.999)) - np.arctanh(min(curve.get(usual, 0.0), 0.999))
        surely = left > 0 and better > LAG_SCORE * np.sqrt(2 / left)
        if surely and abs(lag - usual) >= LAG_FRAMES and len(known) > LEAST_OTHERS:
            yield Finding(
                check="offset",
                severity="warning",
                episode=f.name,
                value=lag / f.rate_hz,
                message=f"{f.name}: the arm moves {_delay(lag, f.rate_hz)} its command; in the other episodes "
                f"{_delay(usual, f.rate_hz)} it (correlation {curve[lag]:.2f}).",
            )
    rate = float(np.median([f.rate_hz for f in known]))
    # as for the latency of pictures: of many lags the best is looked at, and among a few frames one always agrees
    sure = [
        f for f in known if np.arctanh(min(max(f.lag["agreement"]), 0.999)) * np.sqrt(f.lag["frames"]) > LEAST_SIGMAS
    ]
    if 2 * len(sure) >= len(facts) and (usual < 0 or usual / rate > LATE_SECONDS):
        yield Finding(
            check="offset",
            severity="warning",
            episode="",
            value=usual / rate,
            message=f"In the median of {len(known)} episodes the arm moves {_delay(usual, rate)} its command: the "
            "clocks of states and actions disagree, or actions are kept beside another frame than the one they act on.",
        )


def _usual_lag(known: Sequence[EpisodeFacts]) -> int:
    """The lag at which all episodes together agree best, each by its frames."""
    total: Counter[int] = Counter()
    weight: Counter[int] = Counter()
    for f in known:
        for lag, agreement in zip(f.lag["lags"], f.lag["agreement"], strict=True):
            total[lag] += agreement * f.lag["frames"]
            weight[lag] += f.lag["frames"]
    most = max(weight.values())
    return max((lag for lag in total if 2 * weight[lag] > most), key=lambda lag: (total[lag] / weight[lag], -abs(lag)))


def _delay(lag: int, rate: float) -> str:
    if lag == 0:
        return "in the same frame as"
    return f"{abs(lag)} frame{'s' if abs(lag) > 1 else ''} ({abs(lag) / rate:.2f} s) {'after' if lag > 0 else 'before'}"


def gains(motion: Motion) -> dict[str, Any]:
    """How far the arm moves per command within the command's limit and at it, for each state dimension that follows it.

    {action name: {state name: {"fit": |correlation|, "free", "limit": median ratios, "count", "limited": frames,
    "at": largest command}}}, of commands that are changes.
    """
    arm = ~gripper_columns(motion.state, motion.state_names)
    names = [n for n, kept in zip(motion.state_names, arm, strict=True) if kept]
    moves, found = np.diff(motion.state[:, arm], axis=0), {}
    for i in np.flatnonzero(~gripper_columns(motion.actions, motion.action_names)).tolist():
        command = motion.actions[:-1, i]
        if moves.shape[1] == 0 or np.ptp(command) == 0 or len(command) < 8:
            continue
        fits = np.abs(_correlations(command[:, None], moves))[0]
        largest = float(np.abs(command).max())
        limited = np.abs(command) >= (1 - 1e-3) * largest
        free = ~limited & (np.abs(command) > 0.1 * largest)
        found[motion.action_names[i]] = {
            names[k]: {
                "fit": float(fits[k]),
                "free": float(np.median(np.abs(moves[free, k] / command[free]))) if free.any() else 0.0,
                "count": int(free.sum()),
                "limit": float(np.median(np.abs(moves[limited, k] / command[limited]))),
                "limited": int(limited.sum()),
                "at": largest,
            }
            for k in np.flatnonzero(fits > FOLLOWS).tolist()
        }
    return found


def clipping(facts: Sequence[EpisodeFacts]) -> Iterator[Finding]:
    """Commands cut off when they were recorded: at the limit the arm goes farther than such a command takes it.

    Only for commands that are changes or speeds; of a target position that is cut off the arm stops short as well. How
    far a command takes the arm is known from the episodes of the same rate.
    """
    if [f.lag.get("reading") for f in facts].count("change") * 2 < len(facts):
        return
    fits: dict[str, Counter[str]] = {}
    for name, partners in ((n, p) for f in facts for n, p in f.gains.items()):
        fits.setdefault(name, Counter()).update({state: own["fit"] for state, own in partners.items()})
    # one command moves one dimension: the one that follows it in the most episodes
    partner = {name: counts.most_common(1)[0][0] for name, counts in fits.items() if counts}
    rows = [(f, n, f.gains[n][state]) for n, state in partner.items() for f in facts if state in f.gains.get(n, {})]
    for fact, name, own in rows:
        alike = [other for f, n, other in rows if n == name and _of_one_rate(f.gains_hz, fact.gains_hz)]
        free = [other["free"] for other in alike if other["count"] >= LEAST_FREE]
        if not free or own["limited"] < LEAST_LIMIT:
            continue
        excess = own["limit"] / max(float(np.median(free)), 1e-12)
        if excess > OVERSHOOT:
            yield Finding(
                check="clipping",
                severity="warning",
                episode=fact.name,
                value=excess,
                message=f"{fact.name}: command {name} stops at {own['at']:.3g} in {own['limited']} frames while the "
                f"arm moves {excess:.2f} times what such a command does elsewhere: it was cut off.",
            )


def _of_one_rate(one: float, other: float) -> bool:
    """Whether two rates are both within `SAME_RATE` of a third."""
    return abs(one - other) <= 2 * SAME_RATE * max(one, other)
