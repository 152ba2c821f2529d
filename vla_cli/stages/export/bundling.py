"""The bundle of one adapter: its files, reloaded and compared before they are published."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_cli.adapter import FILE_NAME as SPEC_FILE
from vla_cli.adapter import FLOW, MERGED, TOKENIZER, TOKENIZER_HERE, PolicySpec, save_spec, tokenizer_files
from vla_cli.bundle import ADAPTER_FILES, REPORT, Outcome, write_card, write_digests
from vla_cli.calibration import FILE_NAME as DOMAIN_FILE
from vla_cli.calibration import FOLDER as CALIBRATION
from vla_cli.configs import ExportConfig
from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json
from vla_cli.policies.adaptation import save_merged
from vla_cli.policies.checkpoint import BaseFiles, locate_tokenizer
from vla_cli.policies.loading import load_policy
from vla_cli.policies.policy import Policy
from vla_cli.progress import Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord
from vla_cli.stages.export.preparation import STAGE, Prepared
from vla_cli.suites import Actor

PROBES = 16
PROCESSOR = "processor_config.json"
EVALUATION = "evaluation.json"
LEROBOT = ("policy_preprocessor", "policy_postprocessor")
"""How the names of the files begin in which LeRobot keeps normalisation statistics."""
LARGEST_DIFFERENCE = 1e-3
"""Of an action's standard deviation: float32 rounding of a merge stays far below, a lost key far above."""


def write_bundle(config: ExportConfig, prepared: Prepared, partial: Path, progress: Progress) -> None:
    """Write the files of one adapter's bundle into `partial`, all but what lies there already of other bundles.

    Raises:
        InputError: the adapter cannot be used, or what is written does not act as it does.
    """
    spec, base, files, report = prepared.spec, prepared.base, prepared.files, prepared.report
    policy = load_policy(base, config.adapter, device="cpu")
    expected = probe(policy, spec)
    outcome = Outcome()
    run_document = read_json(config.adapter / RUN_FILE)
    progress.start("exporting", 2)
    for name in ADAPTER_FILES if spec.is_beside_base else ():
        shutil.copyfile(config.adapter / name, partial / name)
    save_spec(_with_tokenizer(spec, files, partial), partial)
    _copy_calibration(config.adapter, partial)
    if spec.kind != "full":
        outcome.differences["adapter"] = difference_to(load_policy(base, partial, device="cpu"), spec, expected)
    progress.advance()
    if config.merge or spec.kind == "full":
        _write_merged(policy, spec, files, partial / MERGED, outcome)
        _copy_calibration(config.adapter, partial / MERGED)
        _compare_merged(policy, expected, partial / MERGED, outcome)
    progress.advance()
    for warning in outcome.warnings:
        progress.note(warning)
    if config.report is not None:
        shutil.copytree(config.report, partial / REPORT)
    write_card(partial, spec, run_document, report, outcome)
    record = RunRecord(STAGE, prepared.request, warnings=[*run_document.get("warnings", []), *outcome.warnings])
    for name, why in outcome.left_out.items():
        record.skip(f"{MERGED}/{name}", why)
    record.facts = {
        "max_abs_action_difference": outcome.differences,
        "base_changed_by": _base_distance(base, spec, expected),
    }
    record.counts = {"files": sum(p.is_file() for p in partial.rglob("*")) + 1}
    record.save(partial)
    write_digests(partial)


def _copy_calibration(adapter: Path, out: Path) -> None:
    """The pictures that belong to the calibration in `policy.json`, where there are any."""
    if (adapter / CALIBRATION).is_dir():
        shutil.copytree(adapter / CALIBRATION, out / CALIBRATION)


def _with_tokenizer(spec: PolicySpec, files: BaseFiles, bundle: Path) -> PolicySpec:
    """Put a tokenizer that does not come with the base into the bundle; the spec that says where it is now."""
    if not spec.tokenizer:
        return spec
    _copy_tokenizer(spec, files, bundle / TOKENIZER)
    return replace(spec, tokenizer=TOKENIZER_HERE)


def _copy_tokenizer(spec: PolicySpec, files: BaseFiles, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for file in tokenizer_files(locate_tokenizer(files, spec.tokenizer)):
        shutil.copyfile(file, out / file.name)


def _write_merged(policy: Policy, spec: PolicySpec, files: BaseFiles, out: Path, outcome: Outcome) -> None:
    """The merged model with what the base carries beside its weights, as far as that is true of it."""
    out.mkdir()
    # a tokenizer from elsewhere takes the place of what the base has of one
    replaced = tokenizer_files(files.directory) if spec.tokenizer else []
    for file in sorted(set(files.directory.iterdir()).difference(replaced)):
        beside = file.suffix in (".json", ".jinja", ".model", ".txt") or file.name.startswith(LEROBOT)
        if not (file.is_file() and beside) or _is_rewritten(file.name):
            continue
        if why := _untrue(file.name, spec):
            outcome.left_out[file.name] = why
        else:
            shutil.copyfile(file, out / file.name)
    if statistics := [name for name in outcome.left_out if name.startswith(LEROBOT)]:
        outcome.warnings.append(
            f"merged/ is without the base's {', '.join(statistics)}: their normalisation statistics are the base's, "
            "and this policy's are the demonstrations'. LeRobot cannot feed merged/ without statistics of its own."
        )
    if spec.family == FLOW:
        _rewrite_statistics(out / PROCESSOR, spec)
    if spec.tokenizer:
        _copy_tokenizer(spec, files, out)
    save_merged(policy.model, out)
    save_spec(spec.merged(), out)


def _compare_merged(policy: Policy, expected: np.ndarray, merged: Path, outcome: Outcome) -> None:
    """Compare the merged model with its adapter, and say where trained weights act in the base's own domain."""
    spec = policy.spec
    knows_both = policy.calibration is not None and policy.calibration.by_picture
    # what is merged cannot be switched off in the base's own domain: there the two differ on purpose
    switched = spec.kind == "lora" and knows_both
    rows = slice(0, None, 2) if switched else slice(None)
    outcome.differences[MERGED] = difference_to(load_policy(str(merged), device="cpu"), spec, expected, rows)
    if switched:
        outcome.in_deployment.append(MERGED)
        outcome.warnings.append(
            "merged/ acts with the trained weights in the base's own domain too; the adapter is switched off there."
        )
    if spec.kind == "full" and knows_both:
        outcome.warnings.append(
            "This policy acts with the trained weights in the base's own domain too: weights trained in full cannot be "
            "switched off there. What the base could do there, the base itself still can."
        )


def _is_rewritten(name: str) -> bool:
    """Whether a base's file describes its weights: the merged model has its own of that name."""
    return name in (SPEC_FILE, "config.json") or name.endswith(".index.json")


def _untrue(name: str, spec: PolicySpec) -> str:
    """Why a base's file would be false beside other weights or statistics; empty where it still holds."""
    if name == RUN_FILE:
        return "it records how the base was made"
    if name == EVALUATION:
        return "it holds what was measured of the base"
    if name == DOMAIN_FILE and not spec.calibration:
        return "weights that were trained on the deployment as it is no longer live in the base's domain"
    if name.startswith(LEROBOT) and spec.statistics_from == "dataset":
        return "its normalisation statistics are the base's, this policy's are the demonstrations'"
    return ""


def _rewrite_statistics(path: Path, spec: PolicySpec) -> None:
    """Put the policy's statistics where transformers' `PI0Processor` looks for them, when the base has such a file."""
    document = read_json(path) if path.is_file() else None
    if not isinstance(document, dict):
        return
    for key, statistics in (("state", spec.state), ("actions", spec.actions)):
        # what is not normalised is divided by one
        document[f"{key}_mean"] = np.where(statistics.mask, statistics.mean, 0.0).tolist()
        document[f"{key}_std"] = np.where(statistics.mask, statistics.std, 1.0).tolist()
    write_json(path, document)


def probe(policy: Actor, spec: PolicySpec) -> np.ndarray:
    """Normalised actions [PROBES, T, A] on fixed made-up observations: any change of the weights shows in them.

    Args:
        policy: who acts.
        spec: of the adapter, which says what the observations look like.
    """
    rng = np.random.default_rng(0)
    images = _probe_images(spec, rng)
    state = spec.state.unnormalise(rng.standard_normal((PROBES, len(spec.state_names))))
    instructions = [(spec.instructions or [""])[i % max(1, len(spec.instructions))] for i in range(PROBES)]
    noise = rng.standard_normal(policy.noise_shape(PROBES), np.float32)
    return spec.actions.normalise(policy.act(images, state, instructions, noise))


def _probe_images(spec: PolicySpec, rng: np.random.Generator) -> np.ndarray:
    """Random pictures uint8 [PROBES, C, H, W, 3].

    A calibration tells its deployment from the base's own domain by the median colour: of the pictures for such a
    policy every other one has the deployment's, the rest the base's.
    """
    size = spec.image_size
    images = rng.integers(0, 256, (PROBES, len(spec.cameras), size, size, 3), np.uint8)
    for start, key in enumerate(("medians", "base_medians")):
        if key in spec.calibration:
            tint = np.array(spec.calibration[key], np.float32)[:, None, None] / np.median(np.arange(256))
            images[start::2] = np.clip(images[start::2] * tint + 0.5, 0, 255).astype(np.uint8)
    return images


def difference_to(reloaded: Actor, spec: PolicySpec, expected: np.ndarray, rows: slice = slice(None)) -> float:
    """Maximum absolute difference of a reloaded policy's actions on some of the probes, in standard deviations.

    Raises:
        InputError: it is more than rounding.
    """
    difference = float(np.abs(probe(reloaded, spec) - expected)[rows].max())
    if not difference <= LARGEST_DIFFERENCE:
        raise InputError(
            f"The exported model acts differently from the adapter (by up to {difference:.3g} standard deviations)",
            expected=f"at most {LARGEST_DIFFERENCE:g}",
            hint="vla finetune again, and report this: the export lost something",
        )
    return difference


def _base_distance(base: str, spec: PolicySpec, adapted: np.ndarray) -> float:
    """How far the adapted actions are from the bare base's on the same probes.

    Never zero for trained weights. A calibration of the gripper's delay alone may well leave all probes as they are.

    Raises:
        InputError: trained weights change nothing.
    """
    bare = load_policy(base, device="cpu", spec=replace(spec, calibration={}))
    distance = float(np.abs(probe(bare, spec) - adapted).max())
    if distance == 0.0 and spec.kind != "frozen":
        raise InputError("The adapter changes no action at all", hint="vla finetune with more --steps")
    return distance
