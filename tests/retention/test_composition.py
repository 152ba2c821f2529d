"""Several methods as one: batches are shared out as asked, and everything comes from (seed, step)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from learners import windows
from torch import nn

from vla_cli.configs import FinetuneConfig
from vla_cli.errors import ConfigError
from vla_cli.files import read_json
from vla_cli.retention import Method, Step
from vla_cli.retention.composition import DEMONSTRATIONS, Composition
from vla_cli.retention.consft import ConSFT
from vla_cli.retention.paraphrase import Paraphrase
from vla_cli.retention.projection import Projection
from vla_cli.retention.sam import SAM
from vla_cli.stages import finetune
from vla_cli.windows import Samples

PUT = "put the red block on the left plate"


class Filler(Method):
    """Fills some windows of each batch with the same one."""

    def __init__(self, windows_a_batch: int) -> None:
        self.count = windows_a_batch

    def share(self, batch_size: int) -> int:
        return self.count

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        return windows(120, "pick up the blue ball").draw(rng, count)


def composed(batch: int = 8, **methods: Method) -> Composition:
    return Composition(methods, windows(60, PUT), batch, seed=3)


def test_the_demonstrations_get_what_the_methods_leave() -> None:
    groups = composed(first=Filler(2), second=Filler(3)).draw(0)
    assert {name: len(samples) for name, samples in groups.items()} == {DEMONSTRATIONS: 3, "first": 2, "second": 3}
    assert next(iter(groups)) == DEMONSTRATIONS
    with pytest.raises(ConfigError, match="no window"):
        composed(first=Filler(5), second=Filler(3))


def test_a_step_draws_the_same_whenever_it_is_asked_and_other_steps_draw_otherwise() -> None:
    both = [composed(words=Paraphrase(), fill=Filler(2)) for _ in range(2)]
    both[1].draw(0)
    first, again, other = both[0].draw(5), both[1].draw(5), both[0].draw(6)
    for name in first:
        assert first[name].instructions == again[name].instructions
        np.testing.assert_array_equal(first[name].state, again[name].state)
    assert not np.array_equal(first[DEMONSTRATIONS].state, other[DEMONSTRATIONS].state)


def test_adding_a_method_does_not_change_which_demonstrations_another_draws_words_for() -> None:
    alone, beside = composed(words=Paraphrase()), composed(other=ConSFT(), words=Paraphrase())
    assert alone.draw(2)[DEMONSTRATIONS].instructions == beside.draw(2)[DEMONSTRATIONS].instructions


def test_weights_go_through_every_method() -> None:
    losses = {DEMONSTRATIONS: torch.tensor([0.5, 2.0]), "fill": torch.tensor([1.0])}
    once, twice = composed(a=ConSFT()).weigh(losses), composed(a=ConSFT(), b=ConSFT()).weigh(losses)
    assert torch.all(twice[DEMONSTRATIONS] <= once[DEMONSTRATIONS])
    assert torch.equal(twice["fill"], losses["fill"])


class Gradient(Method):
    """Writes into the gradients: another one in the place of what is there, or twice what is there."""

    def __init__(self, *, anew: bool) -> None:
        self.takes_gradient_anew = anew

    def wrap_gradient(self, step: Step, parameters: Mapping[str, nn.Parameter], closure: Callable[[], None]) -> None:
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter.grad.copy_(torch.ones(1) if self.takes_gradient_anew else 2 * parameter.grad)


@pytest.mark.parametrize("order", [("anew", "changed"), ("changed", "anew")])
def test_what_takes_the_gradient_anew_undoes_nothing_whatever_the_recipes_order(order: tuple[str, str]) -> None:
    hooks = composed(**{name: Gradient(anew=name == "anew") for name in order})
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    hooks.wrap_gradient(0, windows(60, PUT).gather([0]), {"weight": parameter}, lambda: None)
    assert parameter.grad.item() == 2
    assert SAM.takes_gradient_anew and not Projection.takes_gradient_anew


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_compensation_shows_the_demonstrations_as_often_as_without_replay(
    base: Path, dataset: Path, replay: Path, tmp_path: Path, micro_batch: int
) -> None:
    recipe = {
        "method": "lora",
        "rank": 2,
        "steps": 3,
        "micro_batch": micro_batch,
        "batch_size": 4,
        "noise_draws": 1,
        "compensate": True,
        "retention": {"rehearsal": {"fraction": 0.25}},
    }
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), recipe=str(path), replay=replay, out=out))
    # 3 steps of 4 windows are 12: at 3 demonstrated windows a step it takes 4
    assert read_json(out / "run.json")["counts"]["steps"] == 4
    assert len([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]) == 4
