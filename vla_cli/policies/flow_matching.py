"""Flow matching with `PI0ForConditionalGeneration`: one prefix pass, many velocities.

    pixel_values  float32 [B, C, 3, size, size]       (x / 255 - 0.5) / 0.5
    state         float32 [B, S_max]                  normalised, padded with zeros
    actions       float32 [B, T, A_max]               normalised, padded with zeros
    noise         float32 [.., T, A_max]              t = 1 is noise, t = 0 the action (a_t = t * noise + (1 - t) * a)

The loss is masked over padded dimensions and padded steps, because the model's own covers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.errors import ConfigError
from vla_cli.guidance import Guidance


@dataclass
class Batch:
    """A collated batch on the policy's device. Shapes as in the module's docstring.

    Attributes:
        input_ids, attention_mask: [B, L] image tokens, beginning of sentence, words, newline.
        pixel_values: [B, C, 3, size, size].
        state: [B, S_max] normalised and padded.
        actions: [B, T, A_max] normalised and padded, or None when acting.
        mask: [B, T, A_max] float, 1 where a real action stands, or None when acting.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    state: Tensor
    actions: Tensor | None = None
    mask: Tensor | None = None

    @property
    def camera_mask(self) -> Tensor:
        """[B, C] bool: which camera slots hold an image (all do)."""
        return torch.ones(self.pixel_values.shape[:2], dtype=torch.bool, device=self.pixel_values.device)


def prepare_images(images: np.ndarray, size: int) -> Tensor:
    """Images as the SigLIP image processor makes them: resized if need be, scaled to [-1, 1].

    Args:
        images: uint8 [N, H, W, 3].
        size: edge in pixels.

    Returns:
        float32 [N, 3, size, size].
    """
    if images.shape[1:3] != (size, size):
        from PIL import Image

        resized = [Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC) for i in images]
        images = np.stack([np.asarray(i) for i in resized])
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return pixels.float().div_(127.5).sub_(1.0)


def repeat_cache(cache: Any, times: int) -> Any:
    """Each row of a prefix cache `times` in a row, so that several noise draws share one prefix pass."""
    if times > 1:
        cache.batch_repeat_interleave(times)
    return cache


class FlowModel:
    """Thin functions around `PI0ForConditionalGeneration`: prefix once, velocities many times."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _core(self) -> Any:
        """The π0 model itself, under a wrapper or not."""
        inner: Any = self.model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._core().config

    def prefix(self, batch: Batch, hidden_states: bool = False) -> Any:
        """Run images and instruction through the VLM once: its output, with the key-value cache."""
        core = self._core()
        embeds = core.model.embed_prefix(batch.input_ids, batch.pixel_values, batch.camera_mask)
        return core.model.vlm(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask,
            position_ids=batch.attention_mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(batch.input_ids),
            use_cache=True,
            output_hidden_states=hidden_states,
        )

    def reading(self, ids: Tensor) -> Tensor:
        """What the language model makes of words [1, L] without a picture: the mean of their last states [D]."""
        vlm = self._core().model.vlm
        output = vlm(
            inputs_embeds=vlm.get_input_embeddings()(ids),
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
            use_cache=False,
            output_hidden_states=True,
        )
        # the last that the action expert reads: what is behind the last layer is never used
        return output.hidden_states[-2][0].mean(0)

    def velocity(self, cache: Any, batch: Batch, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Predicted velocity [N, T, A_max] at `noisy` [N, T, A_max] and `timestep` [N]; the cache is left as it was."""
        times = noisy.shape[0] // batch.state.shape[0]
        length = cache.get_seq_length()
        output = self._core()(
            state=batch.state.repeat_interleave(times, 0),
            noise=noisy,
            timestep=timestep,
            attention_mask=batch.attention_mask.repeat_interleave(times, 0),
            pixel_attention_mask=batch.camera_mask.repeat_interleave(times, 0),
            past_key_values=cache,
        )
        # the expert appends its own keys and values: without this the next step would attend to this one
        cache.crop(length - cache.get_seq_length())
        return output.logits


def sample_time(config: Any, count: int, generator: torch.Generator) -> Tensor:
    """Flow times [count] from π0's shifted beta distribution, reproducible by generator.

    Beta(a, 1) is drawn by inversion (u^(1/a)), which holds for the model's default second parameter of 1.
    """
    if config.time_sampling_beta_beta != 1.0:
        raise ConfigError("The base draws flow times from a Beta whose second parameter is not 1", expected="1.0")
    uniform = torch.rand(count, generator=generator)
    return uniform ** (1.0 / config.time_sampling_beta_alpha) * config.time_sampling_scale + config.time_sampling_offset


def flow_losses(flow: FlowModel, batch: Batch, *, draws: int, generator: torch.Generator, cache: Any = None) -> Tensor:
    """Masked flow-matching loss of each window, float32 [B].

    a_t = t * noise + (1 - t) * a, target velocity noise - a, squared error averaged over the real (unpadded) steps
    and dimensions, then over `draws` noise draws that share one prefix pass.
    """
    assert batch.actions is not None and batch.mask is not None
    cache = flow.prefix(batch).past_key_values if cache is None else cache
    cache = repeat_cache(cache, draws)
    actions = batch.actions.repeat_interleave(draws, 0)
    mask = batch.mask.repeat_interleave(draws, 0)
    device = actions.device
    noise = torch.randn(actions.shape, generator=generator).to(device)
    timestep = sample_time(flow.config, len(actions), generator).to(device)
    t = timestep[:, None, None]
    predicted = flow.velocity(cache, batch, t * noise + (1 - t) * actions, timestep)
    squared = (predicted - (noise - actions)) ** 2 * mask
    each = squared.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1.0)
    return each.view(-1, draws).mean(1)


@torch.no_grad()
def sample_chunk(
    flow: FlowModel,
    batch: Batch,
    noise: Tensor,
    *,
    steps: int,
    guidance: Guidance | None = None,
    negatives: Sequence[Batch] = (),
    width: int | None = None,
) -> Tensor:
    """Euler from t = 1 (noise) to t = 0 (action): normalised chunks [B, T, A_max].

    Args:
        batch: the observation under the instruction asked for.
        noise: [B, T, A_max].
        steps: Euler steps.
        guidance: how the branches become one velocity, or None for plain prompting.
        negatives: the same observation under each of the guidance's negative prompts; all branches run in one batch
            and share noise.
        width: real action dimensions; None for all.
    """
    branches = [*negatives, batch] if guidance is not None else [batch]
    whole = _stack(branches)
    cache = flow.prefix(whole).past_key_values
    actions, dt = noise, -1.0 / steps
    for step in range(steps):
        timestep = torch.full((len(whole.state),), 1.0 + step * dt, device=noise.device)
        velocity = flow.velocity(cache, whole, actions.repeat(len(branches), 1, 1), timestep)
        if guidance is not None:
            *others, positive = velocity.chunk(len(branches))
            velocity = guidance.velocity(positive, others, width or velocity.shape[-1])
        actions = actions + dt * velocity
    return actions


def _stack(branches: Sequence[Batch]) -> Batch:
    """Batches of one observation under several prompts as one, branch after branch; shorter prompts are padded."""
    if len(branches) == 1:
        return branches[0]
    length = max(branch.input_ids.shape[1] for branch in branches)

    def padded(rows: Tensor) -> Tensor:
        return nn.functional.pad(rows, (0, length - rows.shape[1]))

    return Batch(
        input_ids=torch.cat([padded(branch.input_ids) for branch in branches]),
        attention_mask=torch.cat([padded(branch.attention_mask) for branch in branches]),
        pixel_values=torch.cat([branch.pixel_values for branch in branches]),
        state=torch.cat([branch.state for branch in branches]),
    )
