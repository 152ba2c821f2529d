"""`lock_in.md` and `lock_in.svg` from `lock_in.json` alone; equal documents give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from lock_in_harness.cells import CONDITIONS, NOVEL
from lock_in_harness.goals import GOALS, METHOD, ORACLE, Goal, judge, overall
from lock_in_harness.results import Figure, Results
from vla_cli.comparison import Comparison, compare, corrected
from vla_cli.intervals import percent, wilson
from vla_cli.report.svg import PERCENT_AXIS, Band, Mark, dot_plot, plot_css

PLAIN = "sft"
"""The row that others are timed against and compared with."""
LOCKED = (*NOVEL,)
TWINS = (
    ("calibrate", CONDITIONS, "nothing more was needed, so that no weight was trained"),
    ("base", ("base-domain",), "in that domain the transforms, and LoRA trained behind them, are switched off"),
)
"""Rows that others may do the same as, under which conditions, and why."""
_INK = (
    ":root{--paper:#fff;--ink:#1a2028;--muted:#5d6875;--line:#d5dbe2;--track:#f4f6f8}"
    "@media (prefers-color-scheme:dark){:root{--paper:#12161b;--ink:#e8ecf1;--muted:#a0abb8;--line:#333c47;"
    "--track:#1a2027}}"
    "text{font-family:system-ui,sans-serif}svg{background:var(--paper)}"
)


def markdown(results: Results) -> str:
    """The whole page."""
    parts = [_head(results), _goals(results)]
    for shift in results.shifts:
        if any(results.figure(label, shift, "trained") for label in results.labels):
            parts += [f"## Shift {shift}", _success(results, shift), _locked(results, shift), _paired(results, shift)]
    return "\n\n".join([*parts, _tasks(results), _not_run(results)]) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _head(results: Results) -> str:
    plan, made = results.document["plan"], results.document["made_by"]
    versions = ", ".join(f"{name} {text}" for name, text in made["versions"].items())
    wall = sum(session["wall_seconds"] for session in made["sessions"])
    commands = list(dict.fromkeys(session["command"] for session in made["sessions"])) or [made["command"]]
    listed = "\n".join(commands)
    return f"""# Lock-in: what fine-tuning on one instruction leaves of all the others

Written from `lock_in.json` by `python benchmarks/lock_in.py --render`; do not edit.

```
{listed}
```

{plan["cells_done"]} of {plan["cells"]} cells, each {plan["episodes"]} episodes a condition; {len(plan["tasks"])} \
task(s), seeds {", ".join(str(seed) for seed in plan["seeds"])}. Wall time {_hours(wall)} in \
{len(made["sessions"])} session(s) on {"; ".join(made["machines"])}. Base `{made["base"]}`. {versions}.

Figures are success in percent with 95% Wilson intervals, pooled over tasks and seeds. Episodes of one fine-tuning run \
are independent draws of scenes and noise; runs differ by more than the intervals tell, which "cells from - to" shows.

![Success on novel instructions by shift and method](lock_in.svg)"""


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    low, high = wilson(figure.k, figure.n)
    return f"{100 * figure.value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def _success(results: Results, shift: str) -> str:
    head = ["method", *CONDITIONS, "novel, pooled", "cells from - to", "tasks x seeds", "time / SFT"]
    rows = []
    for label in results.labels:
        novel = results.figure(label, shift, NOVEL)
        if novel is None:
            continue
        figures = [_figure(results.figure(label, shift, condition)) for condition in CONDITIONS]
        spread = f"{100 * novel.lowest:.0f} - {100 * novel.highest:.0f}"
        rows.append([label, *figures, _figure(novel), spread, str(novel.cells), _time(results, label, shift)])
    return f"Success, percent.\n\n{_table(head, rows)}{_twins(results, shift)}"


def _twins(results: Results, shift: str) -> str:
    """A paragraph naming the rows that did as another one in every single episode; empty where none did."""
    found = []
    for other, conditions, why in TWINS:
        pairs = {row: results.paired(row, other, shift, conditions) for row in results.labels if row != other}
        alike = [row for row, (own, its, cells) in pairs.items() if cells and own == its]
        if alike:
            where = "on all conditions" if conditions == CONDITIONS else f"on {', '.join(conditions)}"
            found.append(f"{', '.join(alike)} as {other} {where} ({why})")
    return f"\n\nThe same in every single episode: {'; '.join(found)}." if found else ""


def _time(results: Results, label: str, shift: str) -> str:
    """Median over cells of fine-tuning's CPU time as a multiple of plain SFT's on the same machine."""
    own, ratios = results.seconds(label, shift), results.time_ratios(label, shift, PLAIN)
    if not any(own):
        return "none"
    return f"{median(ratios):.1f}x" if ratios else f"{median(own):.0f} s"


def _locked(results: Results, shift: str) -> str:
    rows = []
    for label in results.labels:
        figures = [results.figure(label, shift, condition, "locked") for condition in LOCKED]
        if any(figures):
            grounded = results.figure(label, shift, NOVEL, "grounding")
            rows.append([label, *(_figure(figure) for figure in figures), _figure(grounded)])
    head = ["method", *(f"locked, {condition}" for condition in LOCKED), "grounding, novel pooled"]
    text = (
        "Locked (lower is better): where another object was asked for, the policy went to the demonstrated one first; "
        "where only another place was, what it grasped ended nearest to the demonstrated plate of the four, as about "
        "one in four does of what is dropped anywhere. Grounding: it went to the named object first, and what it "
        "grasped ended nearest to the named plate."
    )
    return f"{text}\n\n{_table(head, rows)}"


def comparisons(results: Results, shift: str) -> dict[tuple[str, str], tuple[Comparison, int]]:
    """Paired comparisons on the pooled novel conditions of one shift, (a, b) to comparison and number of cells.

    Every row against SFT and against the oracle, and `steerable` against every row: one Holm family.
    """
    pairs = [(label, reference) for label in results.labels for reference in (PLAIN, ORACLE)]
    pairs += [(METHOD, label) for label in results.labels]
    found, cells = dict[tuple[str, str], Comparison](), dict[tuple[str, str], int]()
    for a, b in dict.fromkeys(pairs):
        own, other, shared = results.paired(a, b, shift, NOVEL)
        # the same two the other way round are the same test
        if a != b and shared and (b, a) not in found:
            found[a, b] = compare([o == "1" for o in own], [o == "1" for o in other])
            cells[a, b] = shared
    return {pair: (comparison, cells[pair]) for pair, comparison in corrected(found).items()}


def _paired(results: Results, shift: str) -> str:
    head = ["a", "b", "a - b, points", "only a", "only b", "p (Holm)", "a is", "episodes", "tasks x seeds"]
    rows = []
    for (a, b), (found, cells) in comparisons(results, shift).items():
        difference = f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        counts = [str(found.only_a), str(found.only_b), _p(found.corrected)]
        rows.append([a, b, difference, *counts, found.verdict, str(found.n), str(cells)])
    if not rows:
        return "No two rows were run on the same cells."
    text = (
        "Paired on the same scenes and noise, novel conditions pooled: exact McNemar tests, one Holm family of "
        f"{len(rows)}; the interval of the difference is not corrected."
    )
    return f"{text}\n\n{_table(head, rows)}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _goals(results: Results) -> str:
    head = ["shift", "row", "condition", "goal", "found", "point estimate", "verdict", "over cells"]
    rows = []
    for goal in GOALS:
        judgements = judge(results, goal)
        if overall(judgements) == "not run" and all(j.word == "not run" for j in judgements):
            rows.append([goal.shift, goal.row, "all", "-", "-", "-", "not run", "-"])
            continue
        for j in judgements:
            reached = "-" if j.word == "not run" else "reaches it" if j.reached else "below"
            rows.append([goal.shift, goal.row, j.condition, j.wanted, j.found, reached, j.word, j.cells])
        word = f"**{overall(judgements)}**"
        rows.append([goal.shift, goal.row, "**all**", "", _evidence(results, goal), "", word, ""])
    text = (
        "Met: the whole 95% interval lies at or above the goal. Not met: wholly below. Not resolved: the interval "
        "holds the goal. Against the oracle, the interval is that of the paired difference. Over cells: the same by "
        "Student's t over the figures of tasks x seeds, which does not take the episodes of one run for independent."
    )
    return f"## Goals\n\n{text}\n\n{_table(head, rows)}"


def _evidence(results: Results, goal: Goal) -> str:
    figure = results.figure(goal.row, goal.shift, "trained")
    return f"{figure.cells} tasks x seeds, {figure.n} episodes a condition" if figure else "-"


def _tasks(results: Results) -> str:
    rows = [
        [task["name"], task["demonstrated"], ", ".join(task["objects"]), ", ".join(str(cell) for cell in task["cells"])]
        for task in results.document["plan"]["tasks"]
    ]
    methods = [[row["label"], row["summary"]] for row in results.document["plan"]["rows"]]
    return (
        "## What was run\n\nThe lists of tasks for tuning and for reporting were fixed before the first run and share "
        "no task, layout or evaluation scene (`benchmarks/lock_in_harness/tasks.py`).\n\n"
        + _table(["task", "demonstrated", "objects", "grid cells"], rows)
        + "\n\n"
        + _table(["method", "what it is"], methods)
    )


def _not_run(results: Results) -> str:
    gaps, failed = results.document["not_run"]["missing"], results.document["not_run"]["failed"]
    if not gaps and not failed:
        return "Every cell of the plan was run."
    lines = ["## What was not run", ""]
    for label, shifts in gaps.items():
        lines.append(f"- {label}: " + ", ".join(f"{count} cell(s) on {shift}" for shift, count in shifts.items()))
    lines += [f"- failed: {name}: {' '.join(error.split())}" for name, error in failed.items()]
    return "\n".join(lines)


def _style(label: str) -> int:
    name = label.removesuffix("+data")
    known = {"base": 0, PLAIN: 1, METHOD: 2, ORACLE: 4}
    return known.get(name, 3)


def svg(results: Results) -> str:
    """Success on the pooled novel conditions by shift and method, as a picture that stands alone."""
    bands = []
    for shift in results.shifts:
        marks = []
        for label in results.labels:
            figure = results.figure(label, shift, NOVEL)
            if figure is not None:
                low, high = wilson(figure.k, figure.n)
                marks.append(Mark(label, _style(label), figure.value, low, high, percent(figure.value)))
        if marks:
            bands.append(Band(f"Shift {shift}", tuple(marks)))
    plot = dot_plot(
        bands,
        PERCENT_AXIS,
        width=640,
        key="lock-in",
        title="Success on novel instructions by shift and method",
        description="One band a shift, one line a method: success over all novel instructions with its 95% interval.",
    )
    opening = '<svg xmlns="http://www.w3.org/2000/svg" '
    head, _, rest = plot.partition("</desc>")
    return f"{head.replace('<svg ', opening, 1)}</desc><style>{_INK}{plot_css()}</style>{rest}\n"
