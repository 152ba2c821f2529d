"""Things that never move are asked about; a table's own pattern is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from deployments import CAMERA, base_facts, fitted, shown

from vla_cli.calibration import calibrate
from vla_cli.calibration.fixtures import doubts, fixtures
from vla_cli.dataset import Demonstration

BOX = (slice(4, 12), slice(4, 12))
"""Rows and columns that no demonstration's own things reach."""


def with_box(demonstration: Demonstration, colour: tuple[int, int, int]) -> Demonstration:
    """The same with a box of one colour on the table, always in the same place."""
    images = {camera: frames.copy() for camera, frames in demonstration.images.items()}
    for frames in images.values():
        frames[:, *BOX] = colour
    return replace(demonstration, images=images)


@pytest.mark.parametrize("shift", ["V", "W", "T", "S"])
def test_nothing_is_asked_where_everything_moved(shift: str) -> None:
    assert doubts([CAMERA], fitted(shift).looks) == []


def test_a_box_that_never_moved_is_named_with_colour_and_place() -> None:
    found = calibrate([with_box(d, (20, 40, 190)) for d in shown("W")], [CAMERA], base_facts())
    look = found.looks[0]
    assert look is not None
    (spot,) = fixtures(look)
    assert spot.place == pytest.approx((8 / 60, 8 / 60), abs=0.02) and spot.share == pytest.approx(64 / 3600, rel=0.3)
    (said,) = doubts([CAMERA], found.looks)
    assert f"camera '{CAMERA}'" in said and "13% from the left and 13% from the top" in said
    erased = found.observe(with_box(shown("W")[0], (20, 40, 190)).images[CAMERA][:1, None])[0, 0]
    assert np.abs(erased[BOX].astype(float) - look.table).max() < 20, "what is said of it is so"
