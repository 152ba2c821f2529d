"""Whether one policy does better than another on the same episodes: paired exact tests, corrected for their number.

                 b succeeds   b fails
    a succeeds      both       only_a        only the discordant episodes, only_a and only_b, tell the two apart:
    a fails        only_b     neither        under "no difference" each is a fair coin

The episodes of one trained policy are independent draws of scenes and noise; policies trained anew from other
demonstrations differ by more. A small p says that *these* policies differ.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vla_cli.intervals import Z_95, t_interval

Verdict = Literal["better", "worse", "not resolved"]
Key = TypeVar("Key", bound=Hashable)
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """How `a` did beside `b` on the same episodes.

    Attributes:
        both, only_a, only_b, neither: episodes in which so many of the two succeeded.
        p: two-sided exact McNemar p-value.
        corrected: p after Holm's correction over the family it was tested in; p itself when tested alone.
        difference: success rate of a minus that of b.
        low, high: 95% bounds of the difference, uncorrected.
        alpha: family-wise level of the verdict.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    corrected: float
    difference: float
    low: float
    high: float
    alpha: float = ALPHA

    @property
    def n(self) -> int:
        """Paired episodes."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def verdict(self) -> Verdict:
        """Whether `a` is better or worse than `b` after correction."""
        if self.corrected > self.alpha:
            return "not resolved"
        return "better" if self.only_a > self.only_b else "worse"


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: the binomial tail of the discordant pairs, doubled (Q. McNemar, Psychometrika 12,
    1947, 153-157; exact form as in A. Agresti, Categorical Data Analysis, 10.1).

    Args:
        only_a: pairs in which only a succeeded.
        only_b: pairs in which only b succeeded.

    Returns:
        p in [0, 1]; 1 when there is no discordant pair.

    Raises:
        ValueError: a count is negative.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts are not negative: {only_a}, {only_b}")
    n, tail, ways = only_a + only_b, 0, 1
    for i in range(min(only_a, only_b) + 1):
        tail += ways  # of math.comb(n, i), each from the one before: thousands of pairs stay quick, and exact
        ways = ways * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n)


def paired_difference(only_a: int, only_b: int, n: int, z: float = Z_95) -> tuple[float, float, float]:
    """Difference of two paired proportions with Agresti and Min's adjusted Wald bounds (Statist. Med. 24, 2005,
    729-740): half a pair is added to each of the four cells before the bounds are taken.

    Args:
        only_a, only_b: discordant pairs.
        n: all pairs, at least 1.
        z: normal quantile; the default gives 95%.

    Returns:
        Difference a - b as observed, lower and upper bound, in [-1, 1].

    Raises:
        ValueError: there are fewer pairs than discordant ones, or none.
    """
    if n < 1 or only_a + only_b > n:
        raise ValueError(f"no difference for {only_a} and {only_b} of {n} pairs")
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2.0
    centre = (a - b) / total
    half = z * math.sqrt(max(0.0, a + b - (a - b) ** 2 / total)) / total
    observed = (only_a - only_b) / n
    return observed, max(-1.0, min(observed, centre - half)), min(1.0, max(observed, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (S. Holm, Scand. J. Statist. 6, 1979, 65-70), in the order given.

    Args:
        p_values: raw p-values of one family.

    Returns:
        Corrected ones in [0, 1]: none below its raw value, in the same order of size.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def error_ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    """By which factor a's errors differ from b's on the same episodes: Student's t on the logarithms of the ratios.

    Errors of episodes differ by more than policies do, and by factors: the ratios are what is alike from one episode to
    the next. A few held-out episodes are enough where all of them agree.

    Args:
        a, b: error of each episode, above 0, in the same order.

    Returns:
        Geometric mean of a / b, its 95% bounds, and the two-sided p of no difference; of a single episode no spread
        is known: both bounds are its ratio, and p is 1.

    Raises:
        ValueError: they differ in length, are empty, or not all finite and above 0.
    """
    import numpy as np
    from scipy import special  # not stats, whose Student's t is the same numbers and half a second of loading

    if len(a) != len(b) or not len(a) or not np.isfinite([*a, *b]).all() or min(*a, *b) <= 0:
        raise ValueError(f"no ratio of the errors {list(a)} and {list(b)}")
    logs = np.log(np.asarray(a, np.float64)) - np.log(np.asarray(b, np.float64))
    low, high = t_interval(list(logs))
    spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    mean = float(logs.mean())
    if len(logs) == 1 or mean == 0:
        p = 1.0
    elif spread == 0:
        p = 0.0
    else:
        p = float(2 * special.stdtr(len(logs) - 1, -abs(mean) * math.sqrt(len(logs)) / spread))
    ratio, below, above = (math.exp(x) for x in (mean, low, high))
    return ratio, below, above, p


def compare(a: Iterable[bool], b: Iterable[bool], alpha: float = ALPHA) -> Comparison:
    """Compare two policies on the same episodes, as a family of one test.

    Args:
        a, b: success of each episode, in the same order.
        alpha: level of the verdict.

    Raises:
        ValueError: they differ in length, or are empty.
    """
    pairs = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True)]
    counts = {kind: pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))}
    both, only_a, only_b, neither = counts.values()
    p = mcnemar(only_a, only_b)
    return Comparison(both, only_a, only_b, neither, p, p, *paired_difference(only_a, only_b, len(pairs)), alpha)


def corrected(comparisons: Mapping[Key, Comparison]) -> dict[Key, Comparison]:
    """The same comparisons as one family: Holm's correction over all their p-values."""
    values = holm([comparison.p for comparison in comparisons.values()])
    return {
        key: replace(comparison, corrected=value)
        for (key, comparison), value in zip(comparisons.items(), values, strict=True)
    }
