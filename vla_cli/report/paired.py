"""How policies did beside each other on the same episodes: the report's `comparisons`, one Holm family a report.

Intervals of two policies that overlap do not say that the two are alike: they acted in the same scenes with the same
noise, so what counts is the episodes in which they differ (methods.md 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from vla_cli.comparison import compare, error_ratio, holm
from vla_cli.report import BASE, NOVEL, Condition, Paired, Rollout


def compare_rollouts(rollouts: Iterable[Rollout], conditions: Sequence[Condition]) -> list[Paired]:
    """Success of policies beside each other.

    Every adapted policy beside the base in each condition but the controls, and every policy beside each one before it
    over all novel conditions together.

    Args:
        rollouts: of all policies; the same condition and episode is the same scene for each.
        conditions: that were run, in order.
    """
    success: dict[str, dict[tuple[str, int], bool]] = {}
    for rollout in rollouts:
        success.setdefault(rollout.policy, {})[rollout.condition, rollout.episode] = rollout.success
    novel = {condition.name for condition in conditions if condition.novel}
    asked = [(name, BASE, c.name, {c.name}) for name in success if name != BASE for c in conditions if not c.control]
    asked += [(later, earlier, NOVEL, novel) for earlier, later in combinations(success, 2)]
    found = []
    for policy, other, condition, names in asked:
        episodes = [key for key in success[policy] if key[0] in names and key in success.get(other, {})]
        if episodes:
            pair = compare([success[policy][key] for key in episodes], [success[other][key] for key in episodes])
            numbers = (pair.n, pair.difference, pair.low, pair.high, pair.p, pair.p)
            found.append(Paired(policy, other, condition, "success", *numbers))
    return _corrected(found)


def compare_errors(errors: Mapping[tuple[str, str], Sequence[float]]) -> list[Paired]:
    """Open-loop error of every adapted policy beside the base's.

    Args:
        errors: (policy, condition) to the error of each episode, the same episodes for all.
    """
    found = []
    for (policy, condition), own in errors.items():
        if policy != BASE and (BASE, condition) in errors:
            ratio, low, high, p = error_ratio(own, errors[BASE, condition])
            found.append(Paired(policy, BASE, condition, "action_error", len(own), ratio, low, high, p, p))
    return _corrected(found)


def _corrected(family: Sequence[Paired]) -> list[Paired]:
    values = holm([pair.p for pair in family])
    return [replace(pair, corrected=value) for pair, value in zip(family, values, strict=True)]
