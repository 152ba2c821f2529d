"""Digests of recordings and episodes: of files so large that the kind of digest matters.

SHA-256 takes as long as decoding the pictures does on a machine without instructions for it; BLAKE3 a fifteenth of
that. Small documents, datasets and adapters keep `files.digest`, which anybody can check with `sha256sum`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from blake3 import blake3


def digest_recording(path: Path) -> str:
    """BLAKE3 of a file's bytes, as `blake3:<hex>`."""
    with path.open("rb") as stream:
        return "blake3:" + hashlib.file_digest(stream, blake3).hexdigest()  # pyright: ignore[reportArgumentType]
