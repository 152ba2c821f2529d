"""The files that a model's weights lie in, and whether all of them are there, whole, without reading a weight.

model.safetensors                  in one file, which wins where both are there (as transformers has it)
model.safetensors.index.json       "weight_map": parameter name to the file, beside the index, that holds it
"""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vla_cli.adapter import MODEL_WEIGHTS
from vla_cli.errors import InputError, words
from vla_cli.files import read_json

INDEX = f"{MODEL_WEIGHTS}.index.json"
_HINT = "the rest of its download (a file of some hundred bytes is git-lfs' mark for one: git lfs pull)"


def check_weight_files(directory: Path, whose: str) -> None:
    """Refuse weights that are not all there: a file that the index names, or the end of a file.

    Only the head of each file is read, which says how long it must be.

    Args:
        directory: of a model in transformers' layout.
        whose: the subject of the error, in the plural: "The weights of ...".

    Raises:
        InputError: a file is missing or cut short, or is no safetensors, or the index cannot be read.
    """
    files = _named(directory, whose)
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(
            f"{whose} cannot be loaded: of the {len(files)} files that {directory / INDEX} names, {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})",
            expected="every one of them beside it",
            hint=_HINT,
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{whose} cannot be loaded: {file} is cut short or no safetensors ({words(error)})",
                expected="the whole file",
                hint=_HINT,
            ) from None


def count_weights(directory: Path) -> int:
    """How many numbers the weights in a directory are, by the heads of files that `check_weight_files` has seen."""
    count = 0
    for file in _named(directory, f"The weights in {directory}"):
        with safe_open(file, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def _named(directory: Path, whose: str) -> list[Path]:
    """The files that hold the weights, there or not."""
    whole = directory / MODEL_WEIGHTS
    if whole.is_file():
        return [whole]
    if not (directory / INDEX).is_file():
        raise InputError(
            f"{whose} cannot be loaded: {directory} has neither {MODEL_WEIGHTS} nor {INDEX}",
            expected="one of them, as transformers and LeRobot save them",
        )
    index = read_json(directory / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(
            f"{whose} cannot be loaded: {directory / INDEX} has no weight_map of parameter names to files",
            expected="the index that came with the weights",
        )
    return [directory / name for name in sorted(set(places.values()))]
