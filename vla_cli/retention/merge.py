"""RETAIN (arXiv 2512.08333): after training, go only part of the way from the base to the fine-tuned weights.

    theta = (1 - alpha) theta_pre + alpha theta_ft,    an alpha each for vision, language and action

Exact at 0 and 1. With LoRA the products are scaled, which is the same.

`auto` chooses one alpha for all modalities marked so, from two curves over `SWEEP`, all with fixed windows and noise:

    fit(alpha)      flow loss on the held-out demonstrations: how well the new task is done
    steer(alpha)    sum |v_alpha(o, l') - v_pre(o, l')|^2 / sum |v_pre(o, l') - v_pre(o, l)|^2: how far the policy is
                    from the base under other instructions l', in units of what the words change in the base;
                    0 listens as the base does, 1 is as far off as a policy that only ever hears the trained l.
                    o are demonstrated frames before the grasp

The fit is rescaled to 0 at the best alpha of the sweep and 1 at alpha = 0 (nothing learned), steer is clipped to 1, and
the alpha with the smallest *larger one* of the two is taken; ties go to the smaller sum, then to the smaller alpha. So
neither loss is bought with the whole of the other, which the smallest sum would allow. alpha = 0 is measured but never
taken: an adapter that changes nothing is refused at loading.

steer is an open-loop indicator. A deployment that moves differently needs other velocities under every instruction, and
that counts against alpha too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_cli.errors import ConfigError
from vla_cli.limits import from_1, or_word
from vla_cli.pareto import Point, pareto_svg
from vla_cli.retention import Context, Learner, Method, read_options
from vla_cli.retention.moments import Counterfactuals
from vla_cli.windows import Samples

MODALITIES = ("vision", "language", "action")
AUTO = "auto"
SWEEP = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
NOISE_DRAWS = 4
AT_ONCE = 16


def _alpha(default: str | None) -> Any:
    return or_word(default, AUTO, "a number from 0 to 1", lambda alpha: 0 <= alpha <= 1)


@dataclass(frozen=True)
class MergeOptions:
    """Options of `retention: merge:` in a recipe.

    Attributes:
        alpha: share of the way to the fine-tuned weights, 0 to 1, or "auto".
        vision, language, action: the same for one modality; null takes `alpha`.
        windows: how many windows each curve of `auto` is measured on.
        gripper_dim: action dimension of the gripper, negative ones count from the last.
        gripper_threshold: between open and closed, raw units; null takes the middle of all recorded commands.
    """

    alpha: float | str = _alpha(AUTO)
    vision: float | str | None = _alpha(None)
    language: float | str | None = _alpha(None)
    action: float | str | None = _alpha(None)
    windows: int = from_1(64)
    gripper_dim: int = -1
    gripper_threshold: float | None = None


class Merge(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    remembers_base = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("merge", MergeOptions, options)
        own = {m: getattr(self.options, m) for m in MODALITIES}
        self._wished: dict[str, float | str] = {m: self.options.alpha if a is None else a for m, a in own.items()}
        self._sweep: list[dict[str, float]] = []
        self._used: dict[str, float] = {}
        self._curves: Curves | None = None

    def needs(self) -> tuple[str, ...]:
        """Other instructions for the demonstrated scenes, to choose an alpha by."""
        return ("alternatives",) if AUTO in self._wished.values() else ()

    def asks_the_base(self) -> bool:
        """For `auto`: how far the policy is from its answers."""
        return AUTO in self._wished.values()

    def prepare(self, context: Context) -> None:
        """Remember the base, and for `auto` what it does under other instructions.

        Raises:
            ConfigError: every trained modality would go back to the base; or `auto` without alternatives that fit.
        """
        self._policy = context.policy
        context.policy.remember_base()
        trained = {context.policy.modality(n) for n, p in context.policy.model.named_parameters() if p.requires_grad}
        self._wished = {m: alpha for m, alpha in self._wished.items() if m in trained}
        if trained and not any(self._wished.values()):
            raise ConfigError(
                "The recipe's 'merge' goes all the way back to the base: nothing would be left of the training",
                expected="an alpha above 0 for a modality that is trained",
            )
        if AUTO in self._wished.values():
            others = Counterfactuals(
                context.demonstrations,
                context.alternatives,
                gripper_dim=self.options.gripper_dim,
                gripper_threshold=self.options.gripper_threshold,
                method="merge",
            )
            self._curves = Curves(context, others, int(self.options.windows))

    def after_training(self) -> bool:
        """Scale the deltas, after choosing alpha where that was left open; whether that moved any weight."""
        if self._curves is None:
            self._used = self._factors(0.0)
            self._policy.scale_deltas(self._used)
            return any(alpha != 1 for alpha in self._used.values())
        parameters = {n: p for n, p in self._policy.model.named_parameters() if p.requires_grad}
        kept = {name: p.detach().clone() for name, p in parameters.items()}

        def move(alpha: float) -> None:
            # each time from the same weights: scaling down and up again would not bring the same bytes back
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(kept[name])
            self._used = self._factors(alpha)
            self._policy.scale_deltas(self._used)

        self._policy.model.eval()
        for alpha in SWEEP:
            move(alpha)
            self._sweep.append({"alpha": alpha, "fit": self._curves.fit(), "steer": self._curves.steer()})
        move(choose(self._sweep))
        return any(alpha != 1 for alpha in self._used.values())

    def facts(self) -> dict[str, Any]:
        """The alphas, and the curves they were chosen from."""
        found: dict[str, Any] = {"alpha": self._used}
        if self._curves is not None:
            found.update(
                sweep=self._sweep,
                smallest_alpha=SWEEP[1],
                fit_on=self._curves.fit_on,
                fit_windows=self._curves.fit_windows,
                steer_windows=self._curves.steer_windows,
            )
        return found

    def pictures(self) -> dict[str, str]:
        """The sweep as a Pareto plot."""
        if not self._sweep:
            return {}
        taken = next(self._used[m] for m, wish in self._wished.items() if wish == AUTO)
        points = [Point(f"{r['alpha']:g}", r["steer"], r["fit"], chosen=r["alpha"] == taken) for r in self._sweep]
        svg = pareto_svg(
            points,
            title="Merging with the base: how far to go back (alpha)",
            x_name="distance from the base under other instructions (lower listens better)",
            y_name="loss on the demonstrations (lower fits better)",
        )
        return {"merge.svg": svg}

    def _factors(self, alpha: float) -> dict[str, float]:
        return {m: alpha if wish == AUTO else float(wish) for m, wish in self._wished.items()}


class Curves:
    """fit and steer of a policy at its present weights; made while they are still the base's.

    Args:
        context: of the run.
        others: the demonstrations under other instructions.
        count: windows a curve.

    Raises:
        ConfigError: the base does the same under the other instructions as under the trained one.
    """

    def __init__(self, context: Context, others: Counterfactuals, count: int) -> None:
        self._policy, self._seed = context.policy, context.seed
        windows = context.held_out or context.demonstrations
        self.fit_on = "held-out demonstrations" if context.held_out else "training demonstrations: none are held out"
        self._fit_batches = _batches(context.policy, windows.gather(windows.spread(count)))
        shown, asked = others.pairs_before_grasp(count)
        self.fit_windows, self.steer_windows = min(count, len(windows)), len(shown)
        generator = torch.Generator().manual_seed(context.seed)
        context.policy.model.eval()
        self._points: list[tuple[Any, Any, Tensor]] = []
        changed = torch.zeros(())
        with torch.no_grad():
            for told, other in zip(_batches(context.policy, shown), _batches(context.policy, asked), strict=True):
                points = context.policy.points(told, generator)
                wanted = context.policy.predictions(other, points)
                trained = context.policy.predictions(told, points)
                changed = changed + context.policy.gap(trained, wanted, told).cpu()
                self._points.append((other, points, wanted))
        self._changed = changed.item()
        if self._changed <= 0:
            raise ConfigError(
                "The base does exactly the same under the alternatives as under the trained instruction, so merge's "
                "alpha: auto cannot tell what must be kept",
                expected="alternatives in words that the base knows",
                hint="a number for alpha, e.g. alpha: 0.5",
            )

    @torch.no_grad()
    def fit(self) -> float:
        """Mean loss."""
        generator = torch.Generator().manual_seed(self._seed)
        each = [self._policy.losses(b, draws=NOISE_DRAWS, generator=generator) for b in self._fit_batches]
        return torch.cat(each).mean().item()

    @torch.no_grad()
    def steer(self) -> float:
        """Distance from the base under other instructions, in units of what the words change in the base."""
        off = [
            self._policy.gap(self._policy.predictions(batch, points), wanted, batch).cpu()
            for batch, points, wanted in self._points
        ]
        return torch.stack(off).sum().item() / self._changed


def choose(sweep: Sequence[dict[str, float]]) -> float:
    """The alpha of a sweep with the smallest larger one of lost fit and lost steering; never 0.

    Args:
        sweep: {"alpha", "fit", "steer"} each, alpha = 0 among them.
    """
    best = min(row["fit"] for row in sweep)
    base = next(row["fit"] for row in sweep if row["alpha"] == 0)

    def losses(row: dict[str, float]) -> tuple[float, float, float]:
        # where the base fits best, nothing was learned, and only steering is left to be lost
        fit = min(1.0, (row["fit"] - best) / (base - best)) if base > best else 0.0
        steer = min(1.0, row["steer"])
        return max(fit, steer), fit + steer, row["alpha"]

    return min((row for row in sweep if row["alpha"] > 0), key=losses)["alpha"]


def _batches(policy: Learner, samples: Samples) -> list[Any]:
    return [policy.batch(part) for part in samples.parts(AT_ONCE)]
