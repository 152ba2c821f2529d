"""Bottlenecks: step 0 is the base, the base never changes, and what is saved is what acts, or is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import InterruptAfter, assert_refused, contents
from safetensors.torch import load_file, save_file

from vla_cli.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_spec, save_spec
from vla_cli.configs import ExportConfig, FinetuneConfig
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import read_json
from vla_cli.policies.adaptation import (
    Deltas,
    Layout,
    count_parameters,
    is_added,
    make_trainable,
    save_merged,
    save_trained,
    trained_parameters,
)
from vla_cli.policies.bottleneck import BottleneckModel
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.estimate import memory, sizes_of
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.modalities import HEADS, MODALITIES, is_unused, modality_of
from vla_cli.policies.telemetry import measure_change
from vla_cli.recipe import load_recipe
from vla_cli.retention import Context
from vla_cli.retention.anchor import Anchor
from vla_cli.retention.distillation import Distillation
from vla_cli.retention.ewc import EWC
from vla_cli.retention.l2 import L2
from vla_cli.retention.merge import Merge
from vla_cli.stages import export, finetune
from vla_cli.stages.finetune.options import recipe_for
from vla_cli.windows import Samples, Windows

PUT = "put the red block on the left plate"
WIDTH = 5
EVERYWHERE = Layout({}, widths=dict.fromkeys(MODALITIES, WIDTH))


def samples(count: int = 4) -> Samples:
    rng = np.random.default_rng(1)
    images, state = rng.integers(0, 256, (count, 1, 60, 60, 3), np.uint8), rng.uniform(0, 1, (count, 4))
    return Samples(images, state, [PUT] * count, rng.normal(size=(count, 8, 3)), np.ones((count, 8), bool))


def actions(policy: FlowPolicy) -> np.ndarray:
    shown, noise = samples(), np.random.default_rng(0).standard_normal(policy.noise_shape(4))
    return policy.act(shown.images, shown.state, shown.instructions, noise)


def learner(base: Path, layout: Layout = EVERYWHERE, *, train_heads: bool = False) -> FlowPolicy:
    model, prompts, _ = load_base(str(base))
    return FlowPolicy(make_trainable(model, layout, train_heads=train_heads, seed=0), prompts, load_spec(base), "cpu")


@lru_cache(maxsize=1)
def expected(base: Path) -> np.ndarray:
    """What the base does."""
    return actions(load(str(base), device="cpu"))


def train(policy: FlowPolicy, steps: int = 3) -> None:
    optimiser = torch.optim.AdamW(trained_parameters(policy.model).values(), lr=3e-2)
    batch = policy.batch(samples())
    for step in range(steps):
        optimiser.zero_grad()
        policy.losses(batch, draws=1, generator=torch.Generator().manual_seed(step)).mean().backward()
        optimiser.step()


def saved(policy: FlowPolicy, directory: Path, base: Path) -> Path:
    save_trained(policy.model, directory, base_name=str(base))
    save_spec(replace(load_spec(base), kind="bottleneck"), directory)
    return directory


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A trained adapter with heads, and what it does."""
    policy = learner(base, train_heads=True)
    train(policy)
    return saved(policy, tmp_path_factory.mktemp("bottleneck") / "adapter", base), actions(policy)


@pytest.mark.parametrize("train_heads", [False, True])
def test_step_zero_equals_the_base_and_the_base_never_changes(base: Path, train_heads: bool) -> None:
    bare = dict(load_base(str(base))[0].named_parameters())
    policy = learner(base, train_heads=train_heads)
    np.testing.assert_array_equal(actions(policy), expected(base))
    trained = trained_parameters(policy.model)
    heads = {name for name in trained if ".modules_to_save.default." in name}
    assert {name for name in trained if not is_added(name)} == heads and bool(heads) == train_heads
    train(policy, steps=1)
    ups = {name: p for name, p in trained.items() if ".up." in name}
    assert all(p.grad is not None and bool(p.grad.any()) for p in ups.values()), "no action depends on one of them"
    train(policy)
    assert not np.array_equal(actions(policy), expected(base))
    model: Any = policy.model
    held = {n: p for n, p in model.named_parameters() if n not in trained}
    held = {n.replace(".base_layer", "").replace(".original_module", ""): p for n, p in held.items()}
    assert {n.removeprefix("base_model.model.") for n in held} == set(bare)
    assert all(torch.equal(p, bare[n.removeprefix("base_model.model.")]) for n, p in held.items())
    with policy.unadapted():
        np.testing.assert_array_equal(actions(policy), expected(base))
        with policy.unadapted():
            pass
        np.testing.assert_array_equal(actions(policy), expected(base))
    assert not np.array_equal(actions(policy), expected(base)), "it is on again"


def test_each_is_behind_an_attention_or_an_mlp_and_of_the_papers_size(base: Path) -> None:
    widths = {"vision": 3, "language": 4, "action": 5}
    policy = learner(base, Layout({}, widths=widths))
    model: Any = policy.model
    found = model.bottlenecks()
    bare, counts = load_base(str(base))[0], count_parameters(model)
    assert not [name for name in found if is_unused(name, policy.config)]
    for modality, w in widths.items():
        sizes = [b.up.out_features for name, b in found.items() if modality_of("." + name) == modality]
        assert len(sizes) in (4, 6), "two a layer, but none in the last of the language model"
        assert counts[modality] == sum(2 * d * w + w + d for d in sizes)
    layout = Layout({}, widths=widths)
    sizes = sizes_of(bare.config, layout=layout, train_heads=True)
    real = count_parameters(make_trainable(bare, layout, train_heads=True, seed=0))
    told = memory(sizes)
    assert told["parameters"] == real.pop("total") and told["trained_parameters"] == sum(real.values())
    assert sizes.outright == sizes.held == sum(real.values()) - sum(counts[m] for m in MODALITIES)


def test_a_frozen_modality_has_none_and_the_seed_says_which(base: Path) -> None:
    model: Any = learner(base, Layout({}, widths={"action": 4})).model
    assert {modality_of("." + name) for name in model.bottlenecks()} == {"action"}
    downs = [
        torch.cat([b.down.weight.flatten() for b in make(seed).bottlenecks().values()])
        for make in [
            lambda seed: BottleneckModel(load_base(str(base))[0], widths={"action": 4}, train_heads=False, seed=seed)
        ]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])
    assert 0 < float(downs[0].detach().abs().max()) <= 0.02


def test_an_adapter_comes_back_bit_for_bit(adapter: tuple[Path, np.ndarray], base: Path) -> None:
    directory, acted = adapter
    policy = load(str(base), directory, device="cpu")
    np.testing.assert_array_equal(actions(policy), acted)
    assert not trained_parameters(policy.model)
    with policy.unadapted():
        np.testing.assert_array_equal(actions(policy), expected(base))
    assert {name.partition(".")[0] for name in load_file(directory / ADAPTER_WEIGHTS)} == {"model", *HEADS}
    assert read_json(directory / ADAPTER_CONFIG)["widths"] == dict.fromkeys(MODALITIES, WIDTH)
    assert sorted(path.name for path in directory.iterdir()) == [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "policy.json"]


@pytest.mark.parametrize("change", ["lost", "new", "shape", "head"])
def test_a_tensor_that_does_not_arrive_is_an_error(
    adapter: tuple[Path, np.ndarray], base: Path, tmp_path: Path, change: str
) -> None:
    broken = Path(shutil.copytree(adapter[0], tmp_path / "adapter"))
    tensors = load_file(broken / ADAPTER_WEIGHTS)
    name = next(n for n in tensors if n.endswith("bottleneck.up.weight"))
    if change == "shape":
        tensors[name] = torch.ones(3, 3)
    elif change == "new":
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    else:
        del tensors[name if change == "lost" else "action_out_proj.bias"]
    save_file(tensors, broken / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="dropped or changed"):
        load(str(base), broken, device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"adapter_type": "parallel"},
        {"activation": "relu"},
        {"widths": {}},
        {"widths": [5]},
        {"widths": {"smell": 5}},
        {"widths": {"vision": 10**9}},
        {"widths": {"vision": True}},
        {"heads": ["action_out_proj"]},
    ],
)
def test_a_damaged_config_is_an_error(
    adapter: tuple[Path, np.ndarray], base: Path, tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    broken = Path(shutil.copytree(adapter[0], tmp_path / "adapter"))
    config = broken / ADAPTER_CONFIG
    config.write_text("[]" if changes is None else json.dumps({**read_json(config), **changes}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(base), broken, device="cpu")


@pytest.mark.parametrize("train_heads", [False, True])
def test_an_adapter_that_does_nothing_is_an_error(base: Path, tmp_path: Path, train_heads: bool) -> None:
    """Heads are never 0: what counts is whether they are the base's."""
    policy = learner(base, train_heads=train_heads)
    saved(policy, tmp_path / "empty", base)
    with pytest.raises(InputError, match="every delta is zero"):
        load(str(base), tmp_path / "empty", device="cpu")
    with torch.no_grad():
        list(trained_parameters(policy.model).values())[-1].add_(0.1)  # a b_up, or a head's bias
    load(str(base), saved(policy, tmp_path / "some", base), device="cpu")


def test_scaling_is_exact_at_both_ends_and_linear_in_between(base: Path) -> None:
    policy = learner(base, train_heads=True)
    policy.remember_base()
    train(policy)
    trained, acted = {n: p.detach().clone() for n, p in trained_parameters(policy.model).items()}, actions(policy)
    policy.scale_deltas(dict.fromkeys(MODALITIES, 1.0))
    np.testing.assert_array_equal(actions(policy), acted)
    policy.scale_deltas({"language": 0.25})
    for name, p in trained_parameters(policy.model).items():
        scaled = ".up." in name and modality_of("." + name) == "language"
        assert torch.equal(p, 0.25 * trained[name] if scaled else trained[name])
    policy.scale_deltas(dict.fromkeys(MODALITIES, 0.0))
    np.testing.assert_array_equal(actions(policy), expected(base))
    deltas = Deltas(policy.model)
    assert {modality_of("." + name) for name, way in deltas.ways().items() if way == "bottleneck"} == set(MODALITIES)
    assert (
        {name.partition(".")[0] for name in deltas()}
        == set(HEADS)
        == {n.partition(".")[0] for n in deltas.base_norms()}
    )


def context(base: Path, policy: FlowPolicy, **changes: Any) -> Context:
    from vla_cli.dataset import Demonstration

    rng = np.random.default_rng(0)
    pictures = {"top": rng.integers(0, 256, (10, 60, 60, 3), np.uint8)}
    demo = Demonstration("demo", pictures, rng.normal(size=(10, 4)), rng.normal(size=(10, 3)), [PUT])
    windows = Windows([demo], ["top"], chunk=8)
    given = {"demonstrations": windows, "held_out": None, "replay": windows, "batch_size": 4}
    return Context(policy=policy, frozen=lambda: load(str(base), device="cpu"), **{**given, **changes})


def test_penalties_on_weights_that_never_move_are_refused(base: Path) -> None:
    given = context(base, learner(base))
    with pytest.raises(ConfigError, match=r"only bottlenecks are trained there.*would always be 0.*distillation"):
        L2(lora_product=True).prepare(given)
    with pytest.raises(ConfigError, match=r"action, language, vision train by bottlenecks, which move none"):
        EWC().prepare(given)
    given = context(base, learner(base, train_heads=True))
    with pytest.raises(ConfigError, match=r"only the state and action projections.*bottlenecks"):
        L2(modalities=["action"]).prepare(given)


def test_an_anchor_sees_what_bottlenecks_do(base: Path) -> None:
    from vla_cli.retention import Step

    given = context(base, learner(base, Layout({}, widths={"vision": 4, "language": 4})))
    method = Anchor()
    method.prepare(given)
    step = Step(0, np.random.default_rng(0), torch.Generator().manual_seed(0), samples())
    nothing = method.penalty(step)
    assert nothing is not None and nothing.raw.item() == 0
    train(given.policy)  # type: ignore[arg-type]
    found = method.penalty(step)
    assert found is not None and found.raw.item() > 0
    given.policy.model.zero_grad()
    found.scaled.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained_parameters(given.policy.model).values())


def test_the_change_is_told_in_words_that_fit(base: Path) -> None:
    policy = learner(base)
    train(policy)
    told = measure_change(policy, lambda: pytest.fail("no second model is needed"), samples(2))
    assert told["drift"] == dict.fromkeys(MODALITIES, 0.0) and told["layers"] == {}
    assert told["features"][0] < 1 and told["words"].startswith("bottlenecks were trained in ")
    assert "no weight of the base moved; what" in told["words"]
    policy = learner(base, train_heads=True)
    train(policy)
    told = measure_change(policy, lambda: pytest.fail("no second model is needed"), samples(2))
    assert told["drift"]["action"] > 0 == told["drift"]["vision"] == told["drift"]["language"]
    assert {layer.partition(".")[0] for layer in told["layers"]} == set(HEADS)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("method: lora\nvision: bottleneck", "language: lora, action: lora"),
        ("method: bottleneck\naction: full", "--action bottleneck, or frozen"),
        ("method: bottleneck\nvision: lora:4", "vision: lora"),
        ("method: bottleneck\nvision: bottleneck:0", "bottleneck or bottleneck:WIDTH"),
        ("method: bottleneck:8", "not full, lora, bottleneck or none"),
    ],
)
def test_bottlenecks_beside_other_ways_are_refused(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError) as error:
        load_recipe(str(path))
    assert fragment in str(error.value)


def asked(dataset: Path, base: Path, out: Path, **options: Any) -> FinetuneConfig:
    ways = dict.fromkeys(("vision", "language", "action"), "bottleneck")
    config = FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe="lora", steps=4, batch_size=4, **ways)
    return replace(config, checkpoint_every=2, **options)


def test_options_that_are_lora_alone_are_refused_and_the_rank_is_the_width(dataset: Path, base: Path) -> None:
    config = asked(dataset, base, Path("o"))
    wide = recipe_for(replace(config, rank=6, vision="bottleneck:3", action="frozen"))
    assert wide.modalities() == {"vision": ("bottleneck", 3), "language": ("bottleneck", 6), "action": ("frozen", 0)}
    with pytest.raises(ConfigError, match="bottlenecks are trained beside a whole base"):
        recipe_for(replace(config, quantize="nf4"))
    with pytest.raises(ConfigError, match="trains nothing by LoRA"):
        recipe_for(replace(config, rank_energy=0.9))


def test_a_run_is_resumed_to_the_same_bytes_exported_and_not_merged(dataset: Path, base: Path, tmp_path: Path) -> None:
    config = asked(dataset, base, tmp_path / "whole", action="bottleneck:4")
    told = finetune.run(config)["facts"]
    assert told["trained_parameters"]["action"] == 6 * (2 * 96 * 4 + 4 + 96)
    assert told["change"]["drift"] == dict.fromkeys(MODALITIES, 0.0)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(replace(config, out=tmp_path / "halves"), InterruptAfter(3))
    finetune.run(replace(config, out=tmp_path / "halves", resume=True))
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")
    assert load_spec(tmp_path / "whole").kind == "bottleneck"
    chosen = ExportConfig(adapter=tmp_path / "whole", out=tmp_path / "bundle")
    merging = replace(chosen, merge=True)
    for ask in (export.plan, export.run):
        assert_refused(ConfigError, chosen.out, lambda ask=ask: ask(merging), "cannot be merged", "without --merge")
    assert export.plan(chosen)["parts"] == [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "policy.json"]
    assert export.run(chosen)["max_abs_action_difference"] == {"adapter": 0.0}
    card = (chosen.out / "README.md").read_text()
    assert "`PeftModel` does not read them" in card and "import PeftModel" not in card and "bottlenecks were" in card
    acted = [actions(load(str(base), tmp_path / name, device="cpu")) for name in ("whole", "bundle")]
    np.testing.assert_array_equal(acted[0], acted[1])
    with pytest.raises(ConfigError, match="cannot be merged"):
        save_merged(load(str(base), chosen.out, device="cpu").model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(InputError) as error:
        load_base(str(tmp_path / "whole"))
    assert "--merge" not in str(error.value)


def test_distillation_and_merge_work_with_them(dataset: Path, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "held.yaml"
    path.write_text(
        "method: bottleneck\nrank: 4\nheads: full\nretention: {distillation: {windows: 2}, merge: {windows: 8}}\n"
    )
    others = Path(__file__).resolve().parents[2] / "sample_data" / "alternatives.yaml"
    config = FinetuneConfig(
        dataset=dataset, base=str(base), out=tmp_path / "out", recipe=str(path), steps=3, batch_size=4
    )
    finetune.run(replace(config, alternatives=others))
    facts = read_json(config.out / "run.json")["facts"]["retention"]
    assert {Distillation.__name__.lower(), Merge.__name__.lower()} == set(facts)
    assert len(facts["merge"]["sweep"]) == 9 and facts["merge"]["sweep"][0]["steer"] == 0, "alpha 0 is the base exactly"
    assert load(str(base), config.out, device="cpu").spec.kind == "bottleneck"
    assert read_json(config.out / ADAPTER_CONFIG)["heads"] == list(HEADS)
