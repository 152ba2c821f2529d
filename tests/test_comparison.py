"""Paired tests: textbook values, enumeration, symmetry, and what Holm's correction promises."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cli.comparison import compare, corrected, error_ratio, holm, mcnemar, paired_difference

SUCCESSES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    # statsmodels' and R's exact2x2 documentation, and binom.test(k, n) of R
    [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (1, 5, 0.21875), (1, 9, 0.021484375), (6, 16, 0.0524787902832031)],
)
def test_known_values(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-12)


def test_equals_enumeration_of_every_coin_toss() -> None:
    for n in range(1, 11):
        gaps = [abs(2 * sum(toss) - n) for toss in product((0, 1), repeat=n)]
        for k in range(n + 1):
            extreme = sum(gap >= abs(2 * k - n) for gap in gaps)
            assert mcnemar(k, n - k) == pytest.approx(extreme / 2**n, rel=1e-12)


def test_large_counts_neither_overflow_nor_leave_the_unit_interval() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0.0 <= mcnemar(5000, 0) < 1e-300
    assert mcnemar(1100, 1000) == pytest.approx(0.0308, abs=2e-3)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


@given(SUCCESSES)
def test_swapping_the_policies_swaps_the_verdict_alone(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    one, other = compare(a, b), compare(b, a)
    assert one.p == other.p
    assert one.n == len(pairs) == other.n
    assert (one.only_a, one.only_b) == (other.only_b, other.only_a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert {one.verdict, other.verdict} in ({"not resolved"}, {"better", "worse"})


@given(SUCCESSES)
def test_the_difference_lies_within_its_bounds(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = compare(a, b)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert -1 <= found.low <= found.difference <= found.high <= 1


def test_bounds_of_the_difference_cover_the_truth() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        only_a, only_b, _ = rng.multinomial(100, [0.12, 0.07, 0.81])
        _, low, high = paired_difference(int(only_a), int(only_b), 100)
        covered += low <= 0.05 <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_a_verdict_needs_evidence() -> None:
    a, b = [True] * 8 + [False] * 2, [False] * 8 + [False] * 2
    assert compare(a, b).verdict == "better"
    assert compare(b, a).verdict == "worse"
    assert compare(a, a).verdict == "not resolved"
    # the pairing counts: 16 against 10 of 20 is no difference when 6 are lost and 12 are won
    assert compare([True] * 12 + [False] * 6, [False] * 12 + [True] * 6).verdict == "not resolved"


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_lists_that_do_not_pair_are_refused(a: list[bool], b: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"zip|no difference"):
        compare(a, b)


def test_holm_by_hand() -> None:
    # p.adjust(c(.01, .04, .03, .005), "holm") of R
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_only_raises(p_values: list[float]) -> None:
    found = holm(p_values)
    assert all(raw <= after <= 1 for raw, after in zip(p_values, found, strict=True))
    assert all(found[i] <= found[j] for i, p in enumerate(p_values) for j, q in enumerate(p_values) if p < q)
    # and never by more than Bonferroni's
    assert all(a <= min(1.0, len(p_values) * p) + 1e-12 for p, a in zip(p_values, found, strict=True))


def test_a_family_corrects_all_of_its_members() -> None:
    clear, weak = compare([True] * 20, [False] * 20), compare([True] * 6, [False] * 6)
    assert weak.verdict == "better"
    family = corrected({"clear": clear, "weak": weak, "none": compare([True, False], [False, True])})
    assert family["clear"].verdict == "better"
    assert family["weak"].corrected == pytest.approx(2 * weak.p)
    assert family["weak"].verdict == "not resolved"
    assert [c.p for c in family.values()] == [clear.p, weak.p, 1.0]


ERRORS = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=2, max_size=20)


@given(ERRORS)
def test_error_ratios_are_the_same_the_other_way_round(errors: list[tuple[float, float]]) -> None:
    a, b = [e[0] for e in errors], [e[1] for e in errors]
    (ratio, low, high, p), (back, back_low, back_high, same) = error_ratio(a, b), error_ratio(b, a)
    assert low <= ratio <= high
    assert (back, back_low, back_high) == pytest.approx((1 / ratio, 1 / high, 1 / low))
    assert same == pytest.approx(p)
    # the interval and the test are one statement
    assert (low > 1 or high < 1) == (p < 0.05) or min(abs(low - 1), abs(high - 1)) < 1e-9


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_equal_policies_are_told_apart_in_one_of_twenty(n: int) -> None:
    rng = np.random.default_rng(n)
    episode = np.exp(rng.normal(0, 1, (2000, n)))  # how hard an episode is matters to both alike
    a, b = (episode * np.exp(rng.normal(0, 0.3, (2000, n))) for _ in range(2))
    found = [error_ratio(x.tolist(), y.tolist())[3] <= 0.05 for x, y in zip(a, b, strict=True)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.02)


def test_one_episode_resolves_nothing_and_equal_ratios_everything() -> None:
    assert error_ratio([2.0], [1.0]) == pytest.approx((2.0, 2.0, 2.0, 1.0))
    assert error_ratio([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0, 0.0))
    assert error_ratio([2.0, 4.0], [2.0, 4.0])[3] == 1.0


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([float("nan")], [1.0])])
def test_errors_without_a_ratio_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="no ratio"):
        error_ratio(a, b)
