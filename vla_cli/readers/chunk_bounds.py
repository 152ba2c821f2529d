"""How large a compressed chunk becomes, from its own header, before anything is allocated for it.

A decompressor allocates what the bytes claim. `check` compares that with what the array's shape says a chunk holds.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from typing import Any

from PIL import Image

from vla_cli.errors import words

PICTURES = {
    "imagecodecs_jpegxl": "JPEG XL",
    "imagecodecs_jpeg": "JPEG",
    "imagecodecs_jpeg2k": "JPEG2000",
    "imagecodecs_png": "PNG",
    "imagecodecs_webp": "WEBP",
}
_PIECE = 1 << 20
_MEMORY = 128 * 2**20


def check(codec: str, data: bytes, limit: int, pictures: int) -> None:
    """Refuse a chunk that claims more than `limit` bytes.

    Args:
        codec: the compressor's numcodecs name; "" for none.
        data: the chunk as it lies in the store.
        limit: most bytes it may become.
        pictures: how many pictures the chunk holds.

    Raises:
        ValueError: it becomes more, or its header is damaged.
    """
    try:
        size = _claimed(codec, data, limit, pictures)
    except (struct.error, IndexError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"a chunk is not whole {codec} data ({words(error)})") from None
    if size > limit:
        raise ValueError(f"a chunk of {len(data)} bytes claims to unpack to {size}, where {limit} are expected")


def _claimed(codec: str, data: bytes, limit: int, pictures: int) -> int:
    if codec == "":
        return len(data)
    if codec == "blosc":
        unpacked, _, packed = struct.unpack_from("<III", data, 4)
        if packed > len(data):  # numcodecs believes the header and reads on in whatever memory follows
            raise ValueError(f"a chunk of {packed} bytes is cut short to {len(data)}")
        return unpacked
    if codec == "lz4":
        return struct.unpack_from("<I", data, 0)[0]
    if codec == "zstd":
        return _zstd_size(data)
    if codec in ("zlib", "gzip"):
        return _streamed(lambda: zlib.decompressobj(zlib.MAX_WBITS | 32), data, limit)
    if codec == "bz2":
        return _streamed(bz2.BZ2Decompressor, data, limit)
    if codec == "lzma":
        return _streamed(lambda: lzma.LZMADecompressor(memlimit=_MEMORY), data, limit)
    return _picture_size(codec, data, limit, pictures)


def _streamed(decompressor: Any, data: bytes, limit: int) -> int:
    """Bytes that a stream unpacks to, counted piece by piece; stops soon after `limit`."""
    total = 0
    while data and total <= limit:
        one, before = decompressor(), len(data)
        while not one.eof and total <= limit:
            piece = one.decompress(data, _PIECE)
            total += len(piece)
            data = getattr(one, "unconsumed_tail", b"")
            if not piece and not data:
                break
        data = one.unused_data.lstrip(b"\0")
        if len(data) >= before:
            break
    return total


def _zstd_size(data: bytes) -> int:
    """The content size in a Zstandard frame header (RFC 8878, 3.1.1.1)."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("a chunk does not begin as zstd data do")
    flags = data[4]
    code, single, dictionary = flags >> 6, flags >> 5 & 1, flags & 3
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[dictionary]
    if code == 0 and not single:
        raise ValueError("a chunk is zstd data that do not state their size, which are not read")
    size = int.from_bytes(data[at : at + (1, 2, 4, 8)[code]], "little")
    return size + 256 if code == 1 else size


def _picture_size(codec: str, data: bytes, limit: int, pictures: int) -> int:
    if codec == "imagecodecs_jpegxl":
        width, height, moving = jpegxl_header(data)
        if moving and pictures == 1:
            raise ValueError("a chunk of one picture is a JPEG XL animation")
        # An animation has at least some bytes a frame.
        return width * height * (min(pictures, len(data)) if moving else 1)
    try:
        with Image.open(io.BytesIO(data), formats=(PICTURES[codec],)) as picture:
            return picture.width * picture.height
    except (Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"a chunk is not a readable {PICTURES[codec]} picture ({words(error)})") from None


def jpegxl_header(data: bytes) -> tuple[int, int, bool]:
    """Width, height and whether it moves, of a JPEG XL file (ISO/IEC 18181-1, A.3 and D.2).

    Raises:
        ValueError: it is none.
    """
    bits = _Bits(_codestream(data))
    small = bits.take(1)
    height, width = _jpegxl_size(bits, small)
    if bits.take(1):  # all_default
        return width, height, False
    if not bits.take(1):  # extra_fields
        return width, height, False
    bits.take(3)  # orientation
    if bits.take(1):  # intrinsic size
        _jpegxl_size(bits, bits.take(1))
    if bits.take(1):
        raise ValueError("a chunk is a JPEG XL picture with a preview, which is not read")
    return width, height, bool(bits.take(1))


def _jpegxl_size(bits: _Bits, small: int) -> tuple[int, int]:
    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.take((9, 13, 18, 30)[bits.take(2)]) + 1

    height, ratio = side(), bits.take(3)
    if ratio == 0:
        return height, side()
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * over // under


def _codestream(data: bytes) -> bytes:
    """The first bytes of the bare codestream, out of its container if it has one."""
    if data[:2] == b"\xff\x0a":
        return data[2:66]
    if data[4:8] != b"JXL ":
        raise ValueError("a chunk does not begin as JPEG XL data do")
    at = 0
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            begin = at + head + (4 if kind == b"jxlp" else 0)
            return data[begin + 2 : begin + 66]
        if size < 8:
            break
        at += size
    raise ValueError("a chunk is a JPEG XL container without a picture")


class _Bits:
    """Bits of a byte string, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise ValueError("a chunk of JPEG XL data ends in its header")
        taken = self.value & ((1 << count) - 1)
        self.value, self.left = self.value >> count, self.left - count
        return taken
