"""The evaluation itself: base and adapters through the suites alike, and the report."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_cli.adapter import PolicySpec, load_spec
from vla_cli.configs import SteerConfig
from vla_cli.dataset import Dataset
from vla_cli.errors import InputError
from vla_cli.files import digest, read_json
from vla_cli.policies import POLICIES
from vla_cli.policies.checkpoint import locate_base
from vla_cli.policies.device import is_small, pick_device, set_threads
from vla_cli.policies.task_adapters import TaskAdapters, routes_in_words
from vla_cli.progress import Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord
from vla_cli.report import BASE, Report, save_report
from vla_cli.report.html import render_html
from vla_cli.stages.steer.guiding import guidance_of, guided_policies
from vla_cli.stages.steer.preparation import STAGE, Prepared, described_guidance, trained_on
from vla_cli.stages.steer.recordings import perhaps_trained_on
from vla_cli.suites import SUITES, Findings
from vla_cli.suites.kept import Kept

_FINISHED = "finished"
"""Folder of the parts that are done, while the report is not."""


def evaluate(
    config: SteerConfig,
    prepared: Prepared,
    partial: Path,
    progress: Progress,
) -> None:
    """Write the report's files into `partial`, and pick up what an interrupted run measured there.

    Args:
        config: of the run.
        prepared: what was asked for.
        partial: the output while it is not whole.
        progress: is told.

    Raises:
        InputError: a policy cannot be loaded, or does not fit the world or the dataset.
    """
    specs, base, world, request = prepared.specs, prepared.base, prepared.world, prepared.request
    first = next(iter(specs.values()))
    # a base that carries no policy.json (or was made for another robot) is fed the way its adapter is
    unadapted = _load_base_policy(base, first, config)
    set_threads(unadapted.model, config.threads)
    policies: dict[str, Any] = {BASE: unadapted}
    for (name, spec), path in zip(specs.items(), config.adapters, strict=True):
        policies[name] = POLICIES.get(spec.family)(base, path, device=config.device)
    if prepared.dataset is None:
        findings: Findings = SUITES.get("closed-loop")(
            policies,
            world,
            episodes=config.episodes,
            seed=config.seed,
            conditions=config.conditions,
            guidance=guidance_of(config, specs),
            films=config.rollouts,
            workers=_workers(config, unadapted.model),
            progress=progress,
            kept=Kept(partial / _FINISHED),
        )
        for option, value in (("--dataset", config.dataset), ("--alternatives", config.alternatives)):
            if value is not None:
                findings.warnings.append(
                    f"{option} was not used: the policies acted in {world.label} (--world none measures on the "
                    "dataset)."
                )
    else:
        findings = _open_loop(config, prepared, prepared.dataset, policies, Kept(partial / _FINISHED), progress)
    shutil.rmtree(partial / _FINISHED)
    findings.warnings.extend(prepared.warnings)
    findings.warnings.extend(_adapters_warnings(config, specs))
    for name, policy in policies.items():
        if isinstance(policy, TaskAdapters):
            asked = [rollout.instruction for rollout in findings.rollouts if rollout.policy == name]
            findings.warnings.append(f"{name}: {routes_in_words(policy, asked)}.")
    report = _report(config, world, specs, request, findings)
    save_report(partial, report, findings.rollouts, render_html(report, findings.films))
    record = RunRecord(STAGE, request, warnings=list(findings.warnings))
    record.counts = {"policies": len(policies), "rows": len(findings.rows), "episodes": len(findings.rollouts)}
    record.save(partial)


def _adapters_warnings(config: SteerConfig, specs: dict[str, PolicySpec]) -> list[str]:
    """What the training runs warned of, and policies that are the base under another name; each with its policy."""
    found = []
    for (name, spec), path in zip(specs.items(), config.adapters, strict=True):
        record = path / RUN_FILE
        said = read_json(record).get("warnings", []) if record.is_file() else []
        if spec.kind == "frozen" and not spec.calibration.get("parts"):
            said = [*said, "It holds no weights and no calibration: its rows are the base's own."]
        found += [f"{name}: {warning}" for warning in said]
    return found


def _workers(config: SteerConfig, model: Any) -> int:
    """As asked; with 0 every core for a small model on the CPU, which cannot use more than one core a run."""
    if config.workers > 0:
        return config.workers
    return (os.cpu_count() or 1) if is_small(model) and pick_device(config.device) == "cpu" else 1


def _load_base_policy(base: str, spec: PolicySpec, config: SteerConfig) -> Any:
    load = POLICIES.get(spec.family)
    try:
        own = load_spec(locate_base(base).directory)
    except InputError:
        own = None
    if own is not None and spec.statistics_from == "base":
        # a base that carries no tokenizer reads with the one that its adapter was trained with
        words = {"tokenizer": spec.tokenizer, "tokenizer_digest": spec.tokenizer_digest} if spec.tokenizer else {}
        spec = replace(own, **words)
    return load(base, device=config.device, spec=spec)


def _open_loop(
    config: SteerConfig,
    prepared: Prepared,
    dataset: Dataset,
    policies: dict[str, Any],
    kept: Kept,
    progress: Progress,
) -> Findings:
    measured = {"seed": config.seed, "episodes": config.episodes, "progress": progress, "kept": kept}
    findings: Findings = SUITES.get("open-loop")(policies, dataset, **measured)
    # what an adapter makes of words is held against the base behind the same calibration
    calibrated = {name: policy.calibration for name, policy in policies.items() if policy.calibration is not None}
    references = {name: policies[BASE].behind(found) for name, found in calibrated.items() if name != BASE}
    findings.add(SUITES.get("answers")(policies, dataset, prepared.alternatives, references=references, **measured))
    findings.warnings.extend(perhaps_trained_on(config, prepared.specs, prepared.request["dataset"]["digest"]))
    if guided := guided_policies(config, prepared.specs):
        findings.warnings.append(
            f"Guidance is the default of {', '.join(guided)}; the open-loop figures are of plain prompting."
        )
    return findings


def _report(
    config: SteerConfig, world: Any, specs: dict[str, PolicySpec], request: dict[str, Any], findings: Findings
) -> Report:
    described = [{"name": BASE, "recipe": "", "digest": request["base"]}]
    for (name, spec), path in zip(specs.items(), config.adapters, strict=True):
        described.append({"name": name, "recipe": spec.recipe, "digest": digest(path)})
    settings = {
        "world": world.label if world is not None else None,
        "trained_instructions": trained_on(specs),
        "episodes": config.episodes,
        "seed": config.seed,
        "guidance": described_guidance(config, specs, world),
        "weights": {name: spec.kind for name, spec in specs.items()},
        "calibration": {name: spec.calibration.get("parts", []) for name, spec in specs.items()},
    }
    return Report(
        kind="closed-loop" if world is not None else "open-loop",
        policies=described,
        conditions=findings.conditions,
        rows=findings.rows,
        settings=settings,
        warnings=findings.warnings,
        comparisons=findings.comparisons,
    )
