"""A verdict in words from a report's rows, with thresholds that a reader can check by eye.

An adapted policy is held against its own success on the trained task: a novel instruction it obeys half as often as the
demonstrated one it still obeys. Intervals decide, not point estimates, and "not resolved" is a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from vla_cli.intervals import percent
from vla_cli.report import BASE, BASE_DOMAIN, DO_NOTHING, TRAINED, Paired, Report, Row

Label = Literal[
    "steerable", "partly steerable", "partly deaf", "deaf", "not steerable", "not learnt", "not resolved", "no verdict"
]
ALL_NOVEL = ("novel-concept", "novel-spatial", "novel-both")
OPEN_LOOP = (
    "Open-loop error, lower is better, is an indicator of fit: the policy is shown recorded observations and its "
    "actions are compared with the recorded ones. It never has to live with its own mistakes. What other words change "
    "in its predictions, where that was asked, is an indicator of lock-in: it hints at what the policy would do, and "
    "does not show it."
)
LOCKED_BELOW, KEPT_FROM, MISLED_BELOW = 0.5, 0.75, 0.9
"""Of `kept`, below and from which it says something, and of `agreement`: see docs/offline_score.md for how much."""
TOLERATED_BY_CHANCE = 0.05
"""Success of a policy that does nothing above which no figure of that report counts."""

RULE = (
    "A novel condition counts as followed when the whole 95% interval of its success lies above half of the trained "
    "task's interval, as not followed when it lies wholly below, and as not resolved when the two overlap. "
    "Steerable: every novel condition that was measured is followed. Deaf: none is, and in more than half of those "
    "episodes (the whole interval) the policy did the trained behaviour: it approached the trained object first, or, "
    "where only another place was asked for, what it grasped ended nearest to the trained one. Partly deaf: the same "
    "for some of them only. Where the failures look otherwise it says not steerable, or partly steerable. Not learnt: "
    "the trained task itself succeeds in less than half. The halves are a convention: the figures are below, judge by "
    "your own. Whether old abilities were lost is the paired comparison with the base, corrected for their number."
)


@dataclass(frozen=True)
class Verdict:
    """What to make of one adapted policy: a label of a word or two, and the sentence that gives the figures."""

    policy: str
    label: Label
    sentence: str


def verdicts(report: Report) -> list[Verdict]:
    """One verdict an adapted policy of a closed-loop report, in the report's order; none of an open-loop one."""
    if report.kind != "closed-loop":
        return []
    return [_judge(report, name) for name in report.policy_names if name != BASE]


def _judge(report: Report, policy: str) -> Verdict:
    trained = report.find(policy, TRAINED, "success")
    novel = {c.name: row for c in report.conditions if c.novel and (row := report.find(policy, c.name, "success"))}
    idle = report.pooled_over_policies(DO_NOTHING, "success")
    if idle and idle.value > TOLERATED_BY_CHANCE:
        return Verdict(policy, "no verdict", f"a policy that does nothing succeeds in {percent(idle.value)}.")
    if trained is None or not novel:
        missing = "the trained task" if trained is None else "no novel instruction"
        return Verdict(policy, "no verdict", f"{missing} was {'not ' if trained is None else ''}evaluated.")
    if trained.low <= 0.5:
        label: Label = "not learnt" if trained.high < 0.5 else "not resolved"
        return Verdict(policy, label, f"does the trained task in {trained.text}, which is where to look first.")
    followed = [name for name, row in novel.items() if row.low > trained.high / 2]
    refused = [name for name, row in novel.items() if row.high < trained.low / 2]
    return _word(report, policy, trained, novel, followed, refused)


def _word(
    report: Report, policy: str, trained: Row, novel: dict[str, Row], followed: list[str], refused: list[str]
) -> Verdict:
    """Label and sentence of a policy that has learnt its task."""
    does = f"does the trained task ({percent(trained.value)})"
    share = {name: f"{name} ({percent(row.value)})" for name, row in novel.items()}
    success = report.pooled(policy, "success", novel)
    locked = report.pooled(policy, "locked", refused or novel)
    fixed = bool(refused and locked and locked.low > 0.5)
    novel_share = percent(success.value) if success else "-"
    label: Label
    if len(followed) == len(novel):
        label, text = "steerable", f"{does} and {novel_share} of novel ones"
    elif len(refused) == len(novel):
        label, text = "deaf" if fixed else "not steerable", f"{does} but only {novel_share} of novel ones"
    elif refused:
        label, text = "partly deaf" if fixed else "partly steerable", does
        if followed:
            text += f" and follows {_list([share[name] for name in followed])}"
        text += f", but not {_list([share[name] for name in refused], last='or')}"
    else:
        unsure = [name for name in novel if name not in followed]
        label, text = "not resolved", f"{does}; too few episodes to tell for {_list([share[name] for name in unsure])}"
    if locked:
        where = "of those episodes" if 0 < len(refused) < len(novel) else "of novel instructions"
        text += f"; in {percent(locked.value)} {where} it did the trained behaviour"
    return Verdict(policy, label, f"{text}.{_retention(report, policy)}{_unmeasured(report, novel)}")


def _retention(report: Report, policy: str) -> str:
    """A sentence comparing adapted and base policy on the base domain's own tasks; empty where that was not done."""
    after, before = (report.find(name, BASE_DOMAIN, "success") for name in (policy, BASE))
    pair = report.compared(policy, BASE, BASE_DOMAIN, "success")
    if not (after and before and pair):
        return ""
    shares = f"{percent(after.value)}, before {percent(before.value)}"
    figures = f" On the base domain's own tasks {shares} ({pair.text}): "
    if not pair.resolved:
        return figures + "no difference resolved."
    return figures + ("a gain." if pair.effect > 0 else "old abilities were lost.")


def _unmeasured(report: Report, novel: dict[str, Row]) -> str:
    """A sentence naming what a verdict should rest on and this one does not; empty where nothing is missing."""
    missing = [name for name in ALL_NOVEL if name not in novel]
    if report.pooled_over_policies(DO_NOTHING, "success") is None:
        missing.append(f"the control {DO_NOTHING}")
    return f" Not measured: {_list(missing)}." if missing else ""


def answers_to_words(report: Report) -> list[str]:
    """For each adapted policy and kind of other words in an open-loop report, a sentence on what is left of its answer.

    Thresholds and how far they can be relied on: docs/offline_score.md.
    """
    found = []
    for policy, condition in product(report.policy_names, report.conditions):
        kept, agreement = (report.find(policy, condition.name, metric) for metric in ("kept", "agreement"))
        if kept is not None and agreement is not None:
            found.append(
                f"{policy}, {condition.name} ({condition.asked}): {_left_of_answer(kept, agreement)}; it keeps "
                f"{kept.text} of the base's answer, and goes the base's way in {percent(agreement.value)} of the cases."
            )
    return found


def _left_of_answer(kept: Row, agreement: Row) -> str:
    if kept.n == 1:
        return "not resolved"
    return left_of_answer((kept.low, kept.high), (agreement.low, agreement.high))


def left_of_answer(kept: tuple[float, float], agreement: tuple[float, float]) -> str:
    """What two intervals (low, high) say of a policy's answer to other words, in a few words."""
    if kept[1] < LOCKED_BELOW or agreement[1] < MISLED_BELOW:
        return "a sign of lock-in"
    if kept[0] >= KEPT_FROM and agreement[0] >= MISLED_BELOW:
        return "the base's answer is kept"
    return "weakened" if kept[0] >= LOCKED_BELOW and kept[1] < KEPT_FROM else "not resolved"


def open_loop_comparisons(report: Report) -> list[str]:
    """For each adapted policy and condition, a sentence on its action error beside the base's."""
    return [
        f"{pair.policy}, {pair.condition}: {_compare(pair)}"
        for pair in report.comparisons
        if (pair.other, pair.metric) == (BASE, "action_error")
    ]


def _compare(pair: Paired) -> str:
    if pair.n == 1:
        return f"{pair.effect:.3g} times the base's error in the only episode, which resolves nothing."
    found = f"{pair.text} the base's error, paired over {pair.n} episodes"
    if not pair.resolved:
        return f"no difference from the base resolved ({found})."
    return f"{'closer to' if pair.effect < 1 else 'farther from'} the recorded actions than the base ({found})."


def _list(items: Sequence[str], last: str = "and") -> str:
    """Join with commas and a final word: "a, b and c"."""
    return f" {last} ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
