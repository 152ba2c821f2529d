"""Shared fixtures. Thread settings come before torch is imported anywhere (platform-facts: OpenMP spin)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest

from vla_cli.configs import FinetuneConfig, IngestConfig, PreprocessConfig

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_data"
INSTRUCTION = "put the red block on the left plate"
LONGEST = ("test_pipeline.py", "test_cli.py", "test_fuzz.py", "test_ingest.py", "test_steer.py", "test_finetune.py")
"""Files begun first: one that takes minutes and comes last leaves the other process with nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first; else everything stays in its order."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own: none writes into the user's, or finds what another run left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def base() -> Path:
    """The embedded base policy: a tiny real model."""
    return SAMPLES / "base"


@pytest.fixture(scope="session")
def sample_episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample demonstrations as episodes."""
    from vla_cli.stages import ingest

    out = tmp_path_factory.mktemp("stages") / "episodes"
    ingest.run(IngestConfig(source=SAMPLES / "demonstrations.hdf5", out=out, instruction=INSTRUCTION))
    return out


@pytest.fixture(scope="session")
def episodes(sample_episodes: Path) -> Path:
    """The sample demonstrations as episodes, under the short name."""
    return sample_episodes


@pytest.fixture(scope="session")
def dataset(episodes: Path) -> Path:
    """The sample demonstrations as a dataset."""
    from vla_cli.stages import preprocess

    out = episodes.parent / "dataset"
    preprocess.run(PreprocessConfig(episodes=episodes, out=out))
    return out


@pytest.fixture(scope="session")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample rehearsal data as a dataset."""
    from vla_cli.stages import ingest, preprocess

    work = tmp_path_factory.mktemp("replay")
    ingest.run(IngestConfig(source=SAMPLES / "rehearsal.hdf5", out=work / "episodes"))
    preprocess.run(PreprocessConfig(episodes=work / "episodes", out=work / "dataset", val_fraction=0.0))
    return work / "dataset"


@pytest.fixture(scope="session")
def adapter(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter after a few steps: enough to differ from the base."""
    from vla_cli.stages import finetune

    out = tmp_path_factory.mktemp("adapters") / "lora"
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe="lora", steps=6, batch_size=8))
    return out


@pytest.fixture(scope="session")
def calibrated(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen adapter: the base's own weights, calibrated to the sample demonstrations."""
    from vla_cli.stages import finetune

    out = tmp_path_factory.mktemp("adapters") / "calibrated"
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe="calibrate"))
    return out
