"""What a report compares: the same episodes of two policies, every comparison of a report in one family."""

from __future__ import annotations

import pytest

from vla_cli.comparison import compare, holm
from vla_cli.report import BASE, NOVEL, Condition, Paired, Rollout
from vla_cli.report.paired import compare_errors, compare_rollouts

CONDITIONS = [Condition(name) for name in ("trained", "novel-concept", "novel-both", "base-domain", "do-nothing")]
SUCCESS = {
    BASE: {"trained": "00000000", "novel-concept": "00010000", "novel-both": "00000001", "base-domain": "11111110"},
    "naive": {"trained": "11111111", "novel-concept": "00000000", "novel-both": "00000000", "base-domain": "00011000"},
    "ours": {"trained": "11111111", "novel-concept": "11111101", "novel-both": "11111111", "base-domain": "11111110"},
}


def rollouts() -> list[Rollout]:
    return [
        Rollout(policy, condition, i, "put it there", mark == "1", None, None, "did", 9)
        for policy, by_condition in SUCCESS.items()
        for condition, marks in {**by_condition, "do-nothing": "00000000"}.items()
        for i, mark in enumerate(marks)
    ]


def pairs() -> dict[tuple[str, str, str], Paired]:
    return {(p.policy, p.other, p.condition): p for p in compare_rollouts(rollouts(), CONDITIONS)}


def test_adapted_policies_are_held_against_the_base_and_each_other() -> None:
    asked = ("trained", "novel-concept", "novel-both", "base-domain")
    wanted = {(name, BASE, condition) for name in ("naive", "ours") for condition in asked}
    assert set(pairs()) == wanted | {("naive", BASE, NOVEL), ("ours", BASE, NOVEL), ("ours", "naive", NOVEL)}


def test_a_comparison_is_that_of_its_episodes() -> None:
    found = pairs()
    alone = compare(
        [m == "1" for m in SUCCESS["naive"]["base-domain"]], [m == "1" for m in SUCCESS[BASE]["base-domain"]]
    )
    lost = found["naive", BASE, "base-domain"]
    assert (lost.n, lost.effect, lost.low, lost.high, lost.p) == (8, -5 / 8, alone.low, alone.high, alone.p)
    assert lost.text == "-62 points [-87, -13]"
    pooled = found["ours", "naive", NOVEL]
    assert (pooled.n, pooled.effect) == (16, 15 / 16)
    assert pooled.resolved
    assert not found["ours", BASE, "base-domain"].resolved


def test_all_of_a_report_is_one_family() -> None:
    found = list(pairs().values())
    assert [pair.corrected for pair in found] == holm([pair.p for pair in found])


def test_episodes_that_only_one_was_run_on_do_not_count() -> None:
    some = [
        r for r in rollouts() if (r.policy, r.condition) != (BASE, "novel-both") and (r.policy, r.episode) != (BASE, 0)
    ]
    found = {(p.policy, p.other, p.condition): p for p in compare_rollouts(some, CONDITIONS)}
    assert found["ours", BASE, "trained"].n == 7
    assert ("ours", BASE, "novel-both") not in found
    assert found["ours", BASE, NOVEL].n == 7
    assert compare_rollouts([], CONDITIONS) == []


def test_open_loop_errors_are_held_against_the_base_only() -> None:
    errors = {(BASE, "trained"): [0.2, 0.4, 0.8], ("a", "trained"): [0.1, 0.2, 0.4], ("b", "trained"): [0.2, 0.4, 0.8]}
    found = compare_errors(errors)
    assert [(p.policy, p.other, p.effect, p.n) for p in found] == [
        ("a", BASE, pytest.approx(0.5), 3),
        ("b", BASE, 1.0, 3),
    ]
    assert [p.resolved for p in found] == [True, False]
