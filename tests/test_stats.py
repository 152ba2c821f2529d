import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_cli.episode import load_episode, read_manifest
from vla_cli.errors import InputError
from vla_cli.quality.facts import motion_of
from vla_cli.stats import (
    LARGEST,
    Accumulator,
    DatasetAccumulator,
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


PARTS = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        arrays(np.float64, st.tuples(st.integers(0, 12), st.just(width)), elements=st.floats(-1e3, 1e3)),
        min_size=1,
        max_size=6,
    ).filter(lambda parts: sum(map(len, parts)) > 0)
)


def accumulated(parts) -> Accumulator:
    found = Accumulator()
    for part in parts:
        found.add(part)
    return found


@settings(max_examples=80, deadline=None)
@given(PARTS, st.randoms(use_true_random=False), st.integers(0, 6))
def test_statistics_of_a_split_union_equal_the_whole_to_the_last_bit(parts, chance, cut: int) -> None:
    whole = accumulated(parts).result()
    shuffled = list(parts)
    chance.shuffle(shuffled)
    train, valid = accumulated(shuffled[:cut]), accumulated(shuffled[cut:])
    valid.merge(train)
    assert valid.result().to_json() == whole.to_json()
    direct = compute(np.concatenate(shuffled))
    for key in ("mean", "min", "max", "q01", "q99", "constant"):
        assert np.array_equal(getattr(direct, key), getattr(whole, key))


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_mean_std_and_quantiles_are_the_direct_computation(values: np.ndarray) -> None:
    found = compute(values)
    assert np.allclose(found.mean, values.mean(axis=0), rtol=1e-12, atol=1e-10)
    assert np.array_equal([found.q01, found.q99], np.quantile(values, [0.01, 0.99], axis=0))
    assert np.all(found.std >= values.std(axis=0) * (1 - 1e-12))


def test_float32_episodes_lose_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert compute(values).to_json() == compute(values.astype(np.float64)).to_json()
    assert compute(values.round()).to_json() == compute(values.round().astype(int)).to_json()


def test_nothing_and_nonsense_are_refused() -> None:
    with pytest.raises(InputError, match="no values"):
        Accumulator().result()
    with pytest.raises(InputError, match="NaN"):
        compute(np.array([[np.nan]]))
    with pytest.raises(InputError, match="2 dimensions"):
        accumulated([np.zeros((3, 2)), np.zeros((3, 3))])
    with pytest.raises(InputError, match="2 dimensions"):
        compute(np.zeros((3, 3)), mask=[True, False])


def test_the_joint_of_openpi_814_stays_calm() -> None:
    # q01 and q99 of the fifth joint as posted there; a 0 for it became -3200
    still = np.linspace(1.568642928333805, 1.5696224851423788, 400)
    moving = np.linspace(-1.15, -0.79, 400)
    found = compute(np.stack([moving, still], axis=1))
    assert found.near_constant.tolist() == [False, True] and not found.constant.any()
    assert np.abs(found.normalise(np.zeros(2))).max() <= LARGEST + 1
    assert np.allclose(found.unnormalise(found.normalise([[-1.0, 1.5693]])), [[-1.0, 1.5693]], atol=1e-6)


def test_noise_is_near_constant_and_small_smooth_motion_is_not() -> None:
    noise = np.random.default_rng(0).uniform(-3e-4, 3e-4, 300)
    smooth = 3e-4 * np.sin(np.linspace(0, 6, 300))
    spikes = np.zeros(300)
    spikes[150] = 1.0
    found = compute(np.stack([noise, smooth, spikes], axis=1))
    assert found.near_constant.tolist() == [True, False, True]
    assert np.abs(found.normalise(np.array([0.01, 0.0, 0.0]))[0]) < LARGEST


def test_a_masked_dimension_is_left_alone() -> None:
    values = np.stack([np.linspace(0, 10, 20), np.arange(20) % 2, np.ones(20)], axis=1)
    found = compute(values, mask=[True, False, False])
    assert np.array_equal(found.normalise(values)[:, 1:], values[:, 1:])
    assert np.array_equal(found.unnormalise(values)[:, 1:], values[:, 1:])
    again = Statistics.from_json(json.loads(json.dumps(found.to_json())))
    assert again.mask.tolist() == [True, False, False] and again.to_json() == found.to_json()
    assert "mask" not in compute(values).to_json()
    assert found.pick([2, 0]).mask.tolist() == [False, True]


def test_flags_of_another_length_are_refused() -> None:
    document = compute(np.arange(4.0)[:, None]).to_json()
    with pytest.raises(InputError, match="lengths"):
        Statistics.from_json({**document, "mask": [True, False]})


def test_episodes_merged_after_the_split_give_the_statistics_of_its_training_part(episodes) -> None:
    each, motions, videos = [], [], []
    for row in read_manifest(episodes)[:8]:
        episode = load_episode(episodes / row["file"])
        motion, camera = motion_of(episode), episode.of_role("image")[0]
        one = DatasetAccumulator(action_mask=[True, True, False])
        one.add(motion.state, motion.actions, {camera.name: camera.values.blocks()})
        each.append(one)
        motions.append(motion)
        videos.append(np.concatenate(list(camera.values.blocks())))
    train = [5, 0, 7, 2]
    together = DatasetAccumulator()
    for index in train:
        together.merge(each[index])
    found = together.result()
    direct = compute(np.concatenate([motions[i].state for i in sorted(train)]))
    assert found.state.to_json() == direct.to_json()
    assert found.actions.mask.tolist() == [True, True, False] and found.state.mask.all()
    (image,) = found.images.values()
    pixels = np.concatenate([videos[i].reshape(-1, 3) for i in train]) / 255
    assert np.allclose(image.mean, pixels.mean(axis=0), rtol=1e-12)
    assert np.allclose(image.std, pixels.std(axis=0), rtol=1e-9)
    assert np.array_equal(image.mean, compute_image([videos[i] for i in sorted(train)]).mean)
