"""Guidance at test time: how the velocities under several prompts become one.

tau_plus is the instruction that is asked for, tau_minus a prompt to move away from; every branch shares image, state
and noise, and v is the flow-matching velocity at one a_t and t. Four kinds, one convention each:

    contrast    v = v(tau-) + w * (v(tau+) - v(tau-))            tau- = the trained instruction
                contrastive prompt guidance, CPG (DeLock, arXiv 2604.23121)
    null        v = v(tau-) + w * (v(tau+) - v(tau-))            tau- = the empty prompt ""
                v_uncond + omega * (v_cond - v_uncond), omega = w (CAG, arXiv 2602.17659)
    both        v = m + w * (v(tau+) - m), m = (v(trained) + v("")) / 2
                not published: contrast with both negatives at once, three branches
    orthogonal  v = v_c + gamma * (v_c - proj_{v_u} v_c)         v_c = v(tau+), v_u = v("")
                proj_{v_u} v_c = v_u * <v_c, v_u> / |v_u|^2 (after arXiv 2608.04396)

Of a policy that writes tokens v is the action tokens' centred logits, and all branches go on from the same tokens
(`policies.token_model`).

For the first three w = 1 is plain prompting, w = 0 is the negative, and swapping the prompts (one negative) is
w -> 1 - w. For `orthogonal` gamma = 0 is plain prompting; <., .> runs over all real action dimensions and all steps of
one sample's chunk, and padded dimensions keep v_c. The paper writes "v + gamma * (...)": here that v is v_c, the
velocity under the instruction, so that gamma = 0 is plain. As v_c - proj v_c is the part of v_c - v_u across v_u,
gamma corresponds to w - 1 of `null` in those directions; along v_u nothing is amplified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vla_cli.errors import ConfigError

Velocity = TypeVar("Velocity")

PLAIN_KIND = "none"
KINDS = ("contrast", "null", "orthogonal", "both")
NULL_PROMPT = ""
PLAIN_WEIGHT = {"contrast": 1.0, "null": 1.0, "both": 1.0, "orthogonal": 0.0}
"""The weight at which a kind is plain prompting."""
DEFAULT_WEIGHT = {"contrast": 1.5, "null": 1.5, "both": 1.5, "orthogonal": 0.5}
"""Where nobody names a weight: CPG's is not published, CAG's omega is about 1.5; gamma is w - 1."""

EPSILON = 1e-12


@dataclass(frozen=True)
class Guidance:
    """One kind of guidance at one weight; see the module's docstring for the equations.

    Attributes:
        kind: one of `KINDS`.
        weight: w, or gamma for `orthogonal`.
        negatives: the prompts to move away from, in the order of their branches.

    Raises:
        ConfigError: an unknown kind, a weight that is no finite number, or a wrong number of negatives.
    """

    kind: str
    weight: float
    negatives: tuple[str, ...]

    def __post_init__(self) -> None:
        check_kind(self.kind)
        check_weight(self.weight)
        wanted = 2 if self.kind == "both" else 1
        if len(self.negatives) != wanted:
            raise ConfigError(
                f"Guidance '{self.kind}' has {len(self.negatives)} negative prompts", expected=f"{wanted} of them"
            )

    @property
    def plain(self) -> bool:
        """Whether this is plain prompting, for which one branch is enough."""
        return self.weight == PLAIN_WEIGHT[self.kind]

    def covers(self, instruction: str) -> bool:
        """Whether an instruction can be guided: it is none of the negatives."""
        return all(instruction.split() != negative.split() for negative in self.negatives)

    def check(self, instruction: str) -> None:
        """Refuse a contrast of an instruction with itself.

        Raises:
            ConfigError: the instruction and a negative are the same words.
        """
        if not self.covers(instruction):
            raise ConfigError(
                f"Guidance '{self.kind}' has nothing to contrast: both prompts are '{instruction}'",
                expected="an instruction other than the one to move away from",
                hint="--guidance none for plain prompting",
            )

    def velocity(self, positive: Velocity, negatives: Sequence[Velocity], width: int) -> Velocity:
        """The guided velocity.

        Args:
            positive: v(tau+), tensor or array [B, T, A_max].
            negatives: one such for each of `self.negatives`.
            width: A, the real action dimensions; the rest is padding.
        """
        if self.kind == "orthogonal":
            return combine_orthogonal(negatives[0], positive, self.weight, width)
        mean: Any = sum(negatives[1:], start=negatives[0]) / len(negatives)  # type: ignore[call-overload, operator]
        return combine(mean, positive, self.weight)

    def document(self) -> dict[str, Any]:
        """As JSON values: kind and weight, as `policy.json` and a report's settings have them."""
        return {"kind": self.kind, "weight": self.weight}


def combine(negative: Velocity, positive: Velocity, weight: float) -> Velocity:
    """v(tau_minus) + w * (v(tau_plus) - v(tau_minus)), for tensors or arrays of any one shape."""
    return negative + weight * (positive - negative)  # type: ignore[operator]


def combine_orthogonal(negative: Velocity, positive: Velocity, weight: float, width: int) -> Velocity:
    """v_c + gamma * (v_c - proj_{v_u} v_c) with v_u = `negative` and v_c = `positive`, both [B, T, A_max].

    The projection is taken for each sample over its steps and first `width` dimensions; the others keep v_c.
    """
    v_u: Any = negative
    v_c: Any = positive
    flat_u, flat_c = (v[..., :width].reshape(len(v), -1) for v in (v_u, v_c))
    share = (flat_c * flat_u).sum(-1) / ((flat_u * flat_u).sum(-1) + EPSILON)
    guided = v_c + weight * (v_c - share[:, None, None] * v_u)
    guided[..., width:] = v_c[..., width:]
    return guided


def check_kind(kind: str) -> None:
    """Refuse a kind of guidance that there is not.

    Raises:
        ConfigError: it is none of `KINDS`.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no guidance '{kind}'", expected=f"one of {', '.join((PLAIN_KIND, *KINDS))}")


def check_weight(weight: object) -> None:
    """Refuse a weight that is no finite number.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"The guidance weight is {weight}", expected="a finite number, e.g. 1.5")


def negatives_of(kind: str, trained: Sequence[str]) -> tuple[str, ...]:
    """The prompts that a kind moves away from.

    Args:
        kind: one of `KINDS`.
        trained: the instructions the policy was fine-tuned on; the first stands for all.

    Raises:
        ConfigError: an unknown kind, or one that needs a trained instruction and there is none.
    """
    check_kind(kind)
    if kind in ("null", "orthogonal"):
        return (NULL_PROMPT,)
    if not trained or not trained[0].split():
        raise ConfigError(
            f"Guidance '{kind}' moves away from the trained instruction, and this policy was trained without one",
            expected="a policy fine-tuned on an instruction",
            hint="--guidance null, or --guidance none for plain prompting",
        )
    return (trained[0],) if kind == "contrast" else (trained[0], NULL_PROMPT)


def read_default(document: Mapping[str, Any]) -> tuple[str, float]:
    """Kind and weight of `policy.json`'s `guidance`: ("none", 1.0) for plain prompting.

    `{"weight": 1.0}`, as older adapters have it, is plain; a weight without a kind is that of `contrast`.

    Raises:
        ConfigError: an unknown kind, or a weight that is no finite number.
    """
    kind = document.get("kind", "contrast")
    weight = document.get("weight", DEFAULT_WEIGHT.get(kind, 1.0))
    check_weight(weight)
    if kind == PLAIN_KIND:
        return PLAIN_KIND, 1.0
    check_kind(kind)
    return (PLAIN_KIND, 1.0) if weight == PLAIN_WEIGHT[kind] else (kind, float(weight))


def choose(
    own: Mapping[str, Any], trained: Sequence[str], *, kind: str = "default", weight: float | None = None
) -> Guidance | None:
    """The guidance of one policy, from what was asked for and what its `policy.json` says.

    Args:
        own: `PolicySpec.guidance`.
        trained: `PolicySpec.instructions`.
        kind: "default" for the policy's own, "none" for plain prompting, or one of `KINDS`. A weight under "default"
            is for the policy's own kind, or for `contrast` where that is "none".
        weight: None for the policy's own where the kind is the same, else `DEFAULT_WEIGHT`.

    Returns:
        None for plain prompting.

    Raises:
        ConfigError: an unknown kind; a weight that is no finite number, or one with "none"; a kind that the policy
            cannot have.
    """
    own_kind, own_weight = read_default(own)
    if weight is not None:
        check_weight(weight)
    if kind == PLAIN_KIND:
        if weight not in (None, 1.0):
            raise ConfigError(
                f"A guidance weight of {weight:g} is given together with guidance 'none'",
                expected="a kind of guidance for that weight",
                hint="--guidance contrast, or leave out --guidance-weight",
            )
        return None
    if kind == "default":
        if own_kind == PLAIN_KIND and weight in (None, 1.0):
            return None
        kind = "contrast" if own_kind == PLAIN_KIND else own_kind
    check_kind(kind)
    if weight is None:
        weight = own_weight if kind == own_kind else DEFAULT_WEIGHT[kind]
    found = Guidance(kind, float(weight), negatives_of(kind, trained))
    return None if found.plain else found


def is_guided(guidance: Guidance | None, instruction: str, trained: Sequence[str]) -> bool:
    """Whether an instruction is guided, or prompted plainly.

    An instruction cannot be contrasted with itself, nor with another wording of itself that was trained too: those are
    prompted plainly. Guidance away from the empty prompt only covers the trained instruction as well.

    Args:
        guidance: of the policy; None is plain prompting.
        instruction: what is asked for.
        trained: `PolicySpec.instructions`.
    """
    if guidance is None or not guidance.covers(instruction):
        return False
    known = {tuple(text.split()) for text in trained}
    against_trained = any(tuple(negative.split()) in known for negative in guidance.negatives)
    return not (against_trained and tuple(instruction.split()) in known)


def describe(guidance: Guidance | None) -> dict[str, Any]:
    """Kind and weight as JSON values, plain prompting included."""
    return {"kind": PLAIN_KIND, "weight": 1.0} if guidance is None else guidance.document()
