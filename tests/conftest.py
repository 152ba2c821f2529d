"""Shared fixtures. Thread settings come before torch is imported anywhere (platform-facts: OpenMP spin)."""

import fcntl
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from builders import short_episodes
from forks import Forks

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


@pytest.fixture(scope="session", autouse=True)
def base_read_once() -> Iterator[None]:
    """The embedded base is loaded hundreds of times: copies of what was read first, where the tests load models."""
    checkpoint = sys.modules.get("vla_cli.policies.checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        if checkpoint is not None:
            whole = checkpoint.load_base
            for module in [m for m in list(sys.modules.values()) if vars(m).get("load_base") is whole]:
                patch.setattr(module, "load_base", _copies(whole))
        yield


@pytest.fixture(scope="session", autouse=True)
def steps_are_not_timed() -> Iterator[None]:
    """A dry run does three training steps and counts two; tests of everything else in a plan need not wait for them."""
    estimate, stage = (sys.modules.get(f"vla_cli.{name}.estimate") for name in ("policies", "stages.finetune"))
    with pytest.MonkeyPatch.context() as patch:
        if estimate is not None:
            patch.setattr(estimate, "seconds_a_step", lambda prepare: 0.25)
        if stage is not None:
            patch.setattr(stage, "activation_bytes", lambda config, size, **_: size.windows * 10**6)
        yield


def _copies(load: Callable[..., Any]) -> Callable[..., Any]:
    read: dict[str, Any] = {}

    @wraps(load)
    def load_base(base: str, *, tokenizer: str = "") -> Any:
        if Path(base) != SAMPLES / "base" or tokenizer:
            return load(base, tokenizer=tokenizer)
        if base not in read:
            read[base] = load(base)
        model, prompts, files = read[base]
        return deepcopy(model), copy(prompts), files

    return load_base


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """`vla` in processes of its own, begun fast; their hash seed is not this process's."""
    with Forks(tmp_path_factory.mktemp("forks"), PYTHONHASHSEED="1") as made:
        yield made


@pytest.fixture
def brief() -> Iterator[None]:
    """See `short_episodes`."""
    with short_episodes():
        yield


@pytest.fixture(scope="session")
def base() -> Path:
    """The embedded base policy: a tiny real model."""
    return SAMPLES / "base"


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What every process of a test run reads: made by the first that asks, while the others wait.

    Args:
        tmp_path_factory: of the process.
        name: where, below the folder that they share.
        make: makes it there, whole or not at all.
    """
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    path = shared / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def sample_episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample demonstrations as episodes."""
    from vla_cli.stages import ingest

    source = SAMPLES / "demonstrations.hdf5"
    return _made_once(
        tmp_path_factory,
        "stages/episodes",
        lambda out: ingest.run(IngestConfig(source=source, out=out, instruction=INSTRUCTION)),
    )


@pytest.fixture(scope="session")
def episodes(sample_episodes: Path) -> Path:
    """The sample demonstrations as episodes, under the short name."""
    return sample_episodes


@pytest.fixture(scope="session")
def dataset(episodes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample demonstrations as a dataset."""
    from vla_cli.stages import preprocess

    return _made_once(
        tmp_path_factory,
        "stages/dataset",
        lambda out: preprocess.run(PreprocessConfig(episodes=episodes, out=out)),
    )


@pytest.fixture(scope="session")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample rehearsal data as a dataset, beside its episodes."""
    from vla_cli.stages import ingest, preprocess

    def make(out: Path) -> None:
        shown = out.parent / "episodes"
        ingest.run(IngestConfig(source=SAMPLES / "rehearsal.hdf5", out=shown, overwrite=True))
        preprocess.run(PreprocessConfig(episodes=shown, out=out, val_fraction=0.0))

    return _made_once(tmp_path_factory, "replay/dataset", make)


@pytest.fixture(scope="session")
def adapter(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter after a few steps: enough to differ from the base."""
    from vla_cli.stages import finetune

    config = FinetuneConfig(dataset=dataset, base=str(base), out=dataset, recipe="lora", steps=6, batch_size=8)
    return _made_once(tmp_path_factory, "adapters/lora", lambda out: finetune.run(replace(config, out=out)))


@pytest.fixture(scope="session")
def calibrated(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen adapter: the base's own weights, calibrated to the sample demonstrations."""
    from vla_cli.stages import finetune

    config = FinetuneConfig(dataset=dataset, base=str(base), out=dataset, recipe="calibrate")
    return _made_once(tmp_path_factory, "adapters/calibrated", lambda out: finetune.run(replace(config, out=out)))
