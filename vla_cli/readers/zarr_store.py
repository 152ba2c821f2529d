"""The members of a folder or archive as a read-only zarr store. Imported only where zarr is (the extra `zarr`)."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from vla_cli.readers import chunk_bounds
from vla_cli.readers.archive import Members
from vla_cli.readers.zarr_meta import LARGEST_CHUNK, LARGEST_META, ArrayFacts

_SLACK = 65_536  # a chunk that does not compress grows by its header


class MembersStore(Store):
    """Serves metadata and chunks of the arrays in `facts`; each chunk is judged by its header first.

    Args:
        members: where they lie.
        facts: name to array.
    """

    # As zarr's own stores do it, plain values stand for what `Store` declares as properties.
    supports_writes: bool = False  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    supports_deletes: bool = False  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    supports_listing: bool = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, members: Members, facts: Mapping[str, ArrayFacts]) -> None:
        super().__init__(read_only=True)
        self.members, self.facts = members, facts

    def open_array(self, name: str) -> Any:
        """The zarr array of that name."""
        return zarr.open_array(store=self, path=name, mode="r", zarr_format=3 if self.facts[name].version == 3 else 2)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See `Store`."""
        if key not in self.members.sizes:
            return None
        data = self._checked(key)
        if isinstance(byte_range, RangeByteRequest):
            data = data[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            data = data[byte_range.offset :]
        elif isinstance(byte_range, SuffixByteRequest):
            data = data[-byte_range.suffix :]
        return prototype.buffer.from_bytes(data)

    def _checked(self, key: str) -> bytes:
        facts = self.facts.get("/".join(key.split("/")[:2]))
        if facts is None or key.rpartition("/")[2] in (".zarray", ".zattrs", ".zgroup", "zarr.json"):
            return self.members.read(key, LARGEST_META)
        # Filters may widen numbers before they are compressed; a picture codec counts pixels.
        limit = min(2 * facts.chunk_bytes + 64, LARGEST_CHUNK) if facts.filtered else facts.chunk_bytes + 4
        if facts.codec in chunk_bounds.PICTURES:
            limit = math.prod(facts.chunks)
        data = self.members.read(key, 2 * facts.chunk_bytes + _SLACK)
        chunk_bounds.check(facts.codec, data, limit, facts.chunks[0])
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """See `Store`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """See `Store`."""
        return key in self.members.sizes

    async def set(self, key: str, value: Buffer) -> None:
        """See `Store`; refused."""
        self._check_writable()  # which it is not

    async def delete(self, key: str) -> None:
        """See `Store`; refused."""
        self._check_writable()  # which it is not

    async def list(self) -> AsyncIterator[str]:
        """See `Store`."""
        for key in self.members.sizes:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """See `Store`."""
        for key in self.members.sizes:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """See `Store`."""
        for key in self.members.children(prefix.rstrip("/")):
            yield key

    def __eq__(self, other: object) -> bool:
        return self is other
