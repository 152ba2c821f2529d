"""Compressed pictures as logs keep them: JPEG and PNG bytes, decoded by Pillow within bounds."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vla_cli.errors import words

LARGEST_PICTURE = 50_000_000  # pixels; a file of a few bytes may claim to hold more than memory does


class NotColour(ValueError):
    """A picture is whole and not in colour: grey, or a depth map. The camera can be left out, and the rest read."""


def decode_picture(data: bytes, label: str) -> np.ndarray:
    """Decode a compressed picture to [H, W, 3] uint8 RGB.

    Raises:
        ValueError: it cannot be decoded or is too large; `label` names it.
        NotColour: it is not in colour.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise ValueError(f"{label} claims {picture.width}x{picture.height} pixels")
            if picture.mode not in ("RGB", "RGBA", "P"):
                raise NotColour(f"{label} is a picture of mode {picture.mode}, not colour")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{label} cannot be decoded ({words(error)})") from None
