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

from vla_cli.calibration.robust import TUKEY, NotIdentified

DARKEST, BRIGHTEST = 4.0, 250.0
FRAMES_AN_EPISODE = 40
SAME = 0.04
"""Relative difference (beyond noise) up to which a pixel shows the table."""
STILL = 0.012
"""Relative spread between episodes (beyond noise) up to which a pixel stands still."""
LEAST_TABLE = 0.25
"""Share of the picture that the table must fill."""
PART_OF_TABLE = 0.25
"""Size, against the largest region that stands still, above which another one is table and no thing's middle."""
MOST_TABLE = 0.98
"""Share of the picture above which nothing was moved between the demonstrations, so that things look like table."""
BIN = 24
"""Edge in grey levels of the colour bins in which modes are looked for."""
RING = 48
"""Colours of the table beside a thing that are compared with."""
LEAST_MATCHED = 3
"""Colours that must be found in the base's palette before light is taken from it."""
SAME_LIGHT, MOST_LIGHT = 0.05, 2.5
"""Relative change of the light since the demonstrations below which nothing is done, and largest factor undone."""
SHADE = 1.18
"""Factor by which a landmark's brightness may differ from place to place."""
NEAR = 22.0
"""Grey levels within which two colours are taken for the same."""
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


def table_tolerance(backdrop: np.ndarray, noise: float) -> np.ndarray:
    """[H, W] grey levels within which a pixel shows the bare table [H, W, 3]."""
    return (4 * noise + SAME * np.nan_to_num(backdrop).max(axis=-1)).astype(np.float32)


def basis(height: int, width: int) -> np.ndarray:
    """Polynomials of degree two over the picture, [H * W, 6]: 1, x, y, x^2, x y, y^2 with x, y in -1..1."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)


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


def median_colour(images: np.ndarray) -> np.ndarray:
    """Median colour [3] of the unsaturated pixels of images [..., 3].

    Raises:
        NotIdentified: most of the pixels are saturated.
    """
    pixels = images.reshape(-1, 3)
    fair = ((pixels > DARKEST) & (pixels < BRIGHTEST)).all(axis=1)
    if fair.mean() < 0.3:
        raise NotIdentified(f"{1 - fair.mean():.0%} of the picture is saturated", "less or more light")
    return np.median(pixels[fair], axis=0).astype(np.float64)


def fit_look(videos: Sequence[np.ndarray], base: Look) -> LookTransform:
    """The transform from the demonstrations' look to the base's.

    Args:
        videos: uint8 [T, H, W, 3], one an episode, from one camera that stands still.
        base: the base's look.

    Raises:
        NotIdentified: the picture is saturated, or light is to be told by a table that is too unlike the base's.
    """
    episodes = np.stack([np.median(_some(v, FRAMES_AN_EPISODE), axis=0) for v in videos]).astype(np.float32)
    frames = np.concatenate([_some(v, 6) for v in videos])
    median = median_colour(frames)
    noise = _noise(videos)
    found = _still_region(episodes, noise)
    if found is None:
        return LookTransform(base.table, None, noise, _balance(base.table, median), np.zeros(6), "table", median)
    still, same = found
    lighting = _lighting(np.median(episodes, axis=0), still)
    # whole grey levels, as they are saved
    backdrop = np.round(_table_picture(episodes, still, same & ~still))
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


def _noise(videos: Sequence[np.ndarray]) -> float:
    """Standard deviation of the sensor's noise in grey levels: most pixels do not change between two frames."""
    changes = [np.median(np.abs(np.diff(_first(v).astype(np.float32), axis=0))) for v in videos if len(v) > 1]
    return max(float(np.median(changes)) * 1.4826 / np.sqrt(2), 0.5) if changes else 0.5


def _first(video: np.ndarray) -> np.ndarray:
    return video[:12]


def _still_region(episodes: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The table, and all that looks the same in all episodes [E, H, W, 3], both [H, W] bool; None if none is told."""
    middle = np.median(episodes, axis=0)
    spread = 1.4826 * np.median(np.abs(episodes - middle), axis=0)
    # a rim that a thing crosses in a fifth of the episodes is no table: look at the tails as well
    tails = np.quantile(episodes, 0.9, axis=0) - np.quantile(episodes, 0.1, axis=0)
    varies = np.maximum(spread, tails / 2.56).max(-1)
    # a median over some twenty frames has little of the sensor's noise left
    same = varies < 0.5 * noise + STILL * middle.max(-1)
    same = np.asarray(ndimage.binary_opening(same), bool)
    labels, _ = regions(same)
    sizes = np.bincount(labels[same]) if same.any() else np.zeros(1, int)
    # a row of things can cut the table in two: what is nearly as large as the largest region is table as well
    region = np.isin(labels, np.flatnonzero(sizes > PART_OF_TABLE * sizes.max()))
    return (region, same) if LEAST_TABLE < region.mean() < MOST_TABLE else None


def regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the 4-connected regions of a mask [H, W] bool: labels [H, W] from 1, 0 outside, and how many."""
    found: Any = ndimage.label(mask)
    return np.asarray(found[0]), int(found[1])


def _lighting(backdrop: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Coefficients [6] of the log brightness of the table, its mean over the picture 0, robustly."""
    rows = still.reshape(-1)
    brightness = np.log(np.maximum(backdrop.reshape(-1, 3), 1.0)).mean(-1)
    full = basis(*still.shape)
    x, y, weight = full[rows], brightness[rows], np.ones(int(rows.sum()))
    coefficients = np.zeros(6)
    for _ in range(30):
        root = np.sqrt(weight)
        coefficients = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        residual = y - x @ coefficients
        spread = 1.4826 * np.median(np.abs(residual)) + 1e-6
        weight = np.maximum(1 - (residual / (TUKEY * spread)) ** 2, 0.0) ** 2
    coefficients[0] -= (full @ coefficients).mean()
    return coefficients


def _table_picture(episodes: np.ndarray, table: np.ndarray, islands: np.ndarray) -> np.ndarray:
    """The bare table [H, W, 3], NaN where no episode shows it.

    Around a thing, a pixel shows the thing in some episodes and the table in others, because it stands a little
    elsewhere each time. Which is which is told by the table right beside and by the thing's middle.

    Args:
        episodes: [E, H, W, 3] median picture of each.
        table: [H, W] bool, known to be table.
        islands: [H, W] bool, looks the same in all episodes but is cut off from the table: the middle of a thing.
    """
    picture = np.where(table[..., None], np.median(episodes, axis=0), np.nan).astype(np.float32)
    labels, count = regions(~table)
    for number in range(1, count + 1):
        region = labels == number
        ring = picture[ndimage.binary_dilation(region, iterations=3) & table]
        if len(ring) == 0:
            continue
        ring = ring[:: max(1, len(ring) // RING)]
        things = _thing_colours(episodes, region, islands & region, ring)
        rim = region & ~islands
        if len(things) and rim.any():
            picture[rim] = _shown_table(episodes[:, rim], ring, things)
        elif rim.any():
            # nothing stands here: the gripper rests or passes in some episodes
            picture[rim] = np.median(episodes[:, rim], axis=0)
    return picture


def _thing_colours(episodes: np.ndarray, region: np.ndarray, islands: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Colours [K, 3] in a region that are not the table's beside it."""
    modes, _ = colour_modes(episodes[:, region].reshape(-1, 3), least=0.03)
    foreign = modes[_nearest(modes, ring) > NEAR]
    middles, count = regions(islands)
    own = [np.median(episodes[:, middles == i].reshape(-1, 3), axis=0) for i in range(1, count + 1)]
    return np.concatenate([foreign, np.array(own).reshape(-1, 3)])


def _shown_table(values: np.ndarray, ring: np.ndarray, things: np.ndarray) -> np.ndarray:
    """Median over the episodes [E, N, 3] in which a pixel looks more like the table beside it; NaN where too few do."""
    flat = values.reshape(-1, 3)
    is_table = (_nearest(flat, ring) < 0.7 * _nearest(flat, things)).reshape(values.shape[:2])
    enough = is_table.sum(0) >= max(2, len(values) // 10)
    chosen = np.where(is_table[..., None], values, np.nan)
    found = np.full(values.shape[1:], np.nan, np.float32)
    found[enough] = np.nanmedian(chosen[:, enough], axis=0)
    return found


def _nearest(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance [N] of each colour [N, 3] to the nearest of others [M, 3]."""
    if len(others) == 0:
        return np.full(len(colours), np.inf)
    return np.min([np.linalg.norm(colours - other, axis=-1) for other in others], axis=0)


def colour_modes(pixels: np.ndarray, least: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Most frequent colours [K, 3] of pixels [N, 3] and their shares [K]: peaks of a coarse colour histogram.

    Args:
        pixels: 0..255.
        least: share of the pixels that a mode must have around it.
    """
    if len(pixels) == 0:
        return np.empty((0, 3)), np.empty(0)
    edge = 256 // BIN + 1
    bins = (pixels // BIN).astype(int)
    flat = (bins[:, 0] * edge + bins[:, 1]) * edge + bins[:, 2]
    order = np.argsort(-np.bincount(flat, minlength=edge**3), kind="stable")
    modes: list[np.ndarray] = []
    shares: list[float] = []
    for code in order[:64]:
        inside = flat == code
        if not inside.any():
            break
        centre = np.median(pixels[inside], axis=0)
        near = np.abs(pixels - centre).max(-1) < BIN
        if near.mean() < least:
            continue
        centre = np.median(pixels[near], axis=0)
        if all(np.abs(centre - mode).max() > 1.5 * BIN for mode in modes):
            modes.append(centre)
            shares.append(float((np.abs(pixels - centre).max(-1) < BIN).mean()))
    return np.array(modes, float).reshape(-1, 3), np.array(shares)


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


def match_palette(modes: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, int]:
    """The gain [3] under which most modes [M, 3] fall onto colours of the palette [K, 3]; and how many do.

    Dark modes fit under any gain and do not count. Searched on a grid in log gain, then refined by least squares over
    the matched pairs.
    """
    bright = modes[modes.max(-1) > 60] if len(modes) else modes
    if len(bright) < 2 or len(palette) < 2:
        return np.ones(3), 0
    steps = np.exp(np.linspace(np.log(0.6), np.log(3.0), 24))
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    # illuminants are nearly grey: a gain that differs a lot between channels is less likely
    tint = np.std(np.log(grid), axis=1)
    score = np.zeros(len(grid))
    for mode in bright:
        distance = np.linalg.norm(np.minimum(grid * mode, 255.0)[:, None] - palette[None], axis=-1).min(1)
        score += np.exp(-0.5 * (distance / NEAR) ** 2)
    light = grid[np.argmax(score - 0.5 * tint)]
    for _ in range(5):
        moved = np.minimum(light * bright, 255.0)
        distance = np.linalg.norm(moved[:, None] - palette[None], axis=-1)
        near, best = distance.min(1) < 1.5 * NEAR, distance.argmin(1)
        if not near.any():
            break
        x, y = bright[near], palette[best[near]]
        light = (x * y).sum(0) / np.maximum((x * x).sum(0), 1.0)
    distance = np.linalg.norm(np.minimum(light * bright, 255.0)[:, None] - palette[None], axis=-1)
    near = distance.min(1) < NEAR
    matched = len(set(distance.argmin(1)[near].tolist()))
    return light, matched if near.mean() > 0.5 else 0
