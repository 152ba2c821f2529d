"""Which parameters of a π0 model see, read and act, and which have no influence at all.

vision    vlm.vision_tower, vlm.multi_modal_projector
language  the rest of vlm
action    dit (the action expert), embed_action_time, action_out_proj
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

MODALITIES: tuple[str, ...] = ("vision", "language", "action")

LORA_TARGETS = {
    "vision": r"model\.vlm\.(vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|multi_modal_projector\.linear)",
    "language": r"model\.vlm\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "action": r"(model\.dit\.layers\.\d+\.(self_attn|mlp)\.\w+_proj|action_out_proj)",
}
"""Regular expressions over full module names (bare `q_proj` would hit several towers at once).

`embed_action_time` is left out on purpose: peft drops LoRA on its linears at load, with only a warning, because
transformers' renames for π0 are applied twice. It is trained outright (`HEADS`) when a robot is new to the base.
"""

BOTTLENECK_TARGETS = {
    "vision": r"model\.vlm\.vision_tower\..*\.layers\.\d+\.(self_attn\.out_proj|mlp\.fc2)",
    "language": r"model\.vlm\.language_model\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)",
    "action": r"model\.dit\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)",
}
"""The same for the linears that a bottleneck goes behind: the last of every attention and the last of every MLP."""

HEADS = ("embed_action_time", "action_out_proj")
"""State and action projections: the part of π0 that belongs to one robot."""


FULL_MODULES = {
    "vision": ("vision_tower", "multi_modal_projector"),
    "language": ("vlm.language_model",),
    "action": ("model.dit", *HEADS),
}
"""Modules that peft saves whole when a modality is trained outright beside LoRA elsewhere (DeLock's layout)."""


def modality_of(parameter: str) -> str:
    """The modality a parameter belongs to, by its name in the bare model (or inside a peft wrapper)."""
    if ".vlm.vision_tower." in parameter or ".vlm.multi_modal_projector." in parameter:
        return "vision"
    if ".vlm." in parameter:
        return "language"
    return "action"


def unused_parameters(config: Any) -> tuple[str, ...]:
    """Prefixes of parameters that no action ever depends on.

    The action expert reads only the keys and values of each VLM layer, so nothing after the last layer's k and v is
    used; the expert's token table is never looked up.
    """
    last = config.vlm_config.text_config.num_hidden_layers - 1
    layer = f"model.vlm.language_model.layers.{last}."
    return (
        "model.dit.embed_tokens.",
        f"{layer}self_attn.q_proj.",
        f"{layer}self_attn.o_proj.",
        f"{layer}mlp.",
        f"{layer}post_attention_layernorm.",
        "model.vlm.language_model.norm.",
    )


def is_unused(name: str, config: Any) -> bool:
    """Whether a module or parameter (bare model's name) has no influence on any action."""
    return any((name + ".").startswith(prefix) for prefix in unused_parameters(config))


def lora_targets(model: nn.Module, modalities: Sequence[str] = MODALITIES) -> list[str]:
    """Full names of every linear module of these modalities that influences an action, in model order."""
    return _linears(model, [LORA_TARGETS[modality] for modality in modalities])


def bottleneck_targets(model: nn.Module, modalities: Sequence[str] = MODALITIES) -> list[str]:
    """Full names of the linear modules of these modalities that a bottleneck goes behind, in model order."""
    return _linears(model, [BOTTLENECK_TARGETS[modality] for modality in modalities])


def _linears(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Full names of the linear modules that a pattern fits and an action depends on, in model order."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and any(p.fullmatch(name) for p in compiled)
        and not is_unused(name, model.config)
    ]


def parameter_groups(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters that influence an action, by modality."""
    groups: dict[str, list[str]] = {modality: [] for modality in MODALITIES}
    for name, _ in model.named_parameters():
        if not is_unused(name, model.config):
            groups[modality_of(name)].append(name)
    return groups
