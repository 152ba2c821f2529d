"""Adapters: step 0 is the base, nothing is lost on the way to disk and back, and what is lost is an error."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PI0ForConditionalGeneration

from vla_cli.adapter import ADAPTER_WEIGHTS, check_base, load_spec, save_spec
from vla_cli.errors import InputError
from vla_cli.policies.adaptation import (
    Deltas,
    Layout,
    base_name,
    count_parameters,
    make_full,
    make_lora,
    make_trainable,
    save_merged,
    save_trained,
    trained_parameters,
)
from vla_cli.policies.checkpoint import attach, load_base
from vla_cli.policies.estimate import memory, sizes_of
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.flow_matching import Batch
from vla_cli.policies.modalities import HEADS, MODALITIES, modality_of

EVEN = dict.fromkeys(MODALITIES, 4)
PUT = "put the red block on the left plate"


def actions(policy: FlowPolicy) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 1, 60, 60, 3), np.uint8)
    return policy.act(images, rng.uniform(0, 1, (4, 4)), [PUT] * 4, rng.standard_normal(policy.noise_shape(4)))


def observations(policy: FlowPolicy, wanted: np.ndarray | None = None) -> Batch:
    images = np.random.default_rng(1).integers(0, 256, (4, 1, 60, 60, 3), np.uint8)
    return policy.collate(images, np.zeros((4, 4), np.float32), [PUT] * 4, wanted, np.ones((4, 8), bool))


@pytest.mark.parametrize("train_heads", [False, True])
def test_step_zero_equals_the_base_exactly(base: Path, train_heads: bool) -> None:
    bare = load(str(base), device="cpu")
    expected = actions(bare)
    model, prompts, _ = load_base(str(base))
    wrapped = make_lora(model, ranks=EVEN, alpha=4, train_heads=train_heads, seed=0)
    np.testing.assert_array_equal(actions(FlowPolicy(wrapped, prompts, bare.spec, "cpu")), expected)


@pytest.mark.parametrize("train_heads", [False, True])
def test_an_adapter_comes_back_bit_for_bit(base: Path, adapter: Path, tmp_path: Path, train_heads: bool) -> None:
    spec = load_spec(adapter)
    model, prompts, _ = load_base(str(base))
    wrapped = make_lora(model, ranks=EVEN, alpha=4, train_heads=train_heads, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    expected = actions(FlowPolicy(wrapped, prompts, spec, "cpu"))
    wrapped.save_pretrained(tmp_path)
    save_spec(spec, tmp_path)
    np.testing.assert_array_equal(actions(load(str(base), tmp_path, device="cpu")), expected)


@pytest.mark.parametrize(
    "layout",
    [
        Layout({"language": 4, "action": 8}, full=("vision",)),
        Layout({"action": 8}),
        Layout({"vision": 2, "language": 4, "action": 8}, alpha=6.0),
    ],
)
def test_uneven_layouts_come_back_bit_for_bit(base: Path, adapter: Path, tmp_path: Path, layout: Layout) -> None:
    spec = load_spec(adapter)
    model, prompts, _ = load_base(str(base))
    expected_base = actions(FlowPolicy(model, prompts, spec, "cpu"))
    wrapped = make_trainable(model, layout, train_heads=False, seed=0)
    np.testing.assert_array_equal(actions(FlowPolicy(wrapped, prompts, spec, "cpu")), expected_base)
    counts = count_parameters(wrapped)
    assert {m for m in MODALITIES if counts[m]} == {*layout.ranks, *layout.full}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    expected = actions(FlowPolicy(wrapped, prompts, spec, "cpu"))
    assert not np.array_equal(expected, expected_base)
    wrapped.save_pretrained(tmp_path)
    save_spec(spec, tmp_path)
    np.testing.assert_array_equal(actions(load(str(base), tmp_path, device="cpu")), expected)


@pytest.mark.parametrize(
    ("layout", "train_heads"),
    [
        (Layout({"vision": 4, "action": 4}, full=("language",)), True),
        (Layout({"vision": 4}, full=("language", "action")), False),
        (Layout({"language": 4}, full=("action",)), True),
    ],
)
def test_full_beside_lora_trains_what_full_trains_and_acts_alike_saved_reloaded_and_merged(
    base: Path, adapter: Path, tmp_path: Path, layout: Layout, train_heads: bool
) -> None:
    spec = load_spec(adapter)
    model, prompts, _ = load_base(str(base))
    bare = FlowPolicy(model, prompts, spec, "cpu")
    expected_base, expected_states = actions(bare), bare.hidden_states(observations(bare))[0]
    outright = {name for name, p in make_full(model, layout.full).named_parameters() if p.requires_grad}
    policy = FlowPolicy(make_trainable(model, layout, train_heads=train_heads, seed=0), prompts, spec, "cpu")
    np.testing.assert_array_equal(actions(policy), expected_base)
    states = policy.hidden_states(observations(policy))[0]
    assert all(torch.equal(a, b) for a, b in zip(states, expected_states, strict=True))
    trained = trained_parameters(policy.model)
    full = {base_name(name) for name in trained if ".lora_" not in name}
    assert {name for name in full if modality_of("." + name) in layout.full} == outright
    batch = observations(policy, np.zeros((4, 8, 3), np.float32))
    policy.losses(batch, draws=1, generator=torch.Generator().manual_seed(0)).sum().backward()
    assert [name for name, p in trained.items() if p.grad is None] == []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    expected = actions(policy)
    assert not np.allclose(expected, expected_base)
    with policy.model.disable_adapter():  # as a calibrated policy acts in the base's own domain
        np.testing.assert_array_equal(actions(policy), expected_base)
    save_trained(policy.model, tmp_path / "adapter", base_name=str(base))
    save_spec(spec, tmp_path / "adapter")
    np.testing.assert_array_equal(actions(load(str(base), tmp_path / "adapter", device="cpu")), expected)
    save_merged(policy.model, tmp_path / "merged")
    merged = PI0ForConditionalGeneration.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(actions(FlowPolicy(merged, prompts, spec, "cpu")), expected, atol=1e-4)


@pytest.mark.parametrize("layout", [Layout({}, full=MODALITIES), Layout(EVEN), Layout({"action": 8}, full=("vision",))])
def test_deltas_are_zero_at_the_start_and_scale_exactly(base: Path, layout: Layout) -> None:
    model, _, _ = load_base(str(base))
    bare = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapped = make_trainable(model, layout, train_heads=False, seed=0)
    deltas = Deltas(wrapped)
    assert all(float(d.detach().abs().max()) == 0 for d in deltas().values())
    assert all(delta.shape == bare[name].shape for name, delta in deltas().items())
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    grown = {name: d.detach().clone() for name, d in deltas().items()}
    deltas.scale({"action": 0.25})
    for name, delta in deltas().items():
        factor = 0.25 if modality_of("." + name) == "action" else 1.0
        torch.testing.assert_close(delta.detach(), factor * grown[name], atol=1e-6, rtol=1e-4)
    deltas.scale(dict.fromkeys(MODALITIES, 0.0))
    assert all(float(d.detach().abs().max()) == 0 for d in deltas().values())


def test_plain_peft_reads_the_adapter(base: Path, adapter: Path) -> None:
    """What the model card tells a robot to do gives the adapter's own actions."""
    ours = load(str(base), adapter, device="cpu")
    theirs = PeftModel.from_pretrained(PI0ForConditionalGeneration.from_pretrained(base), str(adapter))
    theirs.eval()
    np.testing.assert_array_equal(actions(FlowPolicy(theirs, ours.prompts, ours.spec, "cpu")), actions(ours))


def test_a_dropped_key_is_an_error(base: Path, adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(broken / ADAPTER_WEIGHTS)
    tensors.pop(sorted(tensors)[5])
    save_file(tensors, broken / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="dropped or changed"):
        load(str(base), broken, device="cpu")


@pytest.mark.parametrize("text", ["[]", "{}", '{"peft_type": "LORA", "target_modules": 5}', ""])
def test_a_damaged_adapter_config_is_an_error(base: Path, adapter: Path, tmp_path: Path, text: str) -> None:
    broken = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (broken / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(base), broken, device="cpu")


def test_a_key_that_peft_would_lose_is_an_error(base: Path, adapter: Path, tmp_path: Path) -> None:
    """LoRA on state_proj is dropped by peft at load with only a warning: the robot would run something else."""
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(broken / ADAPTER_WEIGHTS)
    tensors["base_model.model.embed_action_time.state_proj.lora_B.weight"] = torch.ones(96, 8)
    save_file(tensors, broken / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="dropped or changed"):
        load(str(base), broken, device="cpu")


def test_an_adapter_that_does_nothing_is_an_error(base: Path, adapter: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in load_file(empty / ADAPTER_WEIGHTS).items()}
    save_file(tensors, empty / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="every delta is zero"):
        load(str(base), empty, device="cpu")


def test_a_whole_model_that_lacks_a_weight_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """transformers would make the weight up."""
    model, _, _ = load_base(str(base))
    with torch.no_grad():
        model.action_out_proj.bias += 1
    save_trained(model, tmp_path, base_name=str(base))
    spec = replace(load_spec(adapter), kind="full")
    assert attach(load_base(str(base))[0], tmp_path, spec) is not model
    weights = load_file(tmp_path / "model.safetensors")
    del weights["action_out_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing \(first: \['action_out_proj.weight'\]\).*vla finetune again"):
        attach(model, tmp_path, spec)


def test_another_base_is_refused(adapter: Path) -> None:
    with pytest.raises(InputError, match="trained on base"):
        check_base(load_spec(adapter), "sha256:0000", "elsewhere")


def test_the_merged_model_is_base_plus_delta(base: Path, adapter: Path, tmp_path: Path) -> None:
    bare, _, _ = load_base(str(base))
    policy = load(str(base), adapter, device="cpu")
    name = "model.dit.layers.0.self_attn.q_proj"
    saved = load_file(adapter / ADAPTER_WEIGHTS)
    a, b = (saved[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    save_merged(policy.model, tmp_path)
    merged = PI0ForConditionalGeneration.from_pretrained(tmp_path)
    expected = bare.get_submodule(name).weight + b @ a  # alpha equals the rank
    torch.testing.assert_close(merged.get_submodule(name).weight, expected, rtol=0, atol=1e-6)


def test_full_fine_tuning_freezes_only_what_no_action_depends_on(base: Path) -> None:
    model = make_full(load_base(str(base))[0])
    counts = count_parameters(model)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert counts["vision"] + counts["language"] + counts["action"] + frozen == counts["total"]
    assert all(counts[m] > 0 for m in ("vision", "language", "action"))


def test_the_projections_of_a_new_robot_train_without_lora_too(base: Path) -> None:
    model, _, _ = load_base(str(base))
    layout = Layout({}, full=("vision", "language"))
    plain = set(trained_parameters(make_trainable(model, layout, train_heads=False, seed=0)))
    assert not any(modality_of("." + name) == "action" for name in plain)
    added = set(trained_parameters(make_trainable(model, layout, train_heads=True, seed=0))) - plain
    assert added == {name for name, _ in model.named_parameters() if name.startswith(HEADS)}


def test_an_adapter_is_loaded_where_the_model_is(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of ours peft takes the accelerator of the machine, even for a policy on the CPU."""

    def chosen() -> str:
        raise AssertionError("peft chose a device")

    monkeypatch.setattr("peft.peft_model.infer_device", chosen)
    load(str(base), adapter, device="cpu")


def test_the_estimate_of_the_full_size_model_needs_no_weights_and_counts_right(base: Path) -> None:
    from transformers import PI0Config

    lora = memory(sizes_of(PI0Config(), layout=Layout(dict.fromkeys(MODALITIES, 16)), train_heads=False))
    assert 3.2e9 < lora["parameters"] < 3.8e9 and lora["trained_parameters"] < 0.03 * lora["parameters"]
    model, _, _ = load_base(str(base))
    bare = sum(p.numel() for p in model.parameters())
    wrapped = make_lora(model, ranks=EVEN, alpha=4, train_heads=True, seed=0)
    real, deltas = count_parameters(wrapped), Deltas(wrapped)
    sizes = sizes_of(model.config, layout=Layout(EVEN), train_heads=True)
    assert sizes.outright == sum(p.numel() for p in deltas.base.values()), "what remember_base copies"
    assert sizes.held == sum(delta.numel() for delta in deltas().values()), "what Fisher information is of"
    told = memory(sizes)
    assert told["parameters"] == real.pop("total") and told["trained_parameters"] == sum(real.values())
    # a frozen base beside it has the bare model's weights
    beside = memory(sizes, copies=2, kept=5)
    more = {"weight_bytes": told["weight_bytes"] + 4 * bare, "kept_bytes": 20, "memory": beside["memory"]}
    assert beside == {**told, **more} and "for retention" in beside["memory"] != told["memory"]


def test_a_lora_of_the_lectures_size_counts_as_the_lecture_does() -> None:
    """d = 4096, r = 16 on the four attention projections of 32 layers is 16.8 M parameters (methods.md 1)."""
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        blocks = [torch.nn.ModuleDict({k: torch.nn.Linear(4096, 4096, bias=False) for k in "qkvo"}) for _ in range(32)]
        model = torch.nn.ModuleList(blocks)
        wrapped = get_peft_model(model, LoraConfig(r=16, target_modules=["q", "k", "v", "o"]))  # type: ignore[arg-type]
    counts = count_parameters(wrapped)
    assert sum(counts[m] for m in ("vision", "language", "action")) == 16_777_216
