"""The report artefact: intervals against known figures, verdicts, and files that load what was saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import CONDITIONS, demo, make_report

from vla_cli.errors import InputError
from vla_cli.intervals import percent, wilson
from vla_cli.report import (
    REPORT_FILE,
    ROLLOUTS_FILE,
    Condition,
    Report,
    Rollout,
    Row,
    count_row,
    load_report,
    load_rollouts,
    mean_row,
    save_report,
    table,
    to_markdown,
    transposed,
)
from vla_cli.report.paired import compare_errors
from vla_cli.report.verdict import answers_to_words, open_loop_comparisons, verdicts

# ---- intervals

steady = settings(deadline=None, derandomize=True)
"""A busy machine is no failure, and the same code gets the same examples."""


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (11, 20, 0.34, 0.74),
        (0, 20, 0.0, 0.16),
        (20, 20, 0.84, 1.0),
        # Newcombe, Statistics in Medicine 17, 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_known_figures(k: int, n: int, low: float, high: float) -> None:
    digits = 4 if n > 20 else 2
    assert tuple(round(bound, digits) for bound in wilson(k, n)) == (low, high)


@steady
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_encloses_the_share_stays_inside_and_mirrors(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    mirrored = wilson(n - k, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@steady
@given(st.integers(2, 400).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_wilson_rises_with_successes(counts: tuple[int, int]) -> None:
    k, n = counts
    assert all(fewer < more for fewer, more in zip(wilson(k, n), wilson(k + 1, n), strict=True))


@steady
@given(st.integers(1, 100).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(2, 10))
def test_wilson_narrows_with_episodes(counts: tuple[int, int], times: int) -> None:
    k, n = counts
    (low, high), (tight_low, tight_high) = wilson(k, n), wilson(k * times, n * times)
    assert tight_high - tight_low < high - low


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson(k, n)


@steady
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30))
def test_the_interval_of_a_mean_encloses_it(values: list[float]) -> None:
    row = mean_row("base", "held-out", "action_error", values)
    assert 0 <= row.low <= row.value <= row.high
    assert row.value == pytest.approx(np.mean(values))
    assert row.k is None and row.n == len(values)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_of_a_mean_covers_it_with_few_episodes(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = [mean_row("base", "held-out", "action_error", rng.normal(10, 1, n).tolist()) for _ in range(2000)]
    assert np.mean([row.low <= 10 <= row.high for row in rows]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_mean_row_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no mean action_error"):
        mean_row("base", "held-out", "action_error", values)


def test_cells_never_round_to_all_or_nothing() -> None:
    assert [percent(x) for x in (0.0, 0.001, 0.994, 0.999, 1.0)] == ["0%", "<1%", "99%", ">99%", "100%"]
    assert count_row("p", "c", "success", 97, 100).text == "97% [92, 99]"
    assert "no interval" in mean_row("p", "c", "action_error", [0.5]).text


# ---- tables


def test_table_has_a_row_a_policy_and_a_column_a_measured_condition() -> None:
    columns, rows = table(demo(), "success")
    assert columns == ["policy", *CONDITIONS]
    assert [row[0] for row in rows] == ["base", "naive", "rehearse"]
    assert rows[1][2] == "2% [1, 7]"
    assert table(demo(), "locked")[0] == ["policy", "novel-concept", "novel-spatial"]


def test_table_says_what_was_not_measured() -> None:
    report = demo()
    report.rows = [row for row in report.rows if (row.policy, row.condition) != ("naive", "trained")]
    assert table(report, "success")[1][1][1] == "-"


def test_markdown_escapes_its_own_syntax() -> None:
    assert to_markdown(["a", "b"], [["x|y", "two\nlines"]]) == "| a | b |\n| --- | --- |\n| x\\|y | two lines |\n"


# ---- verdicts


def test_verdicts_of_the_demo() -> None:
    naive, rehearse = verdicts(demo())
    assert (naive.policy, naive.label) == ("naive", "deaf")
    assert naive.sentence.startswith("does the trained task (98%) but only 3% of novel ones; in 91% of novel instruct")
    assert "18%, before 90% (-72 points [-80, -62]): old abilities were lost." in naive.sentence
    assert naive.sentence.endswith("Not measured: novel-both.")
    assert (rehearse.policy, rehearse.label) == ("rehearse", "steerable")
    assert "91%, before 90% (+1 points [-2, +4]): no difference resolved." in rehearse.sentence


def test_a_loss_that_unpaired_intervals_hide_is_said() -> None:
    """90 and 80 of 100: the intervals overlap, but every episode that differs was lost."""
    report = make_report(base=(0, 0, 0, 90, 0), adapted=(98, 90, 97, 80, 0))
    after, before = (report.find(name, "base-domain", "success") for name in ("adapted", "base"))
    assert after and before and after.high > before.low
    [verdict] = verdicts(report)
    assert "80%, before 90% (-10 points [-16, -4]): old abilities were lost." in verdict.sentence


def test_a_verdict_names_what_was_not_measured() -> None:
    report = make_report(adapted=(98, 97, 0, 90, 0))
    report.rows = [row for row in report.rows if row.condition in ("trained", "novel-concept")]
    [verdict] = verdicts(report)
    assert verdict.label == "steerable"
    assert verdict.sentence.endswith("Not measured: novel-spatial, novel-both and the control do-nothing.")


@pytest.mark.parametrize(
    ("counts", "locked", "label"),
    [
        ((98, 2, 97, 90, 0), 96, "partly deaf"),
        ((98, 2, 97, 90, 0), 20, "partly steerable"),
        ((98, 2, 4, 90, 0), 20, "not steerable"),
        ((98, 2, 50, 90, 0), 96, "partly deaf"),
        ((98, 90, 50, 90, 0), 2, "not resolved"),
        ((20, 2, 4, 90, 0), 20, "not learnt"),
        ((52, 40, 40, 90, 0), 20, "not resolved"),
        ((98, 90, 97, 90, 60), 2, "no verdict"),
    ],
)
def test_verdict_labels(counts: tuple[int, ...], locked: int, label: str) -> None:
    [verdict] = verdicts(make_report(adapted=counts, locked={"adapted": locked}))
    assert verdict.label == label


def test_few_episodes_resolve_nothing() -> None:
    [verdict] = verdicts(make_report(n=4, adapted=(4, 1, 2, 3, 0)))
    assert verdict.label == "not resolved"
    assert "too few episodes to tell for novel-concept (25%) and novel-spatial (50%)" in verdict.sentence


@pytest.mark.parametrize("missing", ["trained", "novel-"])
def test_no_verdict_without_what_it_rests_on(missing: str) -> None:
    report = demo()
    report.rows = [row for row in report.rows if not row.condition.startswith(missing)]
    assert {verdict.label for verdict in verdicts(report)} == {"no verdict"}


def test_open_loop_comparisons_are_paired() -> None:
    errors = {
        # episodes differ by more than policies: only the pairs tell them apart
        "base": [0.1, 0.3, 0.9],
        "close": [0.05, 0.16, 0.44],
        "same": [0.11, 0.29, 0.9],
        "far": [0.2, 0.63, 1.9],
    }
    rows = [mean_row(name, "trained", "action_error", values) for name, values in errors.items()]
    pairs = compare_errors({(name, "trained"): values for name, values in errors.items()})
    report = Report("open-loop", [{"name": name} for name in errors], [Condition("trained")], rows, comparisons=pairs)
    sentences = open_loop_comparisons(report)
    words = ("closer to", "no difference", "farther from")
    assert len(sentences) == 3
    assert all(word in sentence for word, sentence in zip(words, sentences, strict=True)), sentences
    alone = compare_errors({("base", "trained"): [0.3], ("one", "trained"): [0.01]})
    [sentence] = open_loop_comparisons(Report("open-loop", [], [Condition("trained")], [], comparisons=alone))
    assert "only episode, which resolves nothing" in sentence


def test_what_is_left_of_an_answer_is_told_by_whole_intervals() -> None:
    condition, rows = Condition("other-object", "before the grasp, another object"), []
    kept = {
        "deaf": [0.1, 0.2, 0.15],
        "listens": [0.9, 0.95, 0.92],
        "weak": [0.6, 0.62, 0.61],
        "unsure": [0.2, 0.9, 0.6],
        "misled": [0.9, 0.9, 0.9],
    }
    for name, values in kept.items():
        rows.append(mean_row(name, condition.name, "kept", values, within=(-math.inf, math.inf)))
        goes = [0.5, 0.5, 0.6] if name == "misled" else [1.0, 1.0, 1.0]
        rows.append(mean_row(name, condition.name, "agreement", goes, within=(0, 1)))
    report = Report("open-loop", [{"name": name} for name in kept], [condition], rows)
    told = {sentence.partition(",")[0]: sentence for sentence in answers_to_words(report)}
    assert ": a sign of lock-in; it keeps 0.15" in told["deaf"] and ": a sign of lock-in" in told["misled"]
    assert ": the base's answer is kept" in told["listens"]
    assert ": weakened" in told["weak"] and "not resolved" in told["unsure"]


# ---- files


def rollout(**changes: object) -> Rollout:
    facts = {
        "policy": "naive",
        "condition": "novel-concept",
        "episode": 3,
        "instruction": "put the blüe ball\non the left plate",
        "success": False,
        "grounded": None,
        "locked": True,
        "did": "grasped the red block",
        "steps": 48,
    }
    return Rollout(**{**facts, **changes})  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    report, rollouts = demo(), [rollout(), rollout(episode=4, locked=None)]
    report.rows.append(mean_row("base", "trained", "action_error", [0.1, 0.2]))
    assert report.comparisons
    save_report(tmp_path, report, rollouts, "<!doctype html>")
    assert load_report(tmp_path) == report
    assert load_rollouts(tmp_path) == rollouts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "rollouts.jsonl"]


def test_saving_is_deterministic_and_rows_hold_what_issue_2_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_report(tmp_path / name, demo(), [rollout()], "page")
    for file in (REPORT_FILE, ROLLOUTS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    document = json.loads((tmp_path / "a" / REPORT_FILE).read_text())
    assert list(document["rows"][0]) == ["policy", "condition", "metric", "k", "n", "value", "low", "high"]


@pytest.mark.parametrize(
    "row",
    [
        Row("stranger", "trained", "success", 1, 2, 0.5, 0.1, 0.9),
        Row("base", "trained", "extra", 1, 2, 0.9, 0.1, 0.95),
        Row("base", "trained", "extra", 1, 2, 0.5, 0.6, 0.9),
        Row("base", "trained", "extra", None, 0, 0.5, 0.1, 0.9),
        Row("base", "trained", "extra", None, 2, float("nan"), 0.1, 0.9),
        count_row("base", "trained", "success", 1, 2),
    ],
)
def test_a_contradictory_report_is_not_saved(tmp_path: Path, row: Row) -> None:
    report = demo()
    report.rows.append(row)
    with pytest.raises(ValueError, match="contradicts itself"):
        save_report(tmp_path, report, [], "page")
    assert not list(tmp_path.iterdir())


def _damage(document: dict, how: str) -> object:
    if how == "version":
        return {**document, "schema_version": 99}
    if how == "list":
        return [document]
    if how == "missing":
        return {key: value for key, value in document.items() if key != "rows"}
    if how == "unknown":
        return {**document, "surprise": 1}
    document["rows"][0][{"value": "value", "type": "n", "key": "colour"}[how]] = {"value": 7.0, "type": "many"}.get(
        how, 1
    )
    return document


@pytest.mark.parametrize("how", ["version", "list", "missing", "unknown", "value", "type", "key"])
def test_a_damaged_report_is_refused_with_a_next_step(tmp_path: Path, how: str) -> None:
    save_report(tmp_path, demo(), [], "page")
    path = tmp_path / REPORT_FILE
    path.write_text(json.dumps(_damage(json.loads(path.read_text()), how)))
    with pytest.raises(InputError, match=r"report\.json") as caught:
        load_report(tmp_path)
    assert "vla eval-steer" in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vla eval-steer"):
        load_report(tmp_path)
    with pytest.raises(InputError, match=r"rollouts\.jsonl"):
        load_rollouts(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"policy": "base"}', "3"])
def test_a_damaged_rollout_names_its_line(tmp_path: Path, line: str) -> None:
    save_report(tmp_path, demo(), [rollout()], "page")
    with (tmp_path / ROLLOUTS_FILE).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match="line 2"):
        load_rollouts(tmp_path)


def test_a_transposed_table_holds_the_same_cells() -> None:
    columns, rows = ["policy", "a", "b"], [["base", "1", "2"], ["mine", "3", "4"]]
    assert transposed(columns, rows) == (["condition", "base", "mine"], [["a", "1", "3"], ["b", "2", "4"]])
