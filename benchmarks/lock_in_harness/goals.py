"""The benchmark's goals for the method `steerable`, and whether they are met.

Intervals decide: a goal is met when the whole 95% interval lies at or above it, not met when it lies wholly below, and
not resolved when the interval holds it. Whether the point estimate reaches it is said beside that, and what becomes of
it where cells (tasks x seeds) and not episodes are taken for independent: Student's t over their figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lock_in_harness.results import Results
from vla_cli.comparison import compare
from vla_cli.intervals import t_interval, wilson

Word = Literal["met", "not met", "not resolved", "not run"]
METHOD, WITH_DATA, ORACLE = "steerable", "steerable+data", "oracle"
JUDGED = ("trained", "novel-concept", "novel-spatial", "novel-both")
BASE_DOMAIN = "base-domain"


@dataclass(frozen=True)
class Goal:
    """What one row is to reach on one shift.

    Attributes:
        shift: where.
        row: label of the row.
        shares: success in percent, by condition, that is to be reached.
        oracle_margin: points below the oracle that are allowed on every judged condition; None for no such goal.
    """

    shift: str
    row: str
    shares: dict[str, float]
    oracle_margin: float | None = None


def _shares(*percent: float) -> dict[str, float]:
    return dict(zip((*JUDGED, BASE_DOMAIN), percent, strict=True))


GOALS: tuple[Goal, ...] = (
    Goal("V", METHOD, _shares(99, 98, 98, 97, 88)),
    Goal("W", METHOD, _shares(99, 95, 98, 95, 88)),
    Goal("T", METHOD, _shares(97, 88, 95, 88, 85)),
    Goal("T", WITH_DATA, _shares(98, 93, 96, 92, 88)),
    Goal("S", METHOD, {BASE_DOMAIN: 85}, oracle_margin=5),
    Goal("S", WITH_DATA, {}, oracle_margin=0),
)


@dataclass(frozen=True)
class Judgement:
    """One condition of a goal.

    Attributes:
        condition: which.
        wanted: in words.
        found: in words, with the interval.
        reached: whether the point estimate reaches it.
        word: the verdict.
        cells: the interval over cells, and the verdict by it.
    """

    condition: str
    wanted: str
    found: str
    reached: bool
    word: Word
    cells: str = "-"


def judge(results: Results, goal: Goal) -> list[Judgement]:
    """A goal's conditions, one by one."""
    found = []
    if goal.oracle_margin is not None:
        found += [_beside_oracle(results, goal, condition, goal.oracle_margin) for condition in JUDGED]
    return found + [_share(results, goal, condition, wanted) for condition, wanted in goal.shares.items()]


def overall(judgements: list[Judgement]) -> Word:
    """Not met if one is not met; met if all are."""
    words = {judgement.word for judgement in judgements}
    for word in ("not run", "not met", "not resolved"):
        if word in words:
            return word
    return "met"


def _word(low: float, high: float, wanted: float) -> Word:
    if low >= wanted:
        return "met"
    return "not met" if high < wanted else "not resolved"


def _share(results: Results, goal: Goal, condition: str, wanted: float) -> Judgement:
    text = f"≥ {wanted:g}%"
    figure = results.figure(goal.row, goal.shift, condition)
    if figure is None:
        return Judgement(condition, text, "-", False, "not run")
    low, high = wilson(figure.k, figure.n)
    found = f"{100 * figure.value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    cells = _over_cells(list(results.shares(goal.row, goal.shift, condition).values()), wanted / 100)
    return Judgement(condition, text, found, figure.value >= wanted / 100, _word(low, high, wanted / 100), cells)


def _over_cells(values: list[float], wanted: float) -> str:
    """Student's t interval over cells, and the verdict by it; of one cell no spread is known."""
    if len(values) < 2:
        return "-"
    low, high = t_interval(values)
    return f"[{100 * low:.1f}, {100 * high:.1f}] {_word(low, high, wanted)}"


def _beside_oracle(results: Results, goal: Goal, condition: str, margin: float) -> Judgement:
    text = f"oracle - {margin:g}" if margin else "≥ oracle"
    own, oracle, cells = results.paired(goal.row, ORACLE, goal.shift, [condition])
    if not cells:
        return Judgement(condition, text, "-", False, "not run")
    pair = compare([o == "1" for o in own], [o == "1" for o in oracle])
    share, other = (100 * outcomes.count("1") / pair.n for outcomes in (own, oracle))
    bounds = f"{100 * pair.difference:+.1f} [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"
    reached = pair.difference >= -margin / 100
    mine, its = (results.shares(row, goal.shift, condition) for row in (goal.row, ORACLE))
    apart = [share - its[cell] for cell, share in mine.items() if cell in its]
    return Judgement(
        condition,
        text,
        f"{share:.1f}%, oracle {other:.1f}%, {bounds}",
        reached,
        _word(pair.low, pair.high, -margin / 100),
        _over_cells(apart, -margin / 100),
    )
