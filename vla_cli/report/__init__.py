"""The artefact `report/`: what each policy did under each kind of instruction, with intervals.

    report.json     policies, conditions, rows {policy, condition, metric, k, n, value, low, high}, comparisons of two
                    policies on the same episodes, settings, warnings
    rollouts.jsonl  one line an episode: what was asked, what the policy did
    report.html     the same for people, self-contained (rendered by `html`)

Metrics, each apart because they fail apart:

    success       the task that was asked for was done
    grounding     the gripper went to what was named, whether or not it succeeded there: the named object was approached
                  first, and where a place was named, the object was grasped and ended nearest to that place
    locked        the *trained* behaviour was done although something else was asked (novel and control conditions
                  only): the trained object was approached first, or, where only another place was asked for, what was
                  grasped ended nearest to the trained one
    action_error  open-loop: distance to the recorded actions, lower is better
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from vla_cli.comparison import ALPHA
from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json, write_text
from vla_cli.intervals import percent, t_interval, wilson
from vla_cli.provenance import not_an_artefact

REPORT_FILE = "report.json"
ROLLOUTS_FILE = "rollouts.jsonl"
PAGE_FILE = "report.html"
SCHEMA_VERSION = 1

Kind = Literal["closed-loop", "open-loop"]
BASE = "base"
"""Name of the unadapted policy, to which the adapted ones are compared."""
TRAINED = "trained"
BASE_DOMAIN = "base-domain"
NOVEL = "novel"
"""All novel conditions together, in comparisons."""
DO_NOTHING = "do-nothing"
CONTROLS = ("empty-instruction", "nonsense-instruction", DO_NOTHING)
_HINT = "vla eval-steer ADAPTER --out REPORT, which writes one"


@dataclass(frozen=True)
class Row:
    """One figure with its 95% interval.

    Attributes:
        policy, condition, metric: what was measured.
        k: successes; None for a mean.
        n: episodes.
        value: k / n, or the mean over episodes.
        low, high: Wilson bounds, or Student's t bounds of the mean.
    """

    policy: str
    condition: str
    metric: str
    k: int | None
    n: int
    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The figure with its interval, as in "97% [92, 99]" or "0.084 [0.071, 0.098]"."""
        if self.k is not None:
            return f"{percent(self.value)} [{100 * self.low:.0f}, {100 * self.high:.0f}]"
        if self.n == 1:
            return f"{self.value:.3g} (one episode, no interval)"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def count_row(policy: str, condition: str, metric: str, k: int, n: int) -> Row:
    """A row for k successes in n episodes, with Wilson bounds."""
    low, high = wilson(k, n)
    return Row(policy, condition, metric, int(k), int(n), k / n, low, high)


def mean_row(
    policy: str,
    condition: str,
    metric: str,
    values: Sequence[float],
    *,
    within: tuple[float, float] = (0.0, math.inf),
) -> Row:
    """A row for the mean of one figure an episode, with Student's t bounds over episodes.

    Args:
        policy, condition, metric: what was measured.
        values: one an episode.
        within: what the figure cannot be outside, and so its bounds neither.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"no mean {metric} of {policy} under {condition}: the values are {list(values)}")
    mean = float(np.mean(np.asarray(values, np.float64)))
    low, high = t_interval(values)
    return Row(policy, condition, metric, None, len(values), mean, max(within[0], low), min(within[1], high))


@dataclass(frozen=True)
class Paired:
    """How a policy did beside another on the same episodes (see `vla_cli.comparison`).

    Attributes:
        policy, other, condition, metric: what was compared; the condition may be `NOVEL`, all novel ones together.
        n: paired episodes.
        effect: success: share of the policy minus that of the other; action_error: the one's error by the other's.
        low, high: 95% bounds of it, not corrected for the number of comparisons.
        p: of no difference, two-sided.
        corrected: p after Holm's correction over all comparisons of the report.
    """

    policy: str
    other: str
    condition: str
    metric: str
    n: int
    effect: float
    low: float
    high: float
    p: float
    corrected: float

    @property
    def resolved(self) -> bool:
        """Whether the two differ, at 5% for all comparisons of the report together."""
        return self.corrected <= ALPHA

    @property
    def text(self) -> str:
        """The effect with its interval, as in "-10 points [-16, -4]" or "0.62 times [0.5, 0.77]"."""
        if self.metric == "action_error":
            return f"{self.effect:.3g} times [{self.low:.3g}, {self.high:.3g}]"
        return f"{100 * self.effect:+.0f} points [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"


@dataclass(frozen=True)
class Condition:
    """One kind of instruction under which every policy was run.

    Attributes:
        name: as in the rows: trained, paraphrase, novel-concept, ..., or a control.
        asked: one sentence: what was asked for.
        examples: a few of the instructions.
    """

    name: str
    asked: str = ""
    examples: tuple[str, ...] = ()

    @property
    def novel(self) -> bool:
        """Whether something that was not demonstrated was asked for."""
        return self.name.startswith("novel-")

    @property
    def control(self) -> bool:
        """Whether it checks the measurement and not the policy."""
        return self.name in CONTROLS


@dataclass(frozen=True)
class Rollout:
    """One episode, a line of `rollouts.jsonl`.

    Attributes:
        policy, condition, episode, instruction: what was run; the same episode is the same scene for every policy.
        success: whether the task that was asked for was done.
        grounded: whether the gripper went to what was named; None where nothing was named.
        locked: whether the trained behaviour was done instead; None where the question makes no sense.
        did: what the policy did, in a few words: "approached the red block, put it on the left plate".
        steps: control steps taken.
    """

    policy: str
    condition: str
    episode: int
    instruction: str
    success: bool
    grounded: bool | None
    locked: bool | None
    did: str
    steps: int


@dataclass(frozen=True)
class Film:
    """One episode as pictures, for the page only.

    Attributes:
        frames: [K, H, W, 3] uint8 RGB, in order of time.
    """

    policy: str
    condition: str
    episode: int
    instruction: str
    did: str
    success: bool
    frames: np.ndarray


@dataclass
class Report:
    """All that was measured.

    Attributes:
        kind: "closed-loop" (the policy acted) or "open-loop" (it was compared with recorded actions).
        policies: {"name", "recipe", "digest", ...}, in the order to show; the unadapted one is called "base".
        conditions: in the order to show.
        rows: the figures.
        settings: world, episodes, seed, guidance weight, ...: what determines the figures.
        warnings: sentences a person must read before believing a figure.
        notes: sentences that help to read them.
        comparisons: of two policies each, on the same episodes.
    """

    kind: Kind
    policies: list[dict[str, Any]]
    conditions: list[Condition]
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparisons: list[Paired] = field(default_factory=list)

    @property
    def policy_names(self) -> list[str]:
        """Names of the policies, in order."""
        return [str(policy["name"]) for policy in self.policies]

    @property
    def metrics(self) -> list[str]:
        """The metrics that occur, in order of first appearance."""
        return list(dict.fromkeys(row.metric for row in self.rows))

    def find(self, policy: str, condition: str, metric: str) -> Row | None:
        """The row of one cell, or None where it was not measured."""
        wanted = (policy, condition, metric)
        return next((row for row in self.rows if (row.policy, row.condition, row.metric) == wanted), None)

    def compared(self, policy: str, other: str, condition: str, metric: str) -> Paired | None:
        """How two policies did beside each other, or None where that was not compared."""
        wanted = (policy, other, condition, metric)
        found = (c for c in self.comparisons if (c.policy, c.other, c.condition, c.metric) == wanted)
        return next(found, None)

    def pooled(self, policy: str, metric: str, conditions: Iterable[str]) -> Row | None:
        """The counts of several conditions taken together, or None where none was measured."""
        names = set(conditions)
        rows = [r for r in self.rows if r.policy == policy and r.metric == metric and r.condition in names]
        return _pool(policy, "pooled", metric, rows)

    def pooled_over_policies(self, condition: str, metric: str) -> Row | None:
        """The counts of all policies under one condition taken together, or None where none was measured."""
        rows = [row for row in self.rows if row.condition == condition and row.metric == metric]
        return _pool("pooled", condition, metric, rows)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def _pool(policy: str, condition: str, metric: str, rows: Sequence[Row]) -> Row | None:
    counted = [(row.k, row.n) for row in rows if row.k is not None]
    if not counted:
        return None
    return count_row(policy, condition, metric, sum(k for k, _ in counted), sum(n for _, n in counted))


def save_report(directory: Path, report: Report, rollouts: Iterable[Rollout], page: str) -> None:
    """Write the three files into a directory that exists; the caller adds `run.json`.

    Raises:
        ValueError: the report contradicts itself (a row of an unknown policy, a bound on the wrong side, ...).
    """
    document = report.document()
    if problems := _problems(report):
        raise ValueError(f"refusing to save a report that contradicts itself: {'; '.join(problems)}")
    write_json(directory / REPORT_FILE, document)
    lines = (json.dumps(asdict(rollout), ensure_ascii=False, allow_nan=False) for rollout in rollouts)
    write_text(directory / ROLLOUTS_FILE, "".join(line + "\n" for line in lines))
    write_text(directory / PAGE_FILE, page)


def load_report(directory: Path) -> Report:
    """Read and check `report.json`.

    Raises:
        InputError: there is none, it is of another schema, or it contradicts itself.
    """
    path = directory / REPORT_FILE
    if not path.is_file():
        raise not_an_artefact(directory, REPORT_FILE, "eval-steer")
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} has schema_version {version!r}", expected=f"{SCHEMA_VERSION}", hint=_HINT)
    try:
        content = {key: value for key, value in document.items() if key != "schema_version"}
        content["rows"] = [Row(**row) for row in content["rows"]]
        content["comparisons"] = [Paired(**paired) for paired in content.get("comparisons", [])]
        conditions = [Condition(**{**c, "examples": tuple(c["examples"])}) for c in content["conditions"]]
        report = Report(**{**content, "conditions": conditions})
        problems = _problems(report)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        problems = [f"it has not the form of a report ({error})"]
    if problems:
        raise InputError(f"{path} cannot be used: {'; '.join(problems)}", hint=_HINT)
    return report


def load_rollouts(directory: Path) -> list[Rollout]:
    """Read `rollouts.jsonl`.

    Raises:
        InputError: it is missing, or a line is damaged (the message names it).
    """
    path = directory / ROLLOUTS_FILE
    if not path.is_file():
        raise not_an_artefact(directory, ROLLOUTS_FILE, "eval-steer")
    rollouts = []
    # not splitlines(), which also breaks at line separators inside an instruction
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate([] if lines == [""] else lines, start=1):
        try:
            rollouts.append(Rollout(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{path} line {number} is no rollout ({error})", hint=_HINT) from None
    return rollouts


def _problems(report: Report) -> list[str]:
    """Everything in which a report contradicts itself, one phrase each."""
    found = []
    if report.kind not in ("closed-loop", "open-loop"):
        found.append(f"its kind is {report.kind!r}")
    policies, conditions = report.policy_names, [condition.name for condition in report.conditions]
    cells = [(row.policy, row.condition, row.metric) for row in report.rows]
    named = (("policy", policies), ("condition", conditions), ("row", ["/".join(map(str, cell)) for cell in cells]))
    for what, names in named:
        found += [f"the {what} {name!r} occurs twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    for row in report.rows:
        where = f"the row {row.policy}/{row.condition}/{row.metric}"
        if row.policy not in policies or row.condition not in conditions:
            found.append(f"{where} names an unknown policy or condition")
        found += [f"{where} {fault}" for fault in _row_faults(row)]
    for pair in report.comparisons:
        where = f"the comparison of {pair.policy} and {pair.other} under {pair.condition}"
        if not {pair.policy, pair.other} <= set(policies) or pair.condition not in [*conditions, NOVEL]:
            found.append(f"{where} names an unknown policy or condition")
        elif not (pair.low <= pair.effect <= pair.high and 0 <= pair.p <= pair.corrected <= 1):
            found.append(f"{where} has {pair.effect} in [{pair.low}, {pair.high}], p {pair.p}, {pair.corrected}")
    return found


def _row_faults(row: Row) -> list[str]:
    numbers = [getattr(row, f.name) for f in fields(row) if f.name in ("n", "value", "low", "high")]
    if any(isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) for x in numbers):
        return ["has a value that is no finite number"]
    if row.n < 1:
        return [f"counts {row.n} episodes"]
    if not row.low <= row.value <= row.high:
        return [f"has {row.value} outside its interval [{row.low}, {row.high}]"]
    if row.k is None:
        return []
    if not 0 <= cast(int, row.k) <= row.n or not math.isclose(row.value, row.k / row.n):
        return [f"has value {row.value} for {row.k} of {row.n}"]
    return []


def table(report: Report, metric: str) -> tuple[list[str], list[list[str]]]:
    """One metric as text: one row a policy, one column a condition that has it; "-" where it was not measured.

    Returns:
        Column headings ("policy" first) and the rows of cells, each like "97% [92, 99]".
    """
    measured = {row.condition for row in report.rows if row.metric == metric}
    shown = [condition.name for condition in report.conditions if condition.name in measured]
    rows = []
    for policy in report.policy_names:
        found = [report.find(policy, name, metric) for name in shown]
        rows.append([policy, *(row.text if row else "-" for row in found)])
    return ["policy", *shown], rows


def transposed(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table turned over: one row a condition, one column a policy, which fits a narrow terminal."""
    heads, *body = zip(columns, *rows, strict=True)
    return ["condition", *map(str, heads[1:])], [[str(cell) for cell in row] for row in body]


def to_markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as GitHub Markdown, ending in a newline."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
