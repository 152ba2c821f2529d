"""A contact sheet: one row a camera of an episode, evenly spaced pictures from first to last, as one PNG.

    demo_0     [picture] [picture] [picture] ...
    front      step 0    step 11   step 22
               0.00 s    1.10 s    2.20 s

Pictures shrink to `BOX` as they are decoded, so that neither an episode nor a row of full pictures stands in memory.
Equal pictures and labels give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_cli.files import replacing
from vla_cli.frames import ArrayFrames, Frames

COLUMNS = 8
MOST_ROWS = 60
"""Rows of a sheet: at `BOX` this is a picture of about 1500 x 8000 pixels, which every viewer opens."""
BOX = (160, 120)
_LABEL = 170
_LINE = 14
_GAP = 6
_FONT_SIZE = 12
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_BACK, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class _Row:
    """Lines beside it, and thumbnails [h, w, 3] uint8 with the lines below each; `fault` where there are none."""

    lines: tuple[str, ...]
    thumbnails: tuple[np.ndarray, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    fault: str = ""


@dataclass
class ContactSheet:
    """Rows of pictures, gathered one camera at a time.

    Attributes:
        columns: pictures a row, at most.
        left_out: rows that were not taken because the sheet was full.
    """

    columns: int = COLUMNS
    left_out: int = 0
    _rows: list[_Row] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, episode: str, camera: str, frames: np.ndarray | Frames, timestamps: np.ndarray) -> None:
        """One more row; a sheet that is full counts it in `left_out`.

        Args:
            episode, camera: the label.
            frames: [T, H, W, 3] uint8 RGB.
            timestamps: [T] seconds.

        Raises:
            ValueError: a picture cannot be decoded; the row says so in the sheet as well.
        """
        if len(self._rows) >= MOST_ROWS:
            self.left_out += 1
            return
        frames = frames if isinstance(frames, Frames) else ArrayFrames(frames)
        length, height, width = frames.shape[:3]
        lines = (episode, camera, f"{width} x {height}, {length} frames")
        try:
            steps = evenly(length, self.columns)
            thumbnails = tuple(_thumbnail(picture) for picture in _picked(frames, steps))
            if len(thumbnails) < len(steps):
                raise ValueError(f"{camera} has fewer pictures than the {length} it promises")
        except ValueError as error:
            self._rows.append(_Row(lines, fault=str(error)))
            raise
        captions = tuple((f"step {step}", _at(timestamps, int(step))) for step in steps)
        self._rows.append(_Row(lines, thumbnails, captions))

    def save(self, path: Path) -> None:
        """Write the sheet as PNG, whole or not at all.

        Raises:
            ValueError: it has no rows.
        """
        if not self._rows:
            raise ValueError("a contact sheet needs at least one row")
        font = ImageFont.load_default(_FONT_SIZE)
        tops = np.cumsum([_GAP, *(_height(row) + _GAP for row in self._rows)]).tolist()
        across = max(1, *(len(row.thumbnails) for row in self._rows))
        sheet = Image.new("RGB", (_GAP + _LABEL + across * (BOX[0] + _GAP), tops[-1]), _BACK)
        draw = ImageDraw.Draw(sheet)
        for row, top in zip(self._rows, tops, strict=False):
            _draw(row, top, sheet, draw, font)
        with replacing(path) as partial:
            sheet.save(partial, "PNG")


def evenly(length: int, columns: int) -> np.ndarray:
    """At most `columns` distinct ascending steps from 0 to `length` - 1, both ends included.

    Raises:
        ValueError: there are none to choose from.
    """
    if length < 1:
        raise ValueError("there are no pictures")
    return np.unique(np.linspace(0, length - 1, min(columns, length)).round().astype(np.int64))


def _picked(frames: Frames, steps: np.ndarray) -> Iterator[np.ndarray]:
    """The pictures at those steps: plain ones alone, packed ones as `Frames.take` decodes them."""
    if not isinstance(frames, ArrayFrames):
        yield from frames.take(steps)
        return
    for step in steps:
        (picture,) = next(ArrayFrames(frames.source, 1, frames.start + int(step)).blocks())
        yield picture


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] within `BOX`, its aspect kept; small ones are enlarged by whole pixels, to stay honest."""
    height, width = picture.shape[:2]
    scale = min(BOX[0] / width, BOX[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST))


def _at(timestamps: np.ndarray, step: int) -> str:
    return f"{float(timestamps[step]) - float(timestamps[0]):.2f} s" if step < len(timestamps) else ""


def _height(row: _Row) -> int:
    """Pixels of a row: its tallest picture with two caption lines, or its label."""
    pictures = max((len(thumbnail) for thumbnail in row.thumbnails), default=0)
    return max(pictures + 2 * _LINE, (len(row.lines) + 1) * _LINE)


def _draw(row: _Row, top: int, sheet: Image.Image, draw: ImageDraw.ImageDraw, font: Font) -> None:
    for index, line in enumerate(row.lines):
        colour = _FAINT if index == len(row.lines) - 1 else _INK
        draw.text((_GAP, top + index * _LINE), _fitting(line, _LABEL - _GAP, font), colour, font)
    left = _GAP + _LABEL
    if row.fault:
        draw.text((left, top), _fitting(row.fault, sheet.width - left - _GAP, font), _INK, font)
    for thumbnail, captions in zip(row.thumbnails, row.captions, strict=True):
        sheet.paste(Image.fromarray(thumbnail), (left, top))
        for index, caption in enumerate(captions):
            draw.text((left, top + len(thumbnail) + index * _LINE), caption, _FAINT, font)
        left += BOX[0] + _GAP


def _fitting(text: str, width: int, font: Font) -> str:
    """The text on one line, cut where it would be wider than so many pixels."""
    text = "".join(c if c.isprintable() else " " for c in text[: width // 2])
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
