"""`vla preprocess`: episodes become one synchronised, judged, normalised, split dataset.

In order: agree on widths, cameras and the control rate; look at each episode and judge it beside the others; mend or
leave out what was asked for; put each on one clock and write it; split by episode; statistics of the training split;
and the page that tells all of it. Episodes are read twice (to judge, to write), one at a time: memory does not grow
with their number. Resuming an interrupted run computes it again: the result is the same.

`--compare` is another question to a finished dataset: have camera or light moved since? It writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.agreement import Agreement, agree
from vla_cli.configs import PreprocessConfig, parse_indices
from vla_cli.conversion import QUARANTINE
from vla_cli.dataset import load_pictures, save_quality, save_splits
from vla_cli.dataset_page import page
from vla_cli.dataset_page.judgement import standing, verdict
from vla_cli.dataset_page.tracks import contact_sheet, sheet_episodes
from vla_cli.dataset_passes import Seen, Written, look, nothing_left, parse_latencies, split, write
from vla_cli.dataset_warnings import CHECK, as_findings, dataset_warnings, wide_plan
from vla_cli.episode import Episode, Skipped, Stream, load_headers, read_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.facts import merge
from vla_cli.files import building, check_output, check_resumable, is_complete, read_json, write_json, write_text
from vla_cli.fingerprint import Fingerprint, load_fingerprint, save_fingerprint
from vla_cli.fingerprint.deployment import load_pictures as load_deployment
from vla_cli.fingerprint.glimpses import Features
from vla_cli.fingerprint.verdict import compare
from vla_cli.language.lexicon import Lexicon, load_lexicon
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.quality import exclusions
from vla_cli.quality.fixes import parse_fixes
from vla_cli.splits import OPERATOR, UNKNOWN, check_operator, parse_split
from vla_cli.stats import DatasetAccumulator, DatasetStatistics, Statistics
from vla_cli.stats_import import Imported, freeze, import_named, parse_statistics, statistics_file
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
from vla_cli.synchrony.actions import check_actions, check_gripper
from vla_cli.synchrony.clocks import delayed
from vla_cli.synchrony.synchronise import check_choices, dimension_names

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
    agreed = _prepare(config).agreed
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
    prepared = _prepare(config)
    agreed, lexicon, request = prepared.agreed, prepared.lexicon, prepared.request
    if is_complete(config.out, request, resume=config.resume):
        return _summary(read_json(config.out / RUN_FILE), config.out)
    record = RunRecord(STAGE, request, counts={"episodes_in": prepared.total})
    for skipped in agreed.skipped:
        record.skip(skipped.name, skipped.reason)
    features, record.facts["vision_features"] = _features(config)
    with building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial:
        seen = look(config, agreed, progress, features)
        _leave_out(config, agreed, seen, record)
        written = write(config, agreed, seen, record, partial, lexicon, progress)
        statistics, train, valid = _statistics(config, written, seen, prepared.base)
        save_splits(statistics, train, valid, partial)
        save_fingerprint(seen.fingerprint, partial)
        study = _study(config, agreed, seen, written, (train, valid), record, prepared.base, statistics)
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


def _described(config: PreprocessConfig) -> dict[str, Any]:
    """Digests of the files that are read beside the episodes: `--resume` must not go on with others of their names."""
    named = _statistics_named(config)
    # of a folder the one file that is read: it may be a base of many gigabytes
    found = {"phrasings": config.phrasings, "statistics": statistics_file(named) if named is not None else None}
    return {key: describe_input(path) for key, path in found.items() if path is not None and path.is_file()}


def _inputs(config: PreprocessConfig) -> list[Path]:
    """What is read, none of which the output may lie in or around: the statistics to be kept among it."""
    named = parse_statistics(config.stats_from) if config.stats_from not in (None, "base") else None
    return [*config.inputs(), *([named[0]] if named else [])]


def _compare(config: PreprocessConfig, progress: Progress) -> dict[str, Any]:
    """Whether camera or light have moved since the demonstrations of a dataset."""
    assert config.compare is not None
    _check_options(config)
    known = load_fingerprint(config.episodes)
    try:
        found = compare(known, load_deployment(config.compare, list(known.cameras)), _same_features(config, progress))
    except ValueError as error:
        raise InputError(
            f"{config.compare} cannot be compared with {config.episodes} ({error})",
            expected="pictures of the same cameras, as they give them",
        ) from None
    sentences = [camera.sentence for camera in found.cameras]
    sentences += [
        f"Camera {name}: no pictures of it were given, so that nothing is known of it." for name in found.unseen
    ]
    for sentence in sentences:
        progress.note(sentence)
    for camera in found.cameras:
        seen = f"{camera.camera}: {camera.verdict}, by {camera.scenes} scenes and {camera.pictures} pictures"
        judged = [
            [c.quantity, c.words if c.moved else "as in the demonstrations", f"{c.p:.2g}"] for c in camera.changes
        ]
        progress.table(seen, ["", "what the pictures say", "p"], judged)
    if config.strict and found.verdict == "moved":
        raise CheckFailed(f"--strict, and the deployment is not what was demonstrated in: {' '.join(sentences)}")
    document = found.document()
    return {"stage": STAGE, "out": str(config.episodes), "rows": document.pop("cameras"), **document}


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


@dataclass(frozen=True)
class _Prepared:
    """What is known before an episode is read: all that a dry run can refuse.

    Attributes:
        total: how many episodes there were.
        agreed: what the dataset is to be.
        lexicon: the words of instructions.
        base: statistics to compare with, or to keep.
        request: what determines the dataset.
    """

    total: int
    agreed: Agreement
    lexicon: Lexicon
    base: Imported | None
    request: dict[str, Any]


def _prepare(config: PreprocessConfig) -> _Prepared:
    """Check the options, read what they name, and agree from the manifest on what the dataset is."""
    _check_options(config)
    check_output(config.out, overwrite=config.overwrite, resume=config.resume, inputs=_inputs(config))
    rows = read_manifest(config.episodes)
    if not rows:
        raise nothing_left(config, [])

    @cache  # the agreement and the check of the options both look at them
    def headers(file: str) -> list[Stream]:
        return load_headers(config.episodes / file)

    agreed = agree(
        rows,
        cameras=config.cameras,
        rate=config.rate,
        same_sizes=config.image_size is None,
        headers=lambda row: headers(row["file"]),
        actions=config.actions,
        gripper=config.gripper,
    )
    if not agreed.rows:
        raise nothing_left(config, agreed.skipped)
    _check_streams(config, agreed, headers)
    for dims, key in (("state_dims", "state_dim"), ("action_dims", "action_dim")):
        derived = key == "action_dim" and config.actions == "next-state"  # then the width is the state's
        if getattr(config, dims) is not None and not derived:
            parse_indices(getattr(config, dims), agreed.rows[0][key], f"--{dims.replace('_', '-')}")
    base = _base(config)
    if base is not None and config.stats_from is not None:
        _check_kept(config, agreed, headers(agreed.rows[0]["file"]), base)
    request = {**config.request(), "input": describe_input(config.episodes), **_described(config)}
    check_resumable(config.out, request, resume=config.resume)
    return _Prepared(len(rows), agreed, load_lexicon(config.phrasings), base, request)


def _check_kept(config: PreprocessConfig, agreed: Agreement, headers: Sequence[Stream], base: Imported) -> None:
    """Refuse statistics that are to be kept and are of other dimensions, by the headers of an episode.

    Raises:
        ConfigError: they are.
    """
    episode = agreed.in_order(Episode("", list(headers), []))
    states = episode.of_role("state")
    actions = states if config.actions == "next-state" else episode.of_role("action")
    for vector, streams, dims, theirs in (
        ("state", states, config.state_dims, base.state),
        ("action", actions, config.action_dims, base.actions),
    ):
        names = dimension_names(streams)
        picked = parse_indices(dims, len(names), f"--{vector}-dims") if dims else range(len(names))
        if theirs is not None:
            _frozen(base, theirs, [names[i] for i in picked], vector)


def _check_streams(config: PreprocessConfig, agreed: Agreement, headers: Callable[[str], Sequence[Stream]]) -> None:
    """Refuse what no episode could be made into, by its headers: the run would say it after the work.

    Raises:
        ConfigError: a latency of no stream, an operator whom nobody knows, or conventions that no episode states.
    """
    how, operator = parse_split(config.split)
    if how == OPERATOR:
        check_operator({row["operator"] for row in agreed.rows} - {UNKNOWN}, operator)
    refused = []
    for row in agreed.rows:
        try:
            _check_episode(config, agreed.cameras, headers(row["file"]))
        except ConfigError as error:
            refused.append(error)
    # an episode that cannot be used otherwise may be left out for another reason
    if len(refused) == len(agreed.rows):
        raise refused[0]


def _check_episode(config: PreprocessConfig, cameras: Sequence[str], headers: Sequence[Stream]) -> None:
    pictures = [Stream("image", camera, np.empty((0, 1, 1, 3), np.uint8), np.empty(0)) for camera in cameras]
    states, actions = ([header for header in headers if header.role == role] for role in ("state", "action"))
    delayed([*pictures, *states, *actions], parse_latencies(config)[0])
    used = [] if config.actions == "next-state" else actions
    for action in used:
        check_actions(action, config.actions)
    for stream in [*states, *used] if config.gripper == "normalise" else ():
        check_gripper(stream)


def _check_options(config: PreprocessConfig) -> None:
    found = []
    if len(set(config.cameras)) != len(config.cameras):
        found.append(f"--camera names one twice: {', '.join(config.cameras)}")
    if config.stats_from == "base" and config.base is None:
        found.append("--stats-from base needs --base")
    if config.features and config.base is None:
        found.append("--features needs --base")
    if found:
        raise ConfigError("; ".join(found), hint="vla preprocess --help")
    check_choices(config.actions, config.gripper)
    parse_fixes(config.fix)
    exclusions([], _listed(config.exclude))
    parse_split(config.split)
    parse_latencies(config)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _base(config: PreprocessConfig) -> Imported | None:
    """The statistics to compare with, or to keep."""
    named = _statistics_named(config)
    return import_named(named) if named is not None else None


def _statistics_named(config: PreprocessConfig) -> str | None:
    return config.base if config.stats_from in (None, "base") else config.stats_from


def _leave_out(config: PreprocessConfig, agreed: Agreement, seen: Seen, record: RunRecord) -> None:
    """Take those episodes from the agreement that cannot be read, or that `exclude` names."""
    reasons = {**exclusions(seen.findings, _listed(config.exclude)), **seen.unreadable}
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
    actions = _frozen(base, base.actions, written.action_names, "action")
    state = own.state if base.state is None else _frozen(base, base.state, written.state_names, "state")
    return DatasetStatistics(state, actions, own.images), train, valid


def _frozen(base: Imported, statistics: Statistics, names: Sequence[str], vector: str) -> Statistics:
    known = base.state_names if vector == "state" else base.action_names
    return freeze(statistics, names, vector=vector, base_names=known)


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
