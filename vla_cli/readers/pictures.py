"""Compressed pictures as logs keep them: JPEG and PNG bytes, decoded by Pillow within bounds."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

LARGEST_PICTURE = 50_000_000  # pixels; a file of a few bytes may claim to hold more than memory does


def decode_pictures(encoded: Sequence[bytes], label: str) -> np.ndarray:
    """Decode one compressed picture a step to [T, H, W, 3] uint8 RGB.

    Raises:
        ValueError: there is none, one cannot be decoded, one is too large, or sizes differ; it names the step.
    """
    if not encoded:
        raise ValueError(f"{label} has no pictures")
    frames: np.ndarray | None = None
    for step, data in enumerate(encoded):
        picture = _decode(data, f"{label} step {step}")
        if frames is None:
            frames = np.empty((len(encoded), *picture.shape), np.uint8)
        if picture.shape != frames.shape[1:]:
            raise ValueError(f"{label} step {step} is {list(picture.shape)}, step 0 is {list(frames.shape[1:])}")
        frames[step] = picture
    assert frames is not None
    return frames


def _decode(data: bytes, label: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise ValueError(f"{label} claims {picture.width}x{picture.height} pixels")
            if picture.mode not in ("RGB", "RGBA", "P"):
                raise ValueError(f"{label} is a picture of mode {picture.mode}, not colour")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{label} cannot be decoded ({error})") from None
