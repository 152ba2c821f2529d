"""What words change in a policy's predictions, beside its base: velocities at one a_t, or logits of action tokens.

See `policies.response`, which weighs them. Of a token policy, Delta is of the action tokens' centred logits, each
behind the recorded tokens before it: what guidance multiplies. There is no seed that could change them, so that the
floor is what other words of the same meaning change; without any it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vla_cli.errors import ConfigError
from vla_cli.policies.flow import FlowPolicy
from vla_cli.policies.flow_matching import repeat_cache, sample_time
from vla_cli.policies.policy import Policy
from vla_cli.policies.token_model import centred
from vla_cli.policies.tokens import TokenPolicy
from vla_cli.windows import Samples


@dataclass(frozen=True)
class Asked:
    """What is asked of both policies.

    Attributes:
        trained: the instruction that one was fine-tuned on.
        instructions: others, tau_plus.
        negatives: tau_minus.
        rewordings: of the first negative, of the same meaning.
        draws: of noise, a frame.
    """

    trained: str
    instructions: Sequence[str]
    negatives: Sequence[str]
    rewordings: Sequence[str]
    draws: int


def reactions_of(
    policy: Policy, base: Policy, samples: Samples, asked: Asked, generator: torch.Generator
) -> tuple[Reactions, Reactions, Tensor]:
    """The adapted policy's reactions to words, its base's, and how many real entries each frame has [B].

    Raises:
        ConfigError: the two are of different families, or normalise actions differently.
    """
    if isinstance(policy, FlowPolicy) and isinstance(base, FlowPolicy):
        points = _points(policy, base, samples, asked.trained, asked.draws, generator)
        told = (asked.instructions, asked.negatives, asked.rewordings)
        return _reactions(policy, samples, points, *told), _reactions(base, samples, points, *told), points.entries
    if isinstance(policy, TokenPolicy) and isinstance(base, TokenPolicy):
        first, second = (_token_reactions(p, samples, asked) for p in (policy, base))
        return first[0], second[0], first[1]
    raise ConfigError(
        f"A policy of family '{policy.spec.family}' cannot be compared with one of '{base.spec.family}'",
        expected="an adapter beside its own base",
    )


@torch.no_grad()
def _token_reactions(policy: TokenPolicy, samples: Samples, asked: Asked) -> tuple[Reactions, Tensor]:
    policy.model.eval()
    batch = policy.batch(_told(samples, asked.trained))
    points = policy.points(batch, torch.Generator())
    mask = batch.mask[:, None].flatten(2)[..., None]  # [B, 1, T * A, 1]

    def logits(instruction: str) -> Tensor:
        """[B, 1, T * A, bins]"""
        found = policy.predictions(policy.batch(_told(samples, instruction)), points)
        return centred(found.flatten(1, 2))[:, None] * mask

    under = {text: logits(text) for text in asked.negatives}
    mean = torch.stack(list(under.values())).mean(0)
    floor = torch.zeros(len(samples), device=mean.device)
    for text in asked.rewordings:
        floor = torch.maximum(floor, _squared(logits(text) - under[asked.negatives[0]], mask))
    delta = torch.stack([logits(text) - mean for text in asked.instructions])
    return Reactions(delta, floor), mask.sum((1, 2, 3)) * mean.shape[-1]


@dataclass
class _Points:
    """Where velocities are compared: the same for both policies.

    Attributes:
        noise, second: [B * D, T, A_max] the noises z and z'.
        noisy, noisy_second: a_t made of each.
        timestep: [B * D].
        mask: [B, D, T, A_max] 1 on real steps and dimensions.
        entries: [B] how many of those a frame has, all draws together.
    """

    noise: Tensor
    second: Tensor
    noisy: Tensor
    noisy_second: Tensor
    timestep: Tensor
    mask: Tensor
    entries: Tensor


class Reactions(NamedTuple):
    """Delta v [J, B, D, T, A_max], and the squared floor [B] summed over draws, steps and dimensions.

    Of a token policy Delta of the logits [J, B, 1, T * A, bins], and the floor likewise.
    """

    delta: Tensor
    floor: Tensor


def _points(
    policy: FlowPolicy,
    base_policy: FlowPolicy,
    samples: Samples,
    trained: str,
    draws: int,
    generator: torch.Generator,
) -> _Points:
    batches = [p.batch(_told(samples, trained)) for p in (policy, base_policy)]
    actions, mask = batches[0].actions, batches[0].mask
    assert actions is not None and mask is not None and batches[1].actions is not None
    if actions.shape != batches[1].actions.shape or not torch.allclose(actions, batches[1].actions, atol=1e-4):
        raise ConfigError(
            "The policy and its base normalise actions differently: their velocities cannot be compared",
            expected="a base loaded with the adapter's policy.json",
        )
    timestep = sample_time(policy.config, len(actions) * draws, generator).to(actions.device)
    t, repeated = timestep[:, None, None], actions.repeat_interleave(draws, 0)
    noise, second = (torch.randn(repeated.shape, generator=generator).to(actions.device) for _ in range(2))
    spread = mask[:, None].expand(-1, draws, -1, -1)
    return _Points(
        noise,
        second,
        t * noise + (1 - t) * repeated,
        t * second + (1 - t) * repeated,
        timestep,
        spread,
        spread.sum((1, 2, 3)),
    )


def _told(samples: Samples, instruction: str) -> Samples:
    return replace(samples, instructions=[instruction] * len(samples))


@torch.no_grad()
def _reactions(
    policy: FlowPolicy,
    samples: Samples,
    points: _Points,
    instructions: Sequence[str],
    negatives: Sequence[str],
    rewordings: Sequence[str],
) -> Reactions:
    policy.model.eval()

    def velocity(instruction: str, noisy: Tensor = points.noisy) -> Tensor:
        return _velocity(policy, samples, instruction, noisy, points)

    under = {text: velocity(text) for text in negatives}
    mean = torch.stack(list(under.values())).mean(0)
    residuals = [
        torch.stack([velocity(text, noisy) for text in negatives]).mean(0) - _shaped(noise, points)
        for noisy, noise in ((points.noisy, points.noise), (points.noisy_second, points.second))
    ]
    floor = _squared(residuals[0] - residuals[1], points.mask)
    for text in rewordings:
        floor = torch.maximum(floor, _squared(velocity(text) - under[negatives[0]], points.mask))
    return Reactions(torch.stack([velocity(text) - mean for text in instructions]) * points.mask, floor)


def _velocity(policy: FlowPolicy, samples: Samples, instruction: str, noisy: Tensor, points: _Points) -> Tensor:
    """[B, D, T, A_max]"""
    batch = replace(policy.batch(_told(samples, instruction)), actions=None, mask=None)
    cache = repeat_cache(policy.flow.prefix(batch).past_key_values, points.mask.shape[1])
    return _shaped(policy.flow.velocity(cache, batch, noisy, points.timestep), points)


def _shaped(values: Tensor, points: _Points) -> Tensor:
    return values.reshape(points.mask.shape)


def _squared(values: Tensor, mask: Tensor) -> Tensor:
    """Squared norm over draws, steps and dimensions: [..., B]."""
    return (values**2 * mask).sum((-3, -2, -1))
