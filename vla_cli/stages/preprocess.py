"""`vla preprocess`: episodes become one synchronised, judged, normalised, split dataset.

In order: agree on widths, cameras and the control rate; look at each episode and judge it beside the others; mend or
leave out what was asked for; put each on one clock and write it; split by episode; statistics of the training split;
and the page that tells all of it. Episodes are read twice (to judge, to write), one at a time: memory does not grow
with their number. Resuming an interrupted run computes it again: the result is the same.

`--compare` is another question to a finished dataset: have camera or light moved since? It writes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.agreement import Agreement
from vla_cli.configs import PreprocessConfig
from vla_cli.conversion import QUARANTINE
from vla_cli.dataset import load_pictures, save_quality, save_splits
from vla_cli.dataset_page import page
from vla_cli.dataset_page.judgement import standing, verdict
from vla_cli.dataset_page.tracks import contact_sheet, sheet_episodes
from vla_cli.dataset_passes import Seen, Written, look, nothing_left, split, write
from vla_cli.dataset_plan import check_options, checks_named, kept_statistics, plan_dataset
from vla_cli.dataset_warnings import CHECK, as_findings, dataset_warnings, wide_plan
from vla_cli.episode import Skipped
from vla_cli.errors import CheckFailed, ConfigError
from vla_cli.facts import merge
from vla_cli.files import building, is_complete, read_json, write_json, write_text
from vla_cli.fingerprint import Fingerprint, save_fingerprint
from vla_cli.fingerprint.comparison import tell_comparison
from vla_cli.fingerprint.glimpses import Features
from vla_cli.language.lexicon import Lexicon
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord
from vla_cli.quality import exclusions
from vla_cli.stats import DatasetAccumulator, DatasetStatistics
from vla_cli.stats_import import Imported
from vla_cli.study import (
    INSTRUCTIONS,
    Study,
    instructions,
    lint_study,
    operator_facts,
    page_of,
    preflight_rows,
    quality,
    save_alternatives,
    standing_findings,
)

STAGE = "preprocess"
REPORT = "report.html"


def plan(config: PreprocessConfig) -> dict[str, Any]:
    """What `run` would do: episodes, cameras, rate and widths.

    Raises:
        InputError: there is nothing to preprocess.
        ConfigError: an option does not fit, or the output stands in the way.
    """
    if config.compare is not None:
        raise ConfigError("--compare writes nothing, so there is nothing to plan", hint="the same without --dry-run")
    agreed = plan_dataset(config).agreed
    first = agreed.rows[0]
    return {
        "stage": STAGE,
        "dry_run": True,
        "out": str(config.out),
        "episodes": len(agreed.rows),
        "frames_before_trimming": round(sum(row["seconds"] * agreed.rate + 1 for row in agreed.rows)),
        "rate_hz": agreed.rate,
        "cameras": list(agreed.cameras),
        "state_dim": first["state_dim"],
        "action_dim": first["action_dim"],
        "skipped": [{"name": s.name, "reason": s.reason} for s in agreed.skipped],
        "warnings": [*agreed.warnings, *wide_plan(config, first)],
    }


def run(config: PreprocessConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `dataset/` and return its summary; with `compare`, only say whether camera or light have moved.

    Raises:
        InputError: no usable episode, or the input is damaged.
        ConfigError: an option does not fit, or the output stands in the way.
        CheckFailed: `strict`, and an episode had to be skipped, an error was found, or the camera has moved.
    """
    if config.compare is not None:
        return _compare(config, progress)
    wanted = plan_dataset(config)
    agreed, lexicon, request = wanted.agreed, wanted.lexicon, wanted.request
    if is_complete(config.out, request, resume=config.resume):
        return _summary(read_json(config.out / RUN_FILE), config.out)
    record = RunRecord(STAGE, request, counts={"episodes_in": wanted.total})
    for skipped in agreed.skipped:
        record.skip(skipped.name, skipped.reason)
    features, record.facts["vision_features"] = _features(config)
    with building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial:
        seen = look(config, agreed, progress, features)
        _leave_out(config, agreed, seen, record)
        written = write(config, agreed, seen, record, partial, lexicon, progress)
        statistics, train, valid = _statistics(config, written, seen, wanted.base)
        save_splits(statistics, train, valid, partial)
        save_fingerprint(seen.fingerprint, partial)
        study = _study(config, agreed, seen, written, (train, valid), record, wanted.base, statistics)
        worlds = [seen.worlds[row["name"]] for row in agreed.rows]
        messages = [*agreed.warnings, *dataset_warnings(config, study, worlds)]
        study_findings = _tell(config, study, record, lexicon, partial, messages)
        for message in messages:
            record.warn(message)
            progress.note(message)
        _show(study, study_findings, progress)
        record.save(partial)
    if config.strict:
        _fail_if_strict(record, study_findings)
    return _summary(record.document(), config.out)


def _compare(config: PreprocessConfig, progress: Progress) -> dict[str, Any]:
    """Whether camera or light have moved since the demonstrations of a dataset."""
    assert config.compare is not None
    check_options(config)
    features = functools.partial(_same_features, config, progress)
    told = tell_comparison(config.episodes, config.compare, features, progress, strict=config.strict)
    return {"stage": STAGE, "out": str(config.episodes), **told}


def _features(config: PreprocessConfig) -> tuple[Features | None, str | None]:
    """The features that `--features` asks for, and the digest of their base."""
    if not config.features or config.base is None:
        return None, None
    from vla_cli.policies.vision_features import vision_features

    return vision_features(config.base)


def _same_features(config: PreprocessConfig, progress: Progress) -> Features | None:
    """Features of the very base that a fingerprint was made with; None, and said, where they are not asked for."""
    made_with = read_json(config.episodes / RUN_FILE).get("facts", {}).get("vision_features")
    if made_with is not None and not config.features:
        progress.note("The fingerprint holds features of a vision tower; --features --base BASE compares them as well.")
    features, digest = _features(config)
    if digest != made_with and config.features:
        raise ConfigError(
            f"--features of {config.base} ({digest}) cannot be compared: {config.episodes} was made with {made_with}",
            expected="the base that the dataset was made with",
        )
    return features


def _leave_out(config: PreprocessConfig, agreed: Agreement, seen: Seen, record: RunRecord) -> None:
    """Take those episodes from the agreement that cannot be read, or that `exclude` names."""
    reasons = {**exclusions(seen.findings, checks_named(config.exclude)), **seen.unreadable}
    for row in agreed.rows:
        if row["name"] in reasons:
            record.skip(row["name"], reasons[row["name"]])
    agreed.rows = [row for row in agreed.rows if row["name"] not in reasons]
    if not agreed.rows:
        raise nothing_left(config, [Skipped(**skipped) for skipped in record.skipped])


def _statistics(
    config: PreprocessConfig, written: Written, seen: Seen, base: Imported | None
) -> tuple[DatasetStatistics, list[str], list[str]]:
    """Statistics of the training split (or those to be kept), and the split."""
    train, valid = split(config, written, seen)
    total = DatasetAccumulator()
    for name in train:
        total.merge(written.statistics[name])
    own = total.result()
    if config.stats_from is None or base is None:
        return own, train, valid
    actions = kept_statistics(base, base.actions, written.action_names, "action")
    state = own.state if base.state is None else kept_statistics(base, base.state, written.state_names, "state")
    return DatasetStatistics(state, actions, own.images), train, valid


def _study(
    config: PreprocessConfig,
    agreed: Agreement,
    seen: Seen,
    written: Written,
    split: tuple[list[str], list[str]],
    record: RunRecord,
    base: Imported | None,
    statistics: DatasetStatistics,
) -> Study:
    """Put together what was learnt."""
    study = Study(
        rate_hz=agreed.rate,
        state_names=written.state_names,
        action_names=written.action_names,
        episodes=written.episodes,
        train=split[0],
        valid=split[1],
        facts=seen.facts,
        findings=standing_findings(seen.findings, written.mended, [e.name for e in written.episodes]),
        cameras=agreed.cameras,
        fingerprint=_shown(seen.fingerprint),
        conventions=merge(seen.streams),
        skipped=record.skipped,
        quarantine=[
            {"name": facts["name"], "reason": facts["reason"]}
            for file in sorted((config.episodes / QUARANTINE).glob("*.json"))
            if isinstance(facts := read_json(file), dict)
        ],
    )
    study.operator_facts = operator_facts(study)
    if base is None:
        study.missing["preflight"] = "no base to compare with: --base PATH"
    else:
        study.preflight = preflight_rows(study, base)
    return study


def _tell(
    config: PreprocessConfig,
    study: Study,
    record: RunRecord,
    lexicon: Lexicon,
    partial: Path,
    messages: Sequence[str],
) -> Sequence[Mapping[str, Any]]:
    """Write every document about the dataset; returns all findings, `messages` about the whole among them."""
    words = lint_study(study, lexicon)
    told = instructions(study, words, lexicon, config.seed)
    save_quality(quality(study), partial)
    write_json(partial / INSTRUCTIONS, told)
    alternatives = save_alternatives(study, lexicon, partial)
    _complete_record(record, study)
    record.facts |= {"alternatives": alternatives}
    facts = {"cameras": ", ".join(record.facts["cameras"]), "train": len(study.train), "valid": len(study.valid)}
    sheet = contact_sheet(_sheet_rows(study, partial))
    document = page_of(study, words, told, sheet, facts, as_findings(messages))
    found = verdict(document)
    record.facts |= {"verdict": found.sentence, "verdict_reasons": list(found.reasons)}
    findings = list(standing(document))
    for finding in findings:
        record.count(f"findings_{finding['severity']}")
    write_text(partial / REPORT, page(document))
    return findings


def _sheet_rows(study: Study, partial: Path) -> Iterator[tuple[str, str, Any, np.ndarray]]:
    """The episodes of the contact sheet, out of the dataset that was just written."""
    for index in sheet_episodes(len(study.episodes)):
        for camera, pictures in load_pictures(partial, index).items():
            yield study.episodes[index].name, camera, pictures, np.arange(len(pictures)) / study.rate_hz
            break


def _shown(fingerprint: Fingerprint) -> dict[str, Any]:
    """A fingerprint for the page: how much each camera's view varies from episode to episode."""
    found: dict[str, Any] = {}
    for camera, one in fingerprint.cameras.items():
        spread = {key: float(f"{np.std(v):.2g}") for key, v in one.values.items() if len(v) > 2}
        found[camera] = {"episodes": one.episodes, "spread between episodes": spread or "too few episodes to tell"}
    return found


def _show(study: Study, findings: Sequence[Mapping[str, Any]], progress: Progress) -> None:
    """The gravest findings as a table; the page has them all."""
    order = ("error", "warning")
    rows = [
        [f["severity"], f["check"], f.get("episode") or ", ".join(list(f.get("episodes") or [])[:3]), f["message"]]
        for severity in order
        for f in findings
        if f["severity"] == severity and f["check"] != CHECK  # those are told as sentences
    ]
    if rows:
        progress.table("Findings", ["", "check", "episode", "what"], rows[:20])
    for sentence in (study.operator_facts or {}).get("sentences", []):
        progress.note(sentence)


def _fail_if_strict(record: RunRecord, findings: Sequence[Mapping[str, Any]]) -> None:
    if record.skipped:
        listed = "; ".join(f"{s['name']}: {s['reason']}" for s in record.skipped[:3])
        raise CheckFailed(f"--strict, and {len(record.skipped)} episode(s) cannot be used ({listed})")
    errors = [f for f in findings if f["severity"] == "error"]
    if errors:
        told = " ".join(str(f["message"]) for f in errors[:3])
        raise CheckFailed(
            f"--strict, and {len(errors)} error(s) stand against these demonstrations: {told}",
            hint="--fix or --exclude with the names of the checks; report.html in the output shows them",
        )


def _complete_record(record: RunRecord, study: Study) -> None:
    record.counts |= {
        "episodes_out": len(study.episodes),
        "episodes_skipped": len(record.skipped),
        "train": len(study.train),
        "valid": len(study.valid),
        "frames": sum(len(e) for e in study.episodes),
        "idle_frames_trimmed": sum(e.idle_head + e.idle_tail for e in study.episodes),
        "gaps": sum(e.gaps for e in study.episodes),
        "episodes_resampled": sum(e.resampled for e in study.episodes),
    }
    if held := sum(e.ticks_in_gaps for e in study.episodes):
        record.counts["frames_in_gaps"] = held
    fixed = [(name, count) for e in study.episodes for name, count in e.fixes.items()]
    for name, count in fixed:
        record.count(f"fixed_{name}", count)
    record.facts |= {
        "rate_hz": study.rate_hz,
        "cameras": list(study.cameras),
        "state_dim": len(study.state_names),
        "action_dim": len(study.action_names),
        "instructions": sorted({text for e in study.episodes for text in e.instructions}),
    }


def _summary(document: dict[str, Any], out: Path) -> dict[str, Any]:
    """The JSON result of a finished run, from its record."""
    chosen = {key: document[key] for key in ("counts", "skipped", "warnings")}
    return {"stage": STAGE, "out": str(out), **chosen, **document["facts"]}
