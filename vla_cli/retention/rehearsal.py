"""Rehearsal of base-domain data, made to look like the demonstrations.

Plain replay keeps the base's abilities in the base's look; at deployment the look is another, and the policy falls
back on the one task it saw there. So replayed images are matched to the demonstrations:

- style: per-channel mean and standard deviation of a replayed image are moved to those of a random demonstration
  frame, with some probability (the rest keeps the base's look);
- geometry: the picture is turned, zoomed and shifted at random, as another camera would see it. State and action are
  in the robot's frame and stay.

With both probabilities 0 it is plain data mixing: the mean over a batch is

    (1 - lambda) L_task + lambda L_pre        lambda: the share of the batch that is replay, `fraction`

A share that is no whole number of windows is met on average: 0.4 of 32 is 13 windows in four batches of five, and 12 in
the fifth. Either way a fixed sample of the replay, as it was recorded, is
watched: when the policy's loss on it falls below the base's own, it learns that sample by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_cli.errors import ConfigError
from vla_cli.limits import limited, share
from vla_cli.retention import Context, Learner, Method, read_options
from vla_cli.windows import Samples, Windows

STYLE_WINDOWS = 256
WATCHED_WINDOWS = 64
WATCHED_DRAWS = 4
_AT_ONCE = 16


@dataclass(frozen=True)
class RehearsalOptions:
    """Options of `retention: rehearsal:` in a recipe.

    Attributes:
        fraction: share of the windows that is replay, in (0, 1).
        style_probability: share of replayed images that take the demonstrations' style.
        geometry_probability: share of replayed images that are turned, zoomed and shifted.
        rotation: largest turn, degrees.
        zoom: smallest and largest magnification.
        shift: largest shift, as a share of the image's edge.
    """

    fraction: float = limited(0.25, "a share between 0 and 1", lambda fraction: 0 < fraction < 1)
    style_probability: float = share(0.7)
    geometry_probability: float = share(0.0)
    rotation: float = limited(25.0, "from 0 to 180 degrees", lambda degrees: 0 <= degrees <= 180)
    zoom: tuple[float, float] = limited(
        (0.88, 1.04), "two magnifications above 0, the smaller first", lambda zoom: 0 < zoom[0] <= zoom[1]
    )
    shift: float = share(0.035)


class Rehearsal(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    def __init__(self, **options: Any) -> None:
        self.options = read_options("rehearsal", RehearsalOptions, options)
        self._replay: Windows | None = None
        self._watch: Watch | None = None
        self._seen: dict[str, float] = {}
        self._memorised = False
        self._share: float | None = None
        self._style = np.empty((0, 2, 1, 1, 1, 3))

    def needs(self) -> tuple[str, ...]:
        """Base-domain data."""
        return ("replay",)

    def asks_the_base(self) -> bool:
        """Always: what is rehearsed is of its domain."""
        return True

    def share(self, batch_size: int) -> float:
        """`fraction` of the batch, exactly, but that at least one window of each is left to the demonstrations.

        Raises:
            ConfigError: a batch of one window, in which nothing could be rehearsed.
        """
        if batch_size < 2:
            raise ConfigError(
                f"The recipe rehearses, but a batch of {batch_size} has no window for it beside the demonstrations'",
                expected="a batch, and a micro-batch, of at least 2 windows",
                hint="--batch-size 32 or --micro-batch 2, or a recipe without 'rehearsal'",
            )
        # 0.07 * 100 is 7.000000000000001 in floating point, and is meant to be 7
        count = min(round(self.options.fraction * batch_size, 9), batch_size - 1)
        self._share = count / batch_size
        return count

    def caveats(self, batch_size: int) -> list[str]:
        """That the batch is too small for the share that was wished for."""
        count, wished = self.share(batch_size), self.options.fraction
        if wished * batch_size <= batch_size - 1:
            return []
        return [
            f"Of each batch {count:g} of {batch_size} windows are rehearsed, a share of {count / batch_size:.3g} where "
            f"{wished:g} was asked for, because one is left to the demonstrations: a larger --batch-size comes nearer."
        ]

    def prepare(self, context: Context) -> None:
        """Take the style of the demonstrations, and the base's loss on a sample of the replay.

        Raises:
            ConfigError: there is no replay data.
        """
        self._replay = context.need_replay("rehearsal")
        shown = context.demonstrations
        self._style = channel_style(shown.gather(shown.spread(STYLE_WINDOWS)).images)
        self._watch = Watch(context.policy, self._replay, context.seed)

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        """`count` replayed windows, some in the demonstrations' style, some seen by another camera."""
        assert self._replay is not None
        samples = self._replay.draw(rng, count)
        images = samples.images.astype(np.float32)
        turned = rng.random(count) < self.options.geometry_probability
        if turned.any():
            images[turned] = self._another_camera(images[turned], rng)
        styled = rng.random(count) < self.options.style_probability
        if styled.any():
            wanted = self._style[rng.integers(0, len(self._style), int(styled.sum()))]
            images[styled] = match_style(images[styled], wanted)
        samples.images = np.clip(images + 0.5, 0, 255).astype(np.uint8)
        return samples

    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """Loss on a fixed sample of the replay, beside the base's; a warning when it is being memorised."""
        assert self._watch is not None
        now, base, slack = self._watch()
        self._seen = {"replay_loss": now, "replay_loss_of_base": base}
        self._memorised = base - now > slack
        return self._seen, [memorised_warning(now, base, len(self._watch))] if self._memorised else []

    def facts(self) -> dict[str, Any]:
        """What was to be rehearsed (`fraction`), what is (`share_of_batch`, a mean), and whether it was memorised."""
        windows = len(self._replay) if self._replay is not None else 0
        found: dict[str, Any] = {
            "fraction": self.options.fraction,
            "share_of_batch": self._share,
            "replay_windows": windows,
        }
        return {**found, **self._seen, "memorised": self._memorised} if self._seen else found

    def _another_camera(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        o, count = self.options, len(images)
        angle = np.deg2rad(rng.uniform(-o.rotation, o.rotation, count))
        zoom = rng.uniform(*o.zoom, count)
        shift = rng.uniform(-o.shift, o.shift, (count, 2)) * 2
        return warp(images, angle, zoom, shift)


class Watch:
    """The loss of a policy on a fixed sample of the replay, beside the base's on the same windows and noise.

    Args:
        policy: while its weights are still the base's.
        replay: base-domain windows.
        seed: of the noise.
    """

    def __init__(self, policy: Learner, replay: Windows, seed: int) -> None:
        self._policy, self._seed = policy, seed
        watched = replay.gather(replay.spread(WATCHED_WINDOWS))
        self._batches = [policy.batch(part) for part in watched.parts(_AT_ONCE)]
        self._base = self._losses()

    def __len__(self) -> int:
        return len(self._base)

    def __call__(self) -> tuple[float, float, float]:
        """Mean loss now, the base's, and two standard errors of their paired difference."""
        now = self._losses()
        difference = now - self._base
        spread = difference.std().item() if len(now) > 1 else float("inf")
        return now.mean().item(), self._base.mean().item(), 2 * spread / len(now) ** 0.5

    @torch.no_grad()
    def _losses(self) -> Tensor:
        """[N] float64 on the CPU."""
        self._policy.model.eval()
        generator = torch.Generator().manual_seed(self._seed)
        each = [self._policy.losses(b, draws=WATCHED_DRAWS, generator=generator) for b in self._batches]
        return torch.cat(each).double().cpu()


def memorised_warning(now: float, base: float, windows: int) -> str:
    """What it means that the loss on the replay fell below the base's."""
    return (
        f"The loss on {windows} windows of the replay fell to {now:.3g}, below the base's own {base:.3g}: the policy "
        "is learning the replayed sample by heart, so that the sample no longer stands for all that the base could do, "
        "and what the policy keeps there says little about other tasks. More replay data, fewer --steps or a smaller "
        "--replay-fraction helps."
    )


def channel_style(images: np.ndarray) -> np.ndarray:
    """Per-channel mean and standard deviation of each image.

    Args:
        images: [N, C, H, W, 3] in 0..255.

    Returns:
        [N, 2, C, 1, 1, 3] float32: mean, standard deviation.
    """
    pixels = images.astype(np.float32)
    return np.stack([pixels.mean((2, 3), keepdims=True), pixels.std((2, 3), keepdims=True)], axis=1)


def match_style(images: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Move each image's per-channel mean and standard deviation to `style` ([N, 2, C, 1, 1, 3])."""
    own = channel_style(images)
    return (images - own[:, 0]) / np.maximum(own[:, 1], 1.0) * style[:, 1] + style[:, 0]


def warp(images: np.ndarray, angle: np.ndarray, zoom: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Turn, zoom and shift images about their centres; what comes in from outside repeats the edge.

    Args:
        images: float32 [N, C, H, W, 3].
        angle: [N] radians. zoom: [N]. shift: [N, 2], in half edges.
    """
    count, cameras = images.shape[:2]
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    theta = np.stack([np.stack([cos, -sin, shift[:, 0]], -1), np.stack([sin, cos, shift[:, 1]], -1)], 1)
    pixels = torch.from_numpy(images).reshape(count * cameras, *images.shape[2:]).permute(0, 3, 1, 2)
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(theta).float().repeat_interleave(cameras, 0), list(pixels.shape), align_corners=False
    )
    warped = torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return warped.permute(0, 2, 3, 1).reshape(images.shape).numpy()
