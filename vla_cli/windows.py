"""Training windows: what a policy sees at one frame, and the chunk of actions that follows.

A window is (demonstration, frame t): images and state at t, actions t .. t+T-1. At the end of a demonstration the chunk
is padded with its last action and the padded steps are marked, so that the loss leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vla_cli.dataset import Demonstration
from vla_cli.errors import InputError


@dataclass
class Samples:
    """Windows gathered for one batch.

    Attributes:
        images: uint8 RGB [B, C, H, W, 3].
        state: float32 [B, S], raw units.
        instructions: B strings.
        actions: float32 [B, T, A], raw units.
        real_steps: bool [B, T], False on padded steps.
    """

    images: np.ndarray
    state: np.ndarray
    instructions: list[str]
    actions: np.ndarray
    real_steps: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, part: slice) -> Samples:
        return Samples(**{key: values[part] for key, values in vars(self).items()})

    def parts(self, size: int) -> Iterator[Samples]:
        """All of them in order, at most `size` at once."""
        return (self[start : start + size] for start in range(0, len(self), size))


class Windows:
    """All windows of some demonstrations.

    Args:
        demonstrations: at least one; cameras must have one common image size per camera.
        cameras: camera names, in the policy's order.
        chunk: steps a chunk.

    Raises:
        InputError: there are no frames, a camera is missing, or image sizes differ among cameras.
    """

    def __init__(self, demonstrations: Sequence[Demonstration], cameras: Sequence[str], chunk: int) -> None:
        self.demonstrations = list(demonstrations)
        self.cameras = list(cameras)
        self.chunk = chunk
        self.index = np.array(
            [(d, t) for d, demo in enumerate(self.demonstrations) for t in range(len(demo))], np.int64
        ).reshape(-1, 2)
        if len(self.index) == 0:
            raise InputError("There are no frames to train on", hint="vla preprocess again; see its quality.json")
        for demo in self.demonstrations:
            missing = [camera for camera in self.cameras if camera not in demo.images]
            sizes = {demo.images[c].shape[1:3] for c in self.cameras if c in demo.images}
            if missing or len(sizes) > 1:
                raise InputError(
                    f"Demonstration '{demo.name}' has cameras {sorted(demo.images)} of sizes {sorted(sizes)}",
                    expected=f"all of {self.cameras}, of one size",
                    hint="vla preprocess with --camera and --image-size",
                )

    def __len__(self) -> int:
        return len(self.index)

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        """`count` windows at random, without repeats as long as there are enough."""
        return self.gather(rng.choice(len(self), count, replace=count > len(self)))

    def spread(self, limit: int) -> np.ndarray:
        """Numbers of at most `limit` windows, evenly spread over all of them, int64 [N]."""
        return np.linspace(0, len(self) - 1, min(limit, len(self))).astype(np.int64)

    def gather(self, which: Sequence[int] | np.ndarray) -> Samples:
        """The windows with these numbers. A demonstration told in several ways is told by turns of its frames."""
        rows = [self._one(int(d), int(t)) for d, t in self.index[np.asarray(which, np.int64)]]
        images, state, instructions, actions, real = zip(*rows, strict=True)
        return Samples(np.stack(images), np.stack(state), list(instructions), np.stack(actions), np.stack(real))

    def _one(self, d: int, t: int) -> tuple[np.ndarray, np.ndarray, str, np.ndarray, np.ndarray]:
        demo = self.demonstrations[d]
        steps = np.arange(t, t + self.chunk)
        instruction = demo.instructions[t % len(demo.instructions)] if demo.instructions else ""
        images = np.stack([demo.images[camera][t] for camera in self.cameras])
        return images, demo.state[t], instruction, demo.actions[np.minimum(steps, len(demo) - 1)], steps < len(demo)


def join(parts: Sequence[Samples]) -> Samples:
    """Several groups of samples as one."""
    return Samples(
        images=np.concatenate([p.images for p in parts]),
        state=np.concatenate([p.state for p in parts]),
        instructions=[text for p in parts for text in p.instructions],
        actions=np.concatenate([p.actions for p in parts]),
        real_steps=np.concatenate([p.real_steps for p in parts]),
    )
