"""Which parameters of a policy's model see, read and act, and which have no influence at all.

             a π0 model                                             an image-text-to-text model
vision       vlm.vision_tower, vlm.multi_modal_projector            what embeds pictures
language     the rest of vlm                                        the language model
action       dit (the action expert), embed_action_time,            lm_head, where it is a matrix of its own: where it
             action_out_proj                                        is the embedding's, that is language
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

MODALITIES: tuple[str, ...] = ("vision", "language", "action")

_LORA_TARGETS = {
    "vision": r"model\.vlm\.(vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|multi_modal_projector\.linear)",
    "language": r"model\.vlm\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    "action": r"(model\.dit\.layers\.\d+\.(self_attn|mlp)\.\w+_proj|action_out_proj)",
}
"""Regular expressions over full module names (bare `q_proj` would hit several towers at once).

`embed_action_time` is left out on purpose: peft drops LoRA on its linears at load, with only a warning, because
transformers' renames for π0 are applied twice. It is trained outright (`HEADS`) when a robot is new to the base.
"""

_BOTTLENECK_TARGETS = {
    "vision": r"model\.vlm\.vision_tower\..*\.layers\.\d+\.(self_attn\.out_proj|mlp\.fc2)",
    "language": r"model\.vlm\.language_model\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)",
    "action": r"model\.dit\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)",
}
"""The same for the linears that a bottleneck goes behind: the last of every attention and the last of every MLP."""

HEADS = ("embed_action_time", "action_out_proj")
"""State and action projections: the part of π0 that belongs to one robot. In a token policy nothing does."""


_FULL_MODULES = {
    "vision": ("vision_tower", "multi_modal_projector"),
    "language": ("vlm.language_model",),
    "action": ("model.dit", *HEADS),
}
"""Modules that peft saves whole when a modality is trained outright beside LoRA elsewhere (DeLock's layout)."""


OUTPUT = "lm_head"
"""What a token policy's words, and so its actions, come out of."""
_SEES = re.compile(
    r"model\.(vision\w*|visual|image\w*|\w*projector|connector|aligner|merger|resampler|perceiver\w*|qformer)(\.|$)"
)
_LAST_LINEARS = re.compile(r".*\.\w*att\w*\.(o_proj|out_proj|proj)|.*\.mlp\.(down_proj|fc2)|.*\.feed_forward\.w2")
"""Of an attention and of an MLP, as transformers' models call them."""


def is_pi0(model: Any) -> bool:
    """Whether a model is π0's, and so has an action expert, by its configuration."""
    return model.config.model_type == "pi0"


def modality_of(parameter: str) -> str:
    """The modality a parameter belongs to, by its name in the bare model (or inside a peft wrapper)."""
    if ".vlm." in parameter:
        sees = ".vlm.vision_tower." in parameter or ".vlm.multi_modal_projector." in parameter
        return "vision" if sees else "language"
    bare = parameter.removeprefix(".").removeprefix("base_model.model.")
    if not bare.startswith("model.") or bare.startswith("model.dit."):
        return "action"
    return "vision" if _SEES.match(bare) else "language"


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
    if config.model_type == "pi0":
        return any((name + ".").startswith(prefix) for prefix in unused_parameters(config))
    return _is_behind_the_features(name, config)


def _is_behind_the_features(name: str, config: Any) -> bool:
    """Whether it is part of a vision tower's last layers, where an earlier layer's states are what is looked at."""
    layer, vision = getattr(config, "vision_feature_layer", None), getattr(config, "vision_config", None)
    if not isinstance(layer, int) or layer >= -1 or not _SEES.match(name):
        return False
    found = re.search(r"\.layers\.(\d+)(\.|$)", name)
    if found is None:
        return ".post_layernorm" in name
    return int(found.group(1)) > int(getattr(vision, "num_hidden_layers", 0)) + layer


def lora_targets(model: nn.Module, modalities: Sequence[str] = MODALITIES) -> list[str]:
    """Full names of every linear module of these modalities that influences an action, in model order."""
    if is_pi0(model):
        return _linears(model, [_LORA_TARGETS[modality] for modality in modalities])
    return [name for name in _own_linears(model) if modality_of("." + name) in modalities]


def lora_pattern(model: nn.Module, modality: str) -> str:
    """A regular expression over full module names for at least those of `lora_targets`, whatever the layer's number."""
    if is_pi0(model):
        return _LORA_TARGETS[modality]
    names = (re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)) for name in lora_targets(model, [modality]))
    return "|".join(dict.fromkeys(names))


def bottleneck_targets(model: nn.Module, modalities: Sequence[str] = MODALITIES) -> list[str]:
    """Full names of the linear modules of these modalities that a bottleneck goes behind, in model order."""
    if is_pi0(model):
        return _linears(model, [_BOTTLENECK_TARGETS[modality] for modality in modalities])
    return [name for name in lora_targets(model, modalities) if _LAST_LINEARS.fullmatch(name)]


def full_modules(model: nn.Module, modality: str) -> tuple[str, ...]:
    """Modules that peft saves whole when a modality is trained outright beside LoRA elsewhere (DeLock's layout)."""
    if is_pi0(model):
        return _FULL_MODULES[modality]
    core: Any = model
    names = [f"model.{name}" for name, _ in core.model.named_children()]
    names += [OUTPUT] if not _is_tied(model) else []
    return tuple(name for name in names if modality_of("." + name) == modality)


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """The modules that belong to one robot, and are trained outright for another."""
    return HEADS if is_pi0(model) else ()


def _is_tied(model: Any) -> bool:
    """Whether a model's output head is its embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _own_linears(model: nn.Module) -> list[str]:
    """Full names of the linears of an image-text-to-text model whose weights are no others', in model order."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not is_unused(name, model.config)
        and not (name == OUTPUT and _is_tied(model))
    ]


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
