"""What a forward pass keeps, counted without weights, beside one that is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_cli.adapter import load_spec
from vla_cli.policies.adaptation import Layout, make_trainable
from vla_cli.policies.checkpoint import load_base, load_config
from vla_cli.policies.estimate import Pass, Sizes, activation_bytes, gigabytes, memory
from vla_cli.policies.flow import FlowPolicy
from vla_cli.policies.modalities import MODALITIES

WINDOWS, DRAWS = 6, 2


def kept(policy: FlowPolicy, batch: Any) -> int:
    """Bytes that a pass on the CPU keeps for the backward pass, the weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.losses(batch, draws=DRAWS, generator=torch.Generator().manual_seed(0))
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights)


@pytest.mark.parametrize(
    "layout",
    [Layout(dict.fromkeys(MODALITIES, 8)), Layout({}, full=MODALITIES), Layout({"action": 4})],
    ids=["lora", "full", "action-only"],
)
def test_activations_are_counted_as_a_pass_keeps_them(base: Path, layout: Layout) -> None:
    model, prompts, _ = load_base(str(base))
    policy = FlowPolicy(make_trainable(model, layout, train_heads=False, seed=0), prompts, load_spec(base), "cpu")
    policy.model.train()
    told = ["put the red block on the left plate"] * WINDOWS
    pictures = np.zeros((WINDOWS, 1, 60, 60, 3), np.uint8)
    batch = policy.collate(
        pictures, np.zeros((WINDOWS, 4)), told, np.zeros((WINDOWS, 8, 3)), np.ones((WINDOWS, 8), bool)
    )
    real = kept(policy, batch)
    size = Pass(WINDOWS, DRAWS, cameras=1, tokens=batch.input_ids.shape[1])
    counted = activation_bytes(load_config(base), size, layout=layout, train_heads=False)
    # the CPU's fused attention keeps less than attention written out, which is what is counted
    assert real <= counted <= 1.8 * real
    half = activation_bytes(load_config(base), Pass(3, DRAWS, 1, size.tokens), layout=layout, train_heads=False)
    assert half == pytest.approx(counted / 2, rel=0.05)


def test_the_memory_is_said_in_words() -> None:
    sizes = Sizes(bare=3_000_000_000, total=3_001_000_000, trained=1_000_000, outright=0, held=0)
    found = memory(sizes, copies=2, activations=30 * 10**9)
    assert found["memory"] == "54 GB: 24 GB weights, 12 MB gradients and moments, 30 GB activations"
    assert [gigabytes(count) for count in (1, 67_400_000, 10**9, 44_260_000_000)] == [
        "1 MB",
        "67 MB",
        "1 GB",
        "44.3 GB",
    ]
