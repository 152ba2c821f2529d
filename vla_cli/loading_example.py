"""The lines of a model card that load its policy: what a person copies to the robot."""

from __future__ import annotations

from collections.abc import Sequence

from vla_cli.adapter import FLOW, PolicySpec
from vla_cli.guidance import PLAIN_KIND, read_default


def loading_lines(spec: PolicySpec, base: str) -> Sequence[str]:
    """How to load a bundle of one adapter, with this project and, where that can, with peft and transformers alone."""
    if spec.kind == "full":
        lines = ["Full fine-tuning has no adapter: `merged/` is the whole model, in the base's own layout."]
        return [*lines, "", *_vla_loading('"path/to/this/bundle/merged"', spec)]
    own = _vla_loading(f'"{base}", Path("path/to/this/bundle")', spec)
    alone = {
        "frozen": "There are no weights here to load with peft or transformers: they know nothing of the calibration.",
        "bottleneck": "The adapter's files are in vla-cli's own format: **`PeftModel` does not read them**. There is "
        "no merged model: bottlenecks are not linear, and no weights of the base's shape act as they do.",
    }
    if spec.kind in alone:
        return [*own, "", alone[spec.kind]]
    model = "PI0ForConditionalGeneration" if spec.family == FLOW else "AutoModelForImageTextToText"
    peft = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {model}",
        "",
        f'base = {model}.from_pretrained("{base}")',
        'policy = PeftModel.from_pretrained(base, "path/to/this/bundle")',
        "```",
    ]
    beyond = [
        *(["the calibration"] if spec.calibration.get("parts") else []),
        *(["the default guidance"] if _is_guided(spec) else []),
        *(["the way from tokens to actions"] if spec.action_tokens else []),
    ]
    if not beyond:
        return peft
    return [*own, "", f"The weights alone; **`PeftModel` does not apply {' and '.join(beyond)}**:", "", *peft]


def _vla_loading(arguments: str, spec: PolicySpec) -> list[str]:
    lines = [
        *(["from pathlib import Path", ""] if "Path(" in arguments else []),
        *(["from vla_cli.guidance import choose, is_guided"] if _is_guided(spec) else []),
        f"from vla_cli.policies.{spec.family} import load",
        "",
        f"policy = load({arguments})",
    ]
    if spec.calibration.get("parts"):
        lines += ["# through the calibration; policy.is_calibrated(images) says for which of them it is on"]
    lines += [
        f"# for B observations: images [B, {len(spec.cameras)}, height, width, 3] uint8 RGB, state "
        f"[B, {len(spec.state_names)}] and",
        "# noise of the shape policy.noise_shape(B), standard normal, float32; B instructions",
    ]
    if _is_guided(spec):
        lines += [
            "trained = policy.spec.instructions",
            "guidance = choose(policy.spec.guidance, trained)",
            "guidance = guidance if is_guided(guidance, instruction, trained) else None",
            "actions = policy.act(images, state, [instruction], noise, guidance=guidance)",
        ]
    else:
        lines += ["actions = policy.act(images, state, [instruction], noise)"]
    return ["```python", *lines, "```"]


def _is_guided(spec: PolicySpec) -> bool:
    return read_default(spec.guidance)[0] != PLAIN_KIND


def guidance_lines(spec: PolicySpec) -> Sequence[str]:
    """How to get the default guidance, which only vla-cli's own policies can do."""
    kind, weight = read_default(spec.guidance)
    if kind == PLAIN_KIND:
        return []
    return [
        "",
        f"Default guidance at test time: {kind}, weight {weight:g} ({spec.guidance.get('why', 'stated by hand')}). "
        "It is no property of the weights: `act` is told, at every call, as above. `vla_cli.guidance.is_guided` is the "
        "rule by which `vla eval-steer` guides too: a contrast covers no instruction that was trained, guidance away "
        "from the empty prompt covers them all.",
    ]
