"""Domains of the tabletop: the base domain the policy was trained in, and deployment shifts away from it.

    domain  what is different
    base    nothing
    V       mild: camera turned by 6 degrees, darker table and plates, warm light, commands carried out to 80 and 85 %
    W       V with a stronger look
    Y       V with the camera turned by 15 degrees
    T       W with a wooden table and light that falls off across the picture by 40 %
    S       V with brim-full cups: what is carried fast slips, what is let go of while moving tumbles
    D       V with fingers that follow their commands two steps late

V, W, Y and T change how things look and how far a command carries, D when a command takes effect. S asks for a new
skill. It is no shift of appearance or gain: the pictures are V's and a command leads to the same displacement as in V,
so no correction of images or actions turns it back. The base never had a reason to carry slowly, or to stop before it
lets go, so it spills nearly every time. And the skill belongs to no object or place: what demonstrations show with one
object and one plate holds for all, so a policy that keeps what it knew can use it for instructions never shown.
"""

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
        texture: relative amplitude of the bare table's wood grain; it lies on the table and turns with the camera.
        gradient: share of the light lost across the picture, linearly from the upper left to the lower right corner.
        gripper_delay: control steps between a gripper command and its effect.
        carry_limit: largest displacement in a step, on either axis as a share of the speed limit, at which a held
            object does not slip; 1 for no limit.
        release_limit: the same for letting go without the object tumbling on; 1 for no limit.
    """

    rotation: float = 0.0
    zoom: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    background: RGB = (0.76, 0.70, 0.60)
    plate: RGB = (0.94, 0.94, 0.92)
    light: RGB = (1.0, 1.0, 1.0)
    gain: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.01
    texture: float = 0.0
    gradient: float = 0.0
    gripper_delay: int = 0
    carry_limit: float = 1.0
    release_limit: float = 1.0


_MILD = Domain(
    rotation=6.0,
    zoom=0.98,
    offset=(0.5, -0.5),
    background=(0.56, 0.58, 0.53),
    plate=(0.80, 0.82, 0.86),
    light=(1.0, 0.95, 0.88),
    gain=(0.80, 0.85),
)

_STRONG = replace(_MILD, background=(0.40, 0.45, 0.52), plate=(0.66, 0.62, 0.72), light=(0.95, 0.82, 0.68))

DOMAINS: dict[str, Domain] = {
    "base": Domain(),
    "V": _MILD,
    "W": _STRONG,
    "Y": replace(_MILD, rotation=15.0),
    "T": replace(_STRONG, texture=0.7, gradient=0.4),
    "S": replace(_MILD, carry_limit=0.45, release_limit=0.2),
    "D": replace(_MILD, gripper_delay=2),
}
"""Name to domain; see the table above."""
