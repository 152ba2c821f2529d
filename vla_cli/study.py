"""What is learnt of the episodes of a dataset while it is made, and the documents that tell it.

    quality.json        checks, findings, operators, and each episode's figures
    instructions.json   each instruction: what it asks for, other words for it, what was found; counterfactuals
    alternatives.yaml   what else could be asked in these scenes, for `finetune --alternatives`, to be read and cut
    fingerprint.json    how the cameras saw the demonstrations, for `preprocess --compare`
    report.html         all of it on one page

An `EpisodeStudy` holds an episode's numbers but no pictures, so that memory does not grow with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.dataset_page.judgement import DatasetPage, quality_findings
from vla_cli.dataset_page.tracks import speed, top_dims, top_view
from vla_cli.errors import ConfigError
from vla_cli.files import write_text
from vla_cli.language.alternatives import FILE_NAME as ALTERNATIVES
from vla_cli.language.counterfactuals import alternatives_yaml, counterfactuals
from vla_cli.language.grammar import parse
from vla_cli.language.lexicon import Lexicon
from vla_cli.language.lint import Finding as WordFinding
from vla_cli.language.lint import lint, quoted
from vla_cli.language.phrasing import paraphrases
from vla_cli.operators import Record
from vla_cli.operators import examine as examine_operators
from vla_cli.operators.grasps import Told, gripper_dims, position_dims, told
from vla_cli.preflight import preflight
from vla_cli.quality import EpisodeFacts, Finding
from vla_cli.quality import document as quality_document
from vla_cli.quality.fixes import CUTS
from vla_cli.stats import Accumulator
from vla_cli.stats_import import Imported, freeze
from vla_cli.synchrony.synchronise import Synchronised

INSTRUCTIONS = "instructions.json"
PHRASINGS = 4
"""Other wordings of each instruction that are stored beside it."""


@dataclass
class EpisodeStudy:
    """One episode that went into the dataset.

    Attributes:
        name, operator, instructions: as in the dataset.
        notes: of its log and of what was done to it.
        state, actions: [T, S] and [T, A] float32 on the control clock.
        idle_head, idle_tail, gaps, resampled: as of `Synchronised`.
        ticks_in_gaps: frames that lie in a gap.
        clock: first and last second, on the episode's own clock.
        fixes: fix to the frames that it changed.
        rotation: of the hand in the state: first column, kind (`rotations.WIDTHS`), whether in degrees.
    """

    name: str
    operator: str
    instructions: list[str]
    notes: list[str]
    state: np.ndarray
    actions: np.ndarray
    idle_head: int = 0
    idle_tail: int = 0
    gaps: int = 0
    resampled: bool = False
    ticks_in_gaps: int = 0
    clock: tuple[float, float] = (0.0, 0.0)
    fixes: dict[str, int] = field(default_factory=dict)
    rotation: tuple[int, str, bool] | None = None

    @classmethod
    def of(cls, result: Synchronised, notes: Sequence[str], fixes: Mapping[str, int]) -> EpisodeStudy:
        """From what `synchronise` gave, without its pictures."""
        d = result.demonstration
        return cls(
            name=d.name,
            operator=d.operator,
            instructions=list(d.instructions),
            notes=[*notes, *result.notes],
            state=d.state,
            actions=d.actions,
            idle_head=result.idle_head,
            idle_tail=result.idle_tail,
            gaps=result.gaps,
            resampled=result.resampled,
            ticks_in_gaps=result.ticks_in_gaps,
            clock=(float(result.ticks[0]), float(result.ticks[-1])),
            fixes=dict(fixes),
            rotation=result.rotation,
        )

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(kw_only=True)
class Study:
    """Everything that was learnt.

    Attributes:
        rate_hz: of the control clock.
        state_names, action_names: one a dimension.
        episodes: in the dataset.
        train, valid: their names.
        facts: what the quality checks kept of each episode, also of those left out.
        findings: of the quality checks, as they stand (see `standing_findings`).
        operator_facts: see `operators`; None when not looked at.
        preflight: rows, see `preflight`; None when there is no base to compare with.
        fingerprint: a summary; None when there is none.
        cameras: in the policy's order.
        conventions: a row a stream.
        skipped, quarantine: {name, reason} each.
        missing: part to the reason why it is None.
    """

    rate_hz: float
    state_names: list[str]
    action_names: list[str]
    episodes: list[EpisodeStudy]
    train: list[str]
    valid: list[str]
    facts: Sequence[EpisodeFacts] = ()
    findings: Sequence[Finding] = ()
    operator_facts: Mapping[str, Any] | None = None
    preflight: Sequence[Mapping[str, Any]] | None = None
    fingerprint: Mapping[str, Any] | None = None
    cameras: Sequence[str] = ()
    conventions: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Mapping[str, str]] = ()
    quarantine: Sequence[Mapping[str, str]] = ()
    missing: dict[str, str] = field(default_factory=dict)


def standing_findings(findings: Sequence[Finding], mended: Sequence[Finding], kept: Collection[str]) -> list[Finding]:
    """Findings as they stand against the dataset: what was mended or left out is worth knowing, and no more.

    Args:
        findings: on the episodes as recorded.
        mended: those of them that a fix did away with.
        kept: names of the episodes in the dataset.
    """
    found = []
    for finding in findings:
        gone = {finding.episode, *finding.also} - {""} - set(kept)
        settled = (
            f"Mended by --fix {finding.check}." if finding in mended else "" if not gone else _left_out(finding, gone)
        )
        if settled:
            finding = replace(finding, severity="info", message=f"{finding.message} {settled}")
        found.append(finding)
    return found


def _left_out(finding: Finding, gone: Collection[str]) -> str:
    return "The episode is left out." if finding.episode in gone else f"Left out: {', '.join(sorted(gone))}."


def quality(study: Study) -> dict[str, Any]:
    """The document of `quality.json`."""
    judged = quality_document(study.findings, study.facts)
    figures = {row["name"]: row for row in judged["episodes"]}
    valid = set(study.valid)
    rows = [
        {
            **figures.get(e.name, {}),
            "name": e.name,
            "operator": e.operator,
            "split": "valid" if e.name in valid else "train",
            "frames": len(e),
            "seconds": round(len(e) / study.rate_hz, 6),
            "idle_head": e.idle_head,
            "idle_tail": e.idle_tail,
            "gaps": e.gaps,
            "frames_in_gaps": e.ticks_in_gaps,
            "resampled": e.resampled,
            "fixes": e.fixes,
            "notes": e.notes,
        }
        for e in study.episodes
    ]
    return {
        "rate_hz": study.rate_hz,
        "episodes": rows,
        "operators": _by_operator(rows),
        "operator_facts": study.operator_facts,
        "checks": judged["checks"],
        "findings": judged["findings"],
    }


def _by_operator(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for operator in sorted({row["operator"] for row in rows}):
        own = [row for row in rows if row["operator"] == operator]
        found[operator] = {
            "episodes": len(own),
            "frames": sum(row["frames"] for row in own),
            "seconds": round(sum(row["seconds"] for row in own), 6),
            "idle_trimmed": sum(row["idle_head"] + row["idle_tail"] for row in own),
        }
    return found


def lint_study(study: Study, lexicon: Lexicon) -> list[WordFinding]:
    """What is wrong with the instructions, told from the words and from where the gripper went."""
    grippers = gripper_dims(study.action_names, np.concatenate([e.actions for e in study.episodes]))
    return lint([_told(e, study, grippers) for e in study.episodes], lexicon)


def _told(episode: EpisodeStudy, study: Study, grippers: Sequence[int]) -> Told:
    return told(
        episode.name,
        episode.instructions,
        episode.state,
        episode.actions,
        gripper_dims=grippers,
        position_dims=position_dims(study.state_names),
        names=[episode.name],
    )


def instructions(study: Study, words: Sequence[WordFinding], lexicon: Lexicon, seed: int) -> dict[str, Any]:
    """The document of `instructions.json`."""
    counts = Counter(text for e in study.episodes for text in e.instructions)
    rows = []
    for text, episodes in sorted(counts.items()):
        parsed = parse(text, lexicon)
        rows.append(
            {
                "instruction": text,
                "episodes": episodes,
                "verb": parsed.verb if parsed else None,
                "object": parsed.object if parsed else None,
                "attributes": list(parsed.attributes) if parsed else [],
                "place": parsed.place if parsed else None,
                "preposition": parsed.preposition if parsed else None,
                "paraphrases": paraphrases(text, PHRASINGS, seed=seed, lexicon=lexicon) if parsed else [],
            }
        )
    shown = [parsed for text in sorted(counts) if (parsed := parse(text, lexicon))]
    found = counterfactuals(shown, lexicon=lexicon)
    return {
        "instructions": rows,
        "findings": [finding.document() for finding in words],
        "counterfactuals": [
            {"instruction": c.instruction, "condition": c.condition, "while": c.moment, "shown": c.shown} for c in found
        ],
    }


def save_alternatives(study: Study, lexicon: Lexicon, directory: Path) -> int:
    """Write `alternatives.yaml` into `directory` where there are any; how many there are."""
    texts = sorted({text for e in study.episodes for text in e.instructions})
    found = counterfactuals([p for text in texts if (p := parse(text, lexicon))], lexicon=lexicon)
    if found:
        write_text(directory / ALTERNATIVES, alternatives_yaml(found))
    return len(found)


def page_of(
    study: Study,
    words: Sequence[WordFinding],
    told_of: Mapping[str, Any],
    sheet: bytes | None,
    facts: Mapping[str, Any],
    more: Sequence[Mapping[str, Any]] = (),
) -> DatasetPage:
    """What the page shows.

    Args:
        study: what was learnt.
        words: from `lint_study`.
        told_of: the document of `instructions.json`.
        sheet: the contact sheet.
        facts: counts by name.
        more: findings on the dataset as a whole.
    """
    document = quality_document(study.findings, study.facts)
    names = study.state_names
    dims = top_dims(names)
    return DatasetPage(
        names=[e.name for e in study.episodes],
        operators=[e.operator for e in study.episodes],
        frames=[len(e) for e in study.episodes],
        seconds=[len(e) / study.rate_hz for e in study.episodes],
        rate_hz=study.rate_hz,
        facts=facts,
        skipped=study.skipped,
        quarantine=study.quarantine,
        findings=[*_placed(quality_findings(document), study.episodes), *map(_plain, words), *more],
        clocks=[e.clock for e in study.episodes],
        instructions=[_with_findings(row, words) for row in told_of["instructions"]],
        trajectories=[top_view(e.state, names) for e in study.episodes] if dims else None,
        axes=(names[dims[0]], names[dims[1]]) if dims else ("x", "y"),
        speeds=[speed(e.state, names, study.rate_hz) for e in study.episodes] if names else None,
        operator_facts=study.operator_facts,
        preflight=study.preflight,
        conventions=study.conventions,
        contact_sheet=sheet,
        fingerprint=study.fingerprint,
        missing=study.missing,
    )


def _placed(findings: Sequence[Mapping[str, Any]], episodes: Sequence[EpisodeStudy]) -> list[Mapping[str, Any]]:
    """Findings without their places where a fix cut the episode: they are times of the recording."""
    cut = {e.name for e in episodes if {*e.fixes} & {*CUTS}}
    return [{**f, "frames": [], "seconds": []} if f["episode"] in cut else f for f in findings]


def _plain(finding: WordFinding) -> dict[str, Any]:
    return {"stream": "instruction", **finding.document()}


def _with_findings(row: Mapping[str, Any], words: Sequence[WordFinding]) -> dict[str, Any]:
    # in quotes: "open the drawer" is not meant where "open the drawers" is
    said = [f.message for f in words if quoted(row["instruction"]) in f.message]
    return {**row, "findings": said}


def operator_facts(study: Study) -> dict[str, Any]:
    """How many people demonstrated, and how different they are; see `operators`."""
    commands = np.concatenate([e.actions for e in study.episodes])
    # of two arms, the one that grasps
    gripper = max(gripper_dims(study.action_names, commands), key=lambda i: np.ptp(commands[:, i]), default=None)
    records = [
        Record(
            name=e.name,
            operator=e.operator,
            instruction=e.instructions[0] if e.instructions else "",
            state=e.state,
            actions=e.actions,
            rate_hz=study.rate_hz,
            gripper=gripper,
        )
        for e in study.episodes
    ]
    rotations = {e.rotation for e in study.episodes}
    agreed = rotations.pop() if len(rotations) == 1 else None
    return examine_operators(
        records,
        position=position_dims(study.state_names) or None,
        rotation=agreed and agreed[:2],
        degrees=bool(agreed and agreed[2]),
    ).document()


def preflight_rows(study: Study, base: Imported) -> list[dict[str, Any]]:
    """Where the data would normalise far out under the base's statistics."""
    rows = []
    vectors = (
        ("state", base.state, base.state_names, study.state_names),
        ("action", base.actions, base.action_names, study.action_names),
    )
    for vector, theirs, known, names in vectors:
        if theirs is None or not names:
            continue
        values = [e.state if vector == "state" else e.actions for e in study.episodes]
        own = Accumulator()
        for part in values:
            own.add(part)
        try:
            kept = freeze(theirs, names, vector=vector, base_names=known)
        except ConfigError as error:
            study.missing["preflight"] = f"{vector}: {error}"
            continue
        data = own.result()
        # the gravest first, so that it is the one that stays
        found = {m.dimension: m for m in reversed(preflight(kept, data, names, vector=vector, values=values))}
        low, high = kept.normalise(data.min), kept.normalise(data.max)
        for i, name in enumerate(names):
            told = {"finding": found[i].message, "severity": found[i].severity} if i in found else {}
            rows.append({"part": vector, "name": name, "low": float(low[i]), "high": float(high[i]), **told})
    return rows
