import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_cli.errors import InputError
from vla_cli.stats import (
    LARGEST,
    DatasetStatistics,
    ImageStatistics,
    Statistics,
    compute,
    compute_image,
    load_statistics,
    save_statistics,
)

VALUES = arrays(np.float64, st.tuples(st.integers(2, 30), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=32))


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_unnormalise_inverts_normalise_but_for_constant_dimensions(values: np.ndarray) -> None:
    statistics = compute(values)
    back = statistics.unnormalise(statistics.normalise(values))
    expected = np.where(statistics.constant, statistics.mean, values)
    assert np.allclose(back, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(values).max()))


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_no_training_value_ever_explodes(values: np.ndarray) -> None:
    scores = compute(values).normalise(values)
    assert np.all(np.isfinite(scores)) and np.abs(scores).max() <= LARGEST + 1e-3


def test_a_constant_dimension_normalises_to_zero_whatever_comes_in() -> None:
    values = np.stack([np.linspace(0, 1, 50), np.full(50, 3.0), 7 + 1e-6 * np.sin(np.arange(50))], axis=1)
    statistics = compute(values)
    assert statistics.constant.tolist() == [False, True, True]
    assert statistics.normalise(np.array([0.5, 1000.0, -1000.0]))[1:].tolist() == [0.0, 0.0]
    assert np.allclose(statistics.unnormalise(np.array([0.0, 5.0, -5.0]))[1:], [3.0, 7.0])
    assert statistics.std[1:].tolist() == [1.0, 1.0]


def test_a_rare_spike_stays_small() -> None:
    values = np.zeros((10_000, 1))
    values[0] = 1.0
    assert compute(values).normalise(values).max() <= LARGEST


def test_known_numbers() -> None:
    statistics = compute(np.array([[0.0], [1.0], [2.0], [3.0], [4.0]]))
    assert statistics.mean.tolist() == [2.0] and statistics.min.tolist() == [0.0] and statistics.max.tolist() == [4.0]
    assert statistics.std[0] == pytest.approx(np.sqrt(2))
    assert statistics.q01[0] == pytest.approx(0.04) and statistics.q99[0] == pytest.approx(3.96)


def test_a_vector_without_dimensions_is_fine() -> None:
    statistics = compute(np.zeros((4, 0)))
    assert len(statistics) == 0 and statistics.normalise(np.zeros((4, 0))).shape == (4, 0)


def test_image_statistics_are_those_of_all_pixels() -> None:
    videos = [np.random.default_rng(i).integers(0, 256, (3 + i, 4, 5, 3), np.uint8) for i in range(2)]
    pixels = np.concatenate([v.reshape(-1, 3) for v in videos]) / 255
    statistics = compute_image(videos)
    assert np.allclose(statistics.mean, pixels.mean(axis=0)) and np.allclose(statistics.std, pixels.std(axis=0))


def test_json_round_trip_is_exact(tmp_path) -> None:
    vector = compute(np.random.default_rng(0).normal(size=(20, 3)))
    image = ImageStatistics(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]))
    save_statistics(DatasetStatistics(vector, vector, {"cam": image}), tmp_path)
    loaded = load_statistics(tmp_path)
    assert loaded.to_json() == DatasetStatistics(vector, vector, {"cam": image}).to_json()
    assert np.array_equal(loaded.state.mean, vector.mean) and np.array_equal(loaded.images["cam"].std, image.std)


@pytest.mark.parametrize("change", [{"std": [0.0]}, {"mean": [1.0, 2.0]}, {"max": None}, {"min": [float("inf")]}])
def test_malformed_statistics_are_refused(change: dict) -> None:
    document = json.loads(json.dumps(compute(np.arange(4.0)[:, None]).to_json()))
    with pytest.raises(InputError):
        Statistics.from_json({**document, **change})


def test_missing_statistics_name_the_file(tmp_path) -> None:
    with pytest.raises(InputError, match=r"stats\.json"):
        load_statistics(tmp_path)
