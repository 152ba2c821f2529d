"""What is left of a base's response to words in an adapted policy, and which guidance that calls for (methods.md M3).

Both policies see the same image, state, a_t and t; what the words change is

    Delta v = v(a_t, o, tau_plus, t) - v(a_t, o, tau_minus, t)        tau_minus: what the guidance moves away from
    R       = mean <Delta v_ft, Delta v_pre> / (|Delta v_pre|^2 + eps)         1 kept, 0 locked, below 0 reversed

with a_t = t z + (1 - t) a around the recorded action a, and <., .> over the real steps and dimensions of all noise
draws of one frame under one instruction.

The floor. At one a_t a velocity is no random variable, so "seed noise" must come from elsewhere, and v(z) - v(z') of
two noises is mostly z - z' itself. That part is known: the target velocity is z - a, so r = v - (z - a) is what the
network adds, and the predicted clean action is a_t - t v = a - t r. Therefore

    floor = rms over draws of |r(tau_minus, z) - r(tau_minus, z')|,    z' a second noise at the same t

in the units of Delta v: words that move the predicted action by less than another seed does are not counted (M1 with
D(tau_minus, tau_minus; z, z') as its unit). Paraphrases of tau_minus, where given, raise the floor to the change that
other words of the same meaning make, which is M1's D(tau_minus, paraphrase; z); a token policy has no seed, and no
other floor than that (`policies.reactions`). The base's floor decides where R is defined; the adapted policy's own
floor whether it still responds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vla_cli.errors import ConfigError
from vla_cli.guidance import PLAIN_KIND, Guidance, negatives_of
from vla_cli.policies.policy import Policy
from vla_cli.policies.reactions import Asked, Reactions, reactions_of
from vla_cli.windows import Samples

EPSILON = 1e-8
FRAMES_AT_ONCE = 16

LOWEST_SHARE = 0.5
"""Share of the defined frames in which the adapted policy must respond above its own floor: below, no w helps."""
REVERSED = 0.1
"""R below which the response no longer points where the base's does: to multiply it would be to walk away."""
KEPT = 0.8
"""R from which the policy still responds as the base does: guidance overshoots and hurts (a rehearsed policy)."""
WEIGHTS = (1.0, 3.0)
"""Smallest and largest automatic weight: beyond 3 guidance hurts (2602.17659 finds so for omega)."""


@dataclass(frozen=True)
class Response:
    """How a policy responds to words, beside its base. A frame here is an observation under one instruction.

    Attributes:
        kind: the kind of guidance it was measured for.
        negatives: tau_minus.
        frames: observations times instructions.
        defined: frames in which the base responds above its floor; all that follows but the base's own figures is
            taken over these alone.
        retention: R; None where it is undefined.
        weight: argmin_w |w Delta v_ft - Delta v_pre|^2, not clipped; None where it is undefined.
        cosine: of Delta v_ft and Delta v_pre; None where it is undefined.
        responding: share of the defined frames in which the adapted policy responds above its own floor.
        base_norm, adapted_norm: root mean square of Delta v per step and dimension (normalised units).
        base_floor, adapted_floor: root mean square of the floors, in the same units.
        beside: what the floor is made of.
    """

    kind: str
    negatives: tuple[str, ...]
    frames: int
    defined: int
    retention: float | None
    weight: float | None
    cosine: float | None
    responding: float
    base_norm: float
    adapted_norm: float
    base_floor: float
    adapted_floor: float
    beside: str = "another seed"

    @property
    def share(self) -> float:
        """Share of the frames in which the base responds above its floor."""
        return self.defined / self.frames

    @property
    def undefined(self) -> bool:
        """Whether the base itself responds above its floor nowhere."""
        return self.defined == 0

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "negatives": list(self.negatives), "share": self.share}


class Choice(NamedTuple):
    """An automatic choice: the guidance (plain at its plain weight), and the reason in words."""

    guidance: Guidance
    reason: str

    def document(self) -> dict[str, Any]:
        """As `guidance` of `policy.json`."""
        if self.guidance.plain:
            return {"kind": PLAIN_KIND, "weight": 1.0, "why": self.reason}
        return {**self.guidance.document(), "why": self.reason}


def measure_response(
    policy: Policy,
    base_policy: Policy,
    samples: Samples,
    instructions: Sequence[str],
    *,
    trained: str,
    draws: int,
    seed: int,
    kind: str = "contrast",
    paraphrases: Sequence[str] = (),
) -> Response:
    """Measure what an adapted policy's predictions make of words, beside its base's. No gradient is taken.

    Args:
        policy: the adapted policy.
        base_policy: its base, fed with the same statistics.
        samples: observations, with the actions recorded there.
        instructions: alternatives to the trained instruction, tau_plus.
        trained: the instruction it was fine-tuned on.
        draws: noise draws a frame.
        seed: of noise and flow times.
        kind: the kind of guidance this is for; it says what tau_minus is (for "both", the mean of two velocities).
        paraphrases: other words for `trained`: they raise the floor. Not for the kinds that move away from "" alone.

    Raises:
        ConfigError: no instruction, one that is tau_minus, or policies that normalise actions differently.
    """
    negatives = negatives_of(kind, [trained])
    probe = Guidance(kind, 1.0, negatives)
    if not instructions:
        raise ConfigError("The response to words needs other instructions", expected="at least one")
    for instruction in instructions:
        probe.check(instruction)
    rewordings = tuple(paraphrases) if trained in negatives else ()
    generator = torch.Generator().manual_seed(seed)
    asked = Asked(trained, instructions, negatives, rewordings, draws)
    parts = [
        _compare(*reactions_of(policy, base_policy, some, asked, generator)) for some in samples.parts(FRAMES_AT_ONCE)
    ]
    found = _summarise(kind, negatives, torch.cat(parts, dim=-1))
    return found if policy.draws_noise else replace(found, beside="other words of the same meaning")


def choose_guidance(response: Response, kind: str) -> Choice:
    """The weight that gives an adapted policy the base's response back, or plain prompting with the reason.

    w* = argmin_w |w Delta v_ft - Delta v_pre|^2 = <Delta v_ft, Delta v_pre> / |Delta v_ft|^2, clipped to `WEIGHTS`;
    gamma = w* - 1 for `orthogonal` (see vla_cli/guidance). Guidance multiplies the response there is: it cannot help
    where there is none, and it does harm where there is enough.

    Raises:
        ConfigError: the response was measured against other prompts than this kind moves away from.
    """
    trained = response.negatives[:1] if response.negatives[0] else ()
    if kind != response.kind and _negatives_or_none(kind, trained) != response.negatives:
        raise ConfigError(
            f"The response was measured for guidance '{response.kind}', not for '{kind}'",
            expected=f"measure_response with kind='{kind}'",
        )
    reason = _reason_for_plain(response)
    weight = 1.0
    if reason is None:
        assert response.weight is not None and response.retention is not None
        weight = min(max(response.weight, WEIGHTS[0]), WEIGHTS[1])
        reason = (
            f"the policy keeps {response.retention:.0%} of the base's response to words (R = {response.retention:.2f} "
            f"over {response.defined} of {response.frames} frames); {weight:.2f} times its own is closest to the base's"
        )
    plain_or_not = weight - 1.0 if kind == "orthogonal" else weight
    return Choice(Guidance(kind, round(plain_or_not, 3), response.negatives), reason)


def _negatives_or_none(kind: str, trained: Sequence[str]) -> tuple[str, ...] | None:
    try:
        return negatives_of(kind, trained)
    except ConfigError:
        return None


def _reason_for_plain(response: Response) -> str | None:
    """Why plain prompting is better than any weight, or None where it is not."""
    if response.retention is None or response.weight is None:
        return f"undefined: the base itself responds to these instructions no more than to {response.beside}"
    if response.responding < LOWEST_SHARE:
        return (
            f"the response is noise: only in {response.responding:.0%} of the frames do other words move the policy "
            f"more than {response.beside}, and no weight makes a direction of noise"
        )
    if response.retention < REVERSED:
        return f"the response does not point where the base's does (R = {response.retention:.2f}): more of it misleads"
    if response.retention >= KEPT:
        return f"the policy still responds as its base does (R = {response.retention:.2f}): guidance would overshoot"
    if response.weight <= WEIGHTS[0]:
        return f"the response is large enough (w* = {response.weight:.2f}): more of it is further from the base's"
    return None


def _compare(adapted: Reactions, base: Reactions, entries: Tensor) -> Tensor:
    """[6, J * B]: <ft, pre>, |ft|^2, |pre|^2, both squared floors, all per real entry, and the entries' number."""
    products = (
        (adapted.delta * base.delta).sum((-3, -2, -1)),
        (adapted.delta**2).sum((-3, -2, -1)),
        (base.delta**2).sum((-3, -2, -1)),
        adapted.floor.expand(len(adapted.delta), -1),
        base.floor.expand(len(base.delta), -1),
    )
    return torch.stack([(p / entries).flatten() for p in products]).double().cpu()


def _summarise(kind: str, negatives: tuple[str, ...], frames: Tensor) -> Response:
    product, own, pre, own_floor, pre_floor = frames
    counted = pre > pre_floor
    defined = int(counted.sum())
    retention = weight = cosine = None
    responding = 0.0
    if defined:
        product, own_d, pre_d = product[counted], own[counted], pre[counted]
        retention = float((product / (pre_d + EPSILON)).mean())
        weight = float(product.sum() / (own_d.sum() + EPSILON))
        cosine = float(product.sum() / (own_d.sum() * pre_d.sum() + EPSILON**2).sqrt())
        responding = float((own_d > own_floor[counted]).double().mean())
    norms = [float(values.mean().sqrt()) for values in (pre, own, pre_floor, own_floor)]
    figures = dict(zip(("base_norm", "adapted_norm", "base_floor", "adapted_floor"), norms, strict=True))
    return Response(kind, negatives, len(pre), defined, retention, weight, cosine, responding, **figures)
