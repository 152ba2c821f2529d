"""Early stopping: training ends once the held-out loss has not fallen for a while, and the best step's weights stay.

The loss is measured `MEASURED` times in that while, on the same windows with the same noise each time, so that two
steps differ by their weights alone. Nothing in it depends on where checkpoints are: a resumed run ends at the same step
with the same bytes. The loss of the step that is kept was the lowest of several, and flatters it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

MEASURED = 4
"""Measurements in a row that must not be lower; fewer where the patience is not that many steps."""
_PREFIX, _STEP, _LOSS = "best.", "best_step", "best_loss"


@dataclass(frozen=True)
class Kept:
    """Which step's weights stay, and why.

    Attributes:
        step: whose weights they are, from 1.
        steps_done: after how many the training ended.
        steps_planned: after how many it would have.
        patience: steps without a lower held-out loss after which it ends.
        held_out_loss: after `step`.
    """

    step: int
    steps_done: int
    steps_planned: int
    patience: int
    held_out_loss: float

    @property
    def words(self) -> str:
        """A sentence for people."""
        best = f"The held-out loss was lowest after step {self.step} of {self.steps_planned} ({self.held_out_loss:.4g})"
        if self.step == self.steps_planned:
            return f"{best}, the last one: its weights are kept, and more steps may do better."
        waited = f"{self.steps_done - self.step} further steps did not lower it"
        ended = f", training ended after step {self.steps_done}" if self.steps_done < self.steps_planned else ""
        return f"{best}; {waited}{ended}, and the weights of step {self.step} are kept."

    def document(self) -> dict[str, Any]:
        """As JSON values, the sentence included."""
        return {**asdict(self), "why": self.words}


class EarlyStopping:
    """The best step so far, with its weights.

    Args:
        patience: steps without a lower held-out loss after which training ends; 1 or more.
        parameters: what trains, by name.
    """

    def __init__(self, patience: int, parameters: Mapping[str, nn.Parameter]) -> None:
        self.patience, self.every = patience, max(1, patience // MEASURED)
        self.step, self.loss = 0, math.inf
        self._parameters = parameters
        self._weights: dict[str, Tensor] = {}

    def is_due(self, done: int) -> bool:
        """Whether the held-out loss is to be measured after `done` steps; after the last one it always is."""
        return done % self.every == 0

    def see(self, done: int, loss: float) -> None:
        """Take note of a finite held-out loss after `done` steps; of equal ones the earlier counts."""
        if loss < self.loss:
            self.step, self.loss = done, loss
            # not on an accelerator, whose memory the training needs
            self._weights = {n: p.detach().to("cpu", copy=True) for n, p in self._parameters.items()}

    def is_spent(self, done: int) -> bool:
        """Whether the loss has not fallen for long enough."""
        return done - self.step >= self.patience

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the parameters the best step's weights."""
        for name, weight in self._weights.items():
            self._parameters[name].copy_(weight)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata for a checkpoint; none before the first measurement."""
        if not self.step:
            return {}, {}
        tensors = {f"{_PREFIX}{name}": weight.contiguous() for name, weight in self._weights.items()}
        return tensors, {_STEP: str(self.step), _LOSS: repr(self.loss)}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """What `state` gave, from a checkpoint that holds other things too."""
        if _STEP in metadata:
            self.step, self.loss = int(metadata[_STEP]), float(metadata[_LOSS])
            self._weights = {name: tensors[f"{_PREFIX}{name}"] for name in self._parameters}

    def kept(self, done: int, planned: int) -> Kept:
        """What came of it, when training ended after `done` of `planned` steps."""
        return Kept(self.step, done, planned, self.patience, self.loss)
