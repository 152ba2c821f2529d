"""The sample demonstrations as the checks see them."""

import numpy as np
import pytest

from vla_cli.episode import Episode, load_episode, read_manifest
from vla_cli.quality import examine


@pytest.fixture(scope="module")
def recorded(episodes) -> list[Episode]:
    """The sample demonstrations, pictures in memory."""
    found = [load_episode(episodes / row["file"]) for row in read_manifest(episodes)]
    for stream in (s for episode in found for s in episode.of_role("image")):
        stream.values = np.asarray(stream.values)
    return found


@pytest.fixture(scope="module")
def facts(recorded):
    return [examine(episode) for episode in recorded]
