"""What a person should be told of a dataset as a whole: too many dimensions, no words, nothing to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_cli.configs import PreprocessConfig, format_indices
from vla_cli.splits import count_held_out
from vla_cli.stats import Statistics, compute
from vla_cli.study import Study

CHECK = "dataset"
WIDEST = 32  # what pi0's released weights take; a wider robot picks the dimensions that matter

NOTHING = "Every action dimension is constant over the training episodes: there is nothing to learn."


def as_findings(messages: Sequence[str]) -> list[dict[str, Any]]:
    """Sentences about a dataset as findings of its page: what is told beside the checks counts for the verdict too."""
    return [
        {"check": CHECK, "severity": "error" if text == NOTHING else "warning", "episode": "", "message": text}
        for text in messages
    ]


def dataset_warnings(config: PreprocessConfig, study: Study, worlds: Sequence[dict[str, Any] | None]) -> list[str]:
    """Sentences about a finished dataset; `worlds` are those that its episodes name."""
    found = []
    valid = set(study.valid)
    # not from stats.json: that may be kept from a base, which saw other things move
    train = [e for e in study.episodes if e.name not in valid]
    state, actions = (compute(np.concatenate([getattr(e, key) for e in train])) for key in ("state", "actions"))
    found += _too_wide("state", study.state_names, state)
    found += _too_wide("action", study.action_names, actions)
    if not study.state_names:
        found.append("The episodes have no state: the policy will see pictures and words only.")
    if actions.constant.all():
        found.append(NOTHING)
    silent = [e.name for e in study.episodes if not e.instructions]
    if silent:
        found.append(
            f"{len(silent)} of {len(study.episodes)} episodes have no instruction ({_some(silent)}); a policy that "
            'follows language needs one: vla collect-ingest SOURCE --out EPISODES --overwrite --instruction "..."'
        )
    if config.split == "fraction" and config.val_fraction > 0 and not study.valid:
        count = len(study.episodes)
        alike = (
            "" if count_held_out(count, config.val_fraction) == 0 else ", for all are near-duplicates of one another"
        )
        few = "" if alike else f": {count} are too few for --val-fraction {config.val_fraction}"
        found.append(f"No episode is held out{alike or few}.")
    trained = {text for e in train for text in e.instructions}
    held = [e for e in study.episodes if e.name in valid]
    unseen = [e.name for e in held if e.instructions and not trained.intersection(e.instructions)]
    if unseen:
        found.append(f"No training episode has the instruction of these held-out episodes: {_some(unseen)}.")
    if any(worlds) and any(world != worlds[0] for world in worlds):
        found.append("The episodes name different worlds: the dataset names none, so eval-steer needs --world.")
    return found


def wide_plan(config: PreprocessConfig, row: dict[str, Any]) -> list[str]:
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
