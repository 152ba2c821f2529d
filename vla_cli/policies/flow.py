"""The flow-matching family: transformers' own `PI0ForConditionalGeneration`, from a miniature to `lerobot/pi0_base`.

    images        uint8 RGB [B, C, H, W, 3]          C cameras in the policy's order
    state         float32 [B, S]                      raw units
    actions       float32 [B, T, A]                   raw units, T the chunk size

State and actions are normalised with the policy's statistics and padded with zeros to the model's widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.adapter import FLOW, PolicySpec
from vla_cli.errors import InputError
from vla_cli.guidance import Guidance
from vla_cli.policies.checkpoint import BaseFiles, load_config, load_tokenizer
from vla_cli.policies.family import Family, Limits
from vla_cli.policies.flow_matching import Batch, FlowModel, flow_losses, prepare_images, sample_chunk, sample_time
from vla_cli.policies.loading import load_policy
from vla_cli.policies.policy import Policy
from vla_cli.policies.prompts import Prompts

_SIZES = (
    *("chunk_size", "max_state_dim", "max_action_dim", "num_inference_steps", "image_size", "patch_size", "vocab_size"),
    *("hidden_size", "intermediate_size", "head_dim"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
_LARGEST_SIZE = 10**7
"""More than any model's; products of such numbers still fit into 64 bits."""


class FlowPolicy(Policy):
    """A π0-family policy with its prompts, statistics and, when adapted, its adapter.

    Args:
        model: `PI0ForConditionalGeneration`, or a wrapper around one (peft's, or `policies.bottleneck`'s).
        prompts: instructions to token ids.
        spec: how to feed it and read it.
        device: where it runs.
    """

    prompts: Prompts

    def __init__(self, model: nn.Module, prompts: Prompts, spec: PolicySpec, device: str) -> None:
        super().__init__(model, prompts, spec, device)
        self.flow = FlowModel(self.model)

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
        """Raw observations (and actions) to a batch on the device; see `Policy.collate`."""
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

    def planned(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        steps: int | None,
        guidance: Guidance | None,
    ) -> np.ndarray:
        """Chunks by Euler steps from the noise; see `Policy.planned`."""
        batch, guidance, negatives = self._branches(images, state, instructions, guidance)
        start = torch.from_numpy(np.asarray(noise, np.float32)).to(self.device)
        width, count = len(self.spec.action_names), steps or self.config.num_inference_steps
        with self._switch:
            chunk = sample_chunk(
                self.flow, batch, start, steps=count, guidance=guidance, negatives=negatives, width=width
            )
        return self.spec.actions.unnormalise(chunk[..., :width].cpu().numpy())

    def look(self, batch: Batch) -> Any:
        """What the vision-language model makes of a batch's pictures and words: a cache for several `velocities`."""
        return self.flow.prefix(batch).past_key_values

    def velocities(self, batch: Batch, noisy: Tensor, timestep: Tensor, seen: Any = None) -> Tensor:
        """Velocity [B, T, A_max] at a_t `noisy` [B, T, A_max] and flow time `timestep` [B], differentiable.

        Args:
            batch: observations under instructions.
            noisy: a_t.
            timestep: t.
            seen: what `look` made of the same batch at the same weights; None looks anew.
        """
        return self.flow.velocity(self.look(batch) if seen is None else seen, batch, noisy, timestep)

    def noised(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random flow time [B] and a_t = t noise + (1 - t) a [B, T, A_max] of a batch with actions."""
        assert batch.actions is not None
        noise = torch.randn(batch.actions.shape, generator=generator).to(self.device)
        timestep = sample_time(self.config, len(noise), generator).to(self.device)
        t = timestep[:, None, None]
        return timestep, t * noise + (1 - t) * batch.actions

    def points(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random flow time and a_t around the recorded action: `noised`."""
        return self.noised(batch, generator)

    def own_points(
        self, batch: Batch, points: tuple[Tensor, Tensor], generator: torch.Generator, *, steps: int, seen: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The same flow times, and where this policy's own flow from fresh noise has come by then, in Euler steps."""
        timestep, noisy = points
        noise = torch.randn(noisy.shape, generator=generator).to(noisy)
        return timestep, self.along(batch, noise, timestep, steps=steps, seen=seen)

    def along(self, batch: Batch, noise: Tensor, timestep: Tensor, *, steps: int, seen: Any = None) -> Tensor:
        """Where the flow that starts at `noise` [B, T, A_max] has come by `timestep` [B], in Euler steps from t = 1."""
        seen = self.look(batch) if seen is None else seen
        dt = (1 - timestep) / steps
        noisy, now = noise, torch.ones_like(timestep)
        for _ in range(steps):
            noisy = noisy - dt[:, None, None] * self.velocities(batch, noisy, now, seen)
            now = now - dt
        return noisy

    def predictions(self, batch: Batch, points: tuple[Tensor, Tensor], seen: Any = None) -> Tensor:
        """Velocities [B, T, A_max] at the points."""
        timestep, noisy = points
        return self.velocities(batch, noisy, timestep, seen)

    def gap(self, predicted: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """Squared differences of velocities, summed over real steps and dimensions."""
        assert batch.mask is not None
        return ((predicted - wanted) ** 2 * batch.mask).sum()

    def reading(self, ids: Tensor) -> Tensor:
        """What the language model makes of words [1, L] without a picture: the mean of their last states [D]."""
        return self.flow.reading(ids)

    def hidden_states(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """States of each VLM layer [B, L, D] that the action expert reads, and which tokens are real [B, L] bool."""
        output = self.flow.prefix(batch, hidden_states=True)
        # the last entry is behind the last layer, where nothing reads it any more
        return list(output.hidden_states[:-1]), batch.attention_mask.bool()

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


class FlowFamily(Family):
    """Bases that transformers' `PI0ForConditionalGeneration` loads, in its layout or in LeRobot's."""

    name = FLOW
    noun = "a pi0 model"

    def recognises(self, document: Mapping[str, Any]) -> bool:
        """By `model_type`, or LeRobot's `type`."""
        return (document.get("model_type") or document.get("type")) == "pi0"

    def config(self, document: dict[str, Any]) -> Any:
        """A π0 configuration, of transformers' layout or of LeRobot's (`"type": "pi0"`, sizes of the full model)."""
        from transformers import PI0Config

        kept = {key: document[key] for key in ("chunk_size", "max_state_dim", "max_action_dim") if key in document}
        return PI0Config.from_dict(document) if "model_type" in document else PI0Config(**kept)

    def impossible(self, config: Any) -> list[str]:
        """Sizes that no model has: transformers builds some of these, and fails when it acts."""
        vlm = config.vlm_config
        parts = {"": config, "dit_config.": config.dit_config}
        parts |= {"vlm_config.text_config.": vlm.text_config, "vlm_config.vision_config.": vlm.vision_config}
        sizes = {f"{where}{name}": getattr(part, name, None) for where, part in parts.items() for name in _SIZES}
        return [
            f"{name} is {size}"
            for name, size in sizes.items()
            if size is not None and not (isinstance(size, int) and 1 <= size <= _LARGEST_SIZE)
        ]

    def limits(self, config: Any, own: PolicySpec | None) -> Limits:
        """As the configuration says."""
        return Limits(
            actions=config.max_action_dim,
            state=config.max_state_dim,
            image_size=config.vlm_config.vision_config.image_size,
            chunk_size=config.chunk_size,
            heads=True,
        )

    def model_class(self) -> Any:
        """transformers' own."""
        from transformers import PI0ForConditionalGeneration

        return PI0ForConditionalGeneration

    def for_training(self, config: Any) -> Any:
        """The configuration of a model whose loss is ours to average: it covers padded dimensions too."""
        config.loss_reduction = "none"
        return config

    def prompts(self, files: BaseFiles, tokenizer: str) -> Prompts:
        """What makes token ids of instructions."""
        found, directory = load_tokenizer(files, tokenizer)
        if found.bos_token is None:
            raise InputError(
                f"The tokenizer in {directory} has no token for the beginning of a sentence, with which every prompt "
                "of a pi0 model begins",
                expected="a bos_token in tokenizer_config.json",
                hint="--tokenizer with that of the base (pi0's is that of google/paligemma-3b-pt-224)",
            )
        config = load_config(files.directory).vlm_config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return Prompts(found, config.image_token_id, patches, vocabulary=config.text_config.vocab_size)

    def policy(self, model: nn.Module, prompts: Prompts, spec: PolicySpec, device: str) -> FlowPolicy:
        """A policy over a model that is already adapted."""
        return FlowPolicy(model, prompts, spec, device)


FAMILY = FlowFamily()


def load(
    base: str | Path, adapter: str | Path | None = None, *, device: str = "auto", spec: PolicySpec | None = None
) -> FlowPolicy:
    """Load a flow policy ready to act; see `loading.load_policy`."""
    policy = load_policy(base, adapter, device=device, spec=spec)
    if not isinstance(policy, FlowPolicy):
        raise InputError(
            f"{adapter or base} is a policy of family '{policy.spec.family}'",
            expected=f"'{FLOW}'",
            hint="vla_cli.policies.loading.load_policy, which loads any",
        )
    return policy
