"""`vla finetune`: a dataset and a base policy become an adapter.

options       the recipe, with the command's options in the place of its own
preparation   all that options name but weights: what a run would refuse is refused here
estimate      the memory and time that a run would take, for `--dry-run`
training      calibration, weights, retention, guidance: `adapter/`
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from vla_cli.configs import FinetuneConfig
from vla_cli.errors import within_memory
from vla_cli.files import building, is_complete, read_json
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord
from vla_cli.recipe import Recipe
from vla_cli.stages.finetune.estimate import estimate_run
from vla_cli.stages.finetune.preparation import STAGE, prepare, replay_windows
from vla_cli.stages.finetune.training import train

_SMALLER = "fewer --noise-draws, lora in place of full (--vision lora, ...), or --device cpu"


def plan(config: FinetuneConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    prepared = prepare(config)
    recipe, dataset = prepared.recipe, prepared.dataset
    record = RunRecord(STAGE, {}, warnings=list(prepared.warnings))
    replay_windows(prepared, record, SILENT)  # refused where a run would refuse it
    frames = sum(len(d) for d in dataset.split("train"))
    with _fitting_into_memory(recipe):
        estimate = estimate_run(prepared)
    return {
        "stage": STAGE,
        "dry_run": True,
        "out": str(config.out),
        "recipe": recipe.document(),
        "base": prepared.spec.base.name if prepared.spec.base else "",
        "statistics_from": prepared.spec.statistics_from,
        "train_episodes": len(dataset.train),
        "train_frames": frames,
        "epochs": round(recipe.steps * recipe.batch_size / max(1, frames), 2),
        "estimate": estimate,
        "warnings": record.warnings,
    }


def run(config: FinetuneConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Fine-tune, and write `adapter/`.

    Raises:
        ConfigError: options or recipe that cannot be, an output in the way, or more than memory holds.
        InputError: dataset, base or replay that cannot be used.
    """
    prepared = prepare(config)
    if is_complete(config.out, prepared.request, resume=config.resume):
        return _summary(config, read_json(config.out / RUN_FILE))
    for warning in prepared.warnings:
        progress.note(warning)
    with building(config.out, prepared.request, overwrite=config.overwrite, resume=config.resume) as partial:
        with _fitting_into_memory(prepared.recipe):
            record = train(prepared, partial, progress)
        record.save(partial)
    return _summary(config, record.document())


def _fitting_into_memory(recipe: Recipe) -> AbstractContextManager[None]:
    fewer = f"a --micro-batch below {recipe.at_once}, which leaves the batch as it is, " if recipe.at_once > 1 else ""
    return within_memory("Fine-tuning", hint=fewer + _SMALLER)


def _summary(config: FinetuneConfig, document: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": STAGE,
        "out": str(config.out),
        "recipe": document["request"]["recipe"]["name"],
        **{key: document[key] for key in ("counts", "facts", "warnings", "skipped")},
    }
