"""Rehearsal: replayed pictures take the demonstrations' style, and nothing else about them changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Demonstration
from vla_cli.errors import ConfigError
from vla_cli.language.alternatives import Alternative
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.retention import RETENTION, Context
from vla_cli.retention.composition import DEMONSTRATIONS, Composition
from vla_cli.retention.rehearsal import Rehearsal, channel_style, match_style, warp
from vla_cli.stages import finetune
from vla_cli.windows import Windows

NEW, OLD = "put the red block on the left plate", "pick up the blue ball"


def windows(level: int, spread: int, instruction: str, frames: int = 12) -> Windows:
    rng = np.random.default_rng(level)
    images = np.clip(rng.normal(level, spread, (frames, 24, 24, 3)), 0, 255).astype(np.uint8)
    state, actions = rng.normal(size=(frames, 4)), rng.normal(size=(frames, 3))
    demo = Demonstration("demo", {"top": images}, state.astype("f4"), actions.astype("f4"), [instruction])
    return Windows([demo], ["top"], chunk=8)


@pytest.fixture(scope="module")
def policy(base: Path) -> FlowPolicy:
    return load(str(base), device="cpu")


@pytest.fixture
def context(policy: FlowPolicy) -> Context:
    return Context(
        policy=policy,
        frozen=lambda: policy,
        demonstrations=windows(60, 10, NEW),
        held_out=None,
        replay=windows(180, 30, OLD),
        alternatives=[Alternative("put the blue ball on the right plate")],
    )


def test_matched_images_have_the_wanted_style() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(120, 20, (5, 2, 16, 16, 3)).astype(np.float32)
    wanted = channel_style(rng.normal(70, 8, (5, 2, 16, 16, 3)))
    np.testing.assert_allclose(channel_style(match_style(images, wanted)), wanted, rtol=1e-3)


def test_replayed_windows_look_like_the_demonstrations_and_say_what_they_said(context: Context) -> None:
    method = Rehearsal(fraction=0.5, style_probability=1.0)
    method.prepare(context)
    drawn = method.draw(np.random.default_rng(0), 8)
    assert abs(drawn.images.mean() - 60) < 3, "the demonstrations' mean"
    assert abs(drawn.images.std() - 10) < 3, "the demonstrations' spread"
    assert set(drawn.instructions) == {OLD}
    plain = windows(180, 30, OLD)
    originals = plain.gather(range(len(plain)))
    for state, action in zip(drawn.state, drawn.actions, strict=True):
        which = np.flatnonzero((originals.state == state).all(1))
        assert len(which) == 1 and (originals.actions[which[0]] == action).all()


def test_without_style_the_pictures_are_untouched(context: Context) -> None:
    method = Rehearsal(style_probability=0.0)
    method.prepare(context)
    drawn = method.draw(np.random.default_rng(0), 6)
    plain = windows(180, 30, OLD).draw(np.random.default_rng(0), 6)
    np.testing.assert_array_equal(drawn.images, plain.images)


def test_a_warp_by_nothing_changes_nothing_and_a_quarter_turn_turns() -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 1, 9, 9, 3)).astype(np.float32)
    still = warp(images, np.zeros(2), np.ones(2), np.zeros((2, 2)))
    np.testing.assert_allclose(still, images, atol=1e-3)
    turned = warp(images, np.full(2, np.pi / 2), np.ones(2), np.zeros((2, 2)))
    np.testing.assert_allclose(turned[0, 0], np.rot90(images[0, 0], 1), atol=1e-2)


@pytest.mark.parametrize(
    ("fraction", "batch", "share"), [(0.25, 32, 8), (0.4, 32, 12.8), (0.01, 8, 0.08), (0.07, 100, 7), (0.99, 8, 7)]
)
def test_the_share_is_the_fraction_but_that_one_window_is_left(fraction: float, batch: int, share: float) -> None:
    assert Rehearsal(fraction=fraction).share(batch) == share


@pytest.mark.parametrize(("fraction", "batch", "said"), [(0.4, 32, ""), (0.1, 4, ""), (0.9, 2, "1 of 2")])
def test_a_share_that_the_batch_is_too_small_for_is_said(fraction: float, batch: int, said: str) -> None:
    method = Rehearsal(fraction=fraction)
    told = method.caveats(batch)
    assert bool(told) == bool(said) and all(said in text and f"{fraction:g} was asked for" in text for text in told)
    assert method.facts()["share_of_batch"] == method.share(batch) / batch
    assert method.facts()["fraction"] == fraction


def test_a_batch_in_which_nothing_would_be_rehearsed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a batch of 1 has no window.*--batch-size 32 or --micro-batch 2"):
        Rehearsal(fraction=0.4).share(1)


def test_the_share_of_replay_in_every_batch_is_the_fraction(context: Context) -> None:
    hooks = Composition({"rehearsal": Rehearsal(fraction=0.25)}, context.demonstrations, batch_size=8, seed=0)
    hooks.prepare(context)
    told = [text for step in range(20) for group in hooks.draw(step).values() for text in group.instructions]
    assert (told.count(OLD), told.count(NEW)) == (40, 120)
    assert list(hooks.draw(0)) == [DEMONSTRATIONS, "rehearsal"]


@pytest.mark.parametrize(("fraction", "batch"), [(0.4, 32), (0.3, 8), (0.05, 8), (0.85, 10)])
def test_a_broken_number_of_windows_is_met_in_expectation(context: Context, fraction: float, batch: int) -> None:
    hooks = Composition({"rehearsal": Rehearsal(fraction=fraction)}, context.demonstrations, batch, seed=0)
    hooks.prepare(replace(context, batch_size=batch))
    groups = [hooks.draw(step) for step in range(600)]
    counts = np.array([len(group["rehearsal"]) if "rehearsal" in group else 0 for group in groups])
    wished = fraction * batch
    assert set(counts) == {int(wished), int(wished) + 1}, "the whole numbers on both sides, and no other"
    broken = wished - int(wished)
    error = (broken * (1 - broken) / len(counts)) ** 0.5
    assert abs(counts.mean() - wished) < 3 * error, "three standard errors of the mean, of independent draws"
    assert all(sum(map(len, group.values())) == batch for group in groups)
    assert hooks.own == pytest.approx(batch - wished)


def test_rehearsal_without_data_says_what_to_give(context: Context) -> None:
    with pytest.raises(ConfigError, match=r"--replay"):
        Rehearsal().prepare(replace(context, replay=None))


def test_replay_learned_by_heart_is_noticed_and_an_untrained_policy_is_not_suspected(
    base: Path, context: Context
) -> None:
    learner = load(str(base), device="cpu")
    few = windows(180, 30, OLD, frames=4)
    method = Rehearsal(fraction=0.5)
    method.prepare(replace(context, policy=learner, replay=few))
    metrics, warnings = method.watch(0)
    assert metrics["replay_loss"] == metrics["replay_loss_of_base"] and not warnings
    assert method.facts()["memorised"] is False
    s = few.gather(range(4))
    optimiser = torch.optim.AdamW(learner.model.parameters(), lr=2e-3)
    for step in range(12):
        batch = learner.collate(s.images, s.state, s.instructions, s.actions, s.real_steps)
        loss = learner.losses(batch, draws=4, generator=torch.Generator().manual_seed(step)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    metrics, warnings = method.watch(12)
    assert metrics["replay_loss"] < metrics["replay_loss_of_base"]
    assert len(warnings) == 1 and "by heart" in warnings[0]
    assert method.facts()["memorised"] is True


def test_the_watch_is_in_the_metrics_and_the_record(dataset: Path, base: Path, replay: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mixing.yaml"
    recipe.write_text(
        "method: lora\nretention: {rehearsal: {fraction: 0.25, style_probability: 0, geometry_probability: 0}}\n"
    )
    done = finetune.run(
        FinetuneConfig(
            dataset=dataset,
            base=str(base),
            out=tmp_path / "out",
            recipe=str(recipe),
            replay=replay,
            steps=6,
            batch_size=8,
        )
    )
    facts = done["facts"]["retention"]["rehearsal"]
    assert facts["replay_loss"] == pytest.approx(done["facts"]["last_step"]["replay_loss"])
    assert facts["replay_loss_of_base"] > 0 and isinstance(facts["memorised"], bool)


def test_unknown_and_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="'share'"):
        Rehearsal(share=0.5)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Rehearsal(fraction=1.5)


@pytest.mark.parametrize("name", list(RETENTION))
def test_every_method_answers_the_training_loops_calls(name: str, context: Context) -> None:
    method = RETENTION.get(name)()
    method.prepare(context)
    share = method.share(16)
    assert 0 <= share < 16
    if share:
        assert len(method.draw(np.random.default_rng(0), 3)) == 3
    assert isinstance(method.facts(), dict)
