"""Where the time of a fine-tuning step goes, as ratios within one run (seconds differ by machine; ratios less).

    python benchmarks/finetune_speed.py

threads        a step with two torch threads against one, on the miniature
shared prefix  a step with two noise draws that share a prefix pass, against two steps with one draw each
LoRA           a LoRA step against a full fine-tuning step
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time
from collections.abc import Callable

import numpy as np
import torch

from vla_cli.policies.adaptation import make_full, make_lora
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.modalities import MODALITIES

BASE, REPEATS, WINDOWS = "sample_data/base", 9, 32


def stepper(method: str) -> Callable[[int], None]:
    """A function that does one forward and backward pass with so many noise draws."""
    model, prompts, _ = load_base(BASE)
    trained = (
        make_full(model)
        if method == "full"
        else make_lora(model, ranks=dict.fromkeys(MODALITIES, 8), alpha=8, train_heads=False, seed=0)
    )
    policy = FlowPolicy(trained, prompts, load(BASE, device="cpu").spec, "cpu")
    rng = np.random.default_rng(0)
    batch = policy.collate(
        rng.integers(0, 256, (WINDOWS, 1, 60, 60, 3), np.uint8),
        rng.uniform(0, 1, (WINDOWS, 4)),
        ["put the red block on the left plate"] * WINDOWS,
        rng.uniform(-1, 1, (WINDOWS, 8, 3)),
        np.ones((WINDOWS, 8), bool),
    )

    def step(draws: int) -> None:
        policy.losses(batch, draws=draws, generator=torch.Generator().manual_seed(0)).mean().backward()

    return step


def median_seconds(action: Callable[[], None]) -> float:
    """Median wall time of a few repeats, after two to warm up."""
    times = []
    for _ in range(REPEATS + 2):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))


def main() -> None:
    """Measure and print."""
    full, lora = stepper("full"), stepper("lora")
    torch.set_num_threads(2)
    two = median_seconds(lambda: full(2))
    torch.set_num_threads(1)
    one = median_seconds(lambda: full(2))
    single = median_seconds(lambda: full(1))
    adapted = median_seconds(lambda: lora(2))
    print(f"one thread: {one:.3f} s a step of {WINDOWS} windows x 2 draws")
    print(f"threads        two / one                 {two / one:.2f}")
    print(f"shared prefix  two draws / two steps     {one / (2 * single):.2f}")
    print(f"LoRA           LoRA / full               {adapted / one:.2f}")


if __name__ == "__main__":
    main()
