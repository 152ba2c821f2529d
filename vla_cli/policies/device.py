"""Where a policy runs, and on how many threads."""

from __future__ import annotations

import torch
from torch import nn

from vla_cli.errors import ConfigError, words

SMALL_MODEL = 20_000_000
"""Parameters below which a second torch thread brings so little (benchmarks/finetune_speed.py) that runs side by side
are better; one thread also gives the same results on machines with more cores."""


def set_threads(model: nn.Module, threads: int) -> None:
    """Set torch's threads: as asked, or with 0 one for a small model and torch's own choice for others."""
    if threads > 0:
        torch.set_num_threads(threads)
    elif is_small(model):
        torch.set_num_threads(1)


def is_small(model: nn.Module) -> bool:
    """Whether a model is so small that one core a run is best."""
    return sum(p.numel() for p in model.parameters()) < SMALL_MODEL


def pick_device(wish: str) -> str:
    """ "auto" to "cuda" when there is one, else "cpu"; anything else as it is.

    Raises:
        ConfigError: torch knows no such device, or has none on this machine.
    """
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wish)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # a torch built without CUDA asserts
        raise ConfigError(
            f"--device {wish} cannot be used here ({words(error)})",
            expected="auto, cpu, or an accelerator that this torch was built for and this machine has",
            hint="--device auto",
        ) from None
    return wish
