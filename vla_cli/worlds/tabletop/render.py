"""Batched rendering of the table in NumPy: each thing is a small anti-aliased stamp from a signed distance.

Image axes: rows run down, columns run right. A table point (x, y) is drawn at

    pixel = size * (1/2 + zoom * R(rotation) @ ((x, 1 - y) - 1/2)) + offset        (column, row)
"""

from __future__ import annotations

import numpy as np

from vla_cli.worlds.tabletop.scene import COLOURS, SHAPES
from vla_cli.worlds.tabletop.shifts import Domain
from vla_cli.worlds.tabletop.surface import falloff, wood_grain

SIZE = 60
OBJECT_RADIUS = 0.062
PLATE_RADIUS = 0.105
FINGER = (0.014, 0.050)
"""Half width and half height of one gripper finger, metres."""
FINGER_GAP_OPEN, FINGER_GAP_CLOSED = 0.085, 0.045
"""Distance of each finger from the gripper's centre, metres."""

_COLOUR_TABLE = np.array(list(COLOURS.values()), np.float32)
_COLOUR_INDEX = {name: i for i, name in enumerate(COLOURS)}
_SHAPE_INDEX = {name: i for i, name in enumerate(SHAPES)}
_MARGIN = 16
"""Pixels of canvas beyond each edge, so that a stamp never has to be clipped."""


def object_codes(objects: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Colour and shape indices [4] of a scene's objects."""
    return (
        np.array([_COLOUR_INDEX[colour] for colour, _ in objects]),
        np.array([_SHAPE_INDEX[shape] for _, shape in objects]),
    )


class Camera:
    """The map from table to pixels, one per batch element.

    Args:
        rotation: degrees [B] or scalar.
        zoom: [B] or scalar.
        offset: pixels [B, 2] or [2].
    """

    def __init__(self, rotation: np.ndarray | float, zoom: np.ndarray | float, offset: np.ndarray) -> None:
        angle = np.deg2rad(np.atleast_1d(np.asarray(rotation, np.float64)))
        cos, sin = np.cos(angle), np.sin(angle)
        # rows run down, so this turns counter-clockwise as the image shows it
        self.turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
        self.zoom = np.atleast_1d(np.asarray(zoom, np.float64))
        self.offset = np.atleast_2d(np.asarray(offset, np.float64))

    def project(self, xy: np.ndarray) -> np.ndarray:
        """Table points [B, N, 2] to pixels [B, N, 2] as (column, row)."""
        flipped = np.stack([xy[..., 0], 1.0 - xy[..., 1]], -1) - 0.5
        turned = np.einsum("bij,bnj->bni", np.broadcast_to(self.turn, (len(xy), 2, 2)), flipped)
        return SIZE * (0.5 + self.zoom[:, None, None] * turned) + self.offset[:, None, :]

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [B, N, 2] as (column, row) to table points [B, N, 2]: the inverse of `project`."""
        turned = ((pixels - self.offset[:, None, :]) / SIZE - 0.5) / self.zoom[:, None, None]
        flipped = np.einsum("bji,bnj->bni", np.broadcast_to(self.turn, (len(turned), 2, 2)), turned) + 0.5
        return np.stack([flipped[..., 0], 1.0 - flipped[..., 1]], -1)


def camera_of(domain: Domain) -> Camera:
    """The camera of a domain."""
    return Camera(domain.rotation, domain.zoom, np.array(domain.offset))


def grain_of(domain: Domain) -> np.ndarray | None:
    """A domain's wood grain as its camera sees it: factors [1, 60, 60, 3] float32 at the pixels' centres, or None."""
    if not domain.texture:
        return None
    row, column = np.mgrid[:SIZE, :SIZE] + 0.5
    xy = camera_of(domain).unproject(np.stack([column, row], -1).reshape(1, -1, 2))
    return wood_grain(xy, domain.texture).reshape(1, SIZE, SIZE, 3).astype(np.float32)


def falloff_of(domain: Domain) -> np.ndarray | None:
    """A domain's falling light: factors [1, 60, 60, 1] float32, or None."""
    if not domain.gradient:
        return None
    return falloff(SIZE, domain.gradient).reshape(1, SIZE, SIZE, 1).astype(np.float32)


def _disc(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.hypot(dx, dy) - radius


def _block(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(dx), np.abs(dy)) - 0.82 * radius


def _wedge(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    # an upright triangle: the intersection of three half planes
    sides = np.maximum(0.866 * np.abs(dx) - 0.5 * dy, dy)
    return sides - 0.60 * radius


class _Canvas:
    """A batch of float32 images with a margin, onto which stamps are blended."""

    def __init__(self, batch: int, background: np.ndarray, camera: Camera) -> None:
        edge = SIZE + 2 * _MARGIN
        self.pixels = np.empty((batch, edge, edge, 3), np.float32)
        self.pixels[:] = background.reshape(-1, 1, 1, 3)
        self.camera = camera
        self.scale = (SIZE * camera.zoom).astype(np.float32).reshape(-1, 1, 1)
        self.turn = camera.turn.astype(np.float32)
        self.edge = edge
        self.flat = self.pixels.reshape(-1, 3)
        self.first = (np.arange(batch) * edge * edge)[:, None, None]

    def window(self, centre: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat pixel indices around `centre` [B, 2] and each pixel's offset from it in the table's directions."""
        corner = np.clip(np.floor(centre).astype(np.int64), -_MARGIN + reach, SIZE + _MARGIN - reach - 1)
        steps = np.arange(-reach, reach + 1)
        columns = corner[:, None, 0:1] + steps[None, None, :]
        rows = corner[:, None, 1:2] + steps[None, :, None]
        dx = (columns + 0.5 - centre[:, 0, None, None]).astype(np.float32)
        dy = (rows + 0.5 - centre[:, 1, None, None]).astype(np.float32)
        t = self.turn
        # the inverse turn: stamps stand upright on the table, not in the image
        local_x = t[:, 0, 0, None, None] * dx + t[:, 1, 0, None, None] * dy
        local_y = t[:, 0, 1, None, None] * dx + t[:, 1, 1, None, None] * dy
        return self.first + (rows + _MARGIN) * self.edge + columns + _MARGIN, local_x, local_y

    def blend(self, pixels: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> None:
        """Blend `colour` [B or 1, 3] where the signed distance (pixels) is negative, with a one-pixel edge."""
        alpha = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        here = self.flat[pixels]
        self.flat[pixels] = here + alpha * (colour.reshape(-1, 1, 1, 3) - here)


def render(
    *,
    camera: Camera,
    background: np.ndarray,
    plate_colour: np.ndarray,
    light: np.ndarray,
    plate_xy: np.ndarray,
    object_xy: np.ndarray,
    colour_codes: np.ndarray,
    shape_codes: np.ndarray,
    gripper_xy: np.ndarray,
    closed: np.ndarray,
    held: np.ndarray,
    grain: np.ndarray | None = None,
    shade: np.ndarray | None = None,
) -> np.ndarray:
    """Render a batch of tables without noise.

    Args:
        camera: its arrays have batch B or 1.
        background, plate_colour, light: RGB [B, 3] or [1, 3].
        plate_xy, object_xy: [B, 4, 2] table coordinates.
        colour_codes, shape_codes: [B, 4] indices into `COLOURS` and `SHAPES`.
        gripper_xy: [B, 2] table coordinates.
        closed: [B] bool.
        held: [B] index of the held object, or -1; a held object is drawn above the others.
        grain: factors on the bare table [B or 1, 60, 60, 3]; see `grain_of`.
        shade: factors on everything [B or 1, 60, 60, 1], after `light`; see `falloff_of`.

    Returns:
        [B, 60, 60, 3] float32 in [0, 1].
    """
    batch = len(gripper_xy)
    canvas = _Canvas(batch, background.astype(np.float32), camera)
    if grain is not None:
        # before anything is put on it: only the bare table has grain
        canvas.pixels[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] *= grain
    plates = camera.project(plate_xy)
    for i in range(plate_xy.shape[1]):
        pixels, dx, dy = canvas.window(plates[:, i], 8)
        canvas.blend(pixels, _disc(dx, dy, PLATE_RADIUS * canvas.scale), plate_colour.astype(np.float32))
    objects = camera.project(object_xy)
    everyone = np.arange(batch)
    # the held object is stamped last: swap it into the last slot of the drawing order
    order = np.tile(np.arange(object_xy.shape[1]), (batch, 1))
    holding = held >= 0
    order[everyone[holding], held[holding]] = object_xy.shape[1] - 1
    order[everyone[holding], -1] = held[holding]
    for slot in range(object_xy.shape[1]):
        which = order[:, slot]
        pixels, dx, dy = canvas.window(objects[everyone, which], 6)
        radius = OBJECT_RADIUS * canvas.scale
        shape = shape_codes[everyone, which][:, None, None]
        distance = np.where(
            shape == 0, _block(dx, dy, radius), np.where(shape == 1, _disc(dx, dy, radius), _wedge(dx, dy, radius))
        )
        canvas.blend(pixels, distance, _COLOUR_TABLE[colour_codes[everyone, which]])
    _stamp_gripper(canvas, camera.project(gripper_xy[:, None, :])[:, 0], closed)
    image = canvas.pixels[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] * light.astype(np.float32).reshape(-1, 1, 1, 3)
    if shade is not None:
        image *= shade
    return np.clip(image, 0.0, 1.0)


def _stamp_gripper(canvas: _Canvas, centre: np.ndarray, closed: np.ndarray) -> None:
    pixels, dx, dy = canvas.window(centre, 7)
    gap = np.where(closed, FINGER_GAP_CLOSED, FINGER_GAP_OPEN).astype(np.float32)[:, None, None] * canvas.scale
    across = np.abs(np.abs(dx) - gap) - FINGER[0] * canvas.scale
    along = np.abs(dy) - FINGER[1] * canvas.scale
    canvas.blend(pixels, np.maximum(across, along), np.full((1, 3), 0.05, np.float32))


def to_uint8(image: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Float image in [0, 1] plus noise to uint8, rounded."""
    return np.clip((image + noise) * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
