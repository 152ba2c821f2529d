"""Anchor: hidden states are held to the base's, where there is something to hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import load_dataset
from vla_cli.errors import ConfigError
from vla_cli.policies.adaptation import Layout, make_trainable
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.retention import Context, Step
from vla_cli.retention.anchor import Anchor
from vla_cli.stages import finetune
from vla_cli.windows import Windows, join


def context(base: Path, dataset: Path, layout: Layout) -> Context:
    policy, frozen = load(str(base), device="cpu"), load(str(base), device="cpu")
    frozen.model.requires_grad_(False).eval()
    model = make_trainable(policy.model, layout, train_heads=False, seed=0)
    windows = Windows(load_dataset(dataset).split("train"), policy.spec.cameras, policy.spec.chunk_size)
    return Context(FlowPolicy(model, policy.prompts, policy.spec, "cpu"), lambda: frozen, windows, None, None)


def disturb(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def step(samples: object) -> Step:
    return Step(0, np.random.default_rng(0), torch.Generator().manual_seed(0), samples)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [Layout({"language": 4, "action": 4}), Layout({}, full=("vision",))])
def test_the_penalty_is_exactly_zero_at_the_start_and_pulls_only_on_trained_weights_later(
    base: Path, dataset: Path, layout: Layout
) -> None:
    known = context(base, dataset, layout)
    method = Anchor()
    method.prepare(known)
    known.policy.model.train()
    samples = known.demonstrations.gather(range(12))
    assert method.penalty(step(samples)).raw.item() == 0.0
    disturb(known.policy.model)
    penalty = method.penalty(step(samples))
    assert penalty.scaled.item() == pytest.approx(0.1 * penalty.raw.item()) and penalty.raw.item() > 0
    penalty.scaled.backward()
    pulled = {n for n, p in known.policy.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert pulled and all(dict(known.policy.model.named_parameters())[name].requires_grad for name in pulled)
    assert "action" not in {known.policy.modality(name) for name in pulled}, "the action expert is not held"


def test_a_micro_batch_has_its_part_of_the_windows(base: Path, dataset: Path) -> None:
    known = context(base, dataset, Layout({"language": 4}))
    part, few = Anchor(windows=8), Anchor(windows=2)
    part.prepare(replace(known, parts=4))
    few.prepare(known)
    disturb(known.policy.model)
    samples = known.demonstrations.gather(range(8))
    raw = part.penalty(step(samples)).raw
    assert torch.equal(raw, few.penalty(step(samples)).raw) and raw > 0
    assert part.facts()["windows_a_step"] == 8


def test_padding_of_shorter_instructions_counts_for_nothing(base: Path, dataset: Path) -> None:
    known = context(base, dataset, Layout({"language": 4}))
    method = Anchor()
    method.prepare(known)
    disturb(known.policy.model)
    one = known.demonstrations.gather([0])
    one.instructions = ["pick up the red block"]
    other = known.demonstrations.gather([20])
    tokens = [
        known.policy.hidden_states(known.policy.collate(s.images, s.state, s.instructions))[1].sum().item()
        for s in (one, other)
    ]
    apart = [method.penalty(step(s)).raw.item() for s in (one, other)]
    together = method.penalty(step(join([one, other]))).raw.item()
    assert together == pytest.approx(float(np.average(apart, weights=tokens)), rel=1e-4)


def test_it_is_refused_where_the_vision_language_model_cannot_change(base: Path, dataset: Path) -> None:
    with pytest.raises(ConfigError, match="no part of it is trained"):
        Anchor().prepare(context(base, dataset, Layout({"action": 4})))


def test_a_fine_tuning_with_an_anchor_ends_nearer_to_the_base(dataset: Path, base: Path, tmp_path: Path) -> None:
    ends = []
    for weight in (0.0, 30.0):
        recipe = tmp_path / f"anchor-{weight}.yaml"
        recipe.write_text(f"method: lora\nwarmup: 0\nretention: {{anchor: {{weight: {weight}, windows: 4}}}}\n")
        out = tmp_path / f"out-{weight}"
        done = finetune.run(
            FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe=str(recipe), steps=4, batch_size=4)
        )
        ends.append(done["facts"]["last_step"]["anchor_raw"])
        assert done["facts"]["retention"]["anchor"]["modalities"] == ["language", "vision"]
    assert 0 < ends[1] < ends[0]
