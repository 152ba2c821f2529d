"""The training loop on one made-up weight: what is no number ends it, in words; early stopping; micro-batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import contents
from torch import Tensor, nn

from vla_cli.errors import InputError
from vla_cli.policies.early_stopping import EarlyStopping, Kept
from vla_cli.policies.trainer import Settings, Trainer
from vla_cli.progress import SILENT
from vla_cli.windows import Samples

SETTINGS = Settings(
    steps=1, learning_rate=0.1, noise_draws=1, warmup=0, weight_decay=0.0, clip=1.0, seed=0, checkpoint_every=10
)


def samples() -> Samples:
    return Samples(
        np.zeros((2, 1, 4, 4, 3), np.uint8), np.zeros((2, 1)), ["go"] * 2, np.zeros((2, 1, 1)), np.ones((2, 1), bool)
    )


def trained(directory: Path, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """The last step's metrics of a policy of one weight, 1.0, with a loss of that weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    policy: Any = SimpleNamespace(
        model=model, batch=lambda samples: None, losses=lambda batch, **_: loss(model.weight[0]).expand(2)
    )
    hooks: Any = SimpleNamespace(
        draw=lambda number: {"demonstrations": samples()},
        weigh=lambda losses: losses,
        penalties=lambda *_: {},
        wrap_gradient=lambda *_: None,
        watch=lambda done: ({}, []),
    )
    return Trainer(policy, SETTINGS, directory).run(hooks, SILENT)[0]


def test_one_step_is_told(tmp_path: Path) -> None:
    assert trained(tmp_path, lambda weight: weight**2)["loss"] == 1.0


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda weight: weight * torch.nan, "The loss became nan at step 1"),
        (lambda weight: weight / 0, "The loss became inf at step 1"),
        # finite, and its slope is not: the step would put NaN into every weight, and a last one would be saved
        (lambda weight: torch.sqrt(weight * 0), "The gradient became nan at step 1"),
    ],
)
def test_what_is_no_number_ends_the_training(tmp_path: Path, loss: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        trained(tmp_path, loss)


LOSSES = [5.0, 3.0, 4.0, 3.0, 2.0, 6.0, 7.0, 8.0, 1.0, 0.0]
"""Held-out losses after each step: the lowest of those that are seen before three in a row are not lower is the 5th."""


def held_out_by_step(directory: Path, patience: int, *, stop_at: int = 0) -> tuple[Trainer, dict[str, float], float]:
    """A training that reads its held-out losses from `LOSSES`: its trainer, its last metrics and its weight.

    Args:
        directory: with a checkpoint of a part of it, or empty.
        patience: of early stopping.
        stop_at: the step in which it is interrupted; 0 for none.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    now = {"step": 0}
    policy: Any = SimpleNamespace(
        model=model, batch=lambda samples: None, losses=lambda batch, **_: (model.weight[0] - 9).square().expand(2)
    )

    def draw(number: int) -> dict[str, Samples]:
        now["step"] = number + 1
        if stop_at == number + 1:
            raise KeyboardInterrupt
        return {"demonstrations": samples()}

    hooks: Any = SimpleNamespace(
        draw=draw,
        weigh=lambda losses: losses,
        penalties=lambda *_: {},
        wrap_gradient=lambda *_: None,
        watch=lambda done: ({"weight": model.weight.item()}, [f"weight {model.weight.item():.4f}"]),
    )
    settings = replace(SETTINGS, steps=len(LOSSES), checkpoint_every=2, early_stopping=patience)
    trainer = Trainer(policy, settings, directory)
    last, warnings = trainer.run(hooks, SILENT, lambda: LOSSES[now["step"] - 1])
    assert warnings == [f"weight {model.weight.item():.4f}"], "what is said at the end is of the weights that are kept"
    return trainer, last, model.weight.item()


def test_early_stopping_keeps_the_best_steps_weights_and_says_why(tmp_path: Path) -> None:
    trainer, last, weight = held_out_by_step(tmp_path, 3)
    assert trainer.kept == Kept(step=5, steps_done=8, steps_planned=10, patience=3, held_out_loss=2.0)
    assert "lowest after step 5 of 10 (2); 3 further steps did not lower it" in trainer.kept.words
    assert "ended after step 8, and the weights of step 5 are kept" in trainer.kept.words
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["held_out_loss"] for row in rows] == LOSSES[:8], "every step is measured where the patience is short"
    assert last == {**rows[4], "weight": weight}
    (tmp_path / "to the end").mkdir()
    assert held_out_by_step(tmp_path / "to the end", 0)[2] != weight


@pytest.mark.parametrize("stop_at", [2, 4, 6, 8])
def test_early_stopping_resumes_to_the_same_end(tmp_path: Path, stop_at: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole, *end = held_out_by_step(tmp_path / "whole", 3)
    with pytest.raises(KeyboardInterrupt):
        held_out_by_step(tmp_path / "halves", 3, stop_at=stop_at)
    halves, *resumed = held_out_by_step(tmp_path / "halves", 3)
    assert (halves.kept, resumed) == (whole.kept, end)
    for trainer in (halves, whole):  # the order of a checkpoint's metadata is arbitrary
        trainer.forget_checkpoint()
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")


@pytest.mark.parametrize("patience", [3, 0])
def test_a_training_that_has_ended_is_not_done_again(tmp_path: Path, patience: int) -> None:
    whole, *end = held_out_by_step(tmp_path, patience)
    written = contents(tmp_path)
    assert "checkpoint.safetensors" in written, "what follows the training may be interrupted"
    again, *picked_up = held_out_by_step(tmp_path, patience, stop_at=len(LOSSES))
    assert (again.kept, picked_up) == (whole.kept, end)
    assert contents(tmp_path) == written
    again.forget_checkpoint()
    assert set(contents(tmp_path)) == {"metrics.jsonl"}


def test_early_stopping_that_never_ends_the_training_still_keeps_the_best_step(tmp_path: Path) -> None:
    trainer, *_ = held_out_by_step(tmp_path, 100)
    assert trainer.kept is not None
    assert (trainer.kept.step, trainer.kept.steps_done) == (10, 10)
    assert "the last one" in trainer.kept.words
    stopping = EarlyStopping(100, {})
    assert [step for step in range(1, 101) if stopping.is_due(step)] == [25, 50, 75, 100]


WINDOWS = [[1.0, 2.0], [3.0, 5.0], [4.0, 7.0], [6.0, 8.0]]
"""What the windows of each draw hold, of two steps in two parts."""


def of_value(values: list[float]) -> Samples:
    count = len(values)
    return Samples(
        np.zeros((count, 1, 4, 4, 3), np.uint8),
        np.array(values)[:, None],
        ["go"] * count,
        np.zeros((count, 1, 1)),
        np.ones((count, 1), bool),
    )


@pytest.mark.parametrize("again", [False, True], ids=["once", "taken-anew"])
def test_a_step_in_parts_takes_the_mean_of_their_gradients(tmp_path: Path, again: bool) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    # loss of a window: value * weight^2, so that its slope is 2 * value * weight
    policy: Any = SimpleNamespace(
        model=model,
        batch=lambda samples: torch.from_numpy(samples.state[:, 0]).float(),
        losses=lambda batch, **_: batch * model.weight[0] ** 2,
    )
    asked: list[tuple[int, float]] = []
    seen: list[float] = []

    def penalties(number: int, samples: Samples, loss: float) -> dict[str, Any]:
        asked.append((number, loss))
        raw = number * model.weight.sum()
        return {"pull": SimpleNamespace(raw=raw, scaled=10 * raw)}

    def wrap_gradient(number: int, samples: Samples, parameters: Any, closure: Callable[[], None]) -> None:
        if again:
            closure()
        assert samples.state[:, 0].tolist() == [*WINDOWS[number], *WINDOWS[number + 1]]
        seen.append(float(model.weight.grad))  # type: ignore[arg-type]

    hooks: Any = SimpleNamespace(
        draw=lambda number: {"demonstrations": of_value(WINDOWS[number])},
        weigh=lambda losses: losses,
        penalties=penalties,
        wrap_gradient=wrap_gradient,
        watch=lambda done: ({}, []),
    )
    trainer = Trainer(policy, replace(SETTINGS, parts=2, clip=1e9), tmp_path)
    row = trainer.run(hooks, SILENT)[0]
    slopes = [2 * 1.5 * 2 + 0, 2 * 4.0 * 2 + 10]  # flow loss and penalty of each part
    assert seen == [pytest.approx(sum(slopes) / 2)]
    assert asked[:2] == [(0, pytest.approx(1.5 * 4)), (1, pytest.approx(4.0 * 4))]
    assert row["loss_demonstrations"] == pytest.approx(4 * (1 + 2 + 3 + 5) / 4)
    assert (row["pull_raw"], row["pull_scaled"]) == (1.0, 10.0)
    assert row["loss"] == pytest.approx(row["loss_demonstrations"] + row["pull_scaled"])
    asked.clear()
    trainer.step(1, hooks)  # no window is drawn again because a step has parts
    assert [number for number, _ in asked[:2]] == [2, 3]
