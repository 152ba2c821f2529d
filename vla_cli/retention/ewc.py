"""Elastic weight consolidation (arXiv 1612.00796): weights that the base's own domain depends on are held harder.

    L + (lambda / 2) * sum_i F_i (theta_i - theta_pre,i)^2

F is the diagonal of the empirical Fisher information on base-domain windows: the mean over windows of the squared
gradient of a window's own loss at theta_pre. What it is and is not:

- A flow-matching policy gives no likelihood of its actions. The flow loss stands in for one: up to a constant it is
  the negative log-likelihood of the target velocity (noise - a) under a Gaussian around the predicted one. F is the
  Fisher information of that surrogate, with its variance left out; `weight: auto` does not depend on it, a number does.
- A window's loss is the *mean* over its real steps and dimensions, not their sum: that Gaussian's variance grows with
  their number, and a window at the end of an episode, whose chunk is padded, weighs more in F than under a fixed one.
- The targets are the data's, not drawn from the model: the *empirical* Fisher. It over-weighs windows that the base
  does not fit.
- One noise draw a window: the square of a single draw's gradient, as a mean over draws would lose most of its size.

F is of the base's own weights. Under LoRA the product alpha / r B A takes the place of theta - theta_pre; bottlenecks
move no weight, and are refused. It costs one
backward pass a window, and memory for F and theta_pre of everything that trains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_cli.errors import ConfigError, InputError
from vla_cli.files import replacing
from vla_cli.limits import from_1
from vla_cli.recipe import BOTTLENECK
from vla_cli.retention import Context, Learner, Method, Penalty, Step, read_options
from vla_cli.retention.scale import drift, flow_loss, strength
from vla_cli.windows import Windows

FISHER = "fisher-{}.safetensors"


@dataclass(frozen=True)
class EWCOptions:
    """Options of `retention: ewc:` in a recipe.

    Attributes:
        weight: lambda, or "auto": the penalty equals the base's own flow loss on the demonstrations when the relative
            Fisher-weighted drift sqrt(sum F delta^2 / sum F theta_pre^2) reaches `budget`.
        budget: that drift.
        samples: base-domain windows behind F.
    """

    weight: float | str = strength()
    budget: float = drift()
    samples: int = from_1(128)


class EWC(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    keeps_base = True
    remembers_base = True
    differentiates_base = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("ewc", EWCOptions, options)
        self.weight = 0.0
        self.base_loss = 0.0
        self.cached = False
        """Whether F came from the cache. Not among the facts: a run's record is the same either way."""
        self.fisher: dict[str, Tensor] = {}
        self._policy: Learner | None = None
        self._windows = 0

    def needs(self) -> tuple[str, ...]:
        """Base-domain data."""
        return ("replay",)

    def asks_the_base(self) -> bool:
        """Always: which of its weights matter shows on its own domain."""
        return True

    def numbers_kept(self, trained: int, held: int) -> int:
        """F."""
        return held

    def prepare(self, context: Context) -> None:
        """Remember the base, measure F (or read it from the cache) and fix lambda.

        Raises:
            ConfigError: there is no base-domain data, nothing is trained, or bottlenecks are.
            InputError: the cached F is damaged, or F is 0.
        """
        replay = context.need_replay("ewc")
        self._policy = policy = context.policy
        policy.remember_base()
        ways = policy.trained_ways()
        if held_back := sorted({policy.modality(name) for name, way in ways.items() if way == BOTTLENECK}):
            raise ConfigError(
                f"ewc is to hold the base's weights, but {', '.join(held_back)} train by bottlenecks, which move "
                "none of them: the penalty would not see what is trained",
                expected="weights trained in full, or LoRA",
                hint="a recipe that holds what the policy does instead: distillation, anchor or rehearsal",
            )
        names = sorted(ways)
        if not names:
            raise ConfigError("ewc has nothing to hold: no weight is trained", hint="a recipe with method: lora")
        frozen = context.frozen()
        self._windows = min(self.options.samples, len(replay))
        self.fisher = self._load_or_measure(frozen, replay, names, context)
        self.base_loss = flow_loss(policy, context.demonstrations, seed=context.seed, batch_size=context.batch_size)
        self.weight = self._weight(frozen)

    def penalty(self, step: Step) -> Penalty:
        """Raw: half the sum of F delta^2. Scaled: lambda times it."""
        raw = torch.stack(list(self._terms().values())).sum() / 2
        return Penalty(raw, self.weight * raw)

    @torch.no_grad()
    def facts(self) -> dict[str, Any]:
        """Where the base's own domain hangs on the weights, and which weights the forgetting comes from.

        `fisher_mass`: sum of F of each modality. `drift_share`: each modality's share of sum F delta^2 at the end.
        """
        terms = self._terms()
        total = float(torch.stack(list(terms.values())).sum())
        mass = self._by_modality({name: fisher.sum() for name, fisher in self.fisher.items()})
        return {
            "lambda": self.weight,
            "base_loss": self.base_loss,
            "raw": total / 2,
            "scaled": self.weight * total / 2,
            "fisher_windows": self._windows,
            "fisher_mass": mass,
            "drift_share": {m: v / total if total else 0.0 for m, v in self._by_modality(terms).items()},
        }

    def _terms(self) -> dict[str, Tensor]:
        """Name to sum of F delta^2, differentiable."""
        assert self._policy is not None
        return {name: (self.fisher[name] * delta.square()).sum() for name, delta in self._policy.deltas().items()}

    def _by_modality(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        assert self._policy is not None
        found: dict[str, float] = {}
        for name, value in values.items():
            modality = self._policy.modality(name)
            found[modality] = found.get(modality, 0.0) + float(value)
        return found

    @torch.no_grad()
    def _weight(self, frozen: Learner) -> float:
        if isinstance(self.options.weight, (int, float)):
            return float(self.options.weight)
        weights = dict(frozen.model.named_parameters())
        scale = sum(float((fisher * weights[name].square()).sum()) for name, fisher in self.fisher.items())
        if scale == 0:
            raise InputError("The Fisher information of the base-domain data is 0", expected="data the base acts on")
        return 2 * self.base_loss / (self.options.budget**2 * scale)

    def _load_or_measure(
        self, frozen: Learner, replay: Windows, names: Sequence[str], context: Context
    ) -> dict[str, Tensor]:
        if context.cache is None:
            return fisher_diagonal(frozen, replay, names, samples=self.options.samples, seed=context.seed)
        key = fisher_key(frozen, replay, names, samples=self.options.samples, seed=context.seed)
        path = context.cache / FISHER.format(key)
        self.cached = path.is_file()
        if self.cached:
            return _load(path, names, frozen.model)
        fisher = fisher_diagonal(frozen, replay, names, samples=self.options.samples, seed=context.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file({name: value.contiguous() for name, value in fisher.items()}, partial)
        return fisher


def fisher_diagonal(
    frozen: Learner, windows: Windows, names: Sequence[str], *, samples: int, seed: int
) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information of the flow loss; see the module's docstring.

    Args:
        frozen: the base; its parameters need no gradient, and need none afterwards.
        windows: base-domain windows.
        names: of the base's parameters.
        samples: at most so many windows, evenly spread.
        seed: of the noise.

    Returns:
        Name to F, float32 of the parameter's shape, at least 0.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = windows.spread(samples)
    with _differentiable(frozen.model, names) as parameters:
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        # one window at a time: the square of a batch's mean is another thing, and vmap would hold all gradients at once
        for number in chosen:
            loss = frozen.losses(frozen.batch(windows.gather([number])), draws=1, generator=generator).sum()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name].addcmul_(gradient.float(), gradient.float())
    return {name: total[name] / len(chosen) for name in names}


def fisher_key(frozen: Learner, windows: Windows, names: Sequence[str], *, samples: int, seed: int) -> str:
    """SHA-256 of all that F depends on: the base's weights, the windows as they are fed to it, and the options."""
    whole = hashlib.sha256(json.dumps({"names": list(names), "samples": samples, "seed": seed}).encode())
    for name, parameter in frozen.model.named_parameters():
        _update(whole, name, parameter)
    for number in windows.spread(samples):
        # the collated batch also holds what statistics, tokenizer and image size made of the window
        batch = vars(frozen.batch(windows.gather([number])))
        for key in sorted(key for key, value in batch.items() if isinstance(value, Tensor)):
            _update(whole, key, batch[key])
    return whole.hexdigest()


def _update(whole: Any, name: str, tensor: Tensor) -> None:
    whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


@contextmanager
def _differentiable(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Let some parameters of a frozen model have gradients for a while."""
    wanted = set(names)
    chosen = {name: p for name, p in model.named_parameters() if name in wanted}
    assert len(chosen) == len(wanted), f"the base has no {sorted(wanted - set(chosen))[:3]}"
    before = {name: p.requires_grad for name, p in chosen.items()}
    try:
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        yield chosen
    finally:
        for name, parameter in chosen.items():
            parameter.requires_grad_(before[name])


def _load(path: Path, names: Sequence[str], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    try:
        saved = load_file(path)
        # in the order it was measured in, not the file's: sums over it are then the same to the last bit
        return {name: saved[name].to(device) for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error})", hint=f"delete {path}: it is measured again") from None
