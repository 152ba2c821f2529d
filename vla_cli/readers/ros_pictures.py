"""Pictures of sensor_msgs: Image (plain) and CompressedImage (JPEG or PNG)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vla_cli.frames import BLOCK, Frames
from vla_cli.readers.ros_storage import shown

CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)}
_BYTES_A_PIXEL = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}
_LARGEST_BLOCK = 32 * 2**20  # bytes decoded at once
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# image_transport: "<encoding of the original>; jpeg compressed bgr8" is a JPEG with its colours in the right order.
_IN_ORDER = re.compile(r"\w+; ?(jpeg|png) compressed bgr8")


class ImageCheck:
    """Looks at each Image of a topic without decoding it.

    Attributes:
        refusal: why the topic can give no camera; "" when it can.
    """

    def __init__(self) -> None:
        self.refusal = ""
        self.seen: tuple[str, int, int] | None = None

    def add(self, message: Any) -> None:
        """Take a message.

        Raises:
            ValueError: its size does not agree with its bytes, or it differs from the first one.
        """
        if self.refusal:
            return
        if message.encoding not in CHANNELS:
            if self.seen is not None:
                raise ValueError(f"has the encoding '{shown(message.encoding)}', the first one {self.seen[0]}")
            self.refusal = f"its encoding is '{shown(message.encoding)}', not one of {', '.join(CHANNELS)}"
            return
        check_size(message)
        seen = (message.encoding, message.height, message.width)
        if self.seen is None:
            self.seen = seen
        elif seen != self.seen:
            raise ValueError("is {} {}x{}, the first one {} {}x{}".format(*seen, *self.seen))

    @property
    def facts(self) -> dict[str, str]:
        """What the type states."""
        return {"channels": "rgb"}

    @property
    def size(self) -> tuple[int, int, int]:
        """[H, W, 3]."""
        assert self.seen is not None
        return (self.seen[1], self.seen[2], 3)


class CompressedCheck:
    """Looks at each CompressedImage of a topic without decoding it; see `ImageCheck`."""

    def __init__(self) -> None:
        self.refusal, self.formats, self.taken = "", set[str](), 0

    def add(self, message: Any) -> None:
        """Take a message.

        Raises:
            ValueError: it is no JPEG or PNG, though the first one was.
        """
        if self.refusal:
            return
        head = bytes(message.data[:8])
        if not head.startswith((_JPEG, _PNG)):
            said = f"its format is '{shown(message.format)}', and its bytes are no JPEG or PNG"
            if self.taken and len(head):
                raise ValueError(said)
            if self.taken:
                raise ValueError("has no bytes")
            self.refusal = said
        if len(self.formats) < 2:
            self.formats.add(message.format)
        self.taken += 1

    @property
    def facts(self) -> dict[str, str]:
        """What the type states; it says nothing of the channels where a recorder encoded pictures itself."""
        return {"channels": "rgb"} if all(_IN_ORDER.fullmatch(said.strip()) for said in self.formats) else {}


def check_size(message: Any) -> None:
    """Compare an Image's width, height and step with the bytes that are there.

    Raises:
        ValueError: they do not agree.
    """
    row = message.width * _BYTES_A_PIXEL[message.encoding]
    if (
        message.width < 1
        or message.height < 1
        or message.step < row
        or len(message.data) != message.step * message.height
    ):
        raise ValueError(
            f"claims {message.width}x{message.height} {message.encoding} with {message.step} bytes a row "
            f"and has {len(message.data)} bytes"
        )


def to_rgb(message: Any) -> np.ndarray:
    """An Image as [H, W, 3] uint8 RGB; padding at the end of rows is left out.

    Raises:
        ValueError: its size does not agree with its bytes.
    """
    check_size(message)
    depth = _BYTES_A_PIXEL[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width * depth]
    pixels = rows.reshape(message.height, message.width, depth)
    return np.ascontiguousarray(pixels[:, :, list(CHANNELS[message.encoding])])


class RawImages(Frames):
    """Plain pictures, each in a message of its own.

    Args:
        message: step -> the Image.
        shape: [T, H, W, 3].
        label: the camera, for messages.
    """

    def __init__(self, message: Callable[[int], Any], shape: Sequence[int], label: str) -> None:
        self.message, self.label = message, label
        super().__init__(shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`; large pictures come in smaller blocks."""
        height, width, _ = self.shape[1:]
        most = max(1, min(BLOCK, _LARGEST_BLOCK // (height * width * 3)))
        for begin in range(0, len(self), most):
            block = np.empty((min(most, len(self) - begin), *self.shape[1:]), np.uint8)
            for offset in range(len(block)):
                block[offset] = self._decoded(begin + offset)
            yield block

    def _decoded(self, step: int) -> np.ndarray:
        picture = to_rgb(self.message(step))
        if picture.shape != self.shape[1:]:
            raise ValueError(f"{self.label} step {step} is {list(picture.shape)}, not {list(self.shape[1:])}")
        return picture

    def cut(self, length: int) -> RawImages:
        """See `Frames`."""
        return RawImages(self.message, (length, *self.shape[1:]), self.label)
