"""`vla eval-steer`: adapters become a steerability report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_cli.adapter import PolicySpec, check_base, load_adapter_spec, load_spec
from vla_cli.bundle import DIGESTS, verify_digests
from vla_cli.configs import SteerConfig
from vla_cli.dataset import Dataset, load_dataset
from vla_cli.errors import CheckFailed, ConfigError, InputError, within_memory
from vla_cli.files import building, check_output, check_resumable, digest, is_complete, read_json
from vla_cli.guidance import Guidance, choose, describe
from vla_cli.language.alternatives import FILE_NAME as ALTERNATIVES
from vla_cli.language.alternatives import Alternative, alternatives_of, document, load_alternatives
from vla_cli.policies import POLICIES
from vla_cli.policies.checkpoint import locate_base
from vla_cli.policies.flow import is_small, pick_device, set_threads
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.report import BASE, TRAINED, Condition, Report, load_report, save_report, table, transposed
from vla_cli.report.html import render_html
from vla_cli.report.verdict import answers_to_words, open_loop_comparisons, verdicts
from vla_cli.suites import SUITES, Findings
from vla_cli.suites.closed_loop import asked_conditions, check_fits
from vla_cli.suites.kept import Kept
from vla_cli.worlds import WORLDS
from vla_cli.worlds.contract import same_words

STAGE = "eval-steer"
NO_WORLD = "none"
_FINISHED = "finished"
"""Folder of the parts that are done, while the report is not."""


def plan(config: SteerConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    prepared = _prepare(config)
    specs, world = prepared.specs, prepared.world
    return {
        "stage": STAGE,
        "dry_run": True,
        "out": str(config.out),
        "kind": "closed-loop" if world is not None else "open-loop",
        "world": world.label if world is not None else None,
        "policies": [BASE, *specs],
        "episodes": config.episodes,
        "guidance": _described_guidance(config, specs, world),
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
    prepared = _prepare(config)
    request = prepared.request
    if not is_complete(config.out, request, resume=config.resume):
        with (
            building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial,
            within_memory(
                "Evaluating", hint="--workers 1, fewer --episodes (a condition is one batch), or --device cpu"
            ),
        ):
            _evaluate(config, prepared, partial, progress)
    return _summary(config, progress)


@dataclass(frozen=True)
class _Prepared:
    """What is known before a policy is loaded: all that a dry run can refuse.

    Attributes:
        specs: name of each adapted policy to its spec.
        base: the base that all adapt.
        world: to act in; None for the open-loop report.
        conditions: that will be measured in it.
        dataset: recorded episodes for the open-loop report; None with a world.
        alternatives: what else could be asked in the scenes of that dataset.
        request: what determines the report.
        warnings: what is known already that a reader of the report must know.
    """

    specs: dict[str, PolicySpec]
    base: str
    world: Any
    conditions: list[str]
    dataset: Dataset | None
    alternatives: list[Alternative]
    request: dict[str, Any]
    warnings: list[str]


def _prepare(config: SteerConfig) -> _Prepared:
    """Check the options, and read all that they name but weights."""
    check_output(config.out, overwrite=config.overwrite, resume=config.resume, inputs=config.inputs())
    pick_device(config.device)
    specs = _specs(config)
    _guidance(config, specs)
    base = config.base or _common_base(config, specs)
    digest_of_base = locate_base(base).reference.digest
    for spec in specs.values():
        check_base(spec, digest_of_base, base)
    world = _world(config, specs)
    if world is not None:
        for name, spec in specs.items():
            check_fits(name, spec, world)
    conditions = _conditions(config, world)
    alternatives = _alternatives(config) if world is None else []
    request = {
        **config.request(),
        "alternatives": document(alternatives),
        "adapters": [describe_input(path) for path in config.adapters],
        "base": digest_of_base,
        "dataset": describe_input(config.dataset) if config.dataset else None,
    }
    for key in ("threads", "workers", "fail_under"):
        request.pop(key)
    check_resumable(config.out, request, resume=config.resume)
    dataset = _dataset(config, specs) if world is None else None
    warnings = _mismatches(specs, _asked(config, world, conditions)) if world is not None else []
    return _Prepared(specs, base, world, conditions, dataset, alternatives, request, warnings)


def _conditions(config: SteerConfig, world: Any) -> list[str]:
    """The conditions that will be measured; none without a world.

    Raises:
        ConfigError: there is no such condition, or none that `fail_under` could judge.
    """
    if world is None and config.conditions:
        raise ConfigError("--condition has no meaning for the open-loop report", hint="without it, or with --world")
    asked = asked_conditions(world, config.conditions) if world is not None else {}
    measured = [condition for condition, why_not in asked.items() if why_not is None]
    if config.fail_under is not None and not any(Condition(c).novel for c in measured):
        raise ConfigError(
            "--fail-under judges success on novel instructions, and none would be measured",
            expected="novel conditions, in a world",
            hint="without --fail-under, or with --condition novel-concept",
        )
    return measured


def _specs(config: SteerConfig) -> dict[str, PolicySpec]:
    """Policy name to spec, in the order given; two of one recipe are told apart by their directories."""
    if not config.adapters:
        raise ConfigError("No adapter is given", hint="vla eval-steer ADAPTER --out REPORT")
    found = [(path, load_adapter_spec(path)) for path in config.adapters]
    for bundle in [path for path in config.adapters if (path / DIGESTS).is_file()]:
        verify_digests(bundle)
    recipes = [spec.recipe for _, spec in found]
    names = [spec.recipe if recipes.count(spec.recipe) == 1 else path.name for path, spec in found]
    if len(set(names)) != len(names) or BASE in names:
        raise ConfigError(f"The adapters cannot be told apart by name: {', '.join(names)}", hint="rename a directory")
    if any(spec.world != found[0][1].world for _, spec in found):
        raise ConfigError(
            f"The adapters {', '.join(names)} were trained on different scenes or tasks",
            expected="adapters of one task: 'trained' and 'novel' mean something else for each",
            hint="vla eval-steer for each adapter by itself",
        )
    return dict(zip(names, [spec for _, spec in found], strict=True))


def _common_base(config: SteerConfig, specs: dict[str, PolicySpec]) -> str:
    """The base all adapters name, where it can be found again."""
    named = {spec.base.name for spec in specs.values() if spec.base}
    if len(named) != 1:
        raise ConfigError(f"The adapters name {len(named)} bases ({', '.join(sorted(named))})", hint="--base BASE")
    name = named.pop()
    if Path(name).is_dir() or not Path(name).is_absolute():
        return name
    raise ConfigError(f"The adapter's base '{name}' is not here", hint="--base with its directory or hub id")


def _world(config: SteerConfig, specs: dict[str, PolicySpec]) -> Any:
    """The world asked for, or the demonstrations' own; None when there is none."""
    if config.world == NO_WORLD:
        return None
    recorded = next(iter(specs.values())).world or {}
    name, _, variant = (config.world or str(recorded.get("env_name", ""))).partition(":")
    if config.world is None and name not in WORLDS:
        return None
    return WORLDS.get(name)(variant, recorded if recorded.get("env_name") == name else None, _trained_on(specs))


def _trained_on(specs: dict[str, PolicySpec]) -> list[str]:
    """Every instruction that some policy was trained on."""
    return list(dict.fromkeys(text for spec in specs.values() for text in spec.instructions))


def _asked(config: SteerConfig, world: Any, conditions: Sequence[str]) -> dict[str, list[str]]:
    """Condition to the instructions that will be asked under it."""
    cases = {condition: world.cases(condition, config.episodes, config.seed) for condition in conditions}
    return {condition: list(dict.fromkeys(case.instruction for case in found)) for condition, found in cases.items()}


def _mismatches(specs: dict[str, PolicySpec], conditions: Mapping[str, Sequence[str]]) -> list[str]:
    """Where what a world calls trained or novel is not so for the policies.

    Args:
        specs: of the adapted policies.
        conditions: condition to the instructions that are asked under it.
    """
    found = []
    for name, spec in specs.items():
        trained = {same_words(text) for text in spec.instructions}
        for condition, asked in conditions.items():
            known = [text for text in asked if same_words(text) in trained]
            strange = [text for text in asked if text not in known]
            if condition == TRAINED and strange:
                shown = f"'{spec.instructions[0]}'" if spec.instructions else "no instruction"
                found.append(
                    f"{name}: the condition {condition} asks '{strange[0]}', which was not demonstrated to it ({shown} "
                    "was): its figures are of another task, or of other words for it."
                )
            elif Condition(condition).novel and known:
                found.append(f"{name}: the condition {condition} asks '{known[0]}', which was demonstrated to it.")
    return found


def _evaluate(
    config: SteerConfig,
    prepared: _Prepared,
    partial: Path,
    progress: Progress,
) -> None:
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
            guidance=_guidance(config, specs),
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


def _guidance(config: SteerConfig, specs: dict[str, PolicySpec]) -> dict[str, Guidance | None]:
    """Adapted policy to its guidance; None is plain prompting, and the base is not in it."""
    return {
        name: choose(spec.guidance, spec.instructions, kind=config.guidance, weight=config.guidance_weight)
        for name, spec in specs.items()
    }


def _described_guidance(config: SteerConfig, specs: dict[str, PolicySpec], world: Any) -> dict[str, Any]:
    """Policy name to kind and weight of its guidance, as JSON values; without a world all are prompted plainly."""
    found = _guidance(config, specs) if world is not None else {}
    return {name: describe(found.get(name)) for name in (BASE, *specs)}


def _open_loop(
    config: SteerConfig,
    prepared: _Prepared,
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
    findings.warnings.extend(_not_held_out(config, prepared))
    if guided := _guided(config, prepared.specs):
        findings.warnings.append(
            f"Guidance is the default of {', '.join(guided)}; the open-loop figures are of plain prompting."
        )
    return findings


def _guided(config: SteerConfig, specs: dict[str, PolicySpec]) -> list[str]:
    return [name for name, found in _guidance(config, specs).items() if found is not None]


def _dataset(config: SteerConfig, specs: dict[str, PolicySpec]) -> Dataset:
    """The recorded episodes of the open-loop report, which must be of the robot that the adapters were trained for.

    The base is not asked: it is fed the way its adapters are, whatever it calls cameras and dimensions itself.

    Raises:
        ConfigError: there is none, or guidance was asked for.
        InputError: it cannot be read, or is of another robot.
    """
    if config.dataset is None:
        raise ConfigError(
            f"There is no world to act in ({'--world none' if config.world else 'the demonstrations name none'}) and "
            "no dataset to compare with",
            expected="one of them",
            hint="--dataset DATASET for the open-loop report, or --world tabletop:V",
        )
    if _guided(config, specs) and (config.guidance != "default" or config.guidance_weight is not None):
        raise ConfigError("Guidance has no meaning for the open-loop report", hint="--guidance none")
    dataset = load_dataset(config.dataset)
    for name, spec in specs.items():
        if _robot(spec) != _robot(dataset):
            raise InputError(
                f"{config.dataset} is not of the robot policy '{name}' was trained for: {_told(dataset)}",
                expected=_told(spec),
                hint="the dataset it was fine-tuned on",
            )
    return dataset


def _alternatives(config: SteerConfig) -> list[Alternative]:
    """What else could be asked in the dataset's scenes.

    The file that was given; else what the adapters were fine-tuned with; else what preprocess proposed.

    Raises:
        ConfigError: the file cannot be used, or what an adapter's record holds.
        InputError: an adapter's record is damaged.
    """
    if config.alternatives is not None:
        return load_alternatives(config.alternatives)
    trained: list[Alternative] = []
    for record in [path / RUN_FILE for path in config.adapters if (path / RUN_FILE).is_file()]:
        if told := read_json(record).get("request", {}).get("alternatives"):
            trained += alternatives_of(told, record)
    if trained:
        return list(dict.fromkeys(trained))
    proposed = config.dataset / ALTERNATIVES if config.dataset is not None else None
    return load_alternatives(proposed) if proposed is not None and proposed.is_file() else []


def _robot(of: PolicySpec | Dataset) -> tuple[list[str], list[str], list[str], float]:
    """What must agree for a policy to be fed with recordings."""
    return of.state_names, of.action_names, of.cameras, round(of.rate_hz, 3)


def _told(of: PolicySpec | Dataset) -> str:
    named = {"state": of.state_names, "actions": of.action_names}
    parts = [
        f"{what} {', '.join(names[:3])}{', ...' * (len(names) > 3)} ({len(names)})" for what, names in named.items()
    ]
    return f"{', '.join(parts)}, cameras {', '.join(of.cameras)}, {of.rate_hz:g} Hz"


def _not_held_out(config: SteerConfig, prepared: _Prepared) -> list[str]:
    """Policies to which the dataset's held-out episodes may be known, because they were trained on another one."""
    found, used = [], prepared.request["dataset"]["digest"]
    for name, path in zip(prepared.specs, config.adapters, strict=True):
        record = path / RUN_FILE
        dataset = read_json(record).get("request", {}).get("dataset") if record.is_file() else None
        if not isinstance(dataset, dict) or "digest" not in dataset:
            found.append(f"{name}: it does not say what it was trained on: perhaps on the very episodes measured here.")
        elif dataset["digest"] != used:
            found.append(
                f"{name}: it was trained on another dataset than {config.dataset}, or on the same preprocessed "
                "otherwise: perhaps on the very episodes that are held out here."
            )
    return found


def _report(
    config: SteerConfig, world: Any, specs: dict[str, PolicySpec], request: dict[str, Any], findings: Findings
) -> Report:
    described = [{"name": BASE, "recipe": "", "digest": request["base"]}]
    for (name, spec), path in zip(specs.items(), config.adapters, strict=True):
        described.append({"name": name, "recipe": spec.recipe, "digest": digest(path)})
    settings = {
        "world": world.label if world is not None else None,
        "trained_instructions": _trained_on(specs),
        "episodes": config.episodes,
        "seed": config.seed,
        "guidance": _described_guidance(config, specs, world),
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
