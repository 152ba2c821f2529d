"""Things that stood in the same place in every demonstration: the look takes them for table.

What is table is told by what does not change between demonstrations (`calibration.look`). A bin, a fixture, or plates
that stay while blocks are put down anew do not change either; they are painted into the picture of the bare table, and
erased from what the base sees. They cannot be told from a strong pattern on the table, so this only asks: spots of the
bare table that differ from most of it as clearly as things do, with an edge all around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vla_cli.calibration.look import LookTransform
from vla_cli.calibration.palette import NEAR
from vla_cli.calibration.table import basis, regions

CLEARLY = 2.5 * NEAR
"""Grey levels from the table's own colour; a wooden table's grain stays below (the tabletop's T: 44 at most)."""
SMALLEST, LARGEST = 0.002, 0.1
"""Shares of the picture between which a spot may be a thing."""


@dataclass(frozen=True)
class Fixture:
    """A spot of the bare table that looks like a thing.

    Attributes:
        colour: [3] its median, 0..255, under an even light.
        place: of its middle, shares of the picture's edges from the left and from the top.
        share: of the picture.
    """

    colour: np.ndarray
    place: tuple[float, float]
    share: float

    def words(self) -> str:
        """Colour and place."""
        rgb = "/".join(f"{value:.0f}" for value in self.colour)
        return f"RGB {rgb} at {self.place[0]:.0%} from the left and {self.place[1]:.0%} from the top"


def fixtures(look: LookTransform) -> list[Fixture]:
    """What may be things among what is taken for table, the largest first; none where no table was found."""
    if look.backdrop is None:
        return []
    height, width = look.backdrop.shape[:2]
    known = ~np.isnan(look.backdrop[..., 0])
    even = look.backdrop / np.exp(basis(height, width) @ look.lighting).reshape(height, width, 1)
    apart = np.abs(even - np.median(even[known], axis=0)).max(-1)
    labels, count = regions(np.asarray(ndimage.binary_opening(known & (np.nan_to_num(apart) > CLEARLY)), bool))
    found = [_fixture(labels == number, even) for number in range(1, count + 1) if _is_inside(labels == number)]
    return sorted((one for one in found if SMALLEST <= one.share <= LARGEST), key=lambda one: -one.share)


def doubts(cameras: Sequence[str], looks: Sequence[LookTransform | None]) -> list[str]:
    """What a user should look at, a few sentences a camera."""
    found = []
    for camera, look in zip(cameras, looks, strict=True):
        spots = fixtures(look) if look is not None else []
        if spots:
            some = "; ".join(spot.words() for spot in spots[:3]) + ("; ..." if len(spots) > 3 else "")
            found.append(
                f"camera '{camera}': {len(spots)} spot(s) that are the same in all demonstrations differ from the "
                f"table as things do ({some}). They are taken for table and erased from what the policy sees. If "
                "something stands there, put it down anew for some of the demonstrations and calibrate again, or set "
                "this camera's entry in `looks` to null in policy.json."
            )
    return found


def _is_inside(spot: np.ndarray) -> bool:
    """Whether a spot [H, W] bool keeps off the picture's edges: walls and the robot's own base do not."""
    return not (spot[0].any() or spot[-1].any() or spot[:, 0].any() or spot[:, -1].any())


def _fixture(spot: np.ndarray, even: np.ndarray) -> Fixture:
    rows, columns = np.nonzero(spot)
    place = ((columns.mean() + 0.5) / spot.shape[1], (rows.mean() + 0.5) / spot.shape[0])
    return Fixture(np.median(even[spot], axis=0), place, float(spot.mean()))
