"""Guidance is what its equations say, on arrays and on the embedded base policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_cli.errors import ConfigError
from vla_cli.guidance import KINDS, PLAIN_WEIGHT, Guidance, choose, combine, is_guided, negatives_of, read_default
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.flow_matching import sample_chunk

PUT, OTHER = "put the red block on the left plate", "put the blue ball on the front plate"
LONG = "pick up the red block and put it on the left plate"
LINEAR = ("contrast", "null", "both")
A = 3
"""Real action dimensions of the embedded policy; the model's own width is larger."""


def guidance(kind: str, weight: float, trained: str = PUT) -> Guidance:
    return Guidance(kind, weight, negatives_of(kind, [trained]))


@pytest.fixture(scope="module")
def policy(base: Path) -> FlowPolicy:
    return load(str(base), device="cpu")


@pytest.fixture(scope="module")
def observation() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 1, 60, 60, 3), np.uint8), rng.uniform(0, 1, (2, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def noise(policy: FlowPolicy) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(policy.noise_shape(2)).astype(np.float32)


@pytest.fixture(scope="module")
def velocities() -> list[np.ndarray]:
    """v(tau+) and two negatives, [B, T, A_max] with A of A_max real."""
    return list(np.random.default_rng(2).standard_normal((3, 4, 8, 7)))


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_kinds_are_plain_at_one_the_negative_at_zero_and_linear(kind: str, velocities: list[np.ndarray]) -> None:
    positive, *negatives = velocities
    negatives = negatives[: 2 if kind == "both" else 1]
    at = {w: guidance(kind, w).velocity(positive, negatives, A) for w in (0.0, 1.0, 1.5, 2.0, 2.5)}
    np.testing.assert_allclose(at[1.0], positive, rtol=1e-12)
    np.testing.assert_allclose(at[0.0], np.mean(negatives, axis=0), rtol=1e-12)
    np.testing.assert_allclose(at[2.0] - at[1.5], at[2.5] - at[2.0], rtol=1e-9)


def test_swapping_the_prompts_is_one_minus_the_weight(velocities: list[np.ndarray]) -> None:
    positive, negative, _ = velocities
    there = guidance("contrast", 1.7).velocity(positive, [negative], A)
    back = guidance("contrast", -0.7, OTHER).velocity(negative, [positive], A)
    np.testing.assert_allclose(there, back, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_orthogonal_guidance_adds_what_lies_across_the_unconditional_velocity(
    velocities: list[np.ndarray], as_tensor: bool
) -> None:
    conditional, unconditional = (torch.from_numpy(v) if as_tensor else v for v in velocities[:2])
    plain = guidance("orthogonal", 0.0).velocity(conditional, [unconditional], A)
    assert np.array_equal(plain, conditional)
    guided = guidance("orthogonal", 2.0).velocity(conditional, [unconditional], A)
    added = np.asarray(guided - conditional)
    assert (added[..., A:] == 0).all(), "padded dimensions are not the policy's to guide"
    for sample, v_u in zip(added, np.asarray(unconditional), strict=True):
        assert np.abs(sample[:, :A]).max() > 0.1
        assert abs((sample[:, :A] * v_u[:, :A]).sum()) < 1e-9
    again = guidance("orthogonal", 2.0).velocity(conditional, [unconditional * 5], A)
    np.testing.assert_allclose(np.asarray(again), np.asarray(guided), rtol=1e-9, err_msg="only the direction counts")
    zero = guidance("orthogonal", 2.0).velocity(conditional, [unconditional * 0], A)
    np.testing.assert_allclose(np.asarray(zero)[..., :A], 3 * np.asarray(conditional)[..., :A])


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_weight_is_plain_prompting(
    kind: str, policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray], noise: np.ndarray
) -> None:
    plain = policy.act(*observation, [OTHER] * 2, noise)
    weight = PLAIN_WEIGHT[kind]
    np.testing.assert_array_equal(policy.act(*observation, [OTHER] * 2, noise, guidance=guidance(kind, weight)), plain)
    # the same through all branches, whose negatives make the prompts longer by padding
    batch = policy.collate(*observation, [OTHER] * 2)
    how = guidance(kind, weight, LONG)
    negatives = [policy.collate(*observation, [text] * 2) for text in how.negatives]
    assert kind not in ("contrast", "both") or negatives[0].input_ids.shape[1] > batch.input_ids.shape[1]
    start = torch.from_numpy(noise)
    alone = sample_chunk(policy.flow, batch, start, steps=4)
    branched = sample_chunk(policy.flow, batch, start, steps=4, guidance=how, negatives=negatives, width=A)
    torch.testing.assert_close(branched, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [PUT, LONG])
def test_branches_in_one_batch_are_separate_passes_put_together(
    kind: str, trained: str, policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray], noise: np.ndarray
) -> None:
    how = guidance(kind, 2.0, trained)

    def velocity(instruction: str, guided: Guidance | None = None) -> np.ndarray:
        raw = policy.act(*observation, [instruction] * 2, noise, steps=1, guidance=guided)
        return noise[..., :A] - policy.spec.actions.normalise(raw)

    positive, negatives = velocity(OTHER), [velocity(text) for text in how.negatives]
    expected = how.velocity(positive, negatives, A)
    assert np.abs(expected - positive).max() > 1e-2, "the prompts must matter for this test to mean anything"
    np.testing.assert_allclose(velocity(OTHER, how), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_not_contrasted_with_itself(
    kind: str, policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray], noise: np.ndarray
) -> None:
    how = guidance(kind, 2.0)
    for instruction in how.negatives:
        with pytest.raises(ConfigError, match="nothing to contrast"):
            policy.act(*observation, [OTHER, f" {instruction}"], noise, guidance=how)


def test_what_cannot_be_is_refused() -> None:
    for weight in (float("nan"), float("inf"), True, "2"):
        with pytest.raises(ConfigError, match="weight"):
            Guidance("null", weight, ("",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no guidance 'nul'"):
        Guidance("nul", 1.5, ("",))
    with pytest.raises(ConfigError, match="2 of them"):
        Guidance("both", 1.5, ("",))
    with pytest.raises(ConfigError, match="trained without one"):
        negatives_of("contrast", [])


def test_combine_is_the_papers_convention() -> None:
    assert combine(1.0, 3.0, 1.0) == 3.0 and combine(1.0, 3.0, 0.0) == 1.0 and combine(1.0, 3.0, 2.0) == 5.0


def test_the_policys_own_default() -> None:
    assert read_default({"weight": 1.0}) == ("none", 1.0)
    assert read_default({"kind": "none", "weight": 1.0, "why": "it rehearsed"}) == ("none", 1.0)
    assert read_default({"kind": "null", "weight": 2}) == ("null", 2.0)
    assert read_default({"kind": "orthogonal", "weight": 0}) == ("none", 1.0)
    with pytest.raises(ConfigError, match="no guidance 'spicy'"):
        read_default({"kind": "spicy", "weight": 2})


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ({"weight": 1.0}, {}, None),
        ({"kind": "null", "weight": 1.7}, {}, Guidance("null", 1.7, ("",))),
        ({"kind": "null", "weight": 1.7}, {"kind": "none"}, None),
        ({"kind": "null", "weight": 1.7}, {"weight": 2.0}, Guidance("null", 2.0, ("",))),
        ({"kind": "null", "weight": 1.7}, {"kind": "null"}, Guidance("null", 1.7, ("",))),
        ({"kind": "null", "weight": 1.7}, {"kind": "contrast"}, Guidance("contrast", 1.5, (PUT,))),
        ({"kind": "null", "weight": 1.7}, {"weight": 1.0}, None),
        ({"weight": 1.0}, {"weight": 2.0}, Guidance("contrast", 2.0, (PUT,))),
        ({"weight": 1.0}, {"weight": 1.0}, None),
        ({"weight": 1.0}, {"kind": "orthogonal"}, Guidance("orthogonal", 0.5, ("",))),
        ({"weight": 1.0}, {"kind": "both", "weight": 1.2}, Guidance("both", 1.2, (PUT, ""))),
    ],
)
def test_what_is_asked_for_wins_over_the_policys_own(
    own: dict[str, object], asked: dict[str, object], expected: Guidance | None
) -> None:
    assert choose(own, [PUT], **asked) == expected  # type: ignore[arg-type]


def test_a_weight_without_a_kind_of_guidance_is_refused() -> None:
    with pytest.raises(ConfigError, match="together with"):
        choose({"weight": 1.0}, [PUT], kind="none", weight=2.0)
    with pytest.raises(ConfigError, match="no guidance 'cpg'"):
        choose({"weight": 1.0}, [PUT], kind="cpg")


def test_a_contrast_guides_no_trained_wording_and_the_empty_prompt_every_other() -> None:
    trained = [PUT, LONG]
    asked = (PUT, f" {LONG} ", OTHER, "")
    assert [is_guided(guidance("contrast", 1.5), text, trained) for text in asked] == [False, False, True, True]
    assert [is_guided(guidance("null", 1.5), text, trained) for text in asked] == [True, True, True, False]
    assert [is_guided(guidance("both", 1.5), text, trained) for text in asked] == [False, False, True, False]
    assert not any(is_guided(None, text, trained) for text in asked)
