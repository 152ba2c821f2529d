"""EWC: F is what its definition says, costs nothing twice, and pulls each weight back by its own F."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learners import FULL, LORA, config, context, moved, recipe, step, trained

from vla_cli.errors import ConfigError, InputError
from vla_cli.policies.adaptation import Layout
from vla_cli.retention.ewc import EWC, fisher_diagonal

BIAS = "action_out_proj.bias"


def test_the_fisher_is_the_mean_squared_gradient_of_single_windows(base: Path) -> None:
    given = context(base, FULL)
    frozen = given.frozen()
    assert given.replay is not None
    found = fisher_diagonal(frozen, given.replay, [BIAS], samples=3, seed=7)[BIAS]
    assert not any(p.requires_grad or p.grad is not None for p in frozen.model.parameters()), "left as it was"
    parameter = dict(frozen.model.named_parameters())[BIAS].requires_grad_(True)
    generator = torch.Generator().manual_seed(7)
    squares = []
    for number in (0, 4, 9):
        batch = frozen.batch(given.replay.gather([number]))
        loss = frozen.losses(batch, draws=1, generator=generator).mean()
        squares.append(torch.autograd.grad(loss, parameter)[0].square())
    torch.testing.assert_close(found, torch.stack(squares).mean(0))
    assert found[:3].min() > 0 and found[3:].max() == 0, "padded action dimensions are in no loss"


@pytest.mark.parametrize("layout", [FULL, LORA])
def test_it_is_zero_at_the_start_and_pulls_by_f_afterwards(base: Path, layout: Layout) -> None:
    given = context(base, layout)
    method = EWC(samples=3, weight=2.0)
    method.prepare(given)
    assert method.penalty(step(given)).scaled.item() == 0
    assert set(method.fisher) == set(given.policy.deltas())
    assert all(bool((f >= 0).all()) and torch.isfinite(f).all() for f in method.fisher.values())
    moved(given.policy)
    deltas = given.policy.deltas()
    expected = sum((method.fisher[n] * d.square()).sum() for n, d in deltas.items())
    penalty = method.penalty(step(given))
    torch.testing.assert_close(penalty.raw, torch.as_tensor(expected) / 2)
    penalty.scaled.backward()
    if layout is FULL:
        for name, parameter in given.policy.model.named_parameters():
            if name in deltas:
                torch.testing.assert_close(parameter.grad, 2.0 * method.fisher[name] * deltas[name].detach())
    facts = method.facts()
    assert set(facts["fisher_mass"]) == {"vision", "language", "action"} and min(facts["fisher_mass"].values()) > 0
    assert sum(facts["drift_share"].values()) == pytest.approx(1, abs=1e-4)


def test_auto_makes_the_penalty_the_bases_loss_at_the_budget(base: Path) -> None:
    given = context(base, FULL)
    method = EWC(samples=3, budget=0.05)
    method.prepare(given)
    with torch.no_grad():
        for name, parameter in given.policy.model.named_parameters():
            if name in method.fisher:
                parameter.mul_(1.05)
    assert method.penalty(step(given)).scaled.item() == pytest.approx(method.base_loss, rel=1e-3)


def test_the_fisher_is_repeatable_and_read_from_the_cache(base: Path, tmp_path: Path) -> None:
    first, second, plain = EWC(samples=3), EWC(samples=3), EWC(samples=3)
    first.prepare(context(base, FULL, cache=tmp_path / "new"))
    second.prepare(context(base, FULL, cache=tmp_path / "new"))
    plain.prepare(context(base, FULL))
    assert (first.cached, second.cached, plain.cached) == (False, True, False)
    assert first.weight == second.weight == plain.weight and first.facts() == second.facts()
    for name, fisher in first.fisher.items():
        assert torch.equal(fisher, second.fisher[name]) and torch.equal(fisher, plain.fisher[name])
    [file] = (tmp_path / "new").iterdir()
    assert file.name.startswith("fisher-") and file.suffix == ".safetensors"


def test_the_cache_is_not_taken_for_anothers(base: Path, tmp_path: Path) -> None:
    given = context(base, LORA, cache=tmp_path)
    EWC(samples=2).prepare(given)
    other = context(base, LORA, cache=tmp_path, replay=given.demonstrations)
    nudged = context(base, LORA, cache=tmp_path)
    with torch.no_grad():
        next(nudged.frozen().model.parameters()).add_(1e-3)
    seeded = context(base, LORA, cache=tmp_path, seed=1)
    for samples, changed in ((2, other), (2, nudged), (2, seeded), (3, given)):
        method = EWC(samples=samples)
        method.prepare(changed)
        assert not method.cached
    for file in tmp_path.iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="delete"):
        EWC(samples=2).prepare(given)


def test_without_base_data_or_with_impossible_options_it_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="--replay"):
        EWC().prepare(context(base, LORA, replay=None))
    for options in ({"samples": 0}, {"samples": 1.5}, {"weight": "much"}, {"budget": -1}, {"fisher": 1}):
        with pytest.raises(ConfigError, match="ewc"):
            EWC(**options)


def test_a_run_logs_both_figures_and_says_where_forgetting_comes_from(
    dataset: Path, replay: Path, base: Path, tmp_path: Path
) -> None:
    chosen = recipe(tmp_path, {"ewc": {"samples": 4}})
    rows, facts = trained(config(dataset, base, tmp_path / "out", chosen, replay=replay), "ewc")
    assert len(rows) == 6 and rows[0]["ewc_raw"] == rows[0]["ewc_scaled"] == 0 < rows[-1]["ewc_raw"]
    assert rows[-1]["ewc_scaled"] == pytest.approx(facts["lambda"] * rows[-1]["ewc_raw"], rel=1e-4)
    assert facts["fisher_windows"] == 4 and sum(facts["drift_share"].values()) == pytest.approx(1, abs=1e-4)
