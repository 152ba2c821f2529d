"""The flow-matching family: transformers' own `PI0ForConditionalGeneration`, from a miniature to `lerobot/pi0_base`.

    images        uint8 RGB [B, C, H, W, 3]          C cameras in the policy's order
    state         float32 [B, S]                      raw units
    actions       float32 [B, T, A]                   raw units, T the chunk size

State and actions are normalised with the policy's statistics and padded with zeros to the model's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.adapter import PolicySpec, check_base, load_spec
from vla_cli.guidance import Contrast
from vla_cli.policies.checkpoint import attach, load_base, locate_base
from vla_cli.policies.flow_matching import Batch, FlowModel, flow_losses, prepare_images, sample_chunk
from vla_cli.policies.prompts import Prompts


class FlowPolicy:
    """A π0-family policy with its prompts, statistics and, when adapted, its adapter.

    Args:
        model: `PI0ForConditionalGeneration`, or a peft wrapper around one.
        prompts: instructions to token ids.
        spec: how to feed it and read it.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, prompts: Prompts, spec: PolicySpec, device: str) -> None:
        self.model = model.to(device)
        self.flow = FlowModel(self.model)
        self.prompts = prompts
        self.spec = spec
        self.device = device

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.flow.config

    def collate(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        actions: np.ndarray | None = None,
        real_steps: np.ndarray | None = None,
    ) -> Batch:
        """Raw observations (and actions) to a batch on the device.

        Args:
            images: uint8 RGB [B, C, H, W, 3].
            state: [B, S] raw units.
            instructions: B of them.
            actions: [B, T, A] raw units, padded steps holding anything finite.
            real_steps: [B, T] bool, False on padded steps.
        """
        cameras = images.shape[1]
        ids, mask = self.prompts(instructions, cameras)
        pixels = prepare_images(images.reshape(-1, *images.shape[2:]), self.spec.image_size)
        batch = Batch(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels.view(-1, cameras, *pixels.shape[1:]),
            state=_padded(self.spec.state.normalise(state), self.config.max_state_dim),
        )
        if actions is not None:
            assert real_steps is not None
            batch.actions = _padded(self.spec.actions.normalise(actions), self.config.max_action_dim)
            batch.mask = torch.zeros_like(batch.actions)
            batch.mask[..., : actions.shape[-1]] = torch.from_numpy(real_steps).float()[..., None]
        return _to(batch, self.device)

    def losses(self, batch: Batch, *, draws: int, generator: torch.Generator) -> Tensor:
        """Masked flow-matching loss of each window, float32 [B]."""
        return flow_losses(self.flow, batch, draws=draws, generator=generator)

    def act(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        *,
        steps: int | None = None,
        contrast: Contrast | None = None,
    ) -> np.ndarray:
        """Predict an action chunk for each observation.

        Args:
            images: uint8 RGB [B, C, H, W, 3].
            state: [B, S] raw units.
            instructions: B of them.
            noise: [B, T, A_max] standard normal; the same noise gives the same actions.
            steps: Euler steps; None takes the model's own.
            contrast: contrastive prompt guidance, or None for plain prompting.

        Returns:
            [B, T, A] float32, raw units.

        Raises:
            ConfigError: guidance is asked for with the trained instruction as prompt.
        """
        self.model.eval()
        batch = self.collate(images, state, instructions)
        other = None
        if contrast is not None and not contrast.plain:
            for instruction in dict.fromkeys(instructions):
                contrast.check(instruction)
            negative = self.collate(images, state, [contrast.negative] * len(instructions))
            other = (negative, contrast.weight)
        start = torch.from_numpy(np.asarray(noise, np.float32)).to(self.device)
        chunk = sample_chunk(self.flow, batch, start, steps=steps or self.config.num_inference_steps, contrast=other)
        return self.spec.actions.unnormalise(chunk[..., : len(self.spec.action_names)].cpu().numpy())

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise `act` starts from."""
        return (batch, self.config.chunk_size, self.config.max_action_dim)


def _padded(values: np.ndarray, width: int) -> Tensor:
    """Zero-pad the last axis to `width`, float32."""
    gap = width - values.shape[-1]
    return nn.functional.pad(torch.from_numpy(np.asarray(values, np.float32)), (0, gap))


def _to(batch: Batch, device: str) -> Batch:
    moved: dict[str, Any] = {key: None if value is None else value.to(device) for key, value in vars(batch).items()}
    return Batch(**moved)


SMALL_MODEL = 20_000_000
"""Parameters below which a second torch thread brings so little (benchmarks/finetune_speed.py) that runs side by side
are better; one thread also gives the same results on machines with more cores."""


def set_threads(model: nn.Module, threads: int) -> None:
    """Set torch's threads: as asked, or with 0 one for a small model and torch's own choice for others."""
    if threads > 0:
        torch.set_num_threads(threads)
    elif is_small(model):
        torch.set_num_threads(1)


def is_small(model: nn.Module) -> bool:
    """Whether a model is so small that one core a run is best."""
    return sum(p.numel() for p in model.parameters()) < SMALL_MODEL


def pick_device(wish: str) -> str:
    """ "auto" to "cuda" when there is one, else "cpu"; anything else as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish


def load(base: str, adapter: Path | None = None, *, device: str = "auto", spec: PolicySpec | None = None) -> FlowPolicy:
    """Load a policy ready to act: a base, with an adapter when given.

    Args:
        base: directory or hub id.
        adapter: directory written by finetune.
        device: "cpu", "cuda" or "auto".
        spec: how to feed a base that carries no `policy.json`; with an adapter, the adapter's own is used.

    Raises:
        InputError: see `load_base` and `attach`; or the adapter belongs to another base; or a base without
            `policy.json` is loaded without a spec.
    """
    if adapter is not None:
        spec = load_spec(adapter)
    elif spec is None:
        spec = load_spec(locate_base(base).directory)
    model, prompts, files = load_base(base, tokenizer=spec.tokenizer)
    if adapter is not None:
        check_base(spec, files.reference.digest, base)
        model = attach(model, adapter, spec)
    return FlowPolicy(model, prompts, spec, pick_device(device))
