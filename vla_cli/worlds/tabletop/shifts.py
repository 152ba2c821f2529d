"""Domains of the tabletop: the base domain the policy was trained in, and deployment shifts away from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Domain:
    """How the table looks and how commands move the gripper.

    Attributes:
        rotation: camera rotation in degrees, counter-clockwise as the image shows it.
        zoom: camera magnification.
        offset: camera offset in pixels (right, down).
        background: table colour, RGB in [0, 1].
        plate: plate colour, RGB in [0, 1].
        light: per-channel gain on everything.
        gain: share of a commanded displacement that is carried out, (x, y).
        noise: standard deviation of pixel noise, in [0, 1] units.
    """

    rotation: float = 0.0
    zoom: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    background: RGB = (0.76, 0.70, 0.60)
    plate: RGB = (0.94, 0.94, 0.92)
    light: RGB = (1.0, 1.0, 1.0)
    gain: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.01


_MILD = Domain(
    rotation=6.0,
    zoom=0.98,
    offset=(0.5, -0.5),
    background=(0.56, 0.58, 0.53),
    plate=(0.80, 0.82, 0.86),
    light=(1.0, 0.95, 0.88),
    gain=(0.80, 0.85),
)

DOMAINS: dict[str, Domain] = {
    "base": Domain(),
    "V": _MILD,
    "W": replace(_MILD, background=(0.40, 0.45, 0.52), plate=(0.66, 0.62, 0.72), light=(0.95, 0.82, 0.68)),
    "Y": replace(_MILD, rotation=15.0),
}
"""V mild, W the same geometry with a stronger look, Y a 15 degree turn."""
