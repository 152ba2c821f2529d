"""`vla preprocess`: episodes become one synchronised, normalised, split dataset.

In order: agree on widths, cameras and the control rate; synchronise each episode; split by episode; compute the
statistics of the training split; write. Resuming an interrupted run computes it again: the result is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.agreement import Agreement, agree
from vla_cli.configs import PreprocessConfig, format_indices, parse_indices
from vla_cli.dataset import Dataset, Demonstration, save_dataset, save_quality
from vla_cli.episode import Episode, Skipped, load_episode, read_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import building, check_apart, check_output, is_complete, read_json
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.splits import split_episodes
from vla_cli.stats import DatasetStatistics, Statistics, compute, compute_image
from vla_cli.synchronise import Synchronised, SyncOptions, synchronise

STAGE = "preprocess"
WIDEST = 32  # what pi0's released weights take; a wider robot picks the dimensions that matter

# An episode without its streams (they are large), and what became of it.
_Result = tuple[Episode, Synchronised]


def plan(config: PreprocessConfig) -> dict[str, Any]:
    """What `run` would do: episodes, cameras, rate and widths.

    Raises:
        InputError: there is nothing to preprocess.
        ConfigError: an option does not fit, or the output stands in the way.
    """
    _, agreed = _prepare(config)
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
        "warnings": [*agreed.warnings, *_wide_plan(config, first)],
    }


def run(config: PreprocessConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `dataset/` and return its summary.

    Raises:
        InputError: no usable episode, or the input is damaged.
        ConfigError: an option does not fit, or the output stands in the way.
        CheckFailed: `strict`, and an episode had to be skipped.
    """
    total, agreed = _prepare(config)
    request = {**config.request(), "input": describe_input(config.episodes)}
    if is_complete(config.out, request, resume=config.resume):
        return _summary(read_json(config.out / RUN_FILE), config.out)
    record = RunRecord(STAGE, request, counts={"episodes_in": total})
    for skipped in agreed.skipped:
        record.skip(skipped.name, skipped.reason)
    with building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial:
        results = _synchronise_all(config, agreed, record, progress)
        dataset = _assemble(config, agreed, results)
        for message in [*agreed.warnings, *_dataset_warnings(config, dataset, results)]:
            record.warn(message)
            progress.note(message)
        save_dataset(dataset, partial)
        save_quality(_quality(results, dataset), partial)
        _complete_record(record, results, dataset)
        record.save(partial)
    return _summary(record.document(), config.out)


def _prepare(config: PreprocessConfig) -> tuple[int, Agreement]:
    """Check the options, and agree from the manifest on what the dataset is; also how many episodes there were."""
    _check_options(config)
    check_apart(config.out, config.episodes)
    check_output(config.out, overwrite=config.overwrite, resume=config.resume)
    rows = read_manifest(config.episodes)
    if not rows:
        raise _nothing_left(config, [])
    agreed = agree(rows, cameras=config.cameras, rate=config.rate, same_sizes=config.image_size is None)
    if not agreed.rows:
        raise _nothing_left(config, agreed.skipped)
    for dims, key in (("state_dims", "state_dim"), ("action_dims", "action_dim")):
        if getattr(config, dims) is not None:
            parse_indices(getattr(config, dims), agreed.rows[0][key], f"--{dims.replace('_', '-')}")
    return len(rows), agreed


def _check_options(config: PreprocessConfig) -> None:
    found = []
    if config.rate is not None and not 0 < config.rate <= 1000:
        found.append(f"--rate is {config.rate}, not above 0 and up to 1000 Hz")
    if not 0 <= config.val_fraction < 1:
        found.append(f"--val-fraction is {config.val_fraction}, not a share from 0 to below 1")
    if config.image_size is not None and not 8 <= config.image_size <= 4096:
        found.append(f"--image-size is {config.image_size}, not from 8 to 4096 pixels")
    if len(set(config.cameras)) != len(config.cameras):
        found.append(f"--cameras names one twice: {', '.join(config.cameras)}")
    if found:
        raise ConfigError("; ".join(found), hint="vla preprocess --help")


def _nothing_left(config: PreprocessConfig, skipped: list[Skipped]) -> InputError:
    reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
    return InputError(
        f"{config.episodes} has no usable episode{f' ({len(skipped)} skipped: {reasons})' if skipped else ''}",
        expected="at least one",
        hint="vla collect-ingest SOURCE --out episodes/, and its run.json for what was skipped there",
    )


def _synchronise_all(
    config: PreprocessConfig, agreed: Agreement, record: RunRecord, progress: Progress
) -> list[_Result]:
    options = SyncOptions(
        rate=agreed.rate,
        cameras=agreed.cameras,
        image_size=config.image_size,
        state_dims=config.state_dims,
        action_dims=config.action_dims,
        keep_idle=config.keep_idle,
    )
    results: list[_Result] = []
    progress.start("Synchronising episodes", len(agreed.rows))
    for row in agreed.rows:
        episode = load_episode(config.episodes / row["file"])
        result = synchronise(episode, options)
        episode.streams = []
        if isinstance(result, Skipped):
            record.skip(result.name, result.reason)
        else:
            results.append((episode, result))
        progress.advance()
    if config.strict and record.skipped:
        listed = "; ".join(f"{s['name']}: {s['reason']}" for s in record.skipped[:3])
        raise CheckFailed(f"--strict, and {len(record.skipped)} episode(s) cannot be used ({listed})")
    if not results:
        raise _nothing_left(config, [Skipped(**skipped) for skipped in record.skipped])
    return results


def _assemble(config: PreprocessConfig, agreed: Agreement, results: list[_Result]) -> Dataset:
    demonstrations = [result.demonstration for _, result in results]
    kinds = {d.name: (d.operator, d.instructions[0] if d.instructions else "") for d in demonstrations}
    train, valid = split_episodes(kinds, config.val_fraction, config.seed)
    worlds = [episode.world for episode, _ in results]
    return Dataset(
        demonstrations=demonstrations,
        train=train,
        valid=valid,
        rate_hz=agreed.rate,
        cameras=list(agreed.cameras),
        state_names=results[0][1].state_names,
        action_names=results[0][1].action_names,
        world=worlds[0] if all(world == worlds[0] for world in worlds) else None,
        statistics=_statistics([d for d in demonstrations if d.name in set(train)]),
    )


def _statistics(demonstrations: list[Demonstration]) -> DatasetStatistics:
    cameras = demonstrations[0].images
    return DatasetStatistics(
        state=compute(np.concatenate([d.state for d in demonstrations])),
        actions=compute(np.concatenate([d.actions for d in demonstrations])),
        images={camera: compute_image([d.images[camera] for d in demonstrations]) for camera in cameras},
    )


def _dataset_warnings(config: PreprocessConfig, dataset: Dataset, results: list[_Result]) -> list[str]:
    found = []
    statistics = dataset.statistics
    found += _too_wide("state", dataset.state_names, statistics.state)
    found += _too_wide("action", dataset.action_names, statistics.actions)
    if not dataset.state_names:
        found.append("The episodes have no state: the policy will see pictures and words only.")
    if statistics.actions.constant.all():
        found.append("Every action dimension is constant over the training episodes: there is nothing to learn.")
    silent = [d.name for d in dataset.demonstrations if not d.instructions]
    if silent:
        found.append(
            f"{len(silent)} of {len(results)} episodes have no instruction ({_some(silent)}); a policy that follows "
            'language needs one: vla collect-ingest SOURCE --out EPISODES --overwrite --instruction "..."'
        )
    if config.val_fraction > 0 and not dataset.valid:
        found.append(f"No episode is held out: {len(results)} are too few for --val-fraction {config.val_fraction}.")
    trained = {text for d in dataset.split("train") for text in d.instructions}
    unseen = [d.name for d in dataset.split("valid") if d.instructions and not trained.intersection(d.instructions)]
    if unseen:
        found.append(f"No training episode has the instruction of these held-out episodes: {_some(unseen)}.")
    if dataset.world is None and any(episode.world for episode, _ in results):
        found.append("The episodes name different worlds: the dataset names none, so eval-steer needs --world.")
    return found


def _wide_plan(config: PreprocessConfig, row: dict[str, Any]) -> list[str]:
    """What `_too_wide` will say, as far as it is known before the episodes are opened."""
    chosen = {"state": config.state_dims, "action": config.action_dims}
    return [
        f"The {what} has {row[f'{what}_dim']} dimensions and pi0 takes at most {WIDEST}: --{what}-dims picks."
        for what, dims in chosen.items()
        if dims is None and row[f"{what}_dim"] > WIDEST
    ]


def _too_wide(what: str, names: list[str], statistics: Statistics) -> list[str]:
    """Say that pi0 takes fewer dimensions, which parts there are, and which of them ever change."""
    if len(names) <= WIDEST:
        return []
    moving = [index for index in range(len(names)) if not statistics.constant[index]]
    part_of = [name.partition("[")[0] for name in names]
    parts = {part: [i for i, p in enumerate(part_of) if p == part] for part in dict.fromkeys(part_of)}
    listed = ", ".join(f"{part} {format_indices(indices)}" for part, indices in parts.items())
    known = f" Its parts: {listed}." if 1 < len(parts) < len(names) else ""
    picked = moving if 0 < len(moving) <= WIDEST else moving[:WIDEST] or list(range(WIDEST))
    return [
        f"The {what} has {len(names)} dimensions and pi0 takes at most {WIDEST}.{known} {len(moving)} of them change "
        f"in these episodes: {format_indices(moving) or 'none'}. To pick: --{what}-dims {format_indices(picked)}"
    ]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _quality(results: list[_Result], dataset: Dataset) -> dict[str, Any]:
    episodes = [
        {
            "name": episode.name,
            "operator": episode.operator,
            "split": "valid" if episode.name in dataset.valid else "train",
            "frames": len(result.demonstration),
            "seconds": round(len(result.demonstration) / dataset.rate_hz, 6),
            "idle_head": result.idle_head,
            "idle_tail": result.idle_tail,
            "gaps": result.gaps,
            "resampled": result.resampled,
            "notes": [*episode.notes, *result.notes],
        }
        for episode, result in results
    ]
    operators = {}
    for operator in sorted({row["operator"] for row in episodes}):
        rows = [row for row in episodes if row["operator"] == operator]
        operators[operator] = {
            "episodes": len(rows),
            "frames": sum(row["frames"] for row in rows),
            "seconds": round(sum(row["seconds"] for row in rows), 6),
            "idle_trimmed": sum(row["idle_head"] + row["idle_tail"] for row in rows),
        }
    return {"rate_hz": dataset.rate_hz, "episodes": episodes, "operators": operators}


def _complete_record(record: RunRecord, results: list[_Result], dataset: Dataset) -> None:
    record.counts |= {
        "episodes_out": len(results),
        "episodes_skipped": len(record.skipped),
        "train": len(dataset.train),
        "valid": len(dataset.valid),
        "frames": sum(len(d) for d in dataset.demonstrations),
        "idle_frames_trimmed": sum(result.idle_head + result.idle_tail for _, result in results),
        "gaps": sum(result.gaps for _, result in results),
        "episodes_resampled": sum(result.resampled for _, result in results),
    }
    record.facts |= {
        "rate_hz": dataset.rate_hz,
        "cameras": dataset.cameras,
        "state_dim": len(dataset.state_names),
        "action_dim": len(dataset.action_names),
        "instructions": sorted({text for d in dataset.demonstrations for text in d.instructions}),
    }


def _summary(document: dict[str, Any], out: Path) -> dict[str, Any]:
    """The JSON result of a finished run, from its record."""
    chosen = {key: document[key] for key in ("counts", "skipped", "warnings")}
    return {"stage": STAGE, "out": str(out), **chosen, **document["facts"]}
