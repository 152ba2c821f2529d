"""What is told of a comparison: whether camera or light have moved since the demonstrations of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_cli.errors import CheckFailed, InputError
from vla_cli.fingerprint import load_fingerprint
from vla_cli.fingerprint.deployment import load_pictures
from vla_cli.fingerprint.glimpses import Features
from vla_cli.fingerprint.verdict import compare
from vla_cli.progress import Progress


def tell_comparison(
    dataset: Path, pictures: Path, features: Callable[[], Features | None], progress: Progress, *, strict: bool
) -> dict[str, Any]:
    """Compare pictures of a deployment with a dataset, and say what was found.

    Args:
        dataset: a directory written by preprocess.
        pictures: see `deployment`.
        features: those that the fingerprint was made with, asked for once the pictures are there.
        progress: is told sentences, and a table a camera.
        strict: fail where something has moved.

    Returns:
        JSON values; the cameras as "rows".

    Raises:
        InputError: one of them cannot be read, or they do not fit.
        CheckFailed: `strict`, and something has moved.
    """
    known = load_fingerprint(dataset)
    try:
        found = compare(known, load_pictures(pictures, list(known.cameras)), features())
    except ValueError as error:
        raise InputError(
            f"{pictures} cannot be compared with {dataset} ({error})",
            expected="pictures of the same cameras, as they give them",
        ) from None
    sentences = [camera.sentence for camera in found.cameras]
    sentences += [
        f"Camera {name}: no pictures of it were given, so that nothing is known of it." for name in found.unseen
    ]
    for sentence in sentences:
        progress.note(sentence)
    for camera in found.cameras:
        seen = f"{camera.camera}: {camera.verdict}, by {camera.scenes} scenes and {camera.pictures} pictures"
        judged = [
            [c.quantity, c.words if c.moved else "as in the demonstrations", f"{c.p:.2g}"] for c in camera.changes
        ]
        progress.table(seen, ["", "what the pictures say", "p"], judged)
    if strict and found.verdict == "moved":
        raise CheckFailed(f"--strict, and the deployment is not what was demonstrated in: {' '.join(sentences)}")
    document = found.document()
    return {"rows": document.pop("cameras"), **document}
