"""Making a model trainable, in full, through peft or by bottlenecks, and saving the result as an adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_cli.adapter import ADAPTER_CONFIG, Kind
from vla_cli.errors import ConfigError
from vla_cli.files import write_json
from vla_cli.policies.bottleneck import BottleneckModel, save_bottlenecks
from vla_cli.policies.modalities import (
    MODALITIES,
    full_modules,
    heads_of,
    is_unused,
    lora_pattern,
    lora_targets,
    modality_of,
    parameter_groups,
)
from vla_cli.policies.quantization import no_code_from_the_hub, quantize, size_of, whole
from vla_cli.recipe import BOTTLENECK, Recipe


@dataclass(frozen=True)
class Layout:
    """How each modality is adapted.

    Attributes:
        ranks: modality to LoRA rank; a modality with neither rank nor "full" is frozen.
        full: modalities whose weights are trained outright.
        alpha: LoRA's delta is alpha / rank * B A, with `alpha` 0 standing for alpha = rank.
        quantized: whether the other linear layers are held in 4 bits meanwhile.
        by_layer: full name of a linear layer to a LoRA rank of its own, with alpha in proportion.
        widths: modality to the width of its bottlenecks, beside which there are neither ranks nor full modalities.
    """

    ranks: dict[str, int]
    full: tuple[str, ...] = ()
    alpha: float = 0.0
    quantized: bool = False
    by_layer: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_peft(self) -> bool:
        """Whether the result is a peft adapter: some modality is trained by LoRA."""
        return bool(self.ranks)

    @property
    def kind(self) -> Kind:
        """Of the adapter that comes of it."""
        if self.widths:
            return BOTTLENECK
        return "lora" if self.is_peft else "full"


def layout_of(recipe: Recipe) -> Layout:
    """How a recipe adapts each modality."""
    ways = recipe.modalities()
    ranks = {name: rank for name, (way, rank) in ways.items() if way == "lora"}
    return Layout(
        ranks=ranks,
        full=tuple(name for name, (way, _) in ways.items() if way == "full"),
        # alpha belongs to the recipe's rank; a RANK of its own takes alpha = RANK (see recipe.py)
        alpha=recipe.alpha if set(ranks.values()) == {recipe.rank} else 0,
        quantized=recipe.is_quantized,
        widths={name: width for name, (way, width) in ways.items() if way == BOTTLENECK},
    )


def make_trainable(model: nn.Module, layout: Layout, *, train_heads: bool, seed: int) -> nn.Module:
    """Let the weights of a layout train, in the bare model, under peft or in bottlenecks.

    Args:
        model: the bare base model.
        layout: which modalities train, and how.
        train_heads: train the state and action projections outright (a robot that is new to the base).
        seed: of LoRA's or the bottlenecks' initial values.

    Raises:
        ConfigError: nothing of this base would train.
    """
    _check_trains(model, layout)
    if layout.widths:
        assert not layout.is_peft and not layout.full, "bottlenecks are beside frozen modalities alone"
        return BottleneckModel(model, widths=layout.widths, train_heads=train_heads, seed=seed)
    if not layout.is_peft:
        return make_full(model, layout.full, train_heads=train_heads)
    if layout.quantized:
        quantize(model, layout.full)
    return make_lora(
        model,
        ranks=layout.ranks,
        alpha=layout.alpha,
        train_heads=train_heads,
        seed=seed,
        full=layout.full,
        by_layer=layout.by_layer,
    )


def _check_trains(model: nn.Module, layout: Layout) -> None:
    """Refuse modalities that a base has no weights of its own for.

    Raises:
        ConfigError: there are none in any that is to train.
    """
    wanted = (*layout.ranks, *layout.full, *layout.widths)
    groups = parameter_groups(model)
    if wanted and not any(groups[modality] for modality in wanted):
        raise ConfigError(
            f"Only {', '.join(wanted)} would train, and this base has no weights of its own for that: where a token "
            "policy's output head is its embedding, the language model acts",
            expected="vision or language to train as well",
            hint="--language lora",
        )


def make_full(model: nn.Module, modalities: Sequence[str] = MODALITIES, *, train_heads: bool = False) -> nn.Module:
    """Let every parameter of these modalities train that influences an action; freeze the rest.

    Args:
        model: the bare base model.
        modalities: which.
        train_heads: let the state and action projections train too, whatever their modality does.
    """
    for name, parameter in model.named_parameters():
        wanted = modality_of("." + name) in modalities or (train_heads and name.partition(".")[0] in heads_of(model))
        parameter.requires_grad_(wanted and not is_unused(name, model.config))
    return model


def make_lora(
    model: nn.Module,
    *,
    ranks: Mapping[str, int],
    alpha: float,
    train_heads: bool,
    seed: int,
    full: Sequence[str] = (),
    by_layer: Mapping[str, int] | None = None,
) -> nn.Module:
    """Wrap a model with LoRA on every linear of some modalities that influences an action.

    Args:
        model: the bare base model.
        ranks: modality to LoRA rank r.
        alpha: the delta is alpha / r * B A, with B = 0 at the start: step 0 equals the base exactly; 0 takes r.
        train_heads: train the state and action projections outright (a robot that is new to the base).
        seed: of A's initial values.
        full: modalities trained outright beside the adapted ones.
        by_layer: full name of a linear layer to a rank of its own; its alpha is as many times that as it would be.
    """
    with no_code_from_the_hub():
        from peft import LoraConfig, get_peft_model

    targets, heads = lora_targets(model, list(ranks)), heads_of(model) if train_heads else ()
    targets = [name for name in targets if name not in heads]
    patterns = {m: lora_pattern(model, m) for m in MODALITIES if m in ranks}
    patterns = {m: pattern for m, pattern in patterns.items() if pattern}
    pattern = "|".join(f"(?:{p})" for p in patterns.values())
    first = next(iter(ranks.values()))
    saved = [*(module for m in full for module in full_modules(model, m)), *heads]
    saved = list(dict.fromkeys(saved))  # the heads of an action expert that trains outright are part of it
    uneven = len(set(ranks.values())) > 1
    strength = 1.0 if uneven else (alpha or first) / first
    # peft matches a pattern at the end of a name, after ".": the outermost group keeps alternatives together
    own_ranks = {f"({p})": ranks[m] for m, p in patterns.items()} if uneven else {}
    own_alphas = {key: alpha or rank for key, rank in own_ranks.items()}
    # the first that fits is taken: a layer before the modality it is of
    layers = {re.escape(name): rank for name, rank in (by_layer or {}).items()}
    own_ranks = {**layers, **own_ranks}
    own_alphas = {**{key: rank * strength for key, rank in layers.items()}, **own_alphas}
    config = LoraConfig(
        r=first,
        lora_alpha=alpha or first,  # type: ignore[arg-type]  # peft divides by the rank: a fraction is as good
        target_modules=pattern,
        exclude_modules=_excluding(model, pattern, targets),
        rank_pattern=own_ranks,
        alpha_pattern=own_alphas,
        modules_to_save=saved or None,
        bias="none",
    )
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, config)
    adapted = [n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")]
    assert adapted == targets, "peft adapted other modules than lora_targets names"
    for name in full:
        freeze_unused(wrapped, name)
    return wrapped


def freeze_unused(wrapped: nn.Module, modality: str) -> None:
    """Freeze what peft made trainable in a fully trained modality although no action depends on it."""
    for name, parameter in wrapped.named_parameters():
        bare = base_name(name)
        if parameter.requires_grad and modality_of("." + bare) == modality and is_unused(bare, _core(wrapped).config):
            parameter.requires_grad_(False)


def _core(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_WRAPPINGS = re.compile(r"(\.base_layer|\.modules_to_save\.default)(?=\.)")


def base_name(parameter: str) -> str:
    """A parameter's name in the bare model, whatever peft or bottlenecks wrap around it."""
    return _WRAPPINGS.sub("", parameter.removeprefix("base_model.model."))


def is_added(parameter: str) -> bool:
    """Whether a parameter is none of the base's, but LoRA's or a bottleneck's, by its name."""
    return ".lora_" in parameter or ".bottleneck." in parameter


class Deltas:
    """How far the trained weights are from the base's, by the base's parameter names.

    Made before training, when the trained weights still are the base's. Bottlenecks move none of those: they have no
    delta, but are scaled with the rest.

    Args:
        model: trainable, bare, under peft or with bottlenecks.
    """

    def __init__(self, model: nn.Module) -> None:
        self._lora = _lora_modules(model)
        self._bottlenecks = model.bottlenecks() if isinstance(model, BottleneckModel) else {}
        self._outright = {base_name(n): p for n, p in trained_parameters(model).items() if not is_added(n)}
        self.base = {name: p.detach().clone() for name, p in self._outright.items()}

    def __call__(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Name to delta, of the base parameter's shape, differentiable; of these names only, when given."""
        products = {name: _product(module) for name, module in self._lora.items() if names is None or name in names}
        outright = {n: p - self.base[n] for n, p in self._outright.items() if names is None or n in names}
        return {**products, **outright}

    def ways(self) -> dict[str, str]:
        """Name to how it trains: "lora", "full", or "bottleneck" for one behind the layer of that name."""
        beside = {**dict.fromkeys(self._lora, "lora"), **dict.fromkeys(self._bottlenecks, BOTTLENECK)}
        return {**beside, **dict.fromkeys(self._outright, "full")}

    @torch.no_grad()
    def base_norms(self) -> dict[str, float]:
        """Name to the norm of the base's own weight."""
        weights = {name: whole(module.base_layer.weight) for name, module in self._lora.items()}
        return {name: float(weight.norm()) for name, weight in {**weights, **self.base}.items()}

    @torch.no_grad()
    def scale(self, factors: Mapping[str, float]) -> None:
        """theta = (1 - alpha) theta_pre + alpha theta, per modality: exact at 0 and at 1; others stay.

        Of a bottleneck, what it adds to its layer's answer is multiplied by alpha.
        """
        for name, module in self._lora.items():
            alpha = factors.get(modality_of("." + name), 1.0)
            if alpha != 1.0:
                module.lora_B["default"].weight.mul_(alpha)
        for name, bottleneck in self._bottlenecks.items():
            alpha = factors.get(modality_of("." + name), 1.0)
            for parameter in bottleneck.up.parameters() if alpha != 1.0 else ():
                parameter.mul_(alpha)
        for name, parameter in self._outright.items():
            alpha = factors.get(modality_of("." + name), 1.0)
            if alpha == 0.0:
                parameter.copy_(self.base[name])
            elif alpha != 1.0:
                parameter.lerp_(self.base[name], 1.0 - alpha)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Full name of each of the base's linear layers that LoRA is around to the module that peft made of it."""
    return {name.removesuffix(".weight"): module for name, module in _lora_modules(model).items()}


def lora_products(model: nn.Module) -> dict[str, Tensor]:
    """Name of each of the base's weights that LoRA moves to its change alpha / r B A."""
    return {name: _product(module) for name, module in _lora_modules(model).items()}


def _lora_modules(model: nn.Module) -> dict[str, Any]:
    """Name of the base's weight to the module that LoRA put around its layer."""
    return {base_name(n) + ".weight": module for n, module in model.named_modules() if hasattr(module, "lora_A")}


def _product(module: Any) -> Tensor:
    return module.lora_B["default"].weight @ module.lora_A["default"].weight * module.scaling["default"]


def _excluding(model: nn.Module, pattern: str, targets: Sequence[str]) -> str | None:
    """A pattern for the linears that `pattern` hits beyond `targets`; a pattern, unlike peft's sets, saves in order."""
    hit = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(pattern, n)]
    extra = [n for n in hit if n not in set(targets)]
    return "|".join(re.escape(n) for n in extra) or None


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name, in model order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trained parameters by modality, and of the whole model: {"vision", "language", "action", "total"}."""
    counts = dict.fromkeys(MODALITIES, 0)
    for name, parameter in trained_parameters(model).items():
        counts[modality_of("." + name.removeprefix("base_model.model."))] += parameter.numel()
    return {**counts, "total": sum(size_of(p) for p in model.parameters())}


def save_trained(model: Any, directory: Path, *, base_name: str) -> None:
    """Save what was trained: an adapter's two files, or the whole model in the base's own layout."""
    if isinstance(model, BottleneckModel):
        return save_bottlenecks(model, directory, base_name=base_name)
    # peft would save an output head that LoRA is around as a whole, which is the base's
    peft_only: dict[str, Any] = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    model.save_pretrained(directory, safe_serialization=True, **peft_only)
    # peft's card is a template of blanks; export-adapter writes a real one
    (directory / "README.md").unlink(missing_ok=True)
    config = directory / ADAPTER_CONFIG
    if config.is_file():
        document = json.loads(config.read_text(encoding="utf-8"))
        document["base_model_name_or_path"] = base_name
        document["inference_mode"] = True
        write_json(config, dict(sorted(document.items())))


def adapter_state(model: Any, name: str = "default") -> dict[str, Tensor]:
    """An adapter's tensors (of peft's, the one of that name) as they are in a model, by their names in its file."""
    if isinstance(model, BottleneckModel):
        return model.adapter_state()
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def changes_something(model: Any, name: str = "default") -> bool:
    """Whether an adapter could make a model act otherwise than the base: not if all it adds is 0."""
    if isinstance(model, BottleneckModel):
        return model.changes_something()
    grown = [v for k, v in adapter_state(model, name).items() if "lora_B" in k or "lora_" not in k]
    return any(bool(v.abs().max() > 0) for v in grown)


def save_merged(model: Any, directory: Path) -> None:
    """Save a model with its adapter folded into the weights, in the base's own layout.

    Raises:
        ConfigError: it has bottlenecks, which cannot be folded.
    """
    if isinstance(model, BottleneckModel):
        raise unmergeable("The model")
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(directory, safe_serialization=True)


def unmergeable(what: str) -> ConfigError:
    """The error for folding bottlenecks into the base's weights."""
    return ConfigError(
        f"{what} holds bottleneck adapters, which cannot be merged: they are not linear, so that no weights of the "
        "base's own shape act as they do",
        expected="an adapter of LoRA, or weights trained in full",
        hint="the same without --merge: vla-cli puts the adapter onto the base wherever it loads it",
    )
