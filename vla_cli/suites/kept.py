"""Parts of an evaluation that are finished, kept on disk while it goes on: what an interruption does not cost.

DIRECTORY/<policy>.<condition>.safetensors    arrays, and a JSON document as metadata
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vla_cli.files import replacing

_DOCUMENT = "document"


class Kept:
    """Finished parts by policy and condition.

    Args:
        directory: where they are, or will be; None keeps nothing.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def load(self, policy: str, condition: str) -> tuple[Any, dict[str, np.ndarray]] | None:
        """What was kept of a part, or None where it is not finished."""
        path = self._path(policy, condition)
        if path is None or not path.is_file():
            return None
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return json.loads(file.metadata()[_DOCUMENT]), arrays

    def save(self, policy: str, condition: str, document: Any, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Keep a part, whole or not at all.

        Args:
            policy, condition: which.
            document: JSON values.
            arrays: by name.
        """
        path = self._path(policy, condition)
        if path is None:
            return
        path.parent.mkdir(exist_ok=True)
        contiguous = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        with replacing(path) as partial:
            save_file(contiguous, partial, {_DOCUMENT: json.dumps(document)})

    def _path(self, policy: str, condition: str) -> Path | None:
        return self._directory / f"{policy}.{condition}.safetensors" if self._directory else None


NOTHING_KEPT = Kept()
"""For an evaluation that is not to be resumed."""
