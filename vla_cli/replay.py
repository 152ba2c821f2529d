"""Base-domain data to rehearse, fed to the policy in the same way as the demonstrations it is mixed with."""

from __future__ import annotations

from pathlib import Path

from vla_cli.dataset import Dataset, Demonstration, load_dataset
from vla_cli.episode import MANIFEST, Skipped, load_episode, read_manifest
from vla_cli.errors import InputError
from vla_cli.synchrony.synchronise import SyncOptions, synchronise
from vla_cli.windows import Windows


def load_replay(path: Path, dataset: Dataset, chunk: int) -> tuple[Windows, list[Skipped]]:
    """Load replay for a dataset of demonstrations.

    Cameras of the same names correspond by these; else by their order, whatever the two logs call them.

    Args:
        path: a dataset, or episodes (put on the demonstrations' clock and image size here).
        dataset: the demonstrations.
        chunk: action steps a window.

    Returns:
        The windows, and the episodes that could not be used.

    Raises:
        InputError: nothing can be used, or dimensions, cameras or image sizes are not the demonstrations'.
    """
    skipped: list[Skipped] = []
    if (path / MANIFEST).is_file():
        demonstrations = _from_episodes(path, dataset, skipped)
    else:
        found = load_dataset(path)
        demonstrations = found.split("train") + found.split("valid")
    if not demonstrations:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
        raise InputError(f"--replay {path} has no episode that can be used ({reasons or 'it is empty'})")
    for demonstration in demonstrations:
        _check_fits(demonstration, path, dataset)
        theirs = dataset.cameras if set(demonstration.images) == set(dataset.cameras) else list(demonstration.images)
        images = [demonstration.images[camera] for camera in theirs]
        demonstration.images = dict(zip(dataset.cameras, images, strict=True))
    return Windows(demonstrations, dataset.cameras, chunk), skipped


def _image_size(demonstration: Demonstration) -> tuple[int, ...]:
    return next(iter(demonstration.images.values())).shape[1:3]


def _check_fits(demonstration: Demonstration, path: Path, dataset: Dataset) -> None:
    found = (demonstration.state.shape[1], demonstration.actions.shape[1], len(demonstration.images))
    wanted = (len(dataset.state_names), len(dataset.action_names), len(dataset.cameras))
    size, wanted_size = _image_size(demonstration), _image_size(dataset.demonstrations[0])
    if found != wanted or size != wanted_size:
        raise InputError(
            f"--replay {path}: '{demonstration.name}' has {found[0]} state and {found[1]} action dimensions and "
            f"{found[2]} camera(s) of {size[0]} x {size[1]} pixels",
            expected=f"as the dataset: {wanted[0]}, {wanted[1]}, {wanted[2]} of {wanted_size[0]} x {wanted_size[1]}",
            hint="vla preprocess it with the same options as the demonstrations, and pass that dataset",
        )


def _from_episodes(path: Path, dataset: Dataset, skipped: list[Skipped]) -> list[Demonstration]:
    height, width = _image_size(dataset.demonstrations[0])
    demonstrations = []
    for row in read_manifest(path):
        episode = load_episode(path / row["file"])
        options = SyncOptions(
            rate=dataset.rate_hz,
            cameras=tuple(stream.name for stream in episode.of_role("image")),
            image_size=height if height == width else None,
        )
        found = synchronise(episode, options)
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            demonstrations.append(found.demonstration)
    return demonstrations
