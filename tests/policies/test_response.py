"""The response to words, measured on policies whose answer is known by construction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_cli.dataset import load_dataset
from vla_cli.errors import ConfigError
from vla_cli.guidance import read_default
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.flow_matching import Batch, FlowModel
from vla_cli.policies.response import Response, choose_guidance, measure_response
from vla_cli.windows import Samples, Windows

TRAINED = "put the red block on the left plate"
OTHERS = ("put the blue ball on the front plate", "put the red block on the right plate")


class _Caches:
    """Two prefix caches that are repeated together."""

    def __init__(self, own: Any, trained: Any) -> None:
        self.own, self.trained = own, trained

    def batch_repeat_interleave(self, times: int) -> None:
        self.own.batch_repeat_interleave(times)
        self.trained.batch_repeat_interleave(times)


class ScaledWords(FlowModel):
    """v(trained) + factor * (v(asked) - v(trained)): a policy that follows words `factor` times as much."""

    def __init__(self, policy: FlowPolicy, factor: float) -> None:
        super().__init__(policy.model)
        self.prompts, self.factor = policy.prompts, factor

    def _trained(self, batch: Batch) -> Batch:
        ids, mask = self.prompts([TRAINED] * len(batch.state), cameras=batch.pixel_values.shape[1])
        return replace(batch, input_ids=ids, attention_mask=mask)

    def prefix(self, batch: Batch, hidden_states: bool = False) -> Any:
        own, trained = (super(ScaledWords, self).prefix(b).past_key_values for b in (batch, self._trained(batch)))
        return SimpleNamespace(past_key_values=_Caches(own, trained))

    def velocity(self, cache: Any, batch: Batch, noisy: Tensor, timestep: Tensor) -> Tensor:
        own = super().velocity(cache.own, batch, noisy, timestep)
        trained = super().velocity(cache.trained, self._trained(batch), noisy, timestep)
        return trained + self.factor * (own - trained)


@pytest.fixture(scope="module")
def policy(base: Path) -> FlowPolicy:
    return load(str(base), device="cpu")


@pytest.fixture(scope="module")
def samples(dataset: Path, policy: FlowPolicy) -> Samples:
    windows = Windows(load_dataset(dataset).split("train"), policy.spec.cameras, policy.spec.chunk_size)
    return windows.gather(np.linspace(0, len(windows) - 1, 18).astype(int))


def scaled(policy: FlowPolicy, factor: float) -> FlowPolicy:
    other = FlowPolicy(policy.model, policy.prompts, policy.spec, policy.device)
    other.flow = ScaledWords(policy, factor)
    return other


def measured(policy: FlowPolicy, base: FlowPolicy, samples: Samples, **options: Any) -> Response:
    return measure_response(policy, base, samples, OTHERS, trained=TRAINED, draws=2, seed=0, **options)


@pytest.mark.parametrize("kind", ["contrast", "null", "orthogonal", "both"])
def test_a_policy_beside_itself_has_kept_everything_and_is_prompted_plainly(
    policy: FlowPolicy, samples: Samples, kind: str
) -> None:
    response = measured(policy, policy, samples, kind=kind)
    assert response.frames == 36 and not response.undefined
    assert response.retention == pytest.approx(1.0, abs=1e-5) and response.weight == pytest.approx(1.0, abs=1e-5)
    assert response.adapted_norm == response.base_norm and response.adapted_floor == response.base_floor
    choice = choose_guidance(response, kind)
    assert choice.guidance.plain and "still responds" in choice.reason
    assert read_default(choice.document()) == ("none", 1.0) and choice.document()["why"] == choice.reason


def test_half_the_response_asks_for_twice_the_weight(policy: FlowPolicy, samples: Samples) -> None:
    response = measured(scaled(policy, 0.5), policy, samples)
    assert response.retention == pytest.approx(0.5, abs=1e-3) and response.cosine == pytest.approx(1.0, abs=1e-3)
    assert response.adapted_norm == pytest.approx(response.base_norm / 2, rel=1e-3)
    guidance, reason = choose_guidance(response, "contrast")
    assert guidance.weight == pytest.approx(2.0, abs=0.01) and guidance.negatives == (TRAINED,)
    assert "50%" in reason
    assert read_default(choose_guidance(response, "contrast").document()) == ("contrast", guidance.weight)


def test_the_automatic_weight_gives_the_bases_actions_back(policy: FlowPolicy, samples: Samples) -> None:
    half = scaled(policy, 0.5)
    guidance, _ = choose_guidance(measured(half, policy, samples), "contrast")
    words = [OTHERS[0]] * len(samples)
    noise = np.random.default_rng(0).standard_normal(policy.noise_shape(len(samples))).astype(np.float32)
    wanted = policy.act(samples.images, samples.state, words, noise, steps=1)
    plain, guided = (
        half.act(samples.images, samples.state, words, noise, steps=1, guidance=g) for g in (None, guidance)
    )
    assert np.abs(guided - wanted).max() < 0.05 * np.abs(plain - wanted).max()


@pytest.mark.parametrize(("factor", "words"), [(0.02, "noise"), (-0.6, "does not point"), (0.9, "still responds")])
def test_where_guidance_cannot_help_prompting_is_plain(
    policy: FlowPolicy, samples: Samples, factor: float, words: str
) -> None:
    response = measured(scaled(policy, factor), policy, samples)
    assert response.retention == pytest.approx(factor, abs=1e-3)
    guidance, reason = choose_guidance(response, "contrast")
    assert guidance.plain and words in reason


def test_the_weight_is_bounded(policy: FlowPolicy, samples: Samples) -> None:
    response = replace(measured(policy, policy, samples), retention=0.3, weight=7.0)
    assert choose_guidance(response, "contrast").guidance.weight == 3.0
    wide = replace(response, weight=0.8)
    guidance, reason = choose_guidance(wide, "contrast")
    assert guidance.plain and "large enough" in reason


def test_words_that_mean_the_same_raise_the_floor(policy: FlowPolicy, samples: Samples) -> None:
    without = measured(policy, policy, samples)
    other_words = ("place the red block on the left plate", "pick up the red block and put it on the left plate")
    with_them = measured(policy, policy, samples, paraphrases=other_words)
    assert with_them.base_floor > without.base_floor and with_them.share <= without.share
    # as an instruction, a paraphrase alone is nowhere above the floor that it makes itself
    alone = measure_response(
        policy, policy, samples, [other_words[0]], trained=TRAINED, draws=2, seed=0, paraphrases=[other_words[0]]
    )
    assert alone.undefined and alone.retention is None
    guidance, reason = choose_guidance(alone, "contrast")
    assert guidance.plain and "undefined" in reason


def test_it_is_the_same_again_and_padded_steps_do_not_count(policy: FlowPolicy, samples: Samples) -> None:
    few = Samples(**{key: values[:4] for key, values in vars(samples).items()})
    half = scaled(policy, 0.5)
    whole = measured(half, policy, few)
    assert measured(half, policy, few) == whole
    cut = measured(half, policy, replace(few, real_steps=few.real_steps & (np.arange(8) < 4)))
    assert cut.base_norm != whole.base_norm and cut.retention == pytest.approx(0.5, abs=1e-3)


def test_the_weight_for_orthogonal_guidance_is_counted_from_zero(policy: FlowPolicy, samples: Samples) -> None:
    response = replace(measured(policy, policy, samples, kind="null"), retention=0.5, weight=1.8)
    assert choose_guidance(response, "null").guidance.weight == 1.8
    assert choose_guidance(response, "orthogonal").guidance.weight == 0.8


def test_what_cannot_be_compared_is_refused(policy: FlowPolicy, samples: Samples) -> None:
    response = measured(policy, policy, samples)
    with pytest.raises(ConfigError, match="not for 'null'"):
        choose_guidance(response, "null")
    with pytest.raises(ConfigError, match="nothing to contrast"):
        measure_response(policy, policy, samples, [TRAINED], trained=TRAINED, draws=1, seed=0)
    with pytest.raises(ConfigError, match="at least one"):
        measure_response(policy, policy, samples, [], trained=TRAINED, draws=1, seed=0)
    actions = replace(policy.spec.actions, std=policy.spec.actions.std * 2)
    other = FlowPolicy(policy.model, policy.prompts, replace(policy.spec, actions=actions), policy.device)
    with pytest.raises(ConfigError, match="normalise actions differently"):
        measured(other, policy, samples)


def test_no_gradient_is_kept(policy: FlowPolicy, samples: Samples) -> None:
    measured(policy, policy, samples)
    assert all(p.grad is None for p in policy.model.parameters()) and torch.is_grad_enabled()
