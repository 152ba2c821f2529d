"""Reports to test with: one as the demo makes it, and any other from counts."""

from __future__ import annotations

from vla_cli.report import Condition, Report, Rollout, count_row
from vla_cli.report.paired import compare_rollouts

CONDITIONS = ("trained", "novel-concept", "novel-spatial", "base-domain", "do-nothing")


def make_report(n: int = 100, locked: dict[str, int] | None = None, **counts: tuple[int, ...]) -> Report:
    """A closed-loop report of policy to successes by condition, and policy to locked episodes a novel condition.

    The first episodes are the successful ones, for every policy.
    """
    rows = [
        count_row(policy, condition, "success", k, n)
        for policy, ks in counts.items()
        for condition, k in zip(CONDITIONS, ks, strict=True)
    ]
    for policy, k in (locked or {}).items():
        rows += [count_row(policy, name, "locked", k, n) for name in CONDITIONS if name.startswith("novel-")]
    conditions = [Condition(name, f"what {name} asks", ("put it there",)) for name in CONDITIONS]
    rollouts = [
        Rollout(policy, condition, i, "put it there", i < k, None, None, "did something", 9)
        for policy, ks in counts.items()
        for condition, k in zip(CONDITIONS, ks, strict=True)
        for i in range(n)
    ]
    return Report(
        kind="closed-loop",
        policies=[{"name": name, "recipe": None} for name in counts],
        conditions=conditions,
        rows=rows,
        settings={"world": "tabletop:V", "episodes": n, "seed": 1},
        warnings=["a warning"],
        notes=["a note"],
        comparisons=compare_rollouts(rollouts, conditions),
    )


def demo() -> Report:
    return make_report(
        base=(42, 39, 52, 90, 0),
        naive=(98, 2, 4, 18, 0),
        rehearse=(98, 88, 97, 91, 0),
        locked={"base": 10, "naive": 91, "rehearse": 3},
    )
