"""Projection: the gradient never points against the base's own domain, and is left alone when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import InterruptAfter, contents
from hypothesis import given as for_all
from hypothesis import strategies as st
from learners import LORA, closure, config, context, moved, recipe, step, trained

from vla_cli.errors import ConfigError
from vla_cli.retention.projection import Projection, project
from vla_cli.stages import finetune


def dot(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum((a[name].double() * b[name].double()).sum().item() for name in a)


@for_all(st.integers(0, 10_000))
def test_afterwards_the_two_do_not_disagree(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def vector() -> dict[str, torch.Tensor]:
        return {name: torch.randn(size, generator=generator) for name, size in (("a", (3, 2)), ("b", (4,)))}

    gradient, reference = vector(), vector()
    before = {name: g.clone() for name, g in gradient.items()}
    agreed = dot(gradient, reference)
    assert project(gradient, reference) == (agreed < 0)
    if agreed < 0:
        assert abs(dot(gradient, reference)) < 1e-4, "orthogonal: no more is taken than needed"
        assert dot(gradient, gradient) <= dot(before, before)
    else:
        assert all(torch.equal(gradient[name], before[name]) for name in before)


def test_the_gradient_of_a_batch_is_projected_on_base_windows(base: Path) -> None:
    given = context(base, LORA)
    method = Projection(share_windows=4)
    method.prepare(given)
    parameters = moved(given.policy)
    closure(given)()
    own = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    reference = method.reference(step(given), parameters)
    assert all(torch.equal(p.grad, own[name]) for name, p in parameters.items() if p.grad is not None)
    for sign in (1.0, -1.0):
        for name, gradient in own.items():
            parameters[name].grad = sign * gradient
        method.wrap_gradient(step(given), parameters, lambda: None)
        after = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        assert dot(after, reference) > -1e-4 * dot(reference, reference)
        kept = all(torch.equal(after[name], sign * gradient) for name, gradient in own.items())
        assert kept == (sign * dot(own, reference) >= 0)
    assert method.watch(2) == method.watch(2) == ({"projection_share": 0.5}, [])
    closure(given)()
    for name, parameter in parameters.items():
        parameter.grad = reference[name].clone()
    method.wrap_gradient(step(given), parameters, lambda: None)
    assert method.watch(4) == ({"projection_share": 0.0}, []), "counted from checkpoint to checkpoint"


def test_without_base_data_or_with_impossible_options_it_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="--replay"):
        Projection().prepare(context(base, LORA, replay=None))
    for options in ({"share_windows": 0}, {"noise_draws": 0.5}, {"windows": 1}):
        with pytest.raises(ConfigError, match="projection"):
            Projection(**options)


def test_a_run_says_how_often_it_projected_and_resumes_to_the_byte(
    dataset: Path, replay: Path, base: Path, tmp_path: Path
) -> None:
    chosen = recipe(tmp_path, {"projection": {"share_windows": 3}}, method="lora", rank=2, steps=3)
    rows, facts = trained(
        config(dataset, base, tmp_path / "whole", chosen, replay=replay, checkpoint_every=2), "projection"
    )
    shares = [row["projection_share"] for row in rows if "projection_share" in row]
    assert len(rows) == 3 and len(shares) == 2 and all(0 <= share <= 1 for share in shares)
    assert facts["projection_share"] == shares[-1] and facts["replay_windows"] > 500
    with pytest.raises(KeyboardInterrupt):
        finetune.run(
            config(dataset, base, tmp_path / "halves", chosen, replay=replay, checkpoint_every=2), InterruptAfter(3)
        )
    finetune.run(config(dataset, base, tmp_path / "halves", chosen, replay=replay, resume=True, checkpoint_every=2))
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")
