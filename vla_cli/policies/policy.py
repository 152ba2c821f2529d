"""What every family of policies shares: acting through a calibration, and the weights that adapt it.

images        uint8 RGB [B, C, H, W, 3]          C cameras in the policy's order
state         float32 [B, S]                      raw units
actions       float32 [B, T, A]                   raw units, T the chunk size
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.adapter import PolicySpec
from vla_cli.calibration import Calibration
from vla_cli.guidance import Guidance
from vla_cli.policies.adaptation import Deltas
from vla_cli.policies.modalities import modality_of
from vla_cli.synchrony.synchronise import square
from vla_cli.windows import Samples


class Policy(ABC):
    """A policy with its prompts, statistics and, when adapted, its adapter.

    Args:
        model: the family's model, or a wrapper around one (peft's, or `policies.bottleneck`'s).
        prompts: what makes a prompt of an instruction; of the family's own kind.
        spec: how to feed it and read it.
        device: where it runs.

    Attributes:
        draws_noise: whether what it does depends on the noise that it is given.
    """

    draws_noise = True

    def __init__(self, model: nn.Module, prompts: Any, spec: PolicySpec, device: str) -> None:
        self.model = model.to(device)
        self.prompts = prompts
        self.spec = spec
        self.device = device
        self.calibration: Calibration | None = None
        self._deltas: Deltas | None = None
        # adapters are switched in the model itself; a model that is never switched needs no turns
        self._switch: AbstractContextManager[Any] = nullcontext()

    # what a family says

    @abstractmethod
    def collate(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        actions: np.ndarray | None = None,
        real_steps: np.ndarray | None = None,
    ) -> Any:
        """Raw observations (and actions) to a batch of the family's own kind on the device.

        Args:
            images: uint8 RGB [B, C, H, W, 3].
            state: [B, S] raw units.
            instructions: B of them.
            actions: [B, T, A] raw units, padded steps holding anything finite.
            real_steps: [B, T] bool, False on padded steps.
        """

    @abstractmethod
    def losses(self, batch: Any, *, draws: int, generator: torch.Generator) -> Tensor:
        """Loss of each window [B], differentiable; of a family that draws noise, over `draws` of them."""

    @abstractmethod
    def planned(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        steps: int | None,
        guidance: Guidance | None,
    ) -> np.ndarray:
        """Chunks [B, T, A] in the base's convention for what the base would see; arguments as for `act`."""

    @abstractmethod
    def look(self, batch: Any) -> Any:
        """What can be computed of a batch's pictures and words once, for several `predictions`; None for nothing."""

    @abstractmethod
    def points(self, batch: Any, generator: torch.Generator) -> Any:
        """Where the predictions of two policies can be compared, around the recorded actions of a batch."""

    @abstractmethod
    def own_points(self, batch: Any, points: Any, generator: torch.Generator, *, steps: int, seen: Any = None) -> Any:
        """The same on this policy's own way to an action; `steps` and `seen` as a family needs them."""

    @abstractmethod
    def predictions(self, batch: Any, points: Any, seen: Any = None) -> Tensor:
        """What the policy predicts there under the batch's instructions, differentiable."""

    @abstractmethod
    def gap(self, predicted: Tensor, wanted: Tensor, batch: Any) -> Tensor:
        """How far predictions are from wanted ones, summed over a batch's real entries; 0 where they are the same."""

    @abstractmethod
    def hidden_states(self, batch: Any) -> tuple[list[Tensor], Tensor]:
        """States of each VLM layer [B, L, D] that actions depend on, and which tokens are real [B, L] bool."""

    @abstractmethod
    def reading(self, ids: Tensor) -> Tensor:
        """What the language model makes of words [1, L] without a picture: the mean of their states [D]."""

    @abstractmethod
    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise that `act` starts from: [B, T, ..]."""

    # what all families share

    def batch(self, samples: Samples) -> Any:
        """`collate` for windows with their actions."""
        return self.collate(samples.images, samples.state, samples.instructions, samples.actions, samples.real_steps)

    def calibrate(self, calibration: Calibration | None) -> None:
        """Act through a calibration from now on; None for none."""
        self.calibration = calibration
        switched = calibration is not None and hasattr(self.model, "disable_adapter")
        self._switch = RLock() if switched else nullcontext()

    def behind(self, calibration: Calibration | None) -> Self:
        """The same weights acting through a calibration (None for none); this policy stays as it is."""
        twin = type(self)(self.model, self.prompts, self.spec, self.device)
        twin.calibrate(calibration)
        return twin

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
        Everything else here knows nothing of the calibration: it takes what the base would see.

        Args:
            images: uint8 RGB [B, C, H, W, 3], as the cameras give them.
            state: [B, S] raw units.
            instructions: B of them.
            noise: of `noise_shape`, standard normal; the same noise gives the same actions.
            steps: Euler steps of a flow policy; None takes the model's own.
            guidance: how to move away from other prompts, or None for plain prompting.

        Returns:
            [B, T, A] float32, raw units.

        Raises:
            ConfigError: an instruction is one that the guidance moves away from.
        """
        self.model.eval()
        images, state = self._prepared(images), np.asarray(state)
        if self.calibration is None:
            return self.planned(images, state, instructions, noise, steps, guidance)
        here = self.calibration.is_here(images)
        chunks = np.empty((len(images), noise.shape[1], len(self.spec.action_names)), np.float32)
        for local, which in ((True, np.flatnonzero(here)), (False, np.flatnonzero(~here))):
            if len(which) == 0:
                continue
            words = [instructions[int(i)] for i in which]
            seen = self.calibration.observe(images[which]) if local else images[which]
            # in the base's own domain the base acts as it always did: what was trained belongs to the deployment
            with nullcontext() if local else self.unadapted():
                found = self.planned(seen, state[which], words, noise[which], steps, guidance if local else None)
            chunks[which] = self.calibration.command(found, state[which]) if local else found
        return chunks

    def _branches(
        self, images: np.ndarray, state: np.ndarray, instructions: Sequence[str], guidance: Guidance | None
    ) -> tuple[Any, Guidance | None, list[Any]]:
        """What is asked as a batch, the guidance unless it is plain prompting, and a batch for each of its negatives.

        Raises:
            ConfigError: an instruction is one that the guidance moves away from.
        """
        batch = self.collate(images, state, instructions)
        if guidance is None or guidance.plain:
            return batch, None, []
        for instruction in dict.fromkeys(instructions):
            guidance.check(instruction)
        negatives = [self.collate(images, state, [text] * len(instructions)) for text in guidance.negatives]
        return batch, guidance, negatives

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
