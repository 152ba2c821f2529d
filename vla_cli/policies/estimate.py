"""What a fine-tuning will take: memory by counting, without any weight, and time by doing a few of its steps.

Counted (everything on the meta device): weights, gradients, AdamW's moments, what is kept beside them, and the
activations that a forward pass keeps for the backward pass, which are linear in the windows computed at once. Torch's
fused attention, where a device has it, keeps less than is counted here; what retention methods compute of their own,
and the working memory of single operations, come on top.

Steps are timed on the real batches with the real layout, optimiser and device, but on weights drawn at random, which
take as long and need not be read; only of a model that is small, as every other one takes minutes, or the memory of an
accelerator on which somebody else may be at work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vla_cli.policies.adaptation import Layout, count_parameters, is_added, make_trainable, trained_parameters
from vla_cli.policies.checkpoint import family_for
from vla_cli.policies.device import SMALL_MODEL
from vla_cli.policies.flow_matching import Batch, FlowModel, flow_losses
from vla_cli.policies.modalities import MODALITIES
from vla_cli.policies.quantization import BYTES_A_WEIGHT, quantized_linears

TIMED = 2
"""Steps behind the estimate, after a first one that is always slower."""
PATIENCE = 5.0
"""Seconds of a first step after which a plan waits for no other."""
FLOAT32, GRADIENT_AND_MOMENTS = 4, 3


@dataclass(frozen=True)
class Sizes:
    """How many numbers of a model are what.

    Attributes:
        bare: parameters of the base.
        total: parameters of the model that trains, LoRA's or the bottlenecks' included.
        trained: those that train.
        outright: those that train and are neither LoRA's nor a bottleneck's.
        held: of the base's weights, those that are moved, outright or by LoRA.
        quantized: of the base's weights, those that are held in 4 bits.
    """

    bare: int
    total: int
    trained: int
    outright: int
    held: int
    quantized: int = 0


def sizes_of(config: Any, *, layout: Layout, train_heads: bool) -> Sizes:
    """Sizes of a model of this configuration.

    Args:
        config: the base's configuration.
        layout: as for `make_trainable`.
        train_heads: as for `make_trainable`.
    """
    with torch.device("meta"):
        model = untrained(config)
        bare = sum(p.numel() for p in model.parameters())
        packed = quantized_linears(model, layout.full) if layout.quantized else []
        quantized = sum(model.get_submodule(name).weight.numel() for name in packed)
        # counted whole: what is on the meta device cannot be quantised
        model = make_trainable(model, replace(layout, quantized=False), train_heads=train_heads, seed=0)
    counts = count_parameters(model)
    outright = sum(p.numel() for name, p in trained_parameters(model).items() if not is_added(name))
    adapters: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    adapted = sum(module.base_layer.weight.numel() for module in adapters)
    trained = sum(counts[modality] for modality in MODALITIES)
    return Sizes(bare, counts["total"], trained, outright, outright + adapted, quantized)


def untrained(config: Any) -> Any:
    """A model of this configuration with weights drawn at random, on torch's default device."""
    return family_for(config.to_dict()).untrained(config)


@dataclass(frozen=True)
class Pass:
    """A forward pass of training.

    Attributes:
        windows: at once.
        draws: of noise, a window.
        cameras: how many.
        tokens: of the longest prompt, the pictures' included.
    """

    windows: int
    draws: int
    cameras: int
    tokens: int


def activation_bytes(config: Any, size: Pass, *, layout: Layout, train_heads: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart.

    Counted on the meta device, with one window and with two, as what a window adds is the same for all.

    Args:
        config: the base's configuration.
        size: of the pass.
        layout: as for `make_trainable`.
        train_heads: as for `make_trainable`.
    """
    with torch.device("meta"):
        model = untrained(config)
        model = make_trainable(model, replace(layout, quantized=False), train_heads=train_heads, seed=0).train()
    model.to("meta")  # transformers computes some buffers on the CPU whatever the device
    one, two = (_kept_by_a_pass(model, replace(size, windows=count)) for count in (1, 2))
    return one + (two - one) * (size.windows - 1)


def _kept_by_a_pass(model: torch.nn.Module, size: Pass) -> int:
    flow = FlowModel(model)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # the tensor itself stays too: a storage that is freed could lend its number to the next one
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        flow_losses(flow, _blank(flow.config, size), draws=size.draws, generator=torch.Generator())
    return sum(t.untyped_storage().nbytes() for number, t in kept.items() if number not in weights)


def _blank(config: Any, size: Pass) -> Batch:
    """A batch on the meta device: shapes, and no values."""
    edge = config.vlm_config.vision_config.image_size
    actions = (size.windows, config.chunk_size, config.max_action_dim)
    with torch.device("meta"):
        return Batch(
            input_ids=torch.zeros((size.windows, size.tokens), dtype=torch.long),
            attention_mask=torch.ones((size.windows, size.tokens), dtype=torch.long),
            pixel_values=torch.zeros((size.windows, size.cameras, 3, edge, edge)),
            state=torch.zeros((size.windows, config.max_state_dim)),
            actions=torch.zeros(actions),
            mask=torch.ones(actions),
        )


def memory(sizes: Sizes, *, copies: int = 1, kept: int = 0, activations: int | None = 0) -> dict[str, Any]:
    """What training takes, in bytes of float32.

    Args:
        sizes: of the model.
        copies: 2 where the frozen base is kept beside the model that trains.
        kept: numbers that are kept beside both: of retention methods and early stopping.
        activations: bytes that a forward pass keeps; see `activation_bytes`. None where they are not counted.

    Returns:
        "parameters" and "trained_parameters"; "weight_bytes" of the model that trains and of the base beside it;
        "optimiser_bytes" of a gradient and AdamW's two moments of each trained parameter; "kept_bytes";
        "activation_bytes"; and "memory", all of it in words.
    """
    saved = sizes.quantized * (FLOAT32 - BYTES_A_WEIGHT)
    found = {
        "weight_bytes": FLOAT32 * (sizes.total + (copies - 1) * sizes.bare) - round(copies * saved),
        "optimiser_bytes": FLOAT32 * GRADIENT_AND_MOMENTS * sizes.trained,
        "kept_bytes": FLOAT32 * kept,
        "activation_bytes": activations or 0,
    }
    names = ("weights", "gradients and moments", "kept for retention and early stopping", "activations")
    parts = [f"{gigabytes(count)} {name}" for name, count in zip(names, found.values(), strict=True) if count]
    said = f"{gigabytes(sum(found.values()))}: {', '.join(parts)}"
    if activations is None:
        said += "; activations come on top, and are not counted for a policy that writes tokens"
    return {"parameters": sizes.total, "trained_parameters": sizes.trained, **found, "memory": said}


def gigabytes(count: int) -> str:
    """Bytes in words: "44.3 GB", "67 MB"."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def time_of(
    prepare: Callable[[], Callable[[int], object]], sizes: Sizes, *, steps: int, beside: Sequence[str], certain: bool
) -> dict[str, Any]:
    """Time that training takes on this machine, as busy as it is now.

    Args:
        prepare: makes what does the step of a number, counted from 0; only called where steps are timed.
        sizes: of the model.
        steps: how many will be done.
        beside: retention methods, whose own work is not in those steps.
        certain: whether it is certain that weights are trained.

    Returns:
        "seconds_a_step" and "seconds", None where they are not known, and "time" in words.
    """
    if sizes.bare >= SMALL_MODEL:
        return no_time(
            f"not estimated: a base of {sizes.bare / 1e6:,.0f} million parameters is not loaded for a plan; the run "
            "says after its first steps how long the rest will take"
        )
    each = seconds_a_step(prepare)
    said = f"some {duration(each * steps)} for {steps} steps, timed just now with weights drawn at random"
    if beside:
        said += f", without what {', '.join(beside)} do in a step"
    if not certain:
        said += "; none where the base as calibrated can do the task, which only the run finds out"
    return {"seconds_a_step": each, "seconds": each * steps, "time": said}


def no_time(why: str) -> dict[str, Any]:
    """What `time_of` returns where no step is timed."""
    return {"seconds_a_step": None, "seconds": None, "time": why}


def seconds_a_step(prepare: Callable[[], Callable[[int], object]]) -> float:
    """Wall time of a training step, without the first unless that alone takes long; see `time_of`."""
    step = prepare()
    begun = time.perf_counter()
    step(0)
    first = time.perf_counter() - begun
    if first > PATIENCE:
        return first
    begun = time.perf_counter()
    for number in range(1, TIMED + 1):
        step(number)
    return (time.perf_counter() - begun) / TIMED


class Clock:
    """Says once, after the first steps of a run, how long the rest will take, where that is more than a minute.

    Args:
        steps: at which the run ends.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._ticks, self._begun = steps, 0, 0.0

    def tick(self, done: int) -> str:
        """A sentence when it is time for it, else nothing, after the step that makes `done` of them."""
        self._ticks += 1
        if self._ticks == 1:  # the first step is always slower
            self._begun = time.perf_counter()
        if self._ticks != 1 + TIMED:
            return ""
        each = (time.perf_counter() - self._begun) / TIMED
        left = each * (self._steps - done)
        return (
            f"a step takes {each:.2g} s: some {duration(left)} for the {self._steps - done} left" if left > 60 else ""
        )


def duration(seconds: float) -> str:
    """A time in words: "40 seconds", "12 minutes", "3.5 hours"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"
    return f"{round(seconds / 60)} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
