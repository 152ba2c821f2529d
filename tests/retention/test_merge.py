"""Merging: exact at both ends, one modality at a time, and a choice that is on the sweep and always the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import config, recipe
from safetensors.torch import load_file

from vla_cli.adapter import ADAPTER_WEIGHTS
from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import load_dataset
from vla_cli.errors import ConfigError
from vla_cli.language.alternatives import Alternative, load_alternatives
from vla_cli.policies.adaptation import Layout, make_trainable
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.trainer import METRICS, held_out_loss
from vla_cli.retention import Context
from vla_cli.retention.merge import SWEEP, Merge, choose
from vla_cli.stages import finetune
from vla_cli.stages.finetune.training import HELD_OUT_WINDOWS
from vla_cli.windows import Windows

MODALITIES = ("vision", "language", "action")
FULL, LORA = Layout({}, full=MODALITIES), Layout(dict.fromkeys(MODALITIES, 4))
OTHERS = Path(__file__).resolve().parents[2] / "sample_data" / "alternatives.yaml"


def context(base: Path, dataset: Path, layout: Layout) -> Context:
    policy = load(str(base), device="cpu")
    model = make_trainable(policy.model, layout, train_heads=False, seed=0)
    trained = FlowPolicy(model, policy.prompts, policy.spec, "cpu")
    demonstrations = load_dataset(dataset)
    train, valid = (
        Windows(demonstrations.split(s), policy.spec.cameras, policy.spec.chunk_size)  # type: ignore[arg-type]
        for s in ("train", "valid")
    )
    return Context(trained, lambda: load(str(base), device="cpu"), train, valid, None, load_alternatives(OTHERS))


def weights(context: Context) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in context.policy.model.named_parameters() if p.requires_grad}


def train(context: Context, steps: int = 3) -> None:
    parameters = [p for p in context.policy.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)
    s = context.demonstrations.gather(range(0, 64, 4))
    for step in range(steps):
        batch = context.policy.collate(s.images, s.state, s.instructions, s.actions, s.real_steps)
        loss = context.policy.losses(batch, draws=1, generator=torch.Generator().manual_seed(step)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def deltas(context: Context) -> dict[str, torch.Tensor]:
    return {name: delta.detach() for name, delta in context.policy.deltas().items()}


@pytest.mark.parametrize("layout", [FULL, LORA], ids=["full", "lora"])
def test_each_modality_goes_its_own_way_and_both_ends_are_exact(base: Path, dataset: Path, layout: Layout) -> None:
    known = context(base, dataset, layout)
    method = Merge(vision=0, language=0.5, action=1)
    method.prepare(known)
    train(known)
    tuned, before = weights(known), deltas(known)
    method.after_training()
    merged, after = weights(known), deltas(known)
    assert method.facts()["alpha"] == {"vision": 0, "language": 0.5, "action": 1}
    for name, delta in before.items():
        way = known.policy.modality(name)
        if way == "vision":
            assert not after[name].any(), name
        elif way == "language":
            torch.testing.assert_close(after[name], 0.5 * delta, rtol=1e-4, atol=1e-6)
    for name in tuned:
        if known.policy.modality(name) == "action":
            assert torch.equal(merged[name], tuned[name]), name


def test_the_automatic_alpha_is_on_the_sweep_and_always_the_same(base: Path, dataset: Path) -> None:
    results = []
    for _ in range(2):
        known = context(base, dataset, LORA)
        method = Merge(windows=8, vision=1.0)
        method.prepare(known)
        train(known)
        method.after_training()
        results.append((method.facts(), weights(known)))
    (facts, first), (again, second) = results
    assert facts == again and all(torch.equal(first[name], second[name]) for name in first)
    assert facts["alpha"]["language"] == facts["alpha"]["action"] in SWEEP[1:] and facts["alpha"]["vision"] == 1
    assert tuple(row["alpha"] for row in facts["sweep"]) == SWEEP
    assert facts["fit_on"] == "held-out demonstrations" and facts["smallest_alpha"] == 0.125


def test_at_alpha_0_the_curves_are_the_bases_and_at_1_the_weights_are_untouched(base: Path, dataset: Path) -> None:
    known = replace(context(base, dataset, FULL), held_out=None)
    method = Merge(windows=8)
    method.prepare(known)
    assert method._curves is not None
    fit = method._curves.fit()
    train(known)
    tuned = weights(known)
    method.after_training()
    sweep = method.facts()["sweep"]
    assert sweep[0]["fit"] == fit and sweep[0]["steer"] == 0.0, "alpha = 0 is the base"
    assert sweep[-1]["fit"] < fit and sweep[-1]["steer"] > 0
    assert "none are held out" in method.facts()["fit_on"]
    alpha = method.facts()["alpha"]["action"]
    assert all(torch.equal(p, tuned[n]) for n, p in weights(known).items()) == (alpha == 1.0)


def row(alpha: float, fit: float, steer: float) -> dict[str, float]:
    return {"alpha": alpha, "fit": fit, "steer": steer}


def test_the_choice_balances_what_is_lost_on_either_side() -> None:
    middle = [row(0, 1.0, 0.0), row(0.25, 0.6, 0.1), row(0.5, 0.3, 0.3), row(0.75, 0.1, 0.7), row(1, 0.0, 1.5)]
    assert choose(middle) == 0.5
    assert choose([row(0, 1.0, 0.0), row(0.5, 0.4, 0.05), row(1, 0.0, 0.1)]) == 1, "nothing forgotten: all the way"
    assert choose([row(0, 0.1, 0.0), row(0.5, 0.2, 0.5), row(1, 0.4, 1.0)]) == 0.5, "nothing learned: the smallest"
    assert choose([row(0, 1.0, 0.0), row(0.5, 0.5, 3.0), row(1, 0.0, 9.0)]) == 1, "deaf anyway: the best fit"


def test_what_cannot_work_is_refused(base: Path, dataset: Path) -> None:
    known = context(base, dataset, Layout({"action": 4}))
    with pytest.raises(ConfigError, match="nothing would be left"):
        Merge(action=0).prepare(known)
    with pytest.raises(ConfigError, match="needs other instructions") as error:
        Merge().prepare(replace(known, alternatives=[]))
    assert "--alternatives" in str(error.value.hint)
    with pytest.raises(ConfigError, match="exactly the same"):
        # to a tokenizer that knows none of the words, these are one sentence
        unknown = [demo.instructions for demo in known.demonstrations.demonstrations]
        for instructions in unknown:
            instructions[:] = ["fold shirts"]
        Merge().prepare(replace(known, alternatives=[Alternative("iron trousers")]))
    for options in ({"alpha": 1.5}, {"alpha": "half"}, {"vision": True}, {"windows": 0}, {"beta": 1}):
        with pytest.raises(ConfigError):
            Merge(**options)


def test_a_fine_tuning_merges_at_the_end_and_keeps_the_sweep(dataset: Path, base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "merge.yaml"
    recipe.write_text("method: lora\nretention: {merge: {windows: 8}}\n")
    out = tmp_path / "out"
    done = finetune.run(
        FinetuneConfig(
            dataset=dataset, base=str(base), out=out, recipe=str(recipe), steps=6, batch_size=8, alternatives=OTHERS
        )
    )
    facts = done["facts"]["retention"]["merge"]
    assert len(facts["sweep"]) == len(SWEEP) and facts["alpha"]["action"] >= 0.125
    load(str(base), out, device="cpu")


def test_what_is_reported_at_the_end_is_of_the_weights_that_are_saved(
    base: Path, dataset: Path, replay: Path, tmp_path: Path
) -> None:
    def run(name: str, **merge: dict[str, float]) -> tuple[dict[str, Any], Path]:
        chosen = recipe(tmp_path, {"rehearsal": {"fraction": 0.25}, **merge}, method="lora", rank=2, alpha=2, steps=3)
        options = {"replay": replay, "learning_rate": 0.01}
        return finetune.run(config(dataset, base, tmp_path / name, chosen, **options))["facts"], tmp_path / name

    (unmerged, before), (merged, after) = run("before"), run("after", merge={"alpha": 0.25})
    # training is the same, and measuring once more moves no weight
    assert (after / METRICS).read_bytes() == (before / METRICS).read_bytes()
    tuned, saved = (load_file(folder / ADAPTER_WEIGHTS) for folder in (before, after))
    assert all(torch.equal(saved[k], 0.25 * v if "lora_B" in k else v) for k, v in tuned.items())
    policy = load(str(base), after, device="cpu")
    windows = Windows(load_dataset(dataset).split("valid"), policy.spec.cameras, policy.spec.chunk_size)
    samples = windows.gather(windows.spread(HELD_OUT_WINDOWS))
    told = merged["last_step"]["held_out_loss"]
    assert told == pytest.approx(held_out_loss(policy, samples, draws=4, seed=0), rel=1e-5)
    assert told != pytest.approx(unmerged["last_step"]["held_out_loss"], rel=1e-3)
    loss = merged["retention"]["rehearsal"]["replay_loss"]
    assert loss == merged["last_step"]["replay_loss"] != unmerged["last_step"]["replay_loss"]
