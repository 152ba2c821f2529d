"""What a zarr array says of itself (zarr v2 `.zarray`, v3 `zarr.json`), judged before the library sees it.

Refused by name: Python objects (they are pickled), codecs that are not in the lists below, chunks that would not fit
in memory. What remains is numbers in chunks of a known size.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_cli.errors import words
from vla_cli.readers.archive import Members
from vla_cli.readers.chunk_bounds import PICTURES

LARGEST_CHUNK = 256 * 2**20
LARGEST_META = 2**20
MOST_CHUNKS = 2_000_000
COMPRESSORS = {"blosc", "lz4", "zstd", "zlib", "gzip", "bz2", "lzma", *PICTURES}
FILTERS = {"delta", "shuffle", "fixedscaleoffset", "quantize", "bitround", "packbits", "crc32", "crc32c", "adler32"}
V3_PLAIN = {"bytes", "transpose", "crc32c"}
_NUMBER = re.compile(r"[<>|]?(b1|[iu][1248]|f[248])")
_V3_NUMBERS = {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))} | {
    f"float{bits}" for bits in (16, 32, 64)
}


@dataclass(frozen=True)
class ArrayFacts:
    """One array of a store.

    Attributes:
        name: its path in the store, such as "data/img".
        version: zarr format, 2 or 3.
        shape: as it claims.
        chunks: shape of one chunk.
        dtype: of its numbers.
        codec: the compressor's numcodecs name; "" for none.
        filtered: whether filters stand between the numbers and the compressor.
        prefix, separator: how its chunks are called.
    """

    name: str
    version: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    codec: str
    filtered: bool
    prefix: str
    separator: str

    @property
    def meta_file(self) -> str:
        """Name of the file these facts are from."""
        return f"{self.name}/{'.zarray' if self.version == 2 else 'zarr.json'}"

    @property
    def chunk_bytes(self) -> int:
        """Size of one chunk, unpacked."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Size of one step."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def chunk_keys(self, start: int, end: int) -> Iterator[tuple[int, str]]:
        """First row and name of each chunk that rows `start` to `end` touch.

        Raises:
            ValueError: there are too many for any recording.
        """
        size = self.chunks[0]
        rows = range(start // size, -(-end // size))
        others = [range(-(-length // chunk)) for length, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        if len(rows) * math.prod(map(len, others)) > MOST_CHUNKS:
            raise ValueError(f"{self.name} claims {len(rows)} chunks for {end - start} steps")
        for coordinates in itertools.product(rows, *others):
            yield coordinates[0] * size, f"{self.name}/{self.prefix}{self.separator.join(map(str, coordinates))}"


def is_array(members: Members, name: str) -> bool:
    """Whether a store has an array of that name."""
    return f"{name}/.zarray" in members.sizes or (
        f"{name}/zarr.json" in members.sizes and _document(members, f"{name}/zarr.json").get("node_type") == "array"
    )


def read_facts(members: Members, name: str) -> ArrayFacts:
    """The facts of one array.

    Raises:
        ValueError: it is damaged, or of a kind that is refused.
    """
    old = f"{name}/.zarray" in members.sizes
    if not old and f"{name}/zarr.json" not in members.sizes:
        raise ValueError(f"there is no array {name}")
    document = _document(members, f"{name}/{'.zarray' if old else 'zarr.json'}")
    try:
        facts = (_version_2 if old else _version_3)(name, document)
    except (TypeError, AttributeError) as error:  # a value of another JSON type than the format has there
        raise ValueError(f"{name} has metadata of a wrong form ({words(error)})") from None
    if len(facts.shape) != len(facts.chunks) or not facts.shape or min(facts.chunks) < 1 or len(facts.shape) > 8:
        raise ValueError(f"{name} has the shape {list(facts.shape)} in chunks of {list(facts.chunks)}")
    if facts.chunk_bytes > LARGEST_CHUNK:
        raise ValueError(f"{name} has chunks of {facts.chunk_bytes / 2**20:.0f} MiB, which do not fit in memory")
    return facts


def _version_2(name: str, document: dict[str, Any]) -> ArrayFacts:
    dtype = document.get("dtype")
    if not isinstance(dtype, str) or not _NUMBER.fullmatch(dtype):
        raise ValueError(f"{name} {_not_numbers(dtype)}")
    filters = document.get("filters") or []
    if not isinstance(filters, list):
        raise ValueError(f"{name} has filters that are no list")
    for one in filters:
        _check_codec(name, one, FILTERS)
    compressor = document.get("compressor")
    separator = document.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise ValueError(f"{name} has the dimension separator {str(separator)[:20]!r}")
    codec = "" if compressor is None else _check_codec(name, compressor, COMPRESSORS)
    shape, chunks = _sizes(name, document.get("shape")), _sizes(name, document.get("chunks"))
    return ArrayFacts(name, 2, shape, chunks, np.dtype(dtype), codec, bool(filters), "", separator)


def _version_3(name: str, document: dict[str, Any]) -> ArrayFacts:
    dtype, grid, keys = (document.get(key) for key in ("data_type", "chunk_grid", "chunk_key_encoding"))
    if not isinstance(dtype, str) or dtype not in _V3_NUMBERS:
        raise ValueError(f"{name} {_not_numbers(dtype)}")
    if not isinstance(grid, dict) or grid.get("name") != "regular" or document.get("storage_transformers"):
        raise ValueError(f"{name} is not cut into regular chunks")
    encoding = keys.get("name") if isinstance(keys, dict) else None
    settings = (keys.get("configuration") or {}) if isinstance(keys, dict) else {}
    separator = settings.get("separator", "/" if encoding == "default" else ".")
    if encoding not in ("default", "v2") or separator not in (".", "/"):
        raise ValueError(f"{name} names its chunks by the encoding {str(encoding)[:40]!r}, which is not known")
    codec, filtered = _version_3_codecs(name, document.get("codecs"))
    chunks = _sizes(name, (grid.get("configuration") or {}).get("chunk_shape"))
    shape, prefix = _sizes(name, document.get("shape")), f"c{separator}" if encoding == "default" else ""
    return ArrayFacts(name, 3, shape, chunks, np.dtype(dtype), codec, filtered, prefix, separator)


def _version_3_codecs(name: str, codecs: Any) -> tuple[str, bool]:
    if not isinstance(codecs, list):
        raise ValueError(f"{name} has no list of codecs")
    found, filtered = [], False
    for one in codecs:
        plain = dict(one, id=str(one.get("name")).removeprefix("numcodecs.")) if isinstance(one, dict) else one
        used = _check_codec(name, plain, COMPRESSORS | FILTERS | V3_PLAIN)
        found += [used] if used in COMPRESSORS else []
        filtered |= used in FILTERS - V3_PLAIN
    if len(found) > 1:
        raise ValueError(f"{name} is compressed {len(found)} times")
    return found[0] if found else "", filtered


def _check_codec(name: str, codec: Any, allowed: set[str]) -> str:
    """The name of a codec, which is one of `allowed` and has no setting that could do harm."""
    used = codec.get("id") if isinstance(codec, dict) else None
    if used not in allowed:
        raise ValueError(
            f"{name} uses the codec {str(used)[:60]!r}, which is not read (pickles and unknown codecs never are)"
        )
    settings = {**codec, **(codec.get("configuration") or {})}
    for key in ("dtype", "astype", "encode_dtype", "decode_dtype"):
        if key in settings and not (isinstance(settings[key], str) and _NUMBER.fullmatch(settings[key])):
            raise ValueError(f"{name} uses the codec {used} with {key} {str(settings[key])[:40]!r}")
    for key in ("numthreads", "nthreads"):
        if settings.get(key) is not None and settings[key] not in range(65):
            raise ValueError(f"{name} uses the codec {used} with {key} {str(settings[key])[:40]!r}")
    return used


def _not_numbers(dtype: Any) -> str:
    pickled = dtype == "|O" or dtype == "object"
    return (
        "holds Python objects, which are never read" if pickled else f"holds {str(dtype)[:60]!r}, which are no numbers"
    )


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int or not 0 <= size < 2**48 for size in value):
        raise ValueError(f"{name} has the sizes {str(value)[:60]}")
    return tuple(value)


def _document(members: Members, name: str) -> dict[str, Any]:
    try:
        document = json.loads(members.read(name, LARGEST_META))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({words(error)})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{name} is not a JSON object")
    return document
