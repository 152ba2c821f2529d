"""The default guidance of an adapter whose recipe leaves its weight to be measured (`guidance: {weight: auto}`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vla_cli.adapter import PolicySpec
from vla_cli.guidance import Guidance, negatives_of
from vla_cli.language.alternatives import Alternative
from vla_cli.language.phrasing import paraphrases
from vla_cli.matching import plain_guidance
from vla_cli.policies.policy import Policy
from vla_cli.policies.response import choose_guidance, measure_response
from vla_cli.provenance import RunRecord
from vla_cli.windows import Windows

RESPONSE_WINDOWS = 32
"""Frames of the demonstrations at which the response to words is measured."""
REWORDINGS = 4
"""Of the trained instruction, beside which the response of a policy without noise is measured."""


def measured_guidance(
    kind: str,
    spec: PolicySpec,
    policy: Policy,
    frozen: Callable[[], Policy],
    demonstrations: Windows,
    alternatives: Sequence[Alternative],
    *,
    seed: int,
    record: RunRecord,
) -> dict[str, Any]:
    """Default guidance that gives the adapted policy the base's response to words back, where that can be measured.

    Args:
        kind: of guidance, as the recipe says.
        spec: of the adapted policy.
        policy: the adapted policy.
        frozen: returns the untouched base, fed like it.
        demonstrations: windows that it was trained on.
        alternatives: what else could be asked in their scenes.
        seed: of flow noise.
        record: the response goes there.
    """
    trained = spec.instructions[0] if spec.instructions else ""
    if kind in ("contrast", "both") and not trained:
        return spec.guidance
    probe = Guidance(kind, 1.0, negatives_of(kind, spec.instructions))
    others = [a.instruction for a in alternatives if probe.covers(a.instruction)]
    if not others:
        return plain_guidance("its weight is to be measured with other instructions, and no --alternatives were given")
    found = measure_response(
        policy,
        frozen(),
        demonstrations.gather(demonstrations.spread(RESPONSE_WINDOWS)),
        others,
        trained=trained,
        draws=4,
        seed=seed,
        kind=kind,
        paraphrases=() if policy.draws_noise else _rewordings(policy, trained, seed),
    )
    record.facts["response"] = found.document()
    return choose_guidance(found, kind).document()


def _rewordings(policy: Policy, trained: str, seed: int) -> list[str]:
    """Other words of the same meaning that the policy can read: without a seed, they tell a response from noise."""
    known = [text for text in paraphrases(trained, 8 * REWORDINGS, seed=seed) if not policy.prompts.unknown_words(text)]
    return known[:REWORDINGS]
