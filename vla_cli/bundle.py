"""The artefact `bundle/`: what goes to the robot.

adapter_config.json, adapter_model.safetensors   what `PeftModel.from_pretrained` reads   (not for full fine-tuning)
policy.json       how to feed the policy and read its actions
merged/           the merged model in the base's own layout, with tokenizer and policy.json   (on request)
report/           the steerability report, when given
README.md         the model card
digests.json      SHA-256 of every file of the bundle but itself
run.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_cli import __version__
from vla_cli.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FILE_NAME, PolicySpec
from vla_cli.errors import InputError
from vla_cli.files import digest_file, read_json, write_json, write_text
from vla_cli.report import Report, table, to_markdown, transposed

CARD, DIGESTS, MERGED, REPORT = "README.md", "digests.json", "merged", "report"
PEFT_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


def write_digests(bundle: Path) -> dict[str, str]:
    """Write `digests.json` over every file of a bundle, and return it."""
    files = sorted(p for p in bundle.rglob("*") if p.is_file() and p.name not in (DIGESTS, "request.json"))
    digests = {file.relative_to(bundle).as_posix(): digest_file(file) for file in files}
    write_json(bundle / DIGESTS, digests)
    return digests


def verify_digests(bundle: Path) -> int:
    """Check a bundle against its `digests.json`; the number of files checked.

    Raises:
        InputError: a file is missing or was changed.
    """
    digests = read_json(bundle / DIGESTS)
    for name, expected in digests.items():
        file = bundle / name
        if not file.is_file() or digest_file(file) != expected:
            state = "was changed" if file.is_file() else "is missing"
            raise InputError(f"{file} {state} since the bundle was written", hint="vla export-adapter again")
    return len(digests)


def write_card(
    bundle: Path, spec: PolicySpec, run: dict[str, Any], report: Report | None, differences: dict[str, float]
) -> None:
    """Write the model card from what is known: nothing in it is a blank to fill in.

    Args:
        bundle: its directory.
        spec: the policy's facts.
        run: the adapter's `run.json`.
        report: the steerability report, when there is one.
        differences: artefact to maximum absolute action difference from the adapter's own actions.
    """
    write_text(bundle / CARD, "\n".join(_card(spec, run, report, differences)) + "\n")


def _card(spec: PolicySpec, run: dict[str, Any], report: Report | None, differences: dict[str, float]) -> list[str]:
    base = spec.base.name if spec.base else "unknown"
    lines = [
        "---",
        f"library_name: {'peft' if spec.kind == 'lora' else 'transformers'}",
        f"base_model: {base}",
        "tags: [robotics, vision-language-action, vla-cli]",
        "---",
        "",
        f"# A {spec.recipe} adaptation of {base}",
        "",
        f"Trained by vla-cli {run.get('version', __version__)} on {run['counts']['train_episodes']} demonstrations "
        f"({run['counts']['train_windows']} frames) of:",
        "",
        *[f"- {text}" for text in spec.instructions or ["(no instruction)"]],
        "",
        "## How to feed it",
        "",
        *_feeding(spec),
        "",
        "## How to load it",
        "",
        *_loading(spec, base),
        "",
        "## Does it still listen?",
        "",
        *_steerability(report),
        "",
        "## Provenance",
        "",
        f"- base: `{base}`, {spec.base.digest if spec.base else 'unknown'}"
        + (f", revision {spec.base.revision}" if spec.base and spec.base.revision else ""),
        f"- dataset: {run['request']['dataset']['name']}, {run['request']['dataset']['digest']}",
        f"- recipe: {spec.recipe}, {run['counts']['steps']} steps, seed {run['request']['seed']}",
        *[f"- {name}: actions differ from the adapter's own by at most {d:.3g}" for name, d in differences.items()],
        "- every file's SHA-256: `digests.json`",
    ]
    warnings = run.get("warnings", [])
    if warnings:
        lines += ["", "## Warnings of the training run", "", *[f"- {text}" for text in warnings]]
    return lines


def _feeding(spec: PolicySpec) -> Sequence[str]:
    return [
        f"- cameras, in this order: {', '.join(spec.cameras)}; RGB, resized to {spec.image_size} pixels square",
        f"- state ({len(spec.state_names)}): {', '.join(spec.state_names) or 'none'}",
        f"- actions ({len(spec.action_names)}): {', '.join(spec.action_names)}; raw units as recorded",
        f"- control rate {spec.rate_hz:g} Hz; chunks of {spec.chunk_size} steps, execute {spec.execute_steps}, "
        "then ask again",
        f"- normalisation statistics (from the {spec.statistics_from}) and all of the above, for machines: "
        f"`{FILE_NAME}`",
    ]


def _loading(spec: PolicySpec, base: str) -> Sequence[str]:
    if spec.kind == "full":
        return ["Full fine-tuning has no adapter: `merged/` is the whole model, in the base's own layout."]
    return [
        "```python",
        "from peft import PeftModel",
        "from transformers import PI0ForConditionalGeneration",
        "",
        f'base = PI0ForConditionalGeneration.from_pretrained("{base}")',
        'policy = PeftModel.from_pretrained(base, "path/to/this/bundle")',
        "```",
    ]


def _steerability(report: Report | None) -> Sequence[str]:
    if report is None:
        return ["Not measured. `vla eval-steer ADAPTER --out REPORT`, then export again with `--report REPORT`."]
    lines = [f"Measured {report.kind}, 95% intervals; `report/report.html` shows it.", ""]
    for metric in report.metrics:
        lines += [f"**{metric}**", "", to_markdown(*transposed(*table(report, metric))).rstrip("\n"), ""]
    return [*lines, *[f"Warning: {text}" for text in report.warnings]]
