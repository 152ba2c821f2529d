"""QLoRA (arXiv 2305.14314): the base's linear layers in 4 bits while LoRA trains beside them.

NF4 has sixteen levels at the quantiles of a normal distribution; a block of 64 weights shares a scale, and the scales
are quantised in turn (double quantisation): 0.516 bytes a weight instead of 4. Quantised is what training only reads:
the linear layers of the vision tower, the language model and the action expert, but those that are trained outright and
those whose rows are not whole blocks. Embeddings, norms, state and action projections and a token policy's output head
stay as they are. Each layer
answers a few percent beside the true one, so that LoRA also learns to undo that; the adapter goes onto the whole base
afterwards, where there is nothing to undo. What that costs is measured like everything else, with `vla eval-steer`; of
one task, see docs/quantization.md.

The numbers are bitsandbytes', which is an extra: `pip install 'vla-cli[quantized]'`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from vla_cli.errors import MissingDependency
from vla_cli.policies.modalities import HEADS, MODALITIES, OUTPUT, lora_targets
from vla_cli.recipe import NF4

BLOCK = 64
"""Weights that share a scale. bitsandbytes 0.50 reads a weight whose rows are no multiple of it wrongly on CPUs (with
errors of 16 to 30% instead of 9), so such layers stay whole: of pi0's, fc2 of the vision tower (4304 wide)."""
BYTES_A_WEIGHT = 0.5 + 1 / BLOCK + 4 / (BLOCK * 256)
"""Four bits, an eight-bit scale for every 64 weights, and a float for every 256 scales."""


def check_available() -> None:
    """Refuse to quantise without bitsandbytes.

    Raises:
        MissingDependency: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependency("bitsandbytes", extra="quantized", purpose="Holding a base in 4 bits")


def quantized_linears(model: nn.Module, full: Collection[str]) -> list[str]:
    """Full names of the linear layers of a bare model that are held in 4 bits, in model order.

    Args:
        model: the base.
        full: modalities that are trained outright.
    """
    held = [modality for modality in MODALITIES if modality not in full]
    names = [name for name in lora_targets(model, held) if name not in (*HEADS, OUTPUT)]
    modules: dict[str, Any] = dict(model.named_modules())
    return [name for name in names if modules[name].in_features % BLOCK == 0]


def quantize(model: Any, full: Collection[str]) -> None:
    """Put 4-bit linear layers in the place of a bare model's, on the CPU: they are the same whatever the device.

    Args:
        model: float32, on the CPU.
        full: modalities that are trained outright, and so stay whole.

    Raises:
        MissingDependency: bitsandbytes is not installed.
    """
    check_available()
    library = _bitsandbytes()
    for name in quantized_linears(model, full):
        linear = model.get_submodule(name)
        held = library.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.float32,
            quant_type=NF4,
            device="meta",
        )
        weight = library.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type=NF4, blocksize=BLOCK, module=held
        )
        held.weight, held.bias = weight.to("cpu"), linear.bias
        # else a forward pass in evaluation repacks the weights in place, and gradients vanish from then on
        held.support_avx512bf16_for_cpu = False
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, held)
    model.is_loaded_in_4bit = True  # peft asks for this before it puts LoRA beside a 4-bit layer


def whole(weight: Tensor) -> Tensor:
    """A weight as it acts: of one in 4 bits the float32 values that it stands for; any other as it is."""
    state = getattr(weight, "quant_state", None)
    return weight if state is None else _bitsandbytes().functional.dequantize_4bit(weight.data, state)


def size_of(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: two to each byte of one in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def _bitsandbytes() -> Any:
    with no_code_from_the_hub():
        import bitsandbytes
    return bitsandbytes


@contextmanager
def no_code_from_the_hub() -> Iterator[None]:
    """Import bitsandbytes, or peft, which imports it where it is installed, without what it would fetch.

    On some CPUs it takes a kernel from the hub and runs it, where the package `kernels` is installed, and else logs
    that it could not. Inside, an import of `kernels` fails as if it were not installed.
    """
    logger = logging.getLogger("bitsandbytes")
    level, absent = logger.level, "kernels" not in sys.modules
    logger.setLevel(logging.ERROR)
    if absent:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.setLevel(level)
        if absent:
            del sys.modules["kernels"]
