"""How far training moved a policy: nothing before it, exactly what was changed after it, however the weights train."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_cli.adapter import load_spec
from vla_cli.configs import FinetuneConfig
from vla_cli.policies.adaptation import Layout, make_trainable, trained_parameters
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.modalities import MODALITIES, modality_of
from vla_cli.policies.telemetry import measure_change
from vla_cli.stages import finetune
from vla_cli.windows import Samples

FULL = Layout({}, full=MODALITIES)
LORA = Layout(dict.fromkeys(MODALITIES, 4))
LAYOUTS = {
    "full": FULL,
    "lora": LORA,
    "delock": Layout({"language": 4, "action": 4}, full=("vision",)),
    "qlora": replace(LORA, quantized=True),
}


def samples(count: int = 3) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        rng.integers(0, 255, (count, 1, 60, 60, 3), dtype=np.uint8),
        rng.normal(size=(count, 4)),
        ["put the red block on the left plate", "pick up the blue ball", "go"][:count],
        rng.normal(size=(count, 8, 3)),
        np.ones((count, 8), bool),
    )


def learner(base: Path, layout: Layout) -> FlowPolicy:
    model, prompts, _ = load_base(str(base))
    return FlowPolicy(make_trainable(model, layout, train_heads=False, seed=0), prompts, load_spec(base), "cpu")


def change(base: Path, policy: FlowPolicy) -> dict:
    return measure_change(policy, lambda: load(str(base), device="cpu"), samples())


@lru_cache(maxsize=1)
def norms(base: Path) -> dict[str, float]:
    """Modality to the norm of all weights of the base."""
    squares = dict.fromkeys(MODALITIES, 0.0)
    for name, p in load_base(str(base))[0].named_parameters():
        squares[modality_of("." + name)] += float(p.detach().double().square().sum())
    return {name: square**0.5 for name, square in squares.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_before_training_nothing_has_moved(base: Path, layout: str) -> None:
    found = change(base, learner(base, LAYOUTS[layout]))
    assert found["drift"] == dict.fromkeys(MODALITIES, 0.0) and found["layers"] == {}
    assert found["windows"] == 3 and len(found["features"]) > 2
    assert all(cosine == pytest.approx(1, abs=1e-5) for cosine in found["features"])


@pytest.mark.parametrize("layout", ["full", "delock"])
def test_what_is_trained_outright_counts_as_far_as_it_went(base: Path, layout: str) -> None:
    policy = learner(base, LAYOUTS[layout])
    moved = 0.0
    with torch.no_grad():
        for name, p in trained_parameters(policy.model).items():
            if "vision_tower" in name and ".lora_" not in name:
                moved += float((0.1 * p).double().square().sum())
                p.mul_(1.1)
    found = change(base, policy)
    assert found["drift"]["vision"] == pytest.approx(moved**0.5 / norms(base)["vision"], rel=1e-4)
    assert found["drift"]["vision"] > 0.05
    assert found["drift"]["language"] == found["drift"]["action"] == 0
    assert {modality_of("." + layer + ".") for layer in found["layers"]} == {"vision"}
    assert "model.vlm.vision_tower.encoder.layers.0" in found["layers"]
    assert found["features"][0] < 0.999, "pictures go in otherwise, though no weight of the language model moved"


@pytest.mark.parametrize("layout", ["lora", "qlora"])
def test_lora_counts_as_its_product(base: Path, layout: str) -> None:
    policy = learner(base, LAYOUTS[layout])
    model: torch.nn.Module = policy.model
    name = next(n for n, m in model.named_modules() if hasattr(m, "lora_A") and ".language_model." in n)
    module: torch.nn.Module = model.get_submodule(name)
    with torch.no_grad():
        module.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
        product = module.lora_B["default"].weight @ module.lora_A["default"].weight
    found = change(base, policy)
    # a base in 4 bits is as long as the whole one within a percent
    expected = float(product.norm()) / norms(base)["language"]
    assert found["drift"]["language"] == pytest.approx(expected, rel=1e-4 if layout == "lora" else 0.02)
    assert found["drift"]["vision"] == found["drift"]["action"] == 0
    (layer,) = found["layers"]
    assert layer in name
    assert found["features"][0] == pytest.approx(1, abs=1e-5) and found["features"][-1] < 0.9999


@pytest.mark.parametrize("recipe", ["naive", "lora"])
def test_a_run_says_how_far_it_went(dataset: Path, base: Path, tmp_path: Path, recipe: str) -> None:
    chosen = FinetuneConfig(
        dataset=dataset, base=str(base), out=tmp_path / "out", recipe=recipe, steps=2, batch_size=4, vision="frozen"
    )
    told = finetune.run(chosen)["facts"]["change"]
    assert told["drift"]["vision"] == 0 < min(told["drift"]["language"], told["drift"]["action"])
    assert 0.5 < min(told["features"]) < 1
