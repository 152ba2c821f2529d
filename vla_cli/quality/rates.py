"""Episodes of different rates, made comparable: steps and frames are those of one rate before they are compared.

At 30 Hz an arm makes a third of the way in a step that it makes at 10 Hz, and takes three times the frames for it, at
the same speed. What is counted in steps or frames is therefore restated at the set's usual rate. Sets of one rate stay
as they are, to the last bit. How far a command goes in a step depends on what it is, a speed or a change: `gains` stay
as they are too, and are compared within one rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_cli.quality.facts import EpisodeFacts
from vla_cli.synchrony.clocks import SAME_RATE


def at_one_rate(facts: Sequence[EpisodeFacts]) -> list[EpisodeFacts]:
    """The facts of a set with frames, steps and lags of its usual rates: those of the actions, and of each state."""
    usual = _usual([f.rate_hz for f in facts])
    streams = {key: _usual([f.rates[key] for f in facts if key in f.rates]) for f in facts for key in f.rates}
    return [_restated(fact, usual, streams) for fact in facts]


def _usual(rates: Sequence[float]) -> float:
    """The rate of the median episode (of two in the middle the lower one); 0 when none has one."""
    known = sorted(rate for rate in rates if rate > 0)
    return known[(len(known) - 1) // 2] if known else 0.0


def _ratio(own: float, usual: float) -> float:
    """How much longer a step of the usual rate takes than one of its own; 1 where the rates are one."""
    return own / usual if min(own, usual) > 0 and abs(own - usual) > SAME_RATE * usual else 1.0


def _restated(fact: EpisodeFacts, usual: float, streams: Mapping[str, float]) -> EpisodeFacts:
    longer = {key: _ratio(rate, streams[key]) for key, rate in fact.rates.items()}
    if any(ratio != 1 for ratio in longer.values()):
        by_column = {column: longer.get(column.rpartition("/")[0], 1.0) for column in fact.usual}
        fact = replace(
            fact,
            suspects=[replace(s, figure=s.figure * by_column.get(s.column, 1.0)) for s in fact.suspects],
            usual={column: value * by_column[column] for column, value in fact.usual.items()},
        )
    ratio = _ratio(fact.rate_hz, usual)
    if ratio == 1:
        return fact
    return replace(
        fact,
        rate_hz=usual,
        frames=max(1, round(fact.frames / ratio)),
        end={key: _scaled(values, ratio) if key in ("steps", "tops") else values for key, values in fact.end.items()},
        lag=_lag(fact.lag, ratio),
    )


def _scaled(values: Sequence[float], factor: float) -> list[float]:
    return [value * factor for value in values]


def _lag(lag: dict[str, Any], longer: float) -> dict[str, Any]:
    """The curve at the lags, in frames of the other rate, that it reaches; {} where those are too few to tell."""
    if not lag:
        return lag
    most = int(max(lag["lags"]) / longer)
    if most < 2:
        return {}
    lags = list(range(-most, most + 1))
    agreement = np.interp(np.array(lags) * longer, lag["lags"], lag["agreement"])
    return {**lag, "lags": lags, "agreement": agreement.tolist(), "frames": round(lag["frames"] / max(longer, 1.0))}
