"""Distillation: exactly nothing at the start, a pull back to the base later, and only words that fit the moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Demonstration, load_dataset
from vla_cli.errors import ConfigError
from vla_cli.language.alternatives import Alternative, load_alternatives
from vla_cli.policies.adaptation import Layout, make_trainable
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.retention import Context, Step
from vla_cli.retention.distillation import PATH_STEPS, PATHS, Distillation
from vla_cli.retention.moments import Counterfactuals, holding_frames
from vla_cli.stages import finetune
from vla_cli.windows import Windows

PUT = "put the red block on the left plate"
OTHERS = Path(__file__).resolve().parents[2] / "sample_data" / "alternatives.yaml"


@pytest.fixture
def context(base: Path, dataset: Path) -> Context:
    policy, frozen = load(str(base), device="cpu"), load(str(base), device="cpu")
    frozen.model.requires_grad_(False).eval()
    layout = Layout({"language": 4, "action": 4})
    model = make_trainable(policy.model, layout, train_heads=False, seed=0)
    trained = FlowPolicy(model, policy.prompts, policy.spec, "cpu")
    windows = Windows(load_dataset(dataset).split("train"), policy.spec.cameras, policy.spec.chunk_size)
    return Context(trained, lambda: frozen, windows, None, None, load_alternatives(OTHERS))


def step(context: Context, seed: int = 0) -> Step:
    rng = np.random.default_rng(seed)
    return Step(0, rng, torch.Generator().manual_seed(seed), context.demonstrations.gather(range(8)))


def disturb(policy: FlowPolicy) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.15 * torch.randn_like(parameter))


@pytest.mark.parametrize("path", ["demonstration", "base"])
def test_the_penalty_is_exactly_zero_at_the_start_and_pulls_only_on_trained_weights_later(
    context: Context, path: str
) -> None:
    method = Distillation(path=path, weight=3.0)
    method.prepare(context)
    context.policy.model.train()
    assert method.penalty(step(context)).raw.item() == 0.0
    disturb(context.policy)  # type: ignore[arg-type]
    penalty = method.penalty(step(context))
    assert penalty.raw.item() > 0 and penalty.scaled.item() == pytest.approx(3 * penalty.raw.item())
    penalty.scaled.backward()
    for name, parameter in context.policy.model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    assert any(p.grad.abs().sum() > 0 for p in context.policy.model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in context.frozen().model.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_the_penalty_is_its_definition_where_the_base_looks_anew_each_time(context: Context, path: str) -> None:
    method = Distillation(path=path)
    method.prepare(context)
    disturb(context.policy)  # type: ignore[arg-type]
    now, policy, base = step(context, 3), context.policy, context.frozen()
    found = method.penalty(step(context, 3)).raw
    with torch.no_grad():
        batch = policy.batch(method._others.draw(now.rng, method.options.windows))
        timestep, noisy = policy.noised(batch, now.generator)
        if path == "base":
            noisy, t = torch.randn(noisy.shape, generator=now.generator), torch.ones_like(timestep)
            dt = (1 - timestep) / PATH_STEPS
            for _ in range(PATH_STEPS):
                noisy, t = noisy - dt[:, None, None] * base.velocities(batch, noisy, t), t - dt
        off = policy.velocities(batch, noisy, timestep) - base.velocities(batch, noisy, timestep)
        assert torch.equal(found, (off**2 * batch.mask).sum() / batch.mask.sum())


def test_a_micro_batch_has_its_part_of_the_windows(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    part, few = Distillation(windows=8), Distillation(windows=2)
    part.prepare(replace(context, parts=4))
    few.prepare(context)
    disturb(context.policy)  # type: ignore[arg-type]
    assert torch.equal(part.penalty(step(context, 1)).raw, few.penalty(step(context, 1)).raw)
    assert part.facts()["windows_a_step"] == 8
    # what is watched is as many windows, fewer at once
    seen: list[int] = []
    looked = context.policy.batch
    monkeypatch.setattr(context.policy, "batch", lambda samples: seen.append(len(samples)) or looked(samples))
    gap = part.watch(1)[0]["distillation_gap"]
    assert seen == [16] * 4 and gap == pytest.approx(few.watch(1)[0]["distillation_gap"], rel=0.5)


def test_a_step_taken_again_gives_the_same_penalty(context: Context) -> None:
    method = Distillation()
    method.prepare(context)
    disturb(context.policy)  # type: ignore[arg-type]
    first, again, other = (method.penalty(step(context, seed)).raw.item() for seed in (1, 1, 2))
    assert first == again != other


def test_following_the_penalty_brings_the_policy_back_to_the_base(context: Context) -> None:
    method = Distillation()
    method.prepare(context)
    disturb(context.policy)  # type: ignore[arg-type]
    before = method.watch(0)[0]["distillation_gap"]
    optimiser = torch.optim.AdamW([p for p in context.policy.model.parameters() if p.requires_grad], lr=3e-3)
    for number in range(10):
        optimiser.zero_grad()
        method.penalty(step(context, number)).scaled.backward()
        optimiser.step()
    assert method.watch(10)[0]["distillation_gap"] < 0.7 * before
    assert method.facts()["instructions"] == 15


def test_something_is_held_from_the_frame_after_closing_to_the_frame_of_opening() -> None:
    track = np.array([-1.0, -0.9, 1, 1, 0.2, -1, -1, 1, 1])
    assert holding_frames(track, 0.0).tolist() == [False, False, False, True, True, True, False, False, True]
    assert holding_frames(-track, 0.0).tolist() == holding_frames(track, 0.0).tolist(), "whatever the sign means"
    assert not holding_frames(np.zeros(5), 0.0).any(), "a gripper that never moves holds nothing"


def test_the_grippers_commands_tell_what_the_world_recorded_as_held(context: Context) -> None:
    windows = context.demonstrations
    others = Counterfactuals(windows, context.alternatives, gripper_dim=-1, gripper_threshold=None, method="test")
    held = np.concatenate([demo.state[:, 3] > 0.5 for demo in windows.demonstrations])
    assert (others.holding == held).mean() > 0.95


def demonstration(gripper: list[float], instruction: str = PUT) -> Demonstration:
    frames = len(gripper)
    actions = np.zeros((frames, 3), np.float32)
    actions[:, 2] = gripper
    images = np.zeros((frames, 8, 8, 3), np.uint8)
    state = np.arange(frames * 4, dtype=np.float32).reshape(frames, 4)
    return Demonstration("made-up", {"top": images}, state, actions, [instruction])


def test_words_fit_the_moment_and_nothing_else_of_a_window_changes() -> None:
    # a gripper that counts from 0 (closed) to 1 (open): the threshold is found in the middle
    windows = Windows([demonstration([1, 1, 1, 0, 0, 0, 0, 1])], ["top"], 4)
    asked = [Alternative("empty", "empty"), Alternative("holding", "holding"), Alternative(PUT.upper() + ".")]
    others = Counterfactuals(windows, asked, gripper_dim=-1, gripper_threshold=None, method="test")
    assert others.holding.tolist() == [False, False, False, False, True, True, True, True]
    drawn = others.draw(np.random.default_rng(0), 50)
    frames = (drawn.state[:, 0] / 4).astype(int)
    assert drawn.instructions == ["holding" if others.holding[t] else "empty" for t in frames]
    np.testing.assert_array_equal(drawn.actions, windows.gather(frames).actions)
    shown, told = others.pairs_before_grasp(10)
    assert shown.instructions == [PUT] * 4 and told.instructions == ["empty"] * 4


def test_frames_that_no_alternative_fits_are_left_out() -> None:
    windows = Windows([demonstration([-1, -1, 1, 1, -1])], ["top"], 4)
    others = Counterfactuals(
        windows, [Alternative("later", "holding")], gripper_dim=2, gripper_threshold=0.0, method="test"
    )
    drawn = others.draw(np.random.default_rng(0), 20)
    assert set((drawn.state[:, 0] / 4).astype(int)) == {3, 4}
    with pytest.raises(ConfigError, match="before the grasp"):
        others.pairs_before_grasp(4)


def test_what_cannot_work_is_refused_with_the_next_step(context: Context) -> None:
    for alternatives in ([], [Alternative(PUT)]):
        with pytest.raises(ConfigError) as error:
            Distillation().prepare(replace(context, alternatives=alternatives))
        assert "--alternatives" in str(error.value.hint)
    with pytest.raises(ConfigError, match="3 dimensions"):
        Distillation(gripper_dim=3).prepare(context)
    for options in ({"target": "actions"}, {"path": "random"}, {"windows": 0}, {"wait": 1}):
        with pytest.raises(ConfigError):
            Distillation(**options)


def test_a_fine_tuning_distils_and_says_so(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "distil.yaml"
    recipe.write_text("method: lora\nretention: {distillation: {windows: 4}}\n")
    config = FinetuneConfig(
        dataset=dataset, base=str(base), out=tmp_path / "out", recipe=str(recipe), steps=6, batch_size=8
    )
    with pytest.raises(ConfigError, match="needs other instructions"):
        finetune.run(config)
    done = finetune.run(replace(config, alternatives=OTHERS, overwrite=True))
    facts = done["facts"]["retention"]["distillation"]
    assert facts["mean_penalty"] == done["facts"]["last_step"]["distillation_gap"] > 0
    assert 0 < facts["windows_holding"] < facts["windows"]
    counts: list[int] = []
    drawn = Counterfactuals.draw
    monkeypatch.setattr(
        Counterfactuals, "draw", lambda self, rng, count: counts.append(count) or drawn(self, rng, count)
    )
    finetune.run(replace(config, alternatives=OTHERS, out=tmp_path / "parts", steps=1, micro_batch=4))
    assert counts[:2] == [2, 2], "a step's windows, in two parts"
