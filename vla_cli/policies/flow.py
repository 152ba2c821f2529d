"""The flow-matching family: transformers' own `PI0ForConditionalGeneration`, from a miniature to `lerobot/pi0_base`.

    images        uint8 RGB [B, C, H, W, 3]          C cameras in the policy's order
    state         float32 [B, S]                      raw units
    actions       float32 [B, T, A]                   raw units, T the chunk size

State and actions are normalised with the policy's statistics and padded with zeros to the model's widths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.adapter import FLOW, PolicySpec, check_base, check_tokenizer, has_spec, load_spec
from vla_cli.calibration import Calibration
from vla_cli.errors import ConfigError, InputError, words
from vla_cli.guidance import Guidance
from vla_cli.policies.adaptation import Deltas
from vla_cli.policies.checkpoint import attach, load_base, locate_base, locate_tokenizer
from vla_cli.policies.flow_matching import Batch, FlowModel, flow_losses, prepare_images, sample_chunk, sample_time
from vla_cli.policies.modalities import modality_of
from vla_cli.policies.prompts import Prompts
from vla_cli.synchrony.synchronise import square
from vla_cli.windows import Samples


class FlowPolicy:
    """A π0-family policy with its prompts, statistics and, when adapted, its adapter.

    Args:
        model: `PI0ForConditionalGeneration`, or a wrapper around one (peft's, or `policies.bottleneck`'s).
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
        self.calibration: Calibration | None = None
        self._deltas: Deltas | None = None
        # adapters are switched in the model itself; a model that is never switched needs no turns
        self._switch: AbstractContextManager[Any] = nullcontext()

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.flow.config

    def calibrate(self, calibration: Calibration | None) -> None:
        """Act through a calibration from now on; None for none."""
        self.calibration = calibration
        switched = calibration is not None and hasattr(self.model, "disable_adapter")
        self._switch = RLock() if switched else nullcontext()

    def behind(self, calibration: Calibration | None) -> FlowPolicy:
        """The same weights acting through a calibration (None for none); this policy stays as it is."""
        twin = FlowPolicy(self.model, self.prompts, self.spec, self.device)
        twin.calibrate(calibration)
        return twin

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

    def batch(self, samples: Samples) -> Batch:
        """`collate` for windows with their actions."""
        return self.collate(samples.images, samples.state, samples.instructions, samples.actions, samples.real_steps)

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
        guidance: Guidance | None = None,
    ) -> np.ndarray:
        """Predict an action chunk for each observation, through the calibration when the policy has one.

        Pictures of another shape than the demonstrations' are prepared as `vla preprocess` prepared those.
        `collate`, `losses` and `velocities` know nothing of the calibration: they take what the base would see.

        Args:
            images: uint8 RGB [B, C, H, W, 3], as the cameras give them.
            state: [B, S] raw units.
            instructions: B of them.
            noise: [B, T, A_max] standard normal; the same noise gives the same actions.
            steps: Euler steps; None takes the model's own.
            guidance: how to move away from other prompts, or None for plain prompting.

        Returns:
            [B, T, A] float32, raw units.

        Raises:
            ConfigError: an instruction is one that the guidance moves away from.
        """
        self.model.eval()
        images, state = self._prepared(images), np.asarray(state)
        if self.calibration is None:
            return self._planned(images, state, instructions, noise, steps, guidance)
        here = self.calibration.is_here(images)
        chunks = np.empty((len(images), noise.shape[1], len(self.spec.action_names)), np.float32)
        for local, which in ((True, np.flatnonzero(here)), (False, np.flatnonzero(~here))):
            if len(which) == 0:
                continue
            words = [instructions[int(i)] for i in which]
            seen = self.calibration.observe(images[which]) if local else images[which]
            # in the base's own domain the base acts as it always did: what was trained belongs to the deployment
            with nullcontext() if local else self.unadapted():
                found = self._planned(seen, state[which], words, noise[which], steps, guidance if local else None)
            chunks[which] = self.calibration.command(found, state[which]) if local else found
        return chunks

    def is_calibrated(self, images: np.ndarray) -> np.ndarray:
        """[B] bool: for which images [B, C, H, W, 3], as `act` takes them, the calibration is on.

        It is off for pictures that look like the base's own domain, and where the policy has none.
        """
        if self.calibration is None:
            return np.zeros(len(images), bool)
        return self.calibration.is_here(self._prepared(images))

    def _prepared(self, images: np.ndarray) -> np.ndarray:
        """A robot's images as `vla preprocess` prepared the demonstrations'."""
        if self.spec.squared is not None:
            images = squared(images, self.spec.squared)
        return images if self.calibration is None else resized(images, self.calibration.image_size)

    @contextmanager
    def unadapted(self) -> Iterator[None]:
        """Within, LoRA or bottlenecks and what was trained outright beside them are switched off.

        A model without stays as it is.
        """
        disable = getattr(self.model, "disable_adapter", None)
        if disable is None:
            yield
            return
        # switching is the model's state: nobody else may act with it meanwhile
        with self._switch, disable():
            yield

    def _planned(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        steps: int | None,
        guidance: Guidance | None,
    ) -> np.ndarray:
        """Chunks [B, T, A] in the base's convention for what the base would see."""
        batch = self.collate(images, state, instructions)
        if guidance is not None and guidance.plain:
            guidance = None
        negatives = []
        if guidance is not None:
            for instruction in dict.fromkeys(instructions):
                guidance.check(instruction)
            negatives = [self.collate(images, state, [text] * len(instructions)) for text in guidance.negatives]
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

    def hidden_states(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """States of each VLM layer [B, L, D] that the action expert reads, and which tokens are real [B, L] bool."""
        output = self.flow.prefix(batch, hidden_states=True)
        # the last entry is behind the last layer, where nothing reads it any more
        return list(output.hidden_states[:-1]), batch.attention_mask.bool()

    def remember_base(self) -> None:
        """Keep the weights as they are now as the ones that `deltas` counts from: before training only."""
        if self._deltas is None:
            self._deltas = Deltas(self.model)

    def deltas(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Trained minus base weights by the base's parameter name, differentiable; LoRA's are its products.

        Bottlenecks move no weight, and have none.

        Args:
            names: of the wanted ones; None for all.
        """
        assert self._deltas is not None, "remember_base was not called before training"
        return self._deltas(names)

    def trained_ways(self) -> dict[str, str]:
        """Name of each delta to how it trains, "lora" or "full"; and of each layer with a "bottleneck" behind it."""
        assert self._deltas is not None, "remember_base was not called before training"
        return self._deltas.ways()

    def base_norms(self) -> dict[str, float]:
        """Name of each delta to the norm of the base's own weight."""
        assert self._deltas is not None, "remember_base was not called before training"
        return self._deltas.base_norms()

    def scale_deltas(self, factors: Mapping[str, float]) -> None:
        """theta = (1 - alpha) theta_pre + alpha theta with an alpha a modality, in place; others stay."""
        assert self._deltas is not None, "remember_base was not called before training"
        self._deltas.scale(factors)

    def modality(self, parameter: str) -> str:
        """ "vision", "language" or "action", by a parameter's name in the bare model."""
        return modality_of("." + parameter)

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise `act` starts from."""
        return (batch, self.config.chunk_size, self.config.max_action_dim)


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images [B, C, H, W, 3] at another height and width, bicubic; as they are where they fit."""
    if images.shape[2:4] == size:
        return images
    from PIL import Image

    flat = images.reshape(-1, *images.shape[2:])
    small = [np.asarray(Image.fromarray(i).resize((size[1], size[0]), Image.Resampling.BICUBIC)) for i in flat]
    return np.stack(small).reshape(*images.shape[:2], *size, 3)


def squared(images: np.ndarray, size: int) -> np.ndarray:
    """Images [B, C, H, W, 3] as `vla preprocess --image-size` makes squares of them: padded with black, and resized."""
    if images.shape[2:4] == (size, size):
        return images
    flat = images.reshape(-1, *images.shape[2:])
    return np.stack([square(image, size) for image in flat]).reshape(*images.shape[:2], size, size, 3)


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
    """ "auto" to "cuda" when there is one, else "cpu"; anything else as it is.

    Raises:
        ConfigError: torch knows no such device, or has none on this machine.
    """
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wish)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # a torch built without CUDA asserts
        raise ConfigError(
            f"--device {wish} cannot be used here ({words(error)})",
            expected="auto, cpu, or an accelerator that this torch was built for and this machine has",
            hint="--device auto",
        ) from None
    return wish


def _check_family(spec: PolicySpec, adapter: Path) -> None:
    """Refuse what is no single policy.

    Raises:
        InputError: it holds several adapters.
    """
    if spec.family != FLOW:
        raise InputError(
            f"{adapter} holds several adapters ('{spec.family}'), each for its own task",
            expected="one adapter",
            hint="vla_cli.policies.task_adapters.load, or one of the folders in its adapters/",
        )


def load(
    base: str | Path, adapter: str | Path | None = None, *, device: str = "auto", spec: PolicySpec | None = None
) -> FlowPolicy:
    """Load a policy ready to act: a base, with an adapter when given.

    Args:
        base: directory or hub id.
        adapter: directory written by finetune or export-adapter.
        device: "cpu", "cuda" or "auto".
        spec: how to feed a base that carries no `policy.json`; with an adapter, the adapter's own is used.

    Raises:
        InputError: see `load_base` and `attach`; or the adapter belongs to another base, or another tokenizer; or a
            base without `policy.json` is loaded without a spec.
    """
    base, adapter = str(base), Path(adapter) if adapter is not None else None
    if adapter is not None:
        spec = load_spec(adapter)
        _check_family(spec, adapter)
    elif spec is None:
        spec = load_spec(locate_base(base).directory)
    model, prompts, files = load_base(base, tokenizer=spec.tokenizer)
    check_tokenizer(spec, locate_tokenizer(files, spec.tokenizer))
    if adapter is not None:
        check_base(spec, files.reference.digest, base)
        model = attach(model, adapter, spec)
    policy = FlowPolicy(model, prompts, spec, pick_device(device))
    directory = adapter if adapter is not None else files.directory
    if spec.calibration and (adapter is not None or has_spec(directory)):
        policy.calibrate(Calibration.load(spec.calibration, directory))
    return policy
