"""`vla eval-steer`: adapters become a steerability report.

preparation   adapters, base and world: what a run would refuse is refused before a policy is loaded
recordings    without a world: the recorded episodes that stand for one, and what else could be asked in them
evaluation    the suites, and the report that they make: `report/`
"""

from __future__ import annotations

from typing import Any

from vla_cli.configs import SteerConfig
from vla_cli.errors import CheckFailed, within_memory
from vla_cli.files import building, is_complete
from vla_cli.progress import SILENT, Progress
from vla_cli.report import BASE, Report, load_report, table, transposed
from vla_cli.report.verdict import answers_to_words, open_loop_comparisons, verdicts
from vla_cli.stages.steer.evaluation import evaluate
from vla_cli.stages.steer.preparation import STAGE, described_guidance, prepare


def plan(config: SteerConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    prepared = prepare(config)
    specs, world = prepared.specs, prepared.world
    return {
        "stage": STAGE,
        "dry_run": True,
        "out": str(config.out),
        "kind": "closed-loop" if world is not None else "open-loop",
        "world": world.label if world is not None else None,
        "policies": [BASE, *specs],
        "episodes": config.episodes,
        "guidance": described_guidance(config, specs, world),
        "conditions": prepared.conditions,
        "alternatives": [alternative.instruction for alternative in prepared.alternatives],
        "warnings": prepared.warnings,
    }


def run(config: SteerConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Evaluate base and adapters alike, and write `report/`.

    Raises:
        ConfigError: options that cannot be, an output in the way, or more than memory holds.
        InputError: adapters, base or dataset that cannot be used.
        CheckFailed: novel success is below `fail_under` (the report is written all the same).
    """
    prepared = prepare(config)
    request = prepared.request
    if not is_complete(config.out, request, resume=config.resume):
        with (
            building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial,
            within_memory(
                "Evaluating", hint="--workers 1, fewer --episodes (a condition is one batch), or --device cpu"
            ),
        ):
            evaluate(config, prepared, partial, progress)
    return _summary(config, progress)


def _summary(config: SteerConfig, progress: Progress) -> dict[str, Any]:
    report = load_report(config.out)
    for metric in report.metrics:
        progress.table(metric, *transposed(*table(report, metric)))
    for verdict in verdicts(report):
        progress.note(f"{verdict.policy}: {verdict.label}. It {verdict.sentence}")
    for sentence in [*answers_to_words(report), *open_loop_comparisons(report), *report.warnings]:
        progress.note(sentence)
    if config.fail_under is not None:
        _check(report, config.fail_under)
    return {
        "stage": STAGE,
        "out": str(config.out),
        "kind": report.kind,
        "settings": report.settings,
        "rows": report.document()["rows"],
        "comparisons": report.document()["comparisons"],
        "warnings": report.warnings,
    }


def _check(report: Report, fail_under: float) -> None:
    for name in report.policy_names:
        pooled = report.pooled(name, "success", [c.name for c in report.conditions if c.novel])
        if name != BASE and pooled is not None and pooled.value < fail_under:
            raise CheckFailed(
                f"Policy '{name}' succeeds in {pooled.text} of novel instructions",
                expected=f"at least {fail_under:.0%} (--fail-under)",
                hint="vla finetune --recipe steerable, or --guidance contrast",
            )
