"""QLoRA: a base in 4 bits answers nearly as the whole one, LoRA trains beside it, and goes onto the whole one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import assert_refused, contents

from vla_cli.adapter import load_spec
from vla_cli.configs import FinetuneConfig
from vla_cli.errors import ConfigError, MissingDependency
from vla_cli.files import read_json
from vla_cli.policies import quantization
from vla_cli.policies.adaptation import Deltas, Layout, count_parameters, make_trainable, trained_parameters
from vla_cli.policies.checkpoint import load_base, load_config
from vla_cli.policies.estimate import FLOAT32, memory, sizes_of
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.modalities import MODALITIES
from vla_cli.policies.quantization import BYTES_A_WEIGHT, quantize, quantized_linears
from vla_cli.stages import finetune

LORA = Layout(dict.fromkeys(MODALITIES, 4))
QLORA = replace(LORA, quantized=True)


def policy(base: Path, layout: Layout) -> FlowPolicy:
    model, prompts, _ = load_base(str(base))
    return FlowPolicy(make_trainable(model, layout, train_heads=False, seed=0), prompts, load_spec(base), "cpu")


def asked(learner: FlowPolicy, seed: int = 0) -> np.ndarray:
    """Chunks for three random pictures."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (3, 1, 60, 60, 3), dtype=np.uint8)
    noise = rng.standard_normal(learner.noise_shape(3)).astype(np.float32)
    return learner.act(images, rng.normal(size=(3, 4)), ["put the red block on the left plate"] * 3, noise)


def test_a_base_in_four_bits_answers_nearly_as_the_whole_one(base: Path) -> None:
    whole, packed = asked(policy(base, LORA)), asked(policy(base, QLORA))
    error = np.linalg.norm(packed - whole) / np.linalg.norm(whole)
    assert 0 < error < 0.15, "LoRA changes nothing before training: what differs are the four bits"


def test_acting_in_between_leaves_weights_and_gradients_as_they_were(base: Path) -> None:
    """On some CPUs bitsandbytes repacks weights in place in evaluation, and no gradient passes them from then on."""
    learner = policy(base, QLORA)

    def gradients() -> list[torch.Tensor]:
        learner.model.train()
        rng = np.random.default_rng(1)
        batch = learner.collate(
            rng.integers(0, 255, (2, 1, 60, 60, 3), dtype=np.uint8),
            rng.normal(size=(2, 4)),
            ["go"] * 2,
            rng.normal(size=(2, learner.config.chunk_size, 3)),
            np.ones((2, learner.config.chunk_size), bool),
        )
        loss = learner.losses(batch, draws=1, generator=torch.Generator().manual_seed(0)).mean()
        return list(torch.autograd.grad(loss, list(trained_parameters(learner.model).values())))

    before, weights = gradients(), {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    asked(learner)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    assert all(torch.equal(weights[name], p) for name, p in learner.model.named_parameters())
    assert sum(bool(g.abs().max() > 0) for g in before) >= len(before) / 2, "B trains from the first step on"


def test_what_is_trained_outright_and_the_heads_stay_whole(base: Path) -> None:
    model, _, _ = load_base(str(base))
    names = quantized_linears(model, full=["vision"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    quantize(model, full=["vision"])
    packed = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert packed == {f"{name}.weight" for name in names} and packed
    assert not [name for name in packed if "vision" in name or name.startswith(("action_out", "embed_action"))]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if name not in packed)
    for name in packed:
        stands_for = quantization.whole(dict(model.named_parameters())[name])
        assert stands_for.shape == before[name].shape
        assert (stands_for - before[name]).norm() < 0.11 * before[name].norm()


def test_a_packed_model_is_counted_and_measured_as_what_it_stands_for(base: Path) -> None:
    whole, packed = policy(base, LORA).model, policy(base, QLORA).model
    assert count_parameters(packed) == count_parameters(whole)
    norms, packed_norms = Deltas(whole).base_norms(), Deltas(packed).base_norms()
    assert packed_norms.keys() == norms.keys()
    assert all(packed_norms[name] == pytest.approx(norms[name], rel=0.05) for name in norms)


def test_the_estimate_counts_four_bits(base: Path) -> None:
    whole, packed = (sizes_of(load_config(base), layout=layout, train_heads=False) for layout in (LORA, QLORA))
    assert packed == replace(whole, quantized=packed.quantized) and packed.quantized > 0
    for copies in (1, 2):
        saved = memory(whole, copies=copies)["weight_bytes"] - memory(packed, copies=copies)["weight_bytes"]
        assert saved == pytest.approx(copies * packed.quantized * (FLOAT32 - BYTES_A_WEIGHT), abs=1)
    model, _, _ = load_base(str(base))
    quantize(model, full=[])
    held = 0.0
    for module in model.modules():
        if hasattr(module, "weight") and (state := getattr(module.weight, "quant_state", None)) is not None:
            parts = [module.weight, state.absmax, state.state2.absmax]
            held += sum(part.numel() * part.element_size() for part in parts)
    # the scales of small layers do not fill their last block
    assert packed.quantized * BYTES_A_WEIGHT == pytest.approx(held, rel=0.02)


def config(dataset: Path, base: Path, out: Path, **options: object) -> FinetuneConfig:
    chosen = {"recipe": "lora", "steps": 3, "batch_size": 6, "quantize": "nf4", **options}
    return FinetuneConfig(dataset=dataset, base=str(base), out=out, **chosen)  # type: ignore[arg-type]


def test_the_adapter_goes_onto_the_whole_base_and_says_how_it_was_trained(
    dataset: Path, base: Path, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        finetune.run(config(dataset, base, tmp_path / name))
    assert contents(tmp_path / "one") == contents(tmp_path / "other"), "the same bytes each time"
    finetune.run(config(dataset, base, tmp_path / "whole", quantize="none"))
    weights = "adapter_model.safetensors"
    assert contents(tmp_path / "one")[weights] != contents(tmp_path / "whole")[weights]
    assert load_spec(tmp_path / "one").quantized == "nf4"
    assert "quantized" not in (tmp_path / "whole" / "policy.json").read_text()
    assert "quantize" not in read_json(tmp_path / "whole" / "run.json")["request"]["recipe"]
    adapted, bare = (load(str(base), adapter, device="cpu") for adapter in (tmp_path / "one", None))
    assert not [p for p in adapted.model.parameters() if p.dtype == torch.uint8]
    difference = np.linalg.norm(asked(adapted) - asked(bare))
    assert 0 < difference < 0.5 * np.linalg.norm(asked(bare))


def test_retention_holds_to_the_base_in_four_bits(dataset: Path, base: Path, tmp_path: Path) -> None:
    """What a method compares with is the very base that trains: else it would start from the error of the bits."""
    recipe = tmp_path / "held.yaml"
    recipe.write_text("method: lora\nlearning_rate: 1.0e-9\nretention: {anchor: {}}\n")
    finetune.run(config(dataset, base, tmp_path / "out", recipe=str(recipe), steps=1))
    (row,) = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["anchor_raw"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "naive"}, "trains nothing by LoRA"),
        ({"recipe": "calibrate"}, "trains no weight"),
        ({"quantize": "int8"}, "quantize is 'int8', not none or nf4"),
    ],
)
def test_what_cannot_be_is_refused(
    dataset: Path, base: Path, tmp_path: Path, options: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        finetune.plan(config(dataset, base, tmp_path / "out", **options))


def test_ewc_needs_a_whole_base(dataset: Path, base: Path, replay: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "ewc.yaml"
    recipe.write_text("method: lora\nquantize: nf4\nretention: {ewc: {}}\n")
    chosen = config(dataset, base, tmp_path / "out", recipe=str(recipe), replay=replay, quantize=None)
    assert_refused(ConfigError, tmp_path / "out", lambda: finetune.plan(chosen), "ewc", "4 bits", "--quantize none")
    finetune.plan(replace(chosen, quantize="none"))


def test_without_the_extra_it_is_named(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"bitsandbytes.*vla-cli\[quantized\]"):
        finetune.plan(config(dataset, base, tmp_path / "out"))


def test_nothing_is_run_from_the_hub(tmp_path: Path) -> None:
    """Where `kernels` is installed, bitsandbytes asks it for code from the hub as soon as it is imported."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')\n")
    script = (
        "from vla_cli.policies.quantization import no_code_from_the_hub\n"
        "with no_code_from_the_hub():\n    import peft, bitsandbytes\n"
        "import sys\nassert 'kernels' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
