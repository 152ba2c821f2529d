"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): small networks behind the base's own layers.

    h + W_up gelu(W_down h + b_down) + b_up        h [.., d] a layer's answer, W_down [w, d], W_up [d, w]

One goes behind the last linear layer of every attention and of every MLP, before their answer is added to what passes
by, in each modality that is adapted so; 2 d w + w + d numbers each. W_up and b_up are 0 at the start, so that step 0
equals the base exactly. As in the authors' code, gelu is the one with tanh, and W_down is drawn from a truncated normal
distribution, of the paper's width. Unlike in the paper, layer norms stay the base's: nothing of it changes.

What stands between layers is no change of a weight: it cannot be folded into the base's, and no penalty on those sees
it. An adapter is two files, of our own format:

    adapter_model.safetensors   LAYER.bottleneck.{down,up}.{weight,bias}, and HEAD.* where heads were trained outright
    adapter_config.json         {"adapter_type": "bottleneck", "widths": {modality: w}, "heads": [...], ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_cli.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vla_cli.files import read_json, write_json
from vla_cli.policies.modalities import HEADS, MODALITIES, bottleneck_targets, heads_of, modality_of
from vla_cli.recipe import BOTTLENECK, HIGHEST_RANK

ACTIVATION = "gelu_tanh"
INITIAL_STD = 1e-2
"""Of W_down, which is cut off at two of them (section 3.6 of the paper)."""


class Bottleneck(nn.Module):
    """h + W_up gelu(W_down h + b_down) + b_up; nothing but h at the start.

    Args:
        size: d, the numbers of h.
        width: w, those in between.
        device, dtype: of its weights.
    """

    def __init__(self, size: int, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.down = nn.Linear(size, width, device=device, dtype=dtype)
        self.up = nn.Linear(width, size, device=device, dtype=dtype)
        nn.init.trunc_normal_(self.down.weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, h: Tensor) -> Tensor:
        """What goes on in the place of h [.., d]."""
        return h + self.up(nn.functional.gelu(self.down(h), approximate="tanh"))


class _Switched(nn.Module):
    """A module of the base with what was trained in its place, either of which answers."""

    enabled = True


class Adapted(_Switched):
    """A linear layer of the base with a bottleneck behind it; its parameters are called as peft calls a layer's."""

    def __init__(self, linear: nn.Linear, width: int) -> None:
        super().__init__()
        self.base_layer = linear
        weight = linear.weight
        self.bottleneck = Bottleneck(linear.out_features, width, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer to x [.., inputs], through the bottleneck unless that is off: [.., d]."""
        h = self.base_layer(x)
        return self.bottleneck(h) if self.enabled else h


class Outright(_Switched):
    """A module of the base beside a copy of it that trains; its parameters are called as peft calls them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({"default": deepcopy(module)})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy answers, or the base's own while that is off."""
        return (self.modules_to_save["default"] if self.enabled else self.original_module)(*args, **kwargs)


class BottleneckModel(nn.Module):
    """A π0 model with bottlenecks in it; it offers of a peft model what the rest of the tool asks for.

    Args:
        model: the bare base model; it is changed in place.
        widths: modality to the width of its bottlenecks.
        train_heads: train copies of the state and action projections too (a robot that is new to the base).
        seed: of W_down's initial values.
    """

    def __init__(self, model: nn.Module, *, widths: Mapping[str, int], train_heads: bool, seed: int) -> None:
        super().__init__()
        model.requires_grad_(False)
        torch.manual_seed(seed)
        for name in bottleneck_targets(model, list(widths)):
            linear: Any = model.get_submodule(name)
            model.set_submodule(name, Adapted(linear, widths[modality_of("." + name)]))
        heads = heads_of(model) if train_heads else ()
        for name in heads:
            copied = Outright(model.get_submodule(name))
            copied.modules_to_save.requires_grad_(True)
            model.set_submodule(name, copied)
        # a parameter is then called as under peft: base_model.model.NAME
        self.base_model = nn.ModuleDict({"model": model})
        self.widths, self.heads = dict(widths), list(heads)

    def get_base_model(self) -> Any:
        """The model itself, with what was put into it."""
        return self.base_model["model"]

    def bottlenecks(self) -> dict[str, Bottleneck]:
        """Full name of each of the base's linear layers that has one behind it to that, in model order."""
        return {name: module.bottleneck for name, module in self._put_in(Adapted).items()}

    def _put_in(self, kind: type[_Switched]) -> dict[str, Any]:
        return {name: module for name, module in self.get_base_model().named_modules() if isinstance(module, kind)}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within, it acts as the base: bottlenecks are off, and so are heads that were trained outright."""
        switched = {module: module.enabled for module in self._put_in(_Switched).values()}
        for module in switched:
            module.enabled = False
        try:
            yield
        finally:
            for module, enabled in switched.items():
                module.enabled = enabled

    def adapter_state(self) -> dict[str, Tensor]:
        """What is saved, by its name in the file; the parameters themselves, not copies."""
        state = {f"{n}.bottleneck.{key}": v for n, b in self.bottlenecks().items() for key, v in b.state_dict().items()}
        for name, head in self._put_in(Outright).items():
            state |= {f"{name}.{key}": v for key, v in head.modules_to_save["default"].state_dict().items()}
        return state

    @torch.no_grad()
    def changes_something(self) -> bool:
        """Whether any W_up or b_up is other than 0, or any head other than the base's."""
        pairs = [
            pair
            for head in self._put_in(Outright).values()
            for pair in zip(head.modules_to_save.parameters(), head.original_module.parameters(), strict=True)
        ]
        ups = [p for bottleneck in self.bottlenecks().values() for p in bottleneck.up.parameters()]
        return any(bool(p.any()) for p in ups) or any(not torch.equal(*pair) for pair in pairs)


def save_bottlenecks(model: BottleneckModel, directory: Path, *, base_name: str) -> None:
    """Write both files of an adapter; `base_name` is the base's as the user named it."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.adapter_state().items()}
    save_file(state, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    document = {"adapter_type": BOTTLENECK, "activation": ACTIVATION, "widths": model.widths, "heads": model.heads}
    write_json(directory / ADAPTER_CONFIG, {**document, "base_model_name_or_path": base_name})


def load_bottlenecks(model: nn.Module, directory: Path) -> tuple[BottleneckModel, dict[str, Tensor]]:
    """Put an adapter's files into a bare base model, in place; tensors that do not fit stay out.

    Returns:
        The model, and the tensors of the file by name, for the caller to compare with the model's `adapter_state`.

    Raises:
        InputError, OSError, SafetensorError, ValueError: the files are missing or damaged.
    """
    document = read_json(directory / ADAPTER_CONFIG)
    saved = load_file(directory / ADAPTER_WEIGHTS)
    wrapped = BottleneckModel(model, **_read(document), seed=0).requires_grad_(False)
    with torch.no_grad():
        for name, value in wrapped.adapter_state().items():
            if name in saved and saved[name].shape == value.shape:
                value.copy_(saved[name])
    return wrapped, saved


def _read(document: Any) -> dict[str, Any]:
    """Widths and heads of an `adapter_config.json`; ValueError where they are none that `save_bottlenecks` writes."""
    found = document if isinstance(document, dict) else {}
    widths, heads = found.get("widths"), found.get("heads")
    sized = isinstance(widths, dict) and all(type(w) is int and 1 <= w <= HIGHEST_RANK for w in widths.values())
    if (found.get("adapter_type"), found.get("activation")) != (BOTTLENECK, ACTIVATION):
        raise ValueError(f"{ADAPTER_CONFIG} is not of adapter_type {BOTTLENECK} with activation {ACTIVATION}")
    if not sized or not widths or set(widths) - set(MODALITIES) or heads not in ([], list(HEADS)):
        raise ValueError(f"{ADAPTER_CONFIG} has widths {widths!r} and heads {heads!r}")
    return {"widths": widths, "train_heads": bool(heads)}
