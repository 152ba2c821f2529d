"""A calibration as a fine-tuning asks for it: fitted where something says what the base's own domain is, and told.

What was left out, what is doubtful, and why nothing was calibrated at all go into the run's record.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_cli.adapter import PolicySpec, has_spec
from vla_cli.calibration import Calibration, DomainFacts, calibrate, load_domain, measure_domain
from vla_cli.calibration.fixtures import doubts
from vla_cli.dataset import Dataset
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord
from vla_cli.windows import Windows


def fit_calibration(
    dataset: Dataset,
    spec: PolicySpec,
    base: Path,
    replay: Windows | None,
    *,
    only_here: bool,
    record: RunRecord,
    progress: Progress,
) -> Calibration | None:
    """Transforms between the deployment of a dataset and the base's own domain.

    Args:
        dataset: its demonstrations for training are fitted to.
        spec: how the adapted policy is to be fed.
        base: directory of the base.
        replay: base-domain windows, to measure that domain on where the base does not say.
        only_here: the policy will never meet the base's own domain.
        record: what was left out, and doubts, go there.
        progress: is told the same.

    Returns:
        The calibration; None where nothing says what the base's domain is.
    """
    facts, why = domain_facts(spec, base, replay)
    if facts is None:
        record.warn(f"Nothing was calibrated: {why}")
        progress.note(record.warnings[-1])
        return None
    calibration = calibrate(dataset.split("train"), spec.cameras, facts)
    calibration = replace(calibration, only_here=only_here)
    for part, reason in calibration.skipped.items():
        record.skip(f"calibration/{part}", reason)
        progress.note(f"calibration: {part} was left out: {reason}")
    for doubt in doubts(calibration.cameras, calibration.looks):
        record.warn(f"calibration: {doubt}")
        progress.note(record.warnings[-1])
    progress.note(f"calibrated: {', '.join(calibration.parts) or 'nothing differs from the base'}")
    record.facts["calibration"] = calibration.document()
    return calibration


def domain_facts(spec: PolicySpec, base: Path, replay: Windows | None) -> tuple[DomainFacts | None, str]:
    """Facts about the base's own domain: from `domain.json` or from base-domain data; or why there are none.

    Args:
        spec: how the adapted policy is to be fed.
        base: directory of the base.
        replay: base-domain windows.
    """
    if spec.statistics_from != "base":
        if not has_spec(base):
            return None, (
                "the base carries no policy.json, so that nothing says how its own robot was fed; the dataset's "
                "statistics are used, and commands in its terms are no base's to bring anything to."
            )
        return None, "the robot is new to the base (other state or action dimensions, or other units)."
    facts = load_domain(base)
    if facts is None and replay is not None:
        facts = measure_domain(replay.demonstrations, spec.cameras)
    if facts is None:
        return None, (
            "the base carries no domain.json, and there is no base-domain data to measure its domain from. "
            "--replay with episodes of the base's own domain."
        )
    if len(facts.looks) != len(spec.cameras):
        return None, f"the base's domain has {len(facts.looks)} camera(s), the dataset {len(spec.cameras)}."
    return facts, ""
