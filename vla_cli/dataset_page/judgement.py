"""What the dataset's page is made of, and the verdict on it: train, train after a look, or do not train before.

The rule is a reader's own: an error stands against training, a warning asks for a look, nothing found means ready. What
was not looked at is never taken for sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_REASONS = 8
SEVERITIES = ("error", "warning", "info")
LIMIT = 5.0
"""Normalised value beyond which the base has hardly seen anything: five standard deviations."""
_JUDGING = {"instructions": "instructions", "operator_facts": "operators", "preflight": "normalisation"}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetPage:
    """What the page shows. A part that is None is missing, and `missing` says why.

    Attributes:
        names: of the episodes, in order.
        operators: one an episode.
        frames: one an episode.
        seconds: length of each.
        rate_hz: of the control clock; 0 when unknown.
        facts: more counts by name (cameras, train, valid, ...).
        skipped: episodes left out, each {name, reason}.
        quarantine: episodes that ingest put aside, each {name, reason}.
        findings: all of them, whichever part found them, each {check, severity, episode or episodes, stream, frames,
            seconds, message, fix}; all but check, severity and message may be missing.
        clocks: first and last second of each episode on the clock of the findings' `seconds`; None: from 0.
        instructions: {instruction, episodes (count or names), verb, attributes, object, preposition, place,
            paraphrases (list), findings (list of texts)}.
        trajectories: [T, 2] each, raw units (`tracks.top_view`).
        axes: what their two dimensions are called.
        speeds: [T] each (`tracks.speed`).
        speed_unit: of those.
        operator_facts: what was found about operators: {sentence or sentences, operators: rows}, any JSON values.
        preflight: one row a dimension: {part ("state"), name, low, high} in the units that the base's statistics
            normalise to; {severity, finding} where something was found; further keys are columns.
        conventions: one row a stream: {role, name, stated, unknown (list)}, as of `facts.merge`.
        contact_sheet: PNG or JPEG bytes.
        fingerprint: a summary, any JSON values.
        missing: part to the reason why it is None.
    """

    names: Sequence[str]
    operators: Sequence[str]
    frames: Sequence[int]
    seconds: Sequence[float]
    rate_hz: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: Rows = ()
    quarantine: Rows = ()
    findings: Rows | None = None
    clocks: Sequence[tuple[float, float]] | None = None
    instructions: Rows | None = None
    trajectories: Sequence[np.ndarray] | None = None
    axes: tuple[str, str] = ("x", "y")
    speeds: Sequence[np.ndarray] | None = None
    speed_unit: str = "units/s"
    operator_facts: Mapping[str, Any] | None = None
    preflight: Rows | None = None
    conventions: Rows | None = None
    contact_sheet: bytes | None = None
    fingerprint: Mapping[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a document that would be drawn wrongly.

        Raises:
            ValueError: there is not one value for each episode, or a finding has an unknown severity.
        """
        for key in ("operators", "frames", "seconds", "clocks", "trajectories", "speeds"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.names):
                raise ValueError(f"{len(values)} {key} for {len(self.names)} episodes")
        given = [*(f["severity"] for f in self.findings or ()), *(r.get("severity") for r in self.preflight or ())]
        odd = [severity for severity in given if severity and severity not in SEVERITIES]
        if odd:
            raise ValueError(f"severity {odd[0]!r} is not one of {', '.join(SEVERITIES)}")


@dataclass(frozen=True)
class Verdict:
    """Whether to train: "good", "open" or "bad", a sentence, and the reasons."""

    tone: str
    sentence: str
    reasons: tuple[str, ...] = ()


def verdict(document: DatasetPage) -> Verdict:
    """An error stands against training, a warning asks for a look, and nothing found means ready.

    What was not looked at is never taken for sound.
    """
    if not document.names:
        return Verdict("bad", "Do not train: there is no usable episode.", _left_out(document))
    if document.findings is None:
        reason = document.missing.get("findings", "")
        return Verdict("open", "Not judged: nobody has looked for faults.", (reason,) if reason else ())
    found = standing(document)
    errors, warnings = ([f for f in found if f["severity"] == s] for s in ("error", "warning"))
    reasons = (*_reasons([*errors, *warnings]), *_left_out(document), *_not_looked_at(document))
    if errors:
        return Verdict("bad", f"Do not train before {_some(errors, 'error')} {_is(errors)} dealt with.", reasons)
    if warnings:
        return Verdict("open", f"Train after a look at {_some(warnings, 'warning')}.", reasons)
    return Verdict("good", "Ready to train: no check found an error or a warning.", reasons)


def standing(document: DatasetPage) -> list[Mapping[str, Any]]:
    """Everything that was found, the gravest first; the preflight's rows too, unless findings tell them already.

    A page must not say that it is ready to train above a dimension drawn in red.
    """
    found = list(document.findings or ())
    if not any(f["check"] == "preflight" for f in found):
        found += [f for row in document.preflight or () if (f := _preflight_finding(row))]
    return sorted(found, key=lambda f: SEVERITIES.index(f["severity"]))


def _preflight_finding(row: Mapping[str, Any]) -> dict[str, Any] | None:
    severity = row.get("severity") or ("warning" if is_beyond(row) else None)
    if severity is None:
        return None
    reach = f"{number(row['low']):.4g} to {number(row['high']):.4g}"
    message = (
        row.get("finding") or f"{dimension(row)} normalises beyond ±{LIMIT:g} under the base's statistics: {reach}."
    )
    return {"check": "preflight", "severity": severity, "episode": "", "message": message, "stream": dimension(row)}


def quality_findings(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The findings of `quality.document`, each with the words of what would fix it, for the page."""
    ways = {check["name"]: check["fix"] for check in quality["checks"] if check["fix"]}
    return [
        {**f, "fix": f"--fix {f['check']}: {ways[f['check']]}" if f["check"] in ways else f"--exclude {f['check']}"}
        for f in quality["findings"]
    ]


def _some(findings: Rows, word: str) -> str:
    return f"{len(findings)} {word}{'s' if len(findings) != 1 else ''}"


def _is(findings: Rows) -> str:
    return "are" if len(findings) != 1 else "is"


def _reasons(findings: Rows) -> list[str]:
    """One a check, in the order of the findings: how many, and the first in its own words."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for finding in findings:
        groups.setdefault((finding["severity"], str(finding["check"])), []).append(finding)
    reasons = []
    for (severity, check), group in list(groups.items())[:MOST_REASONS]:
        count = f"{_some(group, severity)}, the first: " if len(group) > 1 else ""
        reasons.append(f"{check}: {count}{group[0]['message']}")
    if len(groups) > MOST_REASONS:
        reasons.append(f"{len(groups) - MOST_REASONS} more checks, see the findings.")
    return reasons


def _left_out(document: DatasetPage) -> tuple[str, ...]:
    gone = len(document.skipped) + len(document.quarantine)
    return (f"{gone} of {gone + len(document.names)} episodes left out, see below.",) if gone else ()


def _not_looked_at(document: DatasetPage) -> tuple[str, ...]:
    parts = [word for part, word in _JUDGING.items() if getattr(document, part) is None]
    return (f"Not looked at: {', '.join(parts)}.",) if parts else ()


def is_beyond(row: Mapping[str, Any]) -> bool:
    """Whether a dimension leaves the limit; what is no number does."""
    return not all(abs(number(row[key])) <= LIMIT for key in ("low", "high"))


def number(value: Any) -> float:
    """A JSON number; what JSON cannot hold (None) is not a number."""
    return math.nan if value is None else float(value)


def dimension(row: Mapping[str, Any]) -> str:
    """What a row of the preflight is called: "state x"."""
    return f"{row['part']} {row['name']}" if row.get("part") else str(row["name"])
