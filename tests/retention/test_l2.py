"""L2 to the base: zero at the start, a spring afterwards, and never a penalty that cannot act."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import InterruptAfter, contents
from learners import DELOCK, FULL, LORA, NO_VISION, config, context, moved, recipe, step, trained

from vla_cli.adapter import load_spec
from vla_cli.errors import ConfigError
from vla_cli.policies.adaptation import Layout, make_trainable
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.flow import FlowPolicy
from vla_cli.retention.l2 import L2
from vla_cli.stages import finetune


@pytest.mark.parametrize("layout", [FULL, DELOCK])
def test_it_is_zero_at_the_start_and_then_a_spring(base: Path, layout: Layout) -> None:
    given = context(base, layout)
    method = L2(weight=3.0)
    method.prepare(given)
    start = {name: delta.detach() for name, delta in given.policy.deltas().items()}
    assert method.penalty(step(given)).scaled.item() == 0 and not any(d.any() for d in start.values())
    parameters = moved(given.policy)
    penalty = method.penalty(step(given))
    penalty.scaled.backward()
    assert penalty.scaled.item() == pytest.approx(3 * penalty.raw.item())
    deltas = given.policy.deltas()
    held = {n: d for n, d in deltas.items() if given.policy.modality(n) == "vision"}
    assert penalty.raw.item() == pytest.approx(sum(d.square().sum().item() for d in held.values()), rel=1e-4)
    gradients = [p.grad for n, p in parameters.items() if given.policy.modality(n) == "vision"]
    assert len(gradients) == len(held)
    for gradient, delta in zip(gradients, held.values(), strict=True):
        torch.testing.assert_close(gradient, 2 * 3 * delta.detach())
    others = [p.grad for n, p in parameters.items() if given.policy.modality(n) != "vision"]
    assert all(gradient is None for gradient in others)


def test_auto_makes_the_penalty_the_bases_loss_at_the_budget(base: Path) -> None:
    given = context(base, FULL)
    bare = {n: p.detach().clone() for n, p in given.policy.model.named_parameters() if p.requires_grad}
    method = L2(modalities=["vision", "language"], budget=0.05)
    method.prepare(given)
    with torch.no_grad():
        for name, parameter in given.policy.model.named_parameters():
            if name in bare:
                parameter.copy_(1.05 * bare[name])
    assert method.base_loss > 0
    assert method.penalty(step(given)).scaled.item() == pytest.approx(method.base_loss, rel=1e-3)
    drift = method.facts()["relative_drift"]
    assert drift == pytest.approx(dict.fromkeys(["vision", "language", "action"], 0.05), rel=1e-3)


def test_a_penalty_that_cannot_act_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"no parameter of vision is trained.*--vision full"):
        L2().prepare(context(base, NO_VISION))
    with pytest.raises(ConfigError, match=r"only LoRA is trained.*lora_product: true"):
        L2().prepare(context(base, LORA))
    with pytest.raises(ConfigError, match="language"):
        L2(modalities=["vision", "language"]).prepare(context(base, DELOCK))


def test_a_modality_that_is_held_in_part_only_is_refused(base: Path) -> None:
    model, prompts, _ = load_base(str(base))
    wrapped = make_trainable(model, Layout({"action": 4}), train_heads=True, seed=0)
    given = context(base, LORA, policy=FlowPolicy(wrapped, prompts, load_spec(base), "cpu"))
    with pytest.raises(ConfigError, match=r"only the state and action projections.*lora_product: true"):
        L2(modalities=["action"]).prepare(given)
    L2(modalities=["action"], lora_product=True).prepare(given)


def test_the_automatic_lambda_is_summed_in_one_order_in_every_process() -> None:
    method = L2(budget=1.0)
    # summed in another order than that of the names, the small ones would be seen
    method._norms = {"a": 1e8, **{f"w{i}": 1.0 for i in range(9)}}
    method._names, method.base_loss = reversed(list(method._norms)), 1.0  # type: ignore[assignment]
    assert method._weight() == 1e-16


def test_loras_product_is_held_on_request(base: Path) -> None:
    given = context(base, LORA)
    method = L2(lora_product=True)
    method.prepare(given)
    assert method.penalty(step(given)).raw.item() == 0
    moved(given.policy)
    raw = method.penalty(step(given)).raw
    expected = sum(d.square().sum() for n, d in given.policy.deltas().items() if given.policy.modality(n) == "vision")
    torch.testing.assert_close(raw, expected)
    raw.backward()
    grown = [n for n, p in given.policy.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert grown and all(given.policy.modality(name) == "vision" and ".lora_" in name for name in grown)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": "strong"},
        {"weight": -1},
        {"weight": True},
        {"budget": 0},
        {"modalities": "vision"},
        {"modalities": []},
        {"modalities": ["eyes"]},
        {"lora_product": 1},
        {"lambda": 1},
    ],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="l2"):
        L2(**options)


def test_a_run_holds_the_weights_logs_both_figures_and_resumes_to_the_byte(
    dataset: Path, base: Path, tmp_path: Path
) -> None:
    chosen = recipe(tmp_path, {"l2": {}}, vision="full", language="lora:2", action="lora:2", steps=4)
    options = {"learning_rate": 0.01, "checkpoint_every": 2}
    rows, facts = trained(config(dataset, base, tmp_path / "whole", chosen, **options), "l2")
    assert rows[0]["l2_raw"] == rows[0]["l2_scaled"] == 0 < rows[-1]["l2_raw"]
    assert rows[-1]["l2_scaled"] == pytest.approx(facts["lambda"] * rows[-1]["l2_raw"], rel=1e-4)
    assert 0 < rows[-1]["l2_drift_vision"] == facts["relative_drift"]["vision"]
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config(dataset, base, tmp_path / "halves", chosen, **options), InterruptAfter(3))
    finetune.run(config(dataset, base, tmp_path / "halves", chosen, resume=True, **options))
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")
    chosen = recipe(tmp_path, {"l2": {"weight": 0}}, vision="full", language="lora:2", action="lora:2", steps=4)
    _, free = trained(config(dataset, base, tmp_path / "free", chosen, **options), "l2")
    assert facts["relative_drift"]["vision"] < free["relative_drift"]["vision"]
