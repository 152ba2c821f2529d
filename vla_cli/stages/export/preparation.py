"""What an export was asked for, checked and read before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_cli.adapter import FILE_NAME as SPEC_FILE
from vla_cli.adapter import PolicySpec, check_base, load_adapter_spec
from vla_cli.configs import ExportConfig
from vla_cli.errors import InputError
from vla_cli.files import digest
from vla_cli.policies.adaptation import unmergeable
from vla_cli.policies.checkpoint import BaseFiles, locate_base
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import describe_input, not_an_artefact, written_by
from vla_cli.recipe import BOTTLENECK
from vla_cli.report import Report, load_report

STAGE = "export-adapter"


@dataclass(frozen=True)
class Prepared:
    """What is known of one adapter before anything is loaded: all that a dry run can refuse.

    Attributes:
        spec: of the adapter.
        base, files: of the adapter's base, as named and where it is.
        report: to travel with the bundle.
        request: what determines the bundle.
    """

    spec: PolicySpec
    base: str
    files: BaseFiles
    report: Report | None
    request: dict[str, Any]


def prepare(config: ExportConfig) -> Prepared:
    """Read all that the options name of one adapter but weights.

    Raises:
        ConfigError: an adapter that cannot be merged.
        InputError: adapter, base or report that cannot be used.
    """
    if written_by(config.adapter) == STAGE:
        raise not_an_artefact(config.adapter, SPEC_FILE, "finetune")
    spec = load_adapter_spec(config.adapter)
    _check_not_the_base_itself(spec, config)
    if config.merge and spec.kind == BOTTLENECK:
        raise unmergeable(f"--merge is given, but {config.adapter}")
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
    # newer options: what older versions wrote is what is asked for without them
    for key in ("beside", "elsewhere"):
        del request[key]
    return Prepared(spec, base, files, report, request)


def _check_not_the_base_itself(spec: PolicySpec, config: ExportConfig) -> None:
    """Refuse an adapter that holds neither weights nor a transform.

    Raises:
        InputError: it is one.
    """
    if spec.kind == "frozen" and not spec.calibration.get("parts"):
        raise InputError(
            f"{config.adapter} changes nothing: it holds no weights and no calibration, so it is the base itself",
            expected="trained weights, or at least one transform that was fitted",
            hint=f"the base as it is, or vla finetune --recipe lora (see 'skipped' in {config.adapter / RUN_FILE})",
        )


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
