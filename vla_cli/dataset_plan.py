"""What a dataset is to be, settled before an episode is read: every option checked against what the episodes say of
themselves, and the files that are read beside them told by their digests. A dry run ends here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.agreement import Agreement, agree
from vla_cli.configs import PreprocessConfig, parse_indices
from vla_cli.dataset_passes import nothing_left, parse_latencies
from vla_cli.episode import Episode, Stream, load_headers, read_manifest
from vla_cli.errors import ConfigError
from vla_cli.files import check_output, check_resumable
from vla_cli.language.lexicon import Lexicon, load_lexicon
from vla_cli.provenance import describe_input
from vla_cli.quality import exclusions
from vla_cli.quality.fixes import parse_fixes
from vla_cli.splits import OPERATOR, UNKNOWN, check_operator, parse_split
from vla_cli.stats import Statistics
from vla_cli.stats_import import Imported, freeze, import_named, parse_statistics, statistics_file
from vla_cli.synchrony.actions import check_actions, check_gripper
from vla_cli.synchrony.clocks import delayed
from vla_cli.synchrony.synchronise import check_choices, dimension_names


@dataclass(frozen=True)
class DatasetPlan:
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


def plan_dataset(config: PreprocessConfig) -> DatasetPlan:
    """Check the options, read what they name, and agree from the manifest on what the dataset is.

    Raises:
        InputError: there is nothing to make one of.
        ConfigError: an option does not fit, or the output stands in the way.
    """
    check_options(config)
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
    return DatasetPlan(len(rows), agreed, load_lexicon(config.phrasings), base, request)


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
            kept_statistics(base, theirs, [names[i] for i in picked], vector)


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


def check_options(config: PreprocessConfig) -> None:
    """Refuse options that are wrong whatever the episodes are.

    Raises:
        ConfigError: there are some; those that exclude each other all at once.
    """
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
    exclusions([], checks_named(config.exclude))
    parse_split(config.split)
    parse_latencies(config)


def _base(config: PreprocessConfig) -> Imported | None:
    """The statistics to compare with, or to keep."""
    named = _statistics_named(config)
    return import_named(named) if named is not None else None


def _statistics_named(config: PreprocessConfig) -> str | None:
    return config.base if config.stats_from in (None, "base") else config.stats_from


def kept_statistics(base: Imported, statistics: Statistics, names: Sequence[str], vector: str) -> Statistics:
    """A base's statistics of a vector ("state" or "action"), for the dataset's dimensions of these names.

    Raises:
        ConfigError: they are of other dimensions.
    """
    known = base.state_names if vector == "state" else base.action_names
    return freeze(statistics, names, vector=vector, base_names=known)


def checks_named(text: str) -> tuple[str, ...]:
    """The checks that an option lists, comma-separated."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
