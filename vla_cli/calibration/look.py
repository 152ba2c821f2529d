"""How the picture looks: table, lighting and colours here, against the base's own.

What stands still in every demonstration is the table; what is put down by hand differs from one to the next, if only by
centimetres. That tells a textured table from the things on it without knowing either:

    table      pixels whose median over an episode is the same in every episode, in large regions; around a thing,
               the value that the pixel has in the episodes in which the thing stands elsewhere
    lighting   a smooth field fitted to the table's brightness
    light      the gain on things: the one that brings their colours onto the base's palette; where too few agree, the
               ratio of the base's table colour to this table's (white balance)

and then, pixel by pixel,

    shows the table  ->  the base's table colour
    a landmark       ->  the base's landmark       the commonest kind of thing whose colour the base does not know
    anything else    ->  pixel * light / lighting(x)

Colours are corrected by multiplication (von Kries): an additive map would turn a black gripper grey.
All pictures here are without the black bars that wide ones are padded with (`calibration.bars`).
Assumptions, each checked: the camera stands still; the table fills more of the picture than anything else; things are
put down anew for each demonstration; light changes slowly across the picture. Saturated pixels are left out of every
estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from vla_cli.calibration.palette import NEAR, colour_modes, match_palette
from vla_cli.calibration.robust import NotIdentified
from vla_cli.calibration.table import (
    basis,
    is_carried,
    lighting_of,
    sensor_noise,
    still_region,
    table_picture,
    table_tolerance,
)
from vla_cli.calibration.tint import DARKEST, median_colour

FRAMES_AN_EPISODE = 40
LEAST_MATCHED = 3
"""Colours that must be found in the base's palette before light is taken from it."""
SAME_LIGHT, MOST_LIGHT = 0.05, 2.5
"""Relative change of the light since the demonstrations below which nothing is done, and largest factor undone."""
SHADE = 1.18
"""Factor by which a landmark's brightness may differ from place to place."""
MOST_BALANCE = 4.0
"""Largest factor by which a channel is corrected on the table's word alone: beyond it, it is another table."""
MOST_REPAINTED = 2.0
"""Largest factor, beside the light's, by which a landmark may be brighter or darker here than the base knows it."""


@dataclass(frozen=True)
class Look:
    """The base's own look.

    Attributes:
        table: [3] median colour of the table, 0..255.
        palette: [K, 3] colours of what stands on it, the commonest first.
        shares: [K] how much of the things each colour is.
    """

    table: np.ndarray
    palette: np.ndarray
    shares: np.ndarray

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: getattr(self, key).round(4).tolist() for key in ("table", "palette", "shares")}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Look:
        """Inverse of `document`."""
        palette = np.array(document["palette"], float).reshape(-1, 3)
        return cls(np.array(document["table"], float), palette, np.array(document["shares"], float))


@dataclass(frozen=True)
class LookTransform:
    """From this deployment's look to the base's.

    Attributes:
        table: [3] the base's table colour.
        backdrop: [H, W, 3] float32 this table, NaN where it was never seen; None where no table was found.
        noise: standard deviation of the sensor's noise, grey levels.
        light: [3] gain on things.
        lighting: [6] coefficients of the log of the lighting field; see `basis`.
        light_from: "palette" or "table".
        landmark: [2, 3] a colour here (behind `lighting`) and the colour that the base knows it by; None without one.
        median: [3] median colour of this deployment's pictures, from which the domain is told.
    """

    table: np.ndarray
    backdrop: np.ndarray | None
    noise: float
    light: np.ndarray
    lighting: np.ndarray
    light_from: str
    median: np.ndarray
    landmark: np.ndarray | None = None

    def _in_the_demonstrations_light(self, pixels: np.ndarray) -> np.ndarray:
        """Images [N, H, W, 3] in the demonstrations' light, told by the table; as they are where it has not changed.

        Most of the known table is in sight in any picture, so the median ratio to it is the change of the light.
        """
        if self.backdrop is None:
            return pixels
        known = ~np.isnan(self.backdrop[..., 0]) & (self.backdrop.min(-1) > DARKEST)
        change = np.median((pixels[:, known] + 1.0) / (self.backdrop[known] + 1.0), axis=1)
        change = np.where(np.abs(change - 1.0).max(-1, keepdims=True) > SAME_LIGHT, change, 1.0)
        return pixels / np.clip(change, 1 / MOST_LIGHT, MOST_LIGHT)[:, None, None].astype(np.float32)

    def document(self) -> dict[str, Any]:
        """As JSON values; the picture of the table is saved apart (`save_backdrop`)."""
        return {
            "table": self.table.round(3).tolist(),
            "light": self.light.round(6).tolist(),
            "light_from": self.light_from,
            "lighting": self.lighting.round(6).tolist(),
            "landmark": self.landmark.round(3).tolist() if self.landmark is not None else None,
            "median": self.median.round(3).tolist(),
            "noise": round(self.noise, 4),
            "backdrop": self.backdrop is not None,
        }

    def save_backdrop(self, path: Path) -> None:
        """Write the picture of the bare table as PNG, clear where the table was never seen."""
        assert self.backdrop is not None
        known = ~np.isnan(self.backdrop[..., :1])
        pixels = np.concatenate([np.nan_to_num(self.backdrop), 255.0 * known], axis=-1)
        Image.fromarray(pixels.astype(np.uint8), "RGBA").save(path, format="PNG")

    @classmethod
    def load(cls, document: dict[str, Any], path: Path) -> LookTransform:
        """Inverse of `document` and `save_backdrop`."""
        backdrop = None
        if document["backdrop"]:
            pixels = np.asarray(Image.open(path).convert("RGBA"), np.float32)
            backdrop = np.where(pixels[..., 3:] > 0, pixels[..., :3], np.nan).astype(np.float32)
        vectors = {key: np.array(document[key], float) for key in ("table", "light", "lighting", "median")}
        landmark = np.array(document["landmark"], float) if document["landmark"] is not None else None
        return cls(
            **vectors,
            backdrop=backdrop,
            noise=float(document["noise"]),
            light_from=document["light_from"],
            landmark=landmark,
        )

    @property
    def tolerance(self) -> np.ndarray:
        """[H, W] grey levels within which a pixel shows the table."""
        assert self.backdrop is not None
        return table_tolerance(self.backdrop, self.noise)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Images [N, H, W, 3] uint8 or float in 0..255 to the base's look, float32."""
        pixels = self._in_the_demonstrations_light(np.asarray(images, np.float32))
        height, width = pixels.shape[1:3]
        field = np.exp(basis(height, width) @ self.lighting).reshape(height, width, 1)
        even = pixels / field.astype(np.float32)
        found = even * self.light.astype(np.float32)
        if self.landmark is not None:
            here, there = self.landmark.astype(np.float32)
            # a landmark in a shade that the smooth field misses is still the landmark
            shade = np.clip((even @ here) / (here @ here), 1 / SHADE, SHADE)[..., None]
            share = np.clip(2.0 - np.abs(even - shade * here).max(-1, keepdims=True) / (0.7 * NEAR), 0.0, 1.0)
            found = share * even * (there / here) / shade + (1 - share) * found
        if self.backdrop is not None:
            apart = np.abs(pixels - self.backdrop).max(-1)
            # a soft edge: half a table pixel becomes half table
            share = np.clip(2.0 - apart / self.tolerance, 0.0, 1.0)[..., None]
            share = np.nan_to_num(share)
            found = share * self.table.astype(np.float32) + (1 - share) * found
        return np.clip(found, 0.0, 255.0)


def measure_look(videos: Sequence[np.ndarray]) -> Look:
    """The base's look from its own domain, where things stand all over the table.

    Args:
        videos: uint8 [T, H, W, 3], one an episode.

    Raises:
        NotIdentified: most of the picture is saturated.
    """
    frames = np.concatenate([_some(v, 10) for v in videos])
    table = median_colour(frames)
    things = _inner(np.abs(frames.astype(np.float32) - table).max(-1) > NEAR)
    return Look(table, *colour_modes(frames[things].astype(np.float32)))


def fit_look(videos: Sequence[np.ndarray], base: Look) -> LookTransform:
    """The transform from the demonstrations' look to the base's.

    Args:
        videos: uint8 [T, H, W, 3], one an episode, from one camera. Of one that the robot carries no table is told.
        base: the base's look.

    Raises:
        NotIdentified: the picture is saturated, or light is to be told by a table that is too unlike the base's.
    """
    spread = [_some(v, FRAMES_AN_EPISODE) for v in videos]
    episodes = np.stack([np.median(v, axis=0) for v in spread]).astype(np.float32)
    frames = np.concatenate([_some(v, 6) for v in videos])
    median = median_colour(frames)
    noise = sensor_noise(videos)
    found = still_region(episodes, noise)
    if found is None or is_carried(spread, found[0]):
        return LookTransform(base.table, None, noise, _balance(base.table, median), np.zeros(6), "table", median)
    still, same = found
    lighting = lighting_of(np.median(episodes, axis=0), still)
    # whole grey levels, as they are saved
    backdrop = np.round(table_picture(episodes, still, same & ~still))
    tolerance = table_tolerance(backdrop, noise)
    field = np.exp(basis(*still.shape) @ lighting).reshape(*still.shape, 1)
    table = np.median((backdrop / field)[still], axis=0)
    modes, shares = _things(frames, backdrop, tolerance, field)
    light, matched = match_palette(modes, base.palette)
    if matched < LEAST_MATCHED:
        return LookTransform(base.table, backdrop, noise, _balance(base.table, table), lighting, "table", median)
    landmark = _landmark(modes, shares, light, base, table)
    return LookTransform(base.table, backdrop, noise, light, lighting, "palette", median, landmark)


def _balance(base: np.ndarray, table: np.ndarray) -> np.ndarray:
    """White balance [3] by the colours of the base's table and this one.

    Raises:
        NotIdentified: they differ by more than `MOST_BALANCE`.
    """
    factors = base / np.maximum(table, 1e-3)
    if max(factors.max(), 1 / factors.min()) > MOST_BALANCE:
        raise NotIdentified(
            f"the table is RGB {_rounded(table)} here and {_rounded(base)} in the base's domain: too far apart to tell "
            "the light by it",
            f"{LEAST_MATCHED} things in colours that the base knows, put down anew for each demonstration",
        )
    return factors


def _rounded(colour: np.ndarray) -> str:
    return "/".join(f"{value:.0f}" for value in colour)


def _some(video: np.ndarray, count: int) -> np.ndarray:
    return video[np.unique(np.linspace(0, len(video) - 1, count).round().astype(int))]


def _things(
    frames: np.ndarray, backdrop: np.ndarray, tolerance: np.ndarray, field: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colours [M, 3] of what is not table, behind the lighting, and their shares [M]."""
    apart = np.abs(frames.astype(np.float32) - backdrop).max(-1)
    return colour_modes((frames / field)[_inner(~(apart < 2 * tolerance))])


def _inner(things: np.ndarray) -> np.ndarray:
    """Masks [N, H, W] without the edges of things, which are half table."""
    return ndimage.binary_erosion(things, np.ones((1, 3, 3)))


def _landmark(
    modes: np.ndarray, shares: np.ndarray, light: np.ndarray, base: Look, table: np.ndarray
) -> np.ndarray | None:
    """The commonest colour that stays unknown under `light`, and the commonest one of the base's that is not here."""
    distance = np.linalg.norm(np.minimum(light * modes, 255.0)[:, None] - base.palette[None], axis=-1)
    known = distance.min(1) < 1.5 * NEAR
    claimed = set(distance.argmin(1)[known].tolist())
    free = [i for i in range(len(base.palette)) if i not in claimed]
    if not free:
        return None
    there = base.palette[free[0]]
    # few demonstrations leave patches of table unseen: those are no landmark, nor is what would have to change its hue
    factors = np.log(there / np.maximum(light * modes, 1.0))
    possible = (np.abs(factors).max(-1) < np.log(MOST_REPAINTED)) & (np.linalg.norm(modes - table, axis=-1) > NEAR)
    unknown = [i for i in np.flatnonzero(~known & possible) if modes[i].max() > 60]
    if not unknown:
        return None
    alike = 1 / 3 < shares[unknown[0]] / base.shares[free[0]] < 3
    return np.stack([modes[unknown[0]], there]) if alike else None
