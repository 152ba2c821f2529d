"""What the dataset's page draws of each episode: the path from above, its speed, and a row of pictures."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vla_cli.contact_sheet import ContactSheet, evenly
from vla_cli.frames import Frames
from vla_cli.operators.grasps import position_dims

MOST_ROWS = 12
"""Episodes of the page's contact sheet."""
_QUALITY = 80
_PLACE = re.compile(
    r"^(?!.*joint)(.*[_.\s])?([xy]|(pos|position|xyz|trans|translation|pose|eef|ee|tcp|tool)\[[01]\])$", re.I
)
_XY = (("x", "X", "[0]"), ("y", "Y", "[1]"))


def top_dims(names: Sequence[str]) -> tuple[int, int] | None:
    """The two state dimensions that the page draws as x and y; None where there are fewer than two.

    Those whose names say so ("x" and "y", "eef_pos[0]" and "eef_pos[1]"), else the first two that are neither a
    gripper's nor a rotation's, else the first two.
    """
    if len(names) < 2:
        return None
    places = position_dims(names)
    named = [next((i for i in places if names[i].lower().endswith(axis)), None) for axis in ("x", "y")]
    if named[0] is not None and named[1] is not None:
        return named[0], named[1]
    return (places[0], places[1]) if len(places) > 1 else (0, 1)


def is_from_above(axes: Sequence[str]) -> bool:
    """Whether two dimensions are the x and y of a place, by their names: joints have no above."""
    return all(_PLACE.search(name) and name.endswith(ends) for name, ends in zip(axes, _XY, strict=True))


def top_view(state: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[T, 2] float64 of a state [T, S], raw units; [0, 2] where it has fewer than two dimensions."""
    dims = top_dims(names)
    return np.zeros((0, 2)) if dims is None else np.asarray(state, np.float64)[:, list(dims)]


def speed(state: np.ndarray, names: Sequence[str], rate_hz: float) -> np.ndarray:
    """How fast the arm moves, [T - 1] float64, in the state's own units a second.

    The length of each step in the dimensions of `operators.grasps.position_dims` (Cartesian position, else joints),
    times `rate_hz`.
    """
    dims = position_dims(names) or list(range(state.shape[1]))
    return np.linalg.norm(np.diff(np.asarray(state, np.float64)[:, dims], axis=0), axis=1) * rate_hz


def sheet_episodes(count: int) -> list[int]:
    """Which of so many episodes the contact sheet shows: all, or `MOST_ROWS` evenly spaced ones."""
    return evenly(count, MOST_ROWS).tolist() if count else []


def contact_sheet(rows: Iterable[tuple[str, str, np.ndarray | Frames, np.ndarray]]) -> bytes | None:
    """A contact sheet as JPEG bytes, at most `MOST_ROWS` rows; None without rows.

    Args:
        rows: episode, camera, pictures [T, H, W, 3] uint8 RGB, and timestamps [T] seconds.

    Raises:
        ValueError: a picture cannot be decoded.
    """
    sheet = ContactSheet()
    for row in rows:
        if len(sheet) == MOST_ROWS:
            break
        sheet.add(*row)
    if not len(sheet):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        sheet.save(path)
        return as_jpeg(path.read_bytes())


def as_jpeg(picture: bytes, most: int = 1_000_000) -> bytes:
    """A PNG or JPEG packed small: sensor noise does not compress as PNG. It shrinks to at most so many bytes.

    Raises:
        ValueError: it is no picture.
    """
    try:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
    except OSError as error:
        raise ValueError(f"not a picture ({error})") from None
    while True:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=_QUALITY, optimize=True)
        if packed.tell() <= most or min(image.size) < 64:
            return packed.getvalue()
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BOX)
