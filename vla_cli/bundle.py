"""The artefact `bundle/`: what goes to the robot.

adapter_config.json, adapter_model.safetensors   what `PeftModel.from_pretrained` reads   (where LoRA was trained)
policy.json       how to feed the policy and read its actions; its calibration
calibration/      pictures that belong to the calibration, when there is one
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

import numpy as np

from vla_cli import __version__
from vla_cli.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FILE_NAME, PolicySpec
from vla_cli.calibration import FOLDER as CALIBRATION
from vla_cli.calibration.camera import CameraMap, between
from vla_cli.errors import InputError
from vla_cli.files import digest_file, read_json, write_json, write_text
from vla_cli.guidance import PLAIN_KIND, read_default
from vla_cli.report import Report, table, to_markdown, transposed

CARD, DIGESTS, REPORT = "README.md", "digests.json", "report"
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
    if not isinstance(digests, dict):
        raise InputError(f"{bundle / DIGESTS} is malformed ({type(digests).__name__})", hint="vla export-adapter again")
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
        f"{'Calibrated' if spec.kind == 'frozen' else 'Trained'} by vla-cli {run.get('version', __version__)} on "
        f"{run['counts']['train_episodes']} demonstrations ({run['counts']['train_windows']} frames) of:",
        "",
        *[f"- {text}" for text in spec.instructions or ["(no instruction)"]],
        "",
        *_weights(spec),
        *_calibration(spec),
        "",
        "## How to feed it",
        "",
        *_feeding(spec),
        "",
        "## How to load it",
        "",
        *_loading(spec, base),
        *_guidance(spec),
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
        f"- cameras, in this order: {', '.join(spec.cameras)}; RGB, "
        + (f"padded with black to squares of {spec.squared} pixels and " if spec.squared else "stretched and ")
        + f"resized to {spec.image_size} pixels square (`act` does it)",
        f"- state ({len(spec.state_names)}): {', '.join(spec.state_names) or 'none'}",
        f"- actions ({len(spec.action_names)}): {', '.join(spec.action_names)}; raw units as recorded",
        f"- control rate {spec.rate_hz:g} Hz; chunks of {spec.chunk_size} steps, execute {spec.execute_steps}, "
        "then ask again",
        f"- normalisation statistics (from the {spec.statistics_from}) and all of the above, for machines: "
        f"`{FILE_NAME}`",
    ]


def _weights(spec: PolicySpec) -> Sequence[str]:
    changed = {
        "lora": "Adapter weights beside the base's own were trained.",
        "full": "Weights of the base itself were trained.",
        "frozen": "No weight was trained: the base's own are used as they are.",
    }
    return [changed.get(spec.kind, "")]


def _calibration(spec: PolicySpec) -> Sequence[str]:
    """What the transforms do, in words and numbers."""
    found = spec.calibration
    if not found.get("parts"):
        return []
    lines = ["", "## Calibration", "", "Between this deployment and the base these transforms are applied:", ""]
    say = {"look": _look, "camera": _camera, "action": _action, "delay": _delay, "timing": _timing}
    for part in found["parts"]:
        lines += [f"- **{part}**: {sentence}" for sentence in say[part](found)]
    lines += [f"- left out: {part} ({reason})" for part, reason in found["skipped"].items()]
    return [*lines, "", _when(found)]


def _look(found: dict[str, Any]) -> list[str]:
    sentences = []
    for camera, look in zip(found["cameras"], found["looks"], strict=True):
        if look is None:
            continue
        red, green, blue = look["light"]
        # the lighting field's first coefficient is its mean, which is no unevenness
        uneven = max(abs(value) for value in look["lighting"][1:])
        sentences.append(
            f"in {camera}, light gains on red {red:.2f}, green {green:.2f}, blue {blue:.2f} "
            f"(from the {look['light_from']})"
            + (", uneven light across the picture evened out" if uneven > 0.01 else "")
            + (f"; the bare table ({CALIBRATION}/table_{camera}.png) becomes the base's" if look["backdrop"] else "")
            + (
                f", and what has the colour {_colour(look['landmark'][0])} here gets {_colour(look['landmark'][1])}"
                if look["landmark"]
                else ""
            )
        )
    return sentences


def _camera(found: dict[str, Any]) -> list[str]:
    height, width = found["image_size"]
    size = np.array([width, height])
    sentences = []
    for camera, maps in zip(found["cameras"], found["warps"], strict=True):
        if maps is None:
            continue
        linear, shift = between(*map(CameraMap.from_document, maps))
        places = np.array([[0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]])
        moved = (places @ linear.T + shift - places) * size
        turned = np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
        sentences.append(
            f"{camera} shows the middle of the base's picture shifted by {moved[0, 0]:+.1f} pixels (right) and "
            f"{moved[0, 1]:+.1f} (down) of {width} x {height}, turned by {abs(turned):.1f} degrees "
            f"{'clockwise' if turned > 0 else 'counter-clockwise'} and "
            f"{np.sqrt(abs(np.linalg.det(linear))):.2f} times as large; in the corners by up to "
            f"{np.linalg.norm(moved[1:], axis=1).max():.1f} pixels. Pictures are redrawn as the base's camera saw them"
        )
    return sentences


def _action(found: dict[str, Any]) -> list[str]:
    rows = "; ".join(" ".join(f"{value + 0.0:.3f}" for value in row) for row in found["ratio"])
    commands = ", ".join(str(index) for index in found["actions"]["commands"])
    return [
        f"commands (action dimensions {commands}) of this robot times the gain matrix [{rows}] are the base's: "
        "what the base commands is divided by it, up to the largest command demonstrated"
    ]


def _delay(found: dict[str, Any]) -> list[str]:
    return [f"the gripper acts {found['delay']} control steps later than the base's: the arm waits for it"]


def _timing(found: dict[str, Any]) -> list[str]:
    names = {"open": "with open fingers", "closed": "with closed fingers", "closing": "while closing the fingers"}
    names["opening"] = "while opening them"
    limits = [f"{names[key]} {value:.2f}" for key, value in found["timing"].items() if value is not None]
    return [f"paths are followed at the demonstrated speeds, at most (share of a full command) {', '.join(limits)}"]


def _when(found: dict[str, Any]) -> str:
    here, base = (", ".join(_colour(median) for median in found[key]) for key in ("medians", "base_medians"))
    if found["on"] == "always":
        return "They are always on: this deployment's pictures cannot be told from the base's own domain by colour."
    return (
        f"They are on for pictures whose median colour is nearer to this deployment's ({here}) than to the base's own "
        f"domain's ({base}); other pictures are left alone. They hold for this camera, light and robot: calibrate "
        "again when one is moved."
    )


def _colour(values: Sequence[float]) -> str:
    return "RGB " + "/".join(f"{value:.0f}" for value in values)


def _loading(spec: PolicySpec, base: str) -> Sequence[str]:
    with_calibration = bool(spec.calibration.get("parts"))
    if spec.kind == "full":
        lines = ["Full fine-tuning has no adapter: `merged/` is the whole model, in the base's own layout."]
        return [*lines, "", *_vla_loading('"path/to/this/bundle/merged"')] if with_calibration else lines
    own = _vla_loading(f'"{base}", Path("path/to/this/bundle")')
    if spec.kind == "frozen":
        return [
            *own,
            "",
            "There are no weights here to load with peft or transformers: they know nothing of the calibration.",
        ]
    peft = [
        "```python",
        "from peft import PeftModel",
        "from transformers import PI0ForConditionalGeneration",
        "",
        f'base = PI0ForConditionalGeneration.from_pretrained("{base}")',
        'policy = PeftModel.from_pretrained(base, "path/to/this/bundle")',
        "```",
    ]
    if not with_calibration:
        return peft
    return [*own, "", "The weights alone; **`PeftModel` does not apply the calibration**:", "", *peft]


def _vla_loading(arguments: str) -> list[str]:
    return [
        "```python",
        *(["from pathlib import Path", ""] if "Path(" in arguments else []),
        "from vla_cli.policies.flow import load",
        "",
        f"policy = load({arguments})",
        "actions = policy.act(images, state, instructions, noise)    # through the calibration",
        "```",
    ]


def _guidance(spec: PolicySpec) -> Sequence[str]:
    """How to get the default guidance, which only vla-cli's own policies can do."""
    kind, weight = read_default(spec.guidance)
    if kind == PLAIN_KIND:
        return []
    return [
        "",
        f"Default guidance at test time: {kind}, weight {weight:g} ({spec.guidance.get('why', 'stated by hand')}). "
        "`act` takes it as `guidance=vla_cli.guidance.choose(policy.spec.guidance, policy.spec.instructions)`, for "
        "other instructions than the trained one.",
    ]


def _steerability(report: Report | None) -> Sequence[str]:
    if report is None:
        return ["Not measured. `vla eval-steer ADAPTER --out REPORT`, then export again with `--report REPORT`."]
    lines = [f"Measured {report.kind}, 95% intervals; `report/report.html` shows it.", ""]
    for metric in report.metrics:
        lines += [f"**{metric}**", "", to_markdown(*transposed(*table(report, metric))).rstrip("\n"), ""]
    return [*lines, *[f"Warning: {text}" for text in report.warnings]]
