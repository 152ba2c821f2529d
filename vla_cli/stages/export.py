"""`vla export-adapter`: an adapter becomes a bundle for the robot, reloaded and compared before it is published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.adapter import FILE_NAME as SPEC_FILE
from vla_cli.adapter import PolicySpec, check_base, load_spec, save_spec
from vla_cli.bundle import MERGED, PEFT_FILES, REPORT, write_card, write_digests
from vla_cli.configs import ExportConfig
from vla_cli.errors import InputError
from vla_cli.files import building, check_output, digest, is_complete, read_json
from vla_cli.policies.adaptation import save_merged
from vla_cli.policies.checkpoint import BaseFiles, locate_base
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.report import Report, load_report

STAGE = "export-adapter"
PROBES = 16
LARGEST_DIFFERENCE = 1e-3
"""Of an action's standard deviation: float32 rounding of a merge stays far below, a lost key far above."""


def plan(config: ExportConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    spec = load_spec(config.adapter)
    merged = config.merge or spec.kind == "full"
    parts = [*(PEFT_FILES if spec.kind == "lora" else ()), SPEC_FILE, *([MERGED] if merged else [])]
    return {"stage": STAGE, "dry_run": True, "out": str(config.out), "kind": spec.kind, "parts": parts}


def run(config: ExportConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `bundle/`.

    Raises:
        ConfigError: an output in the way.
        InputError: adapter, base or report that cannot be used, or a bundle that does not act as its adapter.
    """
    check_output(config.out, overwrite=config.overwrite, resume=config.resume)
    spec = load_spec(config.adapter)
    base = config.base or (spec.base.name if spec.base else "")
    files = locate_base(base)
    check_base(spec, files.reference.digest, base)
    report = _matching_report(config)
    request = {
        **config.request(),
        "adapter": describe_input(config.adapter),
        "base": files.reference.digest,
        "report": describe_input(config.report) if config.report else None,
    }
    if not is_complete(config.out, request, resume=config.resume):
        with building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial:
            _write(config, spec, base, files, report, request, partial, progress)
    document = read_json(config.out / RUN_FILE)
    for name, difference in document["facts"]["max_abs_action_difference"].items():
        progress.note(f"{name} reloaded: maximum absolute action difference {difference:.3g}")
    return {"stage": STAGE, "out": str(config.out), "kind": spec.kind, **document["facts"], **document["counts"]}


def _matching_report(config: ExportConfig) -> Report | None:
    if config.report is None:
        return None
    report, own = load_report(config.report), digest(config.adapter)
    if own not in [policy.get("digest") for policy in report.policies]:
        raise InputError(
            f"The report {config.report} is about other policies ({', '.join(report.policy_names)}), not this adapter",
            expected=f"a report that covers {own[:19]}...",
            hint=f"vla eval-steer {config.adapter} --out {config.report} --overwrite",
        )
    return report


def _write(
    config: ExportConfig,
    spec: PolicySpec,
    base: str,
    files: BaseFiles,
    report: Report | None,
    request: dict[str, Any],
    partial: Path,
    progress: Progress,
) -> None:
    # a resumed export starts over: there is nothing slow to keep
    for entry in [p for p in partial.iterdir() if p.name != "request.json"]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    policy = load(base, config.adapter, device="cpu")
    expected = _probe(policy)
    differences = {}
    progress.start("exporting", 2)
    if spec.kind == "lora":
        for name in (*PEFT_FILES, SPEC_FILE):
            shutil.copyfile(config.adapter / name, partial / name)
        differences["adapter"] = _difference(load(base, partial, device="cpu"), expected)
    else:
        shutil.copyfile(config.adapter / SPEC_FILE, partial / SPEC_FILE)
    progress.advance()
    if config.merge or spec.kind == "full":
        _write_merged(policy, spec, files, partial / MERGED)
        differences[MERGED] = _difference(load(str(partial / MERGED), device="cpu"), expected)
    progress.advance()
    if config.report is not None:
        shutil.copytree(config.report, partial / REPORT)
    run_document = read_json(config.adapter / RUN_FILE)
    write_card(partial, spec, run_document, report, differences)
    record = RunRecord(STAGE, request)
    record.facts = {"max_abs_action_difference": differences, "base_changed_by": _base_distance(base, spec, expected)}
    record.counts = {"files": sum(p.is_file() for p in partial.rglob("*")) + 1}
    record.save(partial)
    write_digests(partial)


def _write_merged(policy: FlowPolicy, spec: PolicySpec, files: BaseFiles, out: Path) -> None:
    """The merged model with everything the base carries beside its weights."""
    out.mkdir()
    for file in sorted(files.directory.iterdir()):
        if file.is_file() and file.suffix in (".json", ".model", ".txt") and not _is_rewritten(file.name):
            shutil.copyfile(file, out / file.name)
    save_merged(policy.model, out)
    save_spec(spec.merged(), out)


def _is_rewritten(name: str) -> bool:
    """Whether a base's file belongs to its weights or its record, which the merged model has of its own."""
    return name in (SPEC_FILE, RUN_FILE, "config.json") or name.endswith(".index.json")


def _probe(policy: FlowPolicy) -> np.ndarray:
    """Normalised actions [PROBES, T, A] on fixed made-up observations: any change of the weights shows in them."""
    spec, rng = policy.spec, np.random.default_rng(0)
    size = spec.image_size
    images = rng.integers(0, 256, (PROBES, len(spec.cameras), size, size, 3), np.uint8)
    state = spec.state.unnormalise(rng.standard_normal((PROBES, len(spec.state_names))))
    instructions = [(spec.instructions or [""])[i % max(1, len(spec.instructions))] for i in range(PROBES)]
    noise = rng.standard_normal(policy.noise_shape(PROBES), np.float32)
    return spec.actions.normalise(policy.act(images, state, instructions, noise))


def _difference(reloaded: FlowPolicy, expected: np.ndarray) -> float:
    """Maximum absolute difference of a reloaded policy's actions, in standard deviations.

    Raises:
        InputError: it is more than rounding.
    """
    difference = float(np.abs(_probe(reloaded) - expected).max())
    if not difference <= LARGEST_DIFFERENCE:
        raise InputError(
            f"The exported model acts differently from the adapter (by up to {difference:.3g} standard deviations)",
            expected=f"at most {LARGEST_DIFFERENCE:g}",
            hint="vla finetune again, and report this: the export lost something",
        )
    return difference


def _base_distance(base: str, spec: PolicySpec, adapted: np.ndarray) -> float:
    """How far the adapted actions are from the bare base's on the same probes: never zero for a working adapter."""
    distance = float(np.abs(_probe(load(base, device="cpu", spec=spec)) - adapted).max())
    if distance == 0.0:
        raise InputError("The adapter changes no action at all", hint="vla finetune with more --steps")
    return distance
