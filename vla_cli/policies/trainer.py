"""The training loop: AdamW, warm-up and cosine, checkpoints, and exact resume.

Nothing random is carried from step to step: step s draws everything from (seed, s). So a run that is resumed from a
checkpoint ends with the same bytes as one that was never stopped.

    checkpoint.safetensors   trained weights and AdamW's two moments, by parameter name, and the best step's weights
                             with early stopping; its metadata says how many steps are in it. The last one, without
                             moments, stays until `forget_checkpoint`: what follows the training may be interrupted too
    metrics.jsonl            one line a step; where demonstrations are held out, `held_out_loss` at checkpoints, at
                             the end, and at early stopping's intervals
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vla_cli.errors import InputError
from vla_cli.files import replacing
from vla_cli.policies.adaptation import trained_parameters
from vla_cli.policies.early_stopping import EarlyStopping, Kept
from vla_cli.policies.estimate import Clock
from vla_cli.policies.policy import Policy
from vla_cli.progress import Progress
from vla_cli.windows import Samples, join

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
_ENDED = "ended"


class Hooks(Protocol):
    """What retention methods do in the loop; `retention.composition.Composition` is one."""

    def draw(self, number: int) -> dict[str, Samples]:
        """The groups of draw `number`: a step's batch, or a micro-batch of it; the first is the demonstrations."""
        ...

    def weigh(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Another weight for each window's loss, by group."""
        ...

    def penalties(self, number: int, samples: Samples, loss: float) -> Mapping[str, Any]:
        """Terms of the loss by method, each with `raw` and `scaled`."""
        ...

    def wrap_gradient(
        self, number: int, samples: Samples, parameters: Mapping[str, nn.Parameter], closure: Callable[[], None]
    ) -> None:
        """Change the gradient in place; `closure` computes it again at the present weights."""
        ...

    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """Metrics and warnings after `done` steps."""
        ...


@dataclass(frozen=True)
class Settings:
    """Settings of the loop; see `recipe.Recipe` for their meaning."""

    steps: int
    learning_rate: float
    noise_draws: int
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    checkpoint_every: int
    early_stopping: int = 0
    parts: int = 1
    """Micro-batches a step; the gradient is the mean of theirs."""


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine from the peak to a tenth of it. `step` counts from 0."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    share = step / max(1, settings.steps)
    return settings.learning_rate * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


class Trainer:
    """Trains the trainable parameters of a policy.

    Args:
        policy: the policy; `make_trainable` decided what trains.
        settings: of the loop.
        directory: where checkpoints and metrics go.
    """

    def __init__(self, policy: Policy, settings: Settings, directory: Path) -> None:
        self.policy, self.settings, self.directory = policy, settings, directory
        self.parameters = trained_parameters(policy.model)
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )
        patience = settings.early_stopping
        self.stopping = EarlyStopping(patience, self.parameters) if patience else None
        self.kept: Kept | None = None
        """Which step's weights the parameters have in the end; None without early stopping, when it is the last."""

    def run(
        self, hooks: Hooks, progress: Progress, held_out: Callable[[], float] | None = None
    ) -> tuple[dict[str, float], list[str]]:
        """Train to the end, from a checkpoint when the directory holds one.

        Args:
            hooks: where batches come from, and what retention methods do.
            progress: told after every step.
            held_out: loss on held-out windows, measured at checkpoints, at the end, and for early stopping, which
                needs it.

        Returns:
            The metrics of the last step whose weights are kept, and the warnings at the end.

        Raises:
            InputError: the loss, its gradient or early stopping's held-out loss stopped being finite.
        """
        done, ended = self._restore()
        progress.start("fine-tuning", self.settings.steps)
        progress.advance(done)
        if not ended:
            done, warnings = self._steps(done, hooks, progress, held_out)
        else:
            _, warnings = hooks.watch(done)
        row = self._logged(done)
        if self.stopping is not None:
            self.kept = self.stopping.kept(done, self.settings.steps)
            if self.kept.step < done:
                row, warnings = self._go_back(self.kept.step, hooks)
        return row, list(warnings)

    def forget_checkpoint(self) -> None:
        """To be called when all that follows the training is done: nothing is left to be picked up."""
        (self.directory / CHECKPOINT).unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of gradients and moments, which are most of what training takes: no step can follow."""
        self.optimiser.zero_grad(set_to_none=True)
        self.optimiser.state.clear()

    def _steps(
        self, first: int, hooks: Hooks, progress: Progress, held_out: Callable[[], float] | None
    ) -> tuple[int, Sequence[str]]:
        """Train from step `first` to the end; how many steps are done then, and the warnings at the end."""
        warnings: Sequence[str] = ()
        done = first
        clock = Clock(self.settings.steps)
        with (self.directory / METRICS).open("a", encoding="utf-8") as metrics:
            for step in range(first, self.settings.steps):
                row = self.step(step, hooks)
                done = step + 1
                last = done == self.settings.steps
                checkpoint = done % self.settings.checkpoint_every == 0
                if checkpoint or last:
                    watched, warnings = hooks.watch(done)
                    row.update(watched)
                counts = self.stopping is not None and (last or self.stopping.is_due(done))
                if held_out is not None and (checkpoint or last or counts):
                    row["held_out_loss"] = held_out()
                metrics.write(json.dumps(row) + "\n")
                last = (counts and self._ends(done, row["held_out_loss"])) or last
                if checkpoint or last:
                    metrics.flush()
                    self._save(done, ended=last)
                progress.advance(1, loss=row["loss"])
                if said := clock.tick(done):
                    progress.note(said)
                if last:
                    break
        return done, warnings

    def _ends(self, done: int, held_out_loss: float) -> bool:
        """Whether early stopping ends the training after `done` steps."""
        assert self.stopping is not None
        _check_finite("held-out loss", held_out_loss, done - 1)
        self.stopping.see(done, held_out_loss)
        return self.stopping.is_spent(done)

    def _go_back(self, step: int, hooks: Hooks) -> tuple[dict[str, float], list[str]]:
        """Put the best step's weights back; that step's metrics, and the warnings that hold for it."""
        assert self.stopping is not None
        self.stopping.put_back()
        watched, warnings = hooks.watch(step)
        return {**self._logged(step), **watched}, warnings

    def _logged(self, done: int) -> dict[str, float]:
        """The metrics of the step after which `done` were done, as they were written."""
        lines = (self.directory / METRICS).read_text(encoding="utf-8").splitlines()
        return json.loads(lines[done - 1])

    def step(self, step: int, hooks: Hooks) -> dict[str, float]:
        """Do step number `step`, from 0, and return its metrics; nothing is written.

        Raises:
            InputError: the loss or its gradient stopped being finite.
        """
        parts = self._drawn(step, hooks)
        rate = learning_rate(step, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.policy.model.train()
        row: dict[str, float] = {"step": step + 1}

        def closure() -> None:
            # the same noise each time: a method that asks twice compares weights, not draws
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
            self.optimiser.zero_grad(set_to_none=True)
            seen: dict[str, list[torch.Tensor]] = {}
            for number, groups in parts.items():
                losses = self._losses(groups, generator)
                plain = torch.cat(list(losses.values())).mean()
                penalties = hooks.penalties(number, _demonstrations(groups), plain.item())
                loss = torch.cat(list(hooks.weigh(losses).values())).mean()
                loss = loss + sum(penalty.scaled for penalty in penalties.values())
                _check_finite("loss", loss.item(), step)
                (loss / len(parts)).backward()
                _note(seen, loss, losses, penalties)
            if "loss" not in row:
                means = {name: torch.cat(values).mean().item() for name, values in seen.items()}
                row.update({"loss": means.pop("loss"), "learning_rate": rate, **means})

        closure()
        first, samples = min(parts), join([_demonstrations(groups) for groups in parts.values()])
        hooks.wrap_gradient(first, samples, self.parameters, closure)
        row["grad_norm"] = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip))
        # else the next step's loss would tell, and after the last step nobody
        _check_finite("gradient", row["grad_norm"], step)
        self.optimiser.step()
        return row

    def _drawn(self, step: int, hooks: Hooks) -> dict[int, dict[str, Samples]]:
        """The windows of a step in as many parts as are computed one after the other, by the number of their draw."""
        first = step * self.settings.parts
        return {number: hooks.draw(number) for number in range(first, first + self.settings.parts)}

    def _losses(self, groups: dict[str, Samples], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Loss of each window by group; groups with one image shape share a forward pass."""
        names = list(groups)
        batch = self.policy.batch(join([groups[name] for name in names]))
        each = self.policy.losses(batch, draws=self.settings.noise_draws, generator=generator)
        return dict(zip(names, each.split([len(groups[name]) for name in names]), strict=True))

    def _save(self, done: int, *, ended: bool) -> None:
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            if not ended:  # no step follows that would need the moments
                state = self.optimiser.state[parameter]
                tensors[f"first.{name}"] = state["exp_avg"].contiguous()
                tensors[f"second.{name}"] = state["exp_avg_sq"].contiguous()
        best, facts = self.stopping.state() if self.stopping is not None else ({}, {})
        # the step goes into the same file as the weights: the two cannot disagree after a crash
        with replacing(self.directory / CHECKPOINT) as partial:
            save_file({**tensors, **best}, partial, metadata={"step": str(done), _ENDED: str(int(ended)), **facts})

    def _restore(self) -> tuple[int, bool]:
        """How many steps are done already, and whether the training has ended with them."""
        path = self.directory / CHECKPOINT
        metrics = self.directory / METRICS
        if not path.is_file():
            metrics.unlink(missing_ok=True)
            return 0, False
        metadata = _metadata(path)
        done, ended = int(metadata["step"]), metadata.get(_ENDED) == "1"
        tensors = load_file(path)
        if self.stopping is not None:
            self.stopping.restore(tensors, metadata)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                if not ended:
                    self.optimiser.state[parameter] = {
                        "step": torch.tensor(float(done)),
                        "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                        "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
                    }
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        metrics.write_text("".join(lines[:done]), encoding="utf-8")
        return done, ended


def _demonstrations(groups: dict[str, Samples]) -> Samples:
    return next(iter(groups.values()))


def _note(
    seen: dict[str, list[torch.Tensor]],
    loss: torch.Tensor,
    losses: Mapping[str, torch.Tensor],
    penalties: Mapping[str, Any],
) -> None:
    """Put a part's figures beside those of a step's other parts."""
    found = {"loss": loss, **{f"loss_{name}": values for name, values in losses.items()}}
    for name, penalty in penalties.items():
        found |= {f"{name}_raw": penalty.raw, f"{name}_scaled": penalty.scaled}
    for name, values in found.items():
        seen.setdefault(name, []).append(values.detach().reshape(-1))


def _check_finite(what: str, value: float, step: int) -> None:
    """Refuse to go on with a loss, or with a gradient's norm, that is no number.

    Raises:
        InputError: it is not finite.
    """
    if not math.isfinite(value):
        raise InputError(
            f"The {what} became {value} at step {step + 1}",
            expected=f"a finite {what}",
            hint="a smaller --learning-rate, and look at stats.json for dimensions with a tiny std",
        )


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def held_out_loss(policy: Policy, samples: Samples, *, draws: int, seed: int, at_once: int = 0) -> float:
    """Mean flow-matching loss on fixed windows with fixed noise.

    Args:
        policy: whose.
        samples: the windows.
        draws: of noise, a window.
        seed: of the noise.
        at_once: windows that are computed at once; 0 for all. Other noise is drawn for another number.
    """
    generator = torch.Generator().manual_seed(seed)
    policy.model.eval()
    parts = samples.parts(at_once or len(samples))
    with torch.no_grad():
        each = [policy.losses(policy.batch(part), draws=draws, generator=generator) for part in parts]
    return torch.cat(each).mean().item()
