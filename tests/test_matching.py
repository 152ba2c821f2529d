"""How a dataset is fed to a base: what does not fit is said, what cannot fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_cli.adapter import load_spec
from vla_cli.dataset import Dataset, load_dataset
from vla_cli.errors import InputError
from vla_cli.matching import Base, adapted_spec
from vla_cli.recipe import load_recipe


@pytest.fixture
def demonstrations(dataset: Path) -> Dataset:
    return load_dataset(dataset)


def matched(dataset: Dataset, base: Path, **own: Any) -> tuple[Any, list[str]]:
    """The spec, and what was said; `own` changes what the base says of itself."""
    spec = replace(load_spec(base), **own)
    reference = SimpleNamespace(name="base", digest="sha256:0", revision=None)
    limits = {"action_limit": 32, "state_limit": 32, "image_size": 60, "chunk_size": 8}
    known = Base(reference, spec, **limits, family="flow")  # type: ignore[arg-type]
    warnings: list[str] = []
    return adapted_spec(dataset, known, load_recipe("lora"), kind="lora", tokenizer="", warnings=warnings), warnings


def test_the_bases_own_robot_is_fed_as_the_base_is_and_nothing_is_said(demonstrations: Dataset, base: Path) -> None:
    spec, warnings = matched(demonstrations, base)
    assert (
        warnings == []
        and spec.statistics_from == "base"
        and np.array_equal(spec.state.mean, load_spec(base).state.mean)
    )


@pytest.mark.parametrize(
    ("here", "known", "said"),
    [
        (["front"], ["top"], "'front' is taken for the base's 'top'"),
        (["a", "b"], ["b", "a"], "--camera b --camera a puts them in its order"),
        (["a", "b", "c"], ["a"], "3 camera(s) (a, b, c), the base was trained with 1 (a)"),
        (["a", "b"], ["a", "c"], "'b' is taken for the base's 'c'"),
    ],
)
def test_cameras_that_are_not_the_bases_are_named(
    here: list[str], known: list[str], said: str, demonstrations: Dataset, base: Path
) -> None:
    demonstrations.cameras = here
    spec, (warning,) = matched(demonstrations, base, cameras=known)
    assert said in warning and spec.cameras == here


def test_another_rate_is_said(demonstrations: Dataset, base: Path) -> None:
    _, (warning,) = matched(demonstrations, base, rate_hz=50.0)
    assert "10 Hz" in warning and "50 Hz" in warning


def test_other_units_take_the_datasets_statistics_and_are_said(demonstrations: Dataset, base: Path) -> None:
    demonstrations.statistics.actions.q99[:] *= 1000
    spec, (warning,) = matched(demonstrations, base)
    assert "other units" in warning and spec.statistics_from == "dataset"
    assert spec.actions is demonstrations.statistics.actions


def test_more_dimensions_than_the_base_takes_are_refused(demonstrations: Dataset, base: Path) -> None:
    demonstrations.action_names = [f"a{i}" for i in range(40)]
    with pytest.raises(InputError, match=r"40 action dimensions.*--action-dims 0-31"):
        matched(demonstrations, base)


@pytest.mark.parametrize("edge", [None, 60])
def test_how_the_pictures_were_padded_is_known_at_run_time(
    edge: int | None, demonstrations: Dataset, base: Path
) -> None:
    demonstrations.squared = edge
    assert matched(demonstrations, base)[0].squared == edge
