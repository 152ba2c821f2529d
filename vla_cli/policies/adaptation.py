"""Making a π0 model trainable, in full or through peft, and saving the result as an adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_cli.adapter import ADAPTER_CONFIG
from vla_cli.files import write_json
from vla_cli.policies.modalities import HEADS, LORA_TARGETS, MODALITIES, is_unused, lora_targets, modality_of


def make_full(model: nn.Module) -> nn.Module:
    """Let every parameter train that influences an action; freeze the rest."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_unused(name, model.config))
    return model


def make_lora(
    model: nn.Module, *, rank: int, alpha: float, train_heads: bool, seed: int, modalities: Sequence[str] = MODALITIES
) -> nn.Module:
    """Wrap a π0 model with LoRA on every linear of these modalities that influences an action.

    Args:
        model: the bare base model.
        rank: LoRA rank r.
        alpha: the delta is alpha / r * B A, with B = 0 at the start: step 0 equals the base exactly.
        train_heads: train the state and action projections outright (a robot that is new to the base).
        seed: of A's initial values.
        modalities: which towers to adapt.
    """
    from peft import LoraConfig, get_peft_model

    patterns = [LORA_TARGETS[m] for m in modalities]
    targets = lora_targets(model, modalities)
    if train_heads:
        targets = [name for name in targets if name not in HEADS]
    pattern = "|".join(f"(?:{p})" for p in patterns)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides by the rank: a fraction is as good
        target_modules=pattern,
        exclude_modules=_excluding(model, pattern, targets),
        modules_to_save=list(HEADS) if train_heads else None,
        bias="none",
    )
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, config)
    adapted = [n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")]
    assert adapted == targets, "peft adapted other modules than lora_targets names"
    return wrapped


def _excluding(model: nn.Module, pattern: str, targets: Sequence[str]) -> str | None:
    """A pattern for the linears that `pattern` hits beyond `targets`; a pattern, unlike peft's sets, saves in order."""
    hit = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(pattern, n)]
    extra = [n for n in hit if n not in set(targets)]
    return "|".join(re.escape(n) for n in extra) or None


def estimate(config: Any, *, method: str, rank: int, train_heads: bool) -> dict[str, int]:
    """What fine-tuning a model of this configuration takes, without its weights (everything on the meta device).

    Args:
        config: the base's configuration.
        method: "full" or "lora".
        rank: LoRA rank.
        train_heads: as for `make_lora`.

    Returns:
        "parameters" and "trained_parameters", and "weight_bytes" and "optimiser_bytes" in float32: the optimiser holds
        a gradient and AdamW's two moments of each trained parameter. Activations come on top.
    """
    from transformers import PI0ForConditionalGeneration

    with torch.device("meta"):
        model: Any = PI0ForConditionalGeneration(config)
        if method == "full":
            make_full(model)
        else:
            model = make_lora(model, rank=rank, alpha=rank, train_heads=train_heads, seed=0)
    counts = count_parameters(model)
    trained = sum(counts[modality] for modality in MODALITIES)
    return {
        "parameters": counts["total"],
        "trained_parameters": trained,
        "weight_bytes": 4 * counts["total"],
        "optimiser_bytes": 12 * trained,
    }


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name, in model order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trained parameters by modality, and of the whole model: {"vision", "language", "action", "total"}."""
    counts = dict.fromkeys(MODALITIES, 0)
    for name, parameter in trained_parameters(model).items():
        counts[modality_of("." + name.removeprefix("base_model.model."))] += parameter.numel()
    return {**counts, "total": sum(p.numel() for p in model.parameters())}


def save_trained(model: Any, directory: Path, *, base_name: str) -> None:
    """Save what was trained: peft's two files, or the whole model in the base's own layout."""
    model.save_pretrained(directory, safe_serialization=True)
    # peft's card is a template of blanks; export-adapter writes a real one
    (directory / "README.md").unlink(missing_ok=True)
    config = directory / ADAPTER_CONFIG
    if config.is_file():
        document = json.loads(config.read_text(encoding="utf-8"))
        document["base_model_name_or_path"] = base_name
        document["inference_mode"] = True
        write_json(config, dict(sorted(document.items())))


def save_merged(model: Any, directory: Path) -> None:
    """Save a model with its adapter folded into the weights, in the base's own layout."""
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(directory, safe_serialization=True)
