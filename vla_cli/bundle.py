"""The artefact `bundle/`: what goes to the robot.

adapter_config.json, adapter_model.safetensors   what `PeftModel.from_pretrained` reads   (where LoRA was trained)
                                                 or vla-cli itself                        (where bottlenecks were)
policy.json       how to feed the policy and read its actions; its calibration
tokenizer/        the tokenizer, when the base carries none
calibration/      pictures that belong to the calibration, when there is one
merged/           the merged model in the base's own layout, with tokenizer and policy.json   (on request)
report/           the steerability report, when given
README.md         the model card
digests.json      SHA-256 of every file of the bundle but itself
run.json

Several adapters, each for its own task, have such a bundle each in adapters/NAME/, beside a router.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli import __version__
from vla_cli.action_tokens import read_action_tokens
from vla_cli.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FILE_NAME, TOKENIZER, PolicySpec
from vla_cli.calibration import ALWAYS, are_told_apart
from vla_cli.calibration import FOLDER as CALIBRATION
from vla_cli.calibration.camera import CameraMap, between
from vla_cli.errors import InputError
from vla_cli.files import digest_file, read_json, write_json, write_text
from vla_cli.loading_example import guidance_lines, loading_lines
from vla_cli.report import Report, table, to_markdown, transposed
from vla_cli.report.verdict import OPEN_LOOP, answers_to_words, open_loop_comparisons, verdicts

CARD, DIGESTS, REPORT = "README.md", "digests.json", "report"
_LIBRARY = {"lora": "peft", "bottleneck": "vla-cli"}
_QUANTISED = (
    "the base's linear layers were held in 4 bits (NF4) during training; this adapter goes onto the whole base, as "
    "`vla eval-steer` measured it"
)
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass
class Outcome:
    """What an export found out, for the card.

    Attributes:
        differences: artefact to maximum absolute action difference from the adapter's own actions, in standard
            deviations.
        in_deployment: those of which that was measured on pictures of the deployment alone.
        left_out: file of the base to the reason why `merged/` is without it.
        warnings: sentences a person should read.
    """

    differences: dict[str, float] = field(default_factory=dict)
    in_deployment: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def write_digests(bundle: Path) -> dict[str, str]:
    """Write `digests.json` over every file of a bundle, and return it."""
    own = (bundle / DIGESTS, bundle / "request.json")
    files = sorted(p for p in bundle.rglob("*") if p.is_file() and p not in own)
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


def write_card(bundle: Path, spec: PolicySpec, run: dict[str, Any], report: Report | None, outcome: Outcome) -> None:
    """Write the model card from what is known: nothing in it is a blank to fill in.

    Args:
        bundle: its directory.
        spec: the policy's facts.
        run: the adapter's `run.json`.
        report: the steerability report, when there is one.
        outcome: what the export found out.
    """
    write_text(bundle / CARD, "\n".join(_card(spec, run, report, outcome)) + "\n")


def _card(spec: PolicySpec, run: dict[str, Any], report: Report | None, outcome: Outcome) -> list[str]:
    base = spec.base.name if spec.base else "unknown"
    lines = [
        "---",
        f"library_name: {_LIBRARY.get(spec.kind, 'transformers')}",
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
        *loading_lines(spec, base),
        *guidance_lines(spec),
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
        *([f"- {change['words']}"] if (change := run.get("facts", {}).get("change")) else []),
        *([f"- quantised: {_QUANTISED}"] if spec.quantized else []),
        *([f"- early stopping: {why}"] if (why := spec.early_stopping.get("why")) else []),
        *_differences(outcome),
        *[f"- `merged/` is without the base's `{name}`: {why}" for name, why in outcome.left_out.items()],
        "- every file's SHA-256: `digests.json`",
    ]
    for what, warnings in (("training run", run.get("warnings", [])), ("export", outcome.warnings)):
        if warnings:
            lines += ["", f"## Warnings of the {what}", "", *[f"- {text}" for text in warnings]]
    return lines


def _differences(outcome: Outcome) -> Sequence[str]:
    where = dict.fromkeys(outcome.in_deployment, ", measured on this deployment's pictures alone")
    return [
        f"- {name}: actions differ from the adapter's own by at most {difference:.3g} standard deviations"
        f"{where.get(name, '')}"
        for name, difference in outcome.differences.items()
    ]


def _feeding(spec: PolicySpec) -> Sequence[str]:
    return [
        f"- cameras, in this order: {', '.join(spec.cameras)}; RGB, "
        + (f"padded with black to squares of {spec.squared} pixels and " if spec.squared else "stretched and ")
        + f"resized to {spec.image_size} pixels square (`act` does it)",
        f"- state ({len(spec.state_names)}): {', '.join(spec.state_names) or 'none'}",
        f"- actions ({len(spec.action_names)}): {', '.join(spec.action_names)}; raw units as recorded",
        f"- control rate {spec.rate_hz:g} Hz; chunks of {spec.chunk_size} steps, execute {spec.execute_steps}, "
        "then ask again",
        f"- words to tokens: {_tokenizer(spec)}",
        *_action_tokens(spec),
        f"- normalisation statistics (from the {spec.statistics_from}) and all of the above, for machines: "
        f"`{FILE_NAME}`",
    ]


def _action_tokens(spec: PolicySpec) -> Sequence[str]:
    if not spec.action_tokens:
        return []
    tokens = read_action_tokens(spec.action_tokens)
    return [
        f"- actions are written in tokens, {spec.chunk_size * len(spec.action_names)} a chunk: each dimension's middle "
        f"98% in {tokens.bins} bins, the tokens {tokens.first} to {tokens.ids[-1]}; the most probable one is taken"
    ]


def _tokenizer(spec: PolicySpec) -> str:
    if not spec.tokenizer:
        return "the tokenizer beside the base's weights"
    return f"the tokenizer in `{TOKENIZER}/` of this bundle, for it does not come with the base"


def _weights(spec: PolicySpec) -> Sequence[str]:
    changed = {
        "lora": "Adapter weights beside the base's own were trained.",
        "bottleneck": "Bottleneck adapters between the base's own layers were trained (arXiv 1902.00751): "
        f"`{ADAPTER_CONFIG}` says in which parts, how wide, and whether state and action projections were trained too.",
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
        # what a person took out of policy.json by hand may still be named among its parts
        sentences = say[part](found)
        lines += [f"- **{part}**: {sentence}" for sentence in sentences]
        lines += [] if sentences else [f"- left out: {part} ({FILE_NAME} holds none)"]
    lines += [f"- left out: {part} ({reason})" for part, reason in found["skipped"].items()]
    return [*lines, "", _when(found, switched=spec.is_beside_base)]


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
    if found["ratio"] is None:
        return []
    rows = "; ".join(" ".join(f"{value + 0.0:.3f}" for value in row) for row in found["ratio"])
    commands = ", ".join(str(index) for index in found["actions"]["commands"])
    return [
        f"commands (action dimensions {commands}) of this robot times the gain matrix [{rows}] are the base's: "
        "what the base commands is divided by it, up to the largest command demonstrated"
    ]


def _delay(found: dict[str, Any]) -> list[str]:
    waits = [("the gripper", found["delay"])] + [
        (f"the gripper of action dimension {other['command']}", other["delay"])
        for other in found.get("other_grippers", [])
    ]
    return [
        f"{which} acts {delay} control steps later than the base's: the arm waits for it"
        for which, delay in waits
        if delay
    ]


def _timing(found: dict[str, Any]) -> list[str]:
    names = {"open": "with open fingers", "closed": "with closed fingers", "closing": "while closing the fingers"}
    names["opening"] = "while opening them"
    limits = [f"{names[key]} {value:.2f}" for key, value in found["timing"].items() if value is not None]
    if not limits:
        return []
    return [f"paths are followed at the demonstrated speeds, at most (share of a full command) {', '.join(limits)}"]


def _when(found: dict[str, Any], *, switched: bool) -> str:
    told_by = found.get("told_by")
    telling = range(len(found["medians"])) if told_by is None else told_by
    here, base = (", ".join(_colour(found[key][c]) for c in telling) for key in ("medians", "base_medians"))
    if found["on"] == ALWAYS:
        why = (
            "this policy is for this deployment alone"
            if told_by != [] and are_told_apart(found["base_medians"], found["medians"])
            else "this deployment's pictures cannot be told from the base's own domain by colour"
        )
        return f"They are always on: {why}. Calibrate again when camera or robot is moved."
    of = "" if told_by is None else f" of {', '.join(found['cameras'][c] for c in told_by)}"
    weights = ", and the trained weights are switched off for them" if switched else ""
    return (
        f"They are on for pictures{of} whose median colour is nearer to this deployment's ({here}) than to the base's "
        f"own domain's ({base}); other pictures are left alone{weights}. They hold for this camera, light and robot: "
        "calibrate again when one is moved."
    )


def _colour(values: Sequence[float]) -> str:
    return "RGB " + "/".join(f"{value:.0f}" for value in values)


def _steerability(report: Report | None) -> Sequence[str]:
    if report is None:
        return ["Not measured. `vla eval-steer ADAPTER --out REPORT`, then export again with `--report REPORT`."]
    lines = [f"Measured {report.kind}, 95% intervals; `report/report.html` shows it.", ""]
    if report.kind == "open-loop":
        lines += ["**This does not say whether it still listens.** " + OPEN_LOOP, ""]
    lines += [f"- {verdict.policy}: {verdict.label}. It {verdict.sentence}" for verdict in verdicts(report)]
    lines += [f"- {sentence}" for sentence in [*answers_to_words(report), *open_loop_comparisons(report)]]
    lines += [""]
    for metric in report.metrics:
        lines += [f"**{metric}**", "", to_markdown(*transposed(*table(report, metric))).rstrip("\n"), ""]
    return [*lines, *[f"Warning: {text}" for text in report.warnings]]
