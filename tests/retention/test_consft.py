"""ConSFT: a window's gradient is weighed by how well the window is known, and the weight itself has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learners import LORA, config, context, demonstration_loss, moved, recipe, trained

from vla_cli.errors import ConfigError
from vla_cli.retention.composition import DEMONSTRATIONS
from vla_cli.retention.consft import ConSFT


def test_the_gradient_of_a_window_is_its_own_times_the_weight(base: Path) -> None:
    given = context(base, LORA)
    parameters = list(moved(given.policy).values())
    loss = demonstration_loss(given)
    weighed = ConSFT(tau=2.0).weigh({DEMONSTRATIONS: loss})[DEMONSTRATIONS]
    for window in range(2):
        plain = torch.autograd.grad(loss[window], parameters, retain_graph=True, allow_unused=True)
        found = torch.autograd.grad(weighed[window], parameters, retain_graph=True, allow_unused=True)
        weight = torch.exp(-loss[window].detach() / 2)
        for one, other in zip(plain, found, strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(other, weight * one, rtol=1e-4, atol=1e-7)


def test_surprising_windows_weigh_less_and_only_demonstrations_are_weighed() -> None:
    losses = torch.tensor([0.0, 0.1, 0.5, 1.0, 4.0])
    found = ConSFT().weigh({DEMONSTRATIONS: losses, "rehearsal": losses})
    weights = found[DEMONSTRATIONS][1:] / losses[1:]
    assert bool((weights.diff() < 0).all()) and bool((weights < 1).all()) and bool((weights > 0).all())
    assert found["rehearsal"] is losses and list(found) == [DEMONSTRATIONS, "rehearsal"]
    assert torch.allclose(ConSFT(tau=1e9).weigh({DEMONSTRATIONS: losses})[DEMONSTRATIONS], losses)


def test_impossible_options_are_refused() -> None:
    for options in ({"tau": 0}, {"tau": "low"}, {"temperature": 1}):
        with pytest.raises(ConfigError, match="consft"):
            ConSFT(**options)


def test_a_run_logs_the_loss_before_and_after_weighing(dataset: Path, base: Path, tmp_path: Path) -> None:
    rows, facts = trained(config(dataset, base, tmp_path / "out", recipe(tmp_path, {"consft": {}})), "consft")
    assert len(rows) == 6 and facts == {"tau": 1.0}
    assert all(0 < row["loss"] < row["loss_demonstrations"] for row in rows)
