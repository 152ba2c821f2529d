"""A policy ready to act, whatever its family: a base, with an adapter when given."""

from __future__ import annotations

from pathlib import Path

from vla_cli.adapter import TASK_ADAPTERS, PolicySpec, check_base, check_tokenizer, has_spec, load_spec
from vla_cli.calibration import Calibration
from vla_cli.errors import InputError
from vla_cli.policies.checkpoint import attach, family_of, load_base, locate_base, locate_tokenizer
from vla_cli.policies.device import pick_device
from vla_cli.policies.policy import Policy


def load_policy(
    base: str | Path, adapter: str | Path | None = None, *, device: str = "auto", spec: PolicySpec | None = None
) -> Policy:
    """Load a policy ready to act: a base, with an adapter when given.

    Args:
        base: directory or hub id.
        adapter: directory written by finetune or export-adapter.
        device: "cpu", "cuda" or "auto".
        spec: how to feed a base that carries no `policy.json`; with an adapter, the adapter's own is used.

    Raises:
        InputError: see `load_base` and `attach`; or the adapter belongs to another base, or another tokenizer; or a
            base without `policy.json` is loaded without a spec.
    """
    base, adapter = str(base), Path(adapter) if adapter is not None else None
    if adapter is not None:
        spec = load_spec(adapter)
        _check_single(spec, adapter)
    elif spec is None:
        spec = load_spec(locate_base(base).directory)
    model, prompts, files = load_base(base, tokenizer=spec.tokenizer)
    check_tokenizer(spec, locate_tokenizer(files, spec.tokenizer))
    if adapter is not None:
        check_base(spec, files.reference.digest, base)
        model = attach(model, adapter, spec)
    policy = family_of(files.directory).policy(model, prompts, spec, pick_device(device))
    directory = adapter if adapter is not None else files.directory
    if spec.calibration and (adapter is not None or has_spec(directory)):
        policy.calibrate(Calibration.load(spec.calibration, directory))
    return policy


def _check_single(spec: PolicySpec, adapter: Path) -> None:
    """Refuse what is no single policy.

    Raises:
        InputError: it holds several adapters.
    """
    if spec.family == TASK_ADAPTERS:
        raise InputError(
            f"{adapter} holds several adapters ('{spec.family}'), each for its own task",
            expected="one adapter",
            hint="vla_cli.policies.task_adapters.load, or one of the folders in its adapters/",
        )
