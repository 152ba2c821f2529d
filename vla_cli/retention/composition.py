"""Several retention methods as one: what the training loop calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, floor
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.errors import ConfigError
from vla_cli.retention import Context, Method, Penalty, Step
from vla_cli.windows import Samples, Windows

DEMONSTRATIONS = "demonstrations"


def shares(methods: Mapping[str, Method], batch_size: int) -> dict[str, float]:
    """How many windows of a batch every method fills on average; a batch has one more or less of a broken number.

    Raises:
        ConfigError: they leave no window to the demonstrations, or get none themselves.
    """
    found = {name: method.share(batch_size) for name, method in methods.items()}
    if batch_size - sum(ceil(share) for share in found.values()) < 1:
        raise ConfigError(f"The recipe leaves no window of a batch of {batch_size} to the demonstrations")
    return found


class Composition:
    """The methods of a recipe, in its order. See `policies.trainer.Hooks` for the calls.

    Args:
        methods: name to method.
        demonstrations: windows of the new task.
        batch_size: windows a step, the methods' own included.
        seed: of the run.

    Raises:
        ConfigError: see `shares`.
    """

    def __init__(self, methods: Mapping[str, Method], demonstrations: Windows, batch_size: int, seed: int) -> None:
        self.methods = dict(methods)
        self.demonstrations = demonstrations
        self.seed = seed
        self.batch_size = batch_size
        self.shares = shares(methods, batch_size)

    def prepare(self, context: Context) -> None:
        """Let every method look at policy and data."""
        for method in self.methods.values():
            method.prepare(context)

    def draw(self, number: int) -> dict[str, Samples]:
        """The groups of one batch: the demonstrations, reworded or not, and what methods add."""
        rng = np.random.default_rng([self.seed, number])
        counts = {name: self._count(number, name) for name in self.methods}
        samples = self.demonstrations.draw(rng, self.batch_size - sum(counts.values()))
        for name, method in self.methods.items():
            samples = method.rephrase(samples, self._rng(number, name, "words"))
        drawn = {name: self.methods[name].draw(rng, count) for name, count in counts.items() if count}
        return {DEMONSTRATIONS: samples, **drawn}

    def weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Another weight for each window's loss."""
        for method in self.methods.values():
            losses = method.weigh(losses)
        return losses

    def penalties(self, number: int, samples: Samples, loss: float) -> dict[str, Penalty]:
        """Terms of the loss by method."""
        found = {name: m.penalty(self._step(number, name, samples, loss)) for name, m in self.methods.items()}
        return {name: penalty for name, penalty in found.items() if penalty is not None}

    def wrap_gradient(
        self, number: int, samples: Samples, parameters: Mapping[str, nn.Parameter], closure: Callable[[], None]
    ) -> None:
        """Change the gradient, method by method: first those that take it anew, which would undo what others did."""
        for name, method in sorted(self.methods.items(), key=lambda item: not item[1].takes_gradient_anew):
            method.wrap_gradient(self._step(number, name, samples, 0.0), parameters, closure)

    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """Metrics and warnings of all methods."""
        metrics: dict[str, float] = {}
        warnings: list[str] = []
        for method in self.methods.values():
            found, said = method.watch(done)
            metrics.update(found)
            warnings.extend(said)
        return metrics, warnings

    def after_training(self) -> bool:
        """Let every method change the weights one last time; whether one did."""
        changed = [method.after_training() for method in self.methods.values()]
        return any(changed)

    def facts(self) -> dict[str, Any]:
        """What was done, by method."""
        return {name: method.facts() for name, method in self.methods.items()}

    def pictures(self) -> dict[str, str]:
        """File name to SVG, of all methods."""
        return {file: svg for method in self.methods.values() for file, svg in method.pictures().items()}

    @property
    def own(self) -> float:
        """How many windows of a batch are the demonstrations' on average."""
        return self.batch_size - sum(self.shares.values())

    def _count(self, number: int, name: str) -> int:
        """Whole windows of one batch, drawn so that their mean over batches is the share itself."""
        share = self.shares[name]
        whole = floor(share)
        return whole if share == whole else whole + int(self._rng(number, name, "share").random() < share - whole)

    def _rng(self, number: int, name: str, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, crc32(f"{name}/{purpose}".encode())])

    def _step(self, number: int, name: str, samples: Samples, loss: float) -> Step:
        key = crc32(name.encode())
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) * 4_294_967_291 % (2**62) ^ key)
        return Step(number, self._rng(number, name, "penalty"), generator, samples, loss)
