"""LoRA ranks are read off the task's gradient as that gradient itself has them, and saved with the adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import InterruptAfter, contents

from vla_cli.adapter import load_spec
from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import load_dataset
from vla_cli.errors import ConfigError
from vla_cli.files import read_json
from vla_cli.policies.adaptation import Layout, lora_layers, make_trainable
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.modalities import MODALITIES
from vla_cli.policies.ranks import MEASURED_WINDOWS, Ranks, effective_rank, gradient_ranks, measuring
from vla_cli.stages import finetune
from vla_cli.stages.finetune.options import recipe_for
from vla_cli.windows import Windows

HIGHEST, ENERGY = 12, 0.9


@pytest.fixture
def fewer_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as tell what is tested here."""
    monkeypatch.setattr("vla_cli.policies.ranks.MEASURED_WINDOWS", 48)


def policy_of(base: Path, layout: Layout) -> FlowPolicy:
    model, prompts, _ = load_base(str(base))
    return FlowPolicy(make_trainable(model, layout, train_heads=False, seed=0), prompts, load_spec(base), "cpu")


def test_the_rank_of_a_spectrum() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))  # energies 9, 4 and 1 of 14
    assert [effective_rank(matrix, energy) for energy in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert effective_rank(torch.zeros(4, 3), 0.9) == 1


def test_what_is_found_is_the_gradients_own(base: Path, dataset: Path) -> None:
    layout = Layout(dict.fromkeys(MODALITIES, HIGHEST))
    policy = policy_of(base, measuring(layout))
    windows = Windows(load_dataset(dataset).split("train"), policy.spec.cameras, policy.spec.chunk_size)
    found = gradient_ranks(policy, windows, layout, energy=ENERGY, draws=2, at_once=32, seed=0)
    assert set(found.found) == set(lora_layers(policy.model)) and set(found.highest.values()) == {HIGHEST}
    # the gradient itself, of the bare base's weights, on the same windows and noise
    whole = policy_of(base, Layout({}, full=MODALITIES))
    whole.model.train()
    generator = torch.Generator().manual_seed(0)
    for part in windows.gather(windows.spread(MEASURED_WINDOWS)).parts(32):
        whole.losses(whole.batch(part), draws=2, generator=generator).sum().backward()
    weights = dict(whole.model.named_parameters())
    true = {name: effective_rank(weights[f"{name}.weight"].grad, ENERGY) for name in found.found}  # type: ignore[arg-type]
    capped = {name: min(rank, HIGHEST) for name, rank in true.items()}
    assert len(set(capped.values())) > 3
    assert max(abs(found.found[name] - rank) for name, rank in capped.items()) <= 2
    assert np.corrcoef(list(found.found.values()), list(capped.values()))[0, 1] > 0.9


@pytest.mark.usefixtures("fewer_windows")
def test_more_energy_takes_more_ranks_and_no_weight_has_moved(base: Path, dataset: Path) -> None:
    layout = Layout({"action": 8})
    policy = policy_of(base, measuring(layout))
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    windows = Windows(load_dataset(dataset).split("train"), policy.spec.cameras, policy.spec.chunk_size)
    some, most = (
        gradient_ranks(policy, windows, layout, energy=energy, draws=1, at_once=64, seed=0) for energy in (0.5, 1.0)
    )
    assert all(some.found[name] <= most.found[name] <= 8 for name in some.found)
    assert sum(some.found.values()) < sum(most.found.values())
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_a_layers_rank_and_strength_are_its_own(base: Path) -> None:
    names = list(lora_layers(policy_of(base, Layout(dict.fromkeys(MODALITIES, 4))).model))
    for layout, strength in (
        (Layout(dict.fromkeys(MODALITIES, 4)), 1.0),
        (Layout(dict.fromkeys(MODALITIES, 4), alpha=8.0), 2.0),
        (Layout({"vision": 4, "language": 4, "action": 6}), 1.0),
    ):
        own = {names[0]: 2, names[-1]: 3}
        layers = lora_layers(policy_of(base, replace(layout, by_layer=own)).model)
        ranks = {name: layer.r["default"] for name, layer in layers.items()}
        assert {name: ranks[name] for name in own} == own
        assert {ranks[name] for name in names[1:-1]} == set(layout.ranks.values())
        assert {layer.scaling["default"] for layer in layers.values()} == {strength}


@pytest.mark.usefixtures("fewer_windows")
def test_a_run_reads_its_ranks_saves_them_and_resumes_to_the_byte(dataset: Path, base: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(
        dataset=dataset, base=str(base), out=tmp_path / "whole", recipe="lora", steps=4, batch_size=6, rank_energy=0.8
    )
    summary = finetune.run(config)
    told = read_json(tmp_path / "whole" / "run.json")["facts"]["ranks"]
    assert told == summary["facts"]["ranks"] and told["energy"] == 0.8
    assert told["words"].startswith("LoRA's ranks hold 80% of the task gradient's energy: 1 to ")
    ranks = told["by_module"]
    assert len(set(ranks.values())) > 2 and max(ranks.values()) <= 8
    loaded = load(str(base), tmp_path / "whole", device="cpu")
    assert {name: layer.r["default"] for name, layer in lora_layers(loaded.model).items()} == ranks
    trained = summary["facts"]["trained_parameters"]
    even = finetune.plan(replace(config, out=tmp_path / "no", rank_energy=0.0))["estimate"]["trained_parameters"]
    assert sum(trained[modality] for modality in MODALITIES) < even
    again = replace(config, out=tmp_path / "halves", checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(again, InterruptAfter(3))
    finetune.run(replace(again, resume=True))
    for file in ("adapter_model.safetensors", "adapter_config.json", "policy.json"):
        assert contents(tmp_path / "halves")[file] == contents(tmp_path / "whole")[file]
    assert json.loads((tmp_path / "halves" / "run.json").read_text())["facts"]["ranks"] == told


def test_it_is_refused_where_nothing_trains_by_lora_and_says_nothing_when_off() -> None:
    config = FinetuneConfig(dataset=Path("d"), base="b", out=Path("o"), recipe="naive", rank_energy=0.9)
    with pytest.raises(ConfigError, match="trains nothing by LoRA"):
        recipe_for(config)
    with pytest.raises(ConfigError, match=r"rank_energy is 1\.5"):
        recipe_for(replace(config, recipe="lora", rank_energy=1.5))
    assert "rank_energy" not in recipe_for(replace(config, recipe="lora", rank_energy=0.0)).document()
    assert recipe_for(replace(config, recipe="lora")).document()["rank_energy"] == 0.9


def test_what_is_at_the_highest_allowed_is_said() -> None:
    names = ["model.vlm.vision_tower.encoder.layers.0.mlp.fc1", "model.dit.layers.0.mlp.up_proj"]
    words = Ranks(0.9, dict(zip(names, (8, 3), strict=True)), dict.fromkeys(names, 8)).words
    assert words == (
        "LoRA's ranks hold 90% of the task gradient's energy: 3 to 8, in the mean vision 8.0, action 3.0; "
        "1 of 2 are the highest allowed (--rank)"
    )
