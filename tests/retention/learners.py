"""The embedded base made trainable, a few windows to train on, and a run of a few steps."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vla_cli.adapter import load_spec
from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Demonstration
from vla_cli.files import read_json
from vla_cli.policies.adaptation import Layout, make_trainable, trained_parameters
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.modalities import MODALITIES
from vla_cli.retention import Context, Step
from vla_cli.stages import finetune
from vla_cli.windows import Windows

FULL = Layout({}, full=MODALITIES)
LORA = Layout(dict.fromkeys(MODALITIES, 4))
DELOCK = Layout({"language": 4, "action": 4}, full=("vision",))
NO_VISION = Layout({}, full=("language", "action"))


def windows(level: int, instruction: str, frames: int = 10) -> Windows:
    rng = np.random.default_rng(level)
    images = np.clip(rng.normal(level, 20, (frames, 60, 60, 3)), 0, 255).astype(np.uint8)
    state, actions = rng.normal(size=(frames, 4)), rng.normal(size=(frames, 3))
    demo = Demonstration("demo", {"top": images}, state.astype("f4"), actions.astype("f4"), [instruction])
    return Windows([demo], ["top"], chunk=8)


def learner(base: Path, layout: Layout) -> FlowPolicy:
    model, prompts, _ = load_base(str(base))
    return FlowPolicy(make_trainable(model, layout, train_heads=False, seed=0), prompts, load_spec(base), "cpu")


def frozen(base: Path) -> FlowPolicy:
    policy = load(str(base), device="cpu")
    policy.model.requires_grad_(False)
    return policy


def context(base: Path, layout: Layout, **changes: Any) -> Context:
    fields = {
        "policy": learner(base, layout),
        "frozen": lru_cache(maxsize=1)(lambda: frozen(base)),
        "demonstrations": windows(60, "put the red block on the left plate"),
        "held_out": None,
        "replay": windows(180, "put the blue block on the right plate"),
        "batch_size": 8,
    }
    return Context(**{**fields, **changes})


def step(given: Context, number: int = 0) -> Step:
    samples = given.demonstrations.gather(range(4))
    return Step(number, np.random.default_rng(number), torch.Generator().manual_seed(number), samples)


def moved(policy: Any, size: float = 0.01) -> dict[str, torch.nn.Parameter]:
    """Move every trained weight at random; the trained parameters."""
    generator = torch.Generator().manual_seed(1)
    parameters = trained_parameters(policy.model)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return parameters


def demonstration_loss(given: Context) -> torch.Tensor:
    """Flow loss [4] of four demonstrated windows, always with the same noise."""
    s = step(given).demonstrations
    batch = given.policy.collate(s.images, s.state, s.instructions, s.actions, s.real_steps)
    return given.policy.losses(batch, draws=1, generator=torch.Generator().manual_seed(5))


def closure(given: Context) -> Any:
    """Sets the trained parameters' gradients of that loss."""

    def run() -> None:
        given.policy.model.zero_grad(set_to_none=True)
        demonstration_loss(given).mean().backward()

    return run


def recipe(folder: Path, retention: dict[str, Any], **changes: Any) -> str:
    """A recipe file of a few tiny steps."""
    path = folder / "tiny.yaml"
    document = {"method": "full", "steps": 6, "batch_size": 4, "noise_draws": 1, "retention": retention, **changes}
    path.write_text(yaml.safe_dump(document))
    return str(path)


def config(dataset: Path, base: Path, out: Path, chosen: str, **options: Any) -> FinetuneConfig:
    return FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe=chosen, **options)


def trained(config: FinetuneConfig, name: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Fine-tune: metrics by step, and the method's facts."""
    finetune.run(config)
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    return rows, read_json(config.out / "run.json")["facts"]["retention"][name]
