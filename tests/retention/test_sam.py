"""SAM: the gradient is that of the point uphill, and the weights never notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learners import FULL, LORA, closure, config, context, moved, recipe, step, trained

from vla_cli.errors import ConfigError
from vla_cli.policies.adaptation import Layout, trained_parameters
from vla_cli.retention.sam import SAM


@pytest.mark.parametrize("layout", [FULL, LORA])
def test_the_gradient_is_the_one_uphill_and_the_weights_are_untouched(base: Path, layout: Layout) -> None:
    given = context(base, layout)
    parameters = moved(given.policy)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    run = closure(given)
    run()
    plain = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    SAM(rho=0.05).wrap_gradient(step(given), parameters, run)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    length = torch.cat([g.flatten() for g in plain.values()]).norm()
    with torch.no_grad():
        for name, gradient in plain.items():
            parameters[name].add_(0.05 * gradient / length)
    run()
    assert set(found) == set(plain)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(found[name], plain[name], rtol=1e-2) for name in plain)


def test_an_error_uphill_leaves_the_weights_as_they_were(base: Path) -> None:
    given = context(base, LORA)
    parameters = moved(given.policy)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    closure(given)()

    def fails() -> None:
        assert any(not torch.equal(p, before[name]) for name, p in parameters.items())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SAM().wrap_gradient(step(given), parameters, fails)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


def test_without_a_gradient_there_is_no_way_up(base: Path) -> None:
    given = context(base, LORA)
    parameters = trained_parameters(given.policy.model)
    SAM().wrap_gradient(step(given), parameters, lambda: pytest.fail("nowhere to go"))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    SAM().wrap_gradient(step(given), parameters, lambda: pytest.fail("nowhere to go"))


def test_impossible_options_are_refused() -> None:
    for options in ({"rho": 0}, {"rho": "far"}, {"radius": 1}):
        with pytest.raises(ConfigError, match="sam"):
            SAM(**options)


def test_a_run_logs_the_loss_at_the_weights_not_uphill(dataset: Path, base: Path, tmp_path: Path) -> None:
    rows, facts = trained(config(dataset, base, tmp_path / "sam", recipe(tmp_path, {"sam": {"rho": 0.5}})), "sam")
    chosen = recipe(tmp_path, {"sam": {"rho": 1e-12}}, steps=1)
    flat, _ = trained(config(dataset, base, tmp_path / "flat", chosen), "sam")
    assert len(rows) == 6 and facts == {"rho": 0.5}
    assert rows[0]["loss"] == flat[0]["loss"] and rows[0]["grad_norm"] != flat[0]["grad_norm"]
