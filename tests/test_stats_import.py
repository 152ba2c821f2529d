import json
from pathlib import Path

import numpy as np
import pytest

from vla_cli.errors import ConfigError, InputError
from vla_cli.stats import DatasetStatistics, compute, save_statistics
from vla_cli.stats_import import import_named, import_statistics

VALUES = np.random.default_rng(0).normal([0.5, -2.0, 30.0], [0.1, 1.0, 5.0], (200, 3))


def part(values: np.ndarray = VALUES, **changes) -> dict:
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    found = {"mean": values.mean(0), "std": values.std(0), "q01": q01, "q99": q99}
    return {key: value.tolist() for key, value in found.items()} | changes


def full(values: np.ndarray = VALUES, **changes) -> dict:
    return part(values, min=values.min(0).tolist(), max=values.max(0).tolist()) | changes


def written(path: Path, document) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def openpi(path: Path, **changes) -> Path:
    return written(path / "norm_stats.json", {"norm_stats": {"state": part(), "actions": part(**changes)}})


def openvla(path: Path, *names: str, **changes) -> Path:
    sets = {name: {"action": full(**changes), "proprio": full(), "num_transitions": 200} for name in names}
    return written(path / "dataset_statistics.json", sets)


def test_openpi_normalises_as_openpi_does(tmp_path) -> None:
    q01, q99 = np.quantile(VALUES, [0.01, 0.99], axis=0)
    scores = (VALUES - VALUES.mean(0)) / (VALUES.std(0) + 1e-6)
    found = import_named(f"{openpi(tmp_path)}@z-score")
    assert found.state is not None
    assert np.allclose(found.state.normalise(VALUES), scores, rtol=1e-6, atol=1e-6)
    quantile = import_statistics(tmp_path, method="quantile").actions
    assert np.allclose(quantile.normalise(VALUES), 2 * (VALUES - q01) / (q99 - q01 + 1e-6) - 1, rtol=1e-6, atol=1e-6)
    assert np.allclose(quantile.unnormalise(quantile.normalise(VALUES)), VALUES, atol=1e-5)


def test_the_figures_of_openpi_814_come_out_as_posted(tmp_path) -> None:
    q01 = [-1.1451605429965186, -2.242609221335103, -2.2571858448691624, -1.153324126746803, 1.568642928333805]
    q99 = [-0.7886300352340484, -1.4988367923820078, -1.4468297973848614, -0.9084148509828917, 1.5696224851423788]
    vector = {"mean": np.mean([q01, q99], axis=0).tolist(), "std": [0.1] * 5, "q01": q01, "q99": q99}
    path = written(tmp_path / "norm_stats.json", {"norm_stats": {"actions": vector}})
    found = import_statistics(path, method="quantile")
    assert found.state is None
    assert np.allclose(found.actions.normalise(np.zeros(5)), [5.42, 5.03, 4.57, 8.42, -3200.49], rtol=1e-3)


def test_openpi_does_not_say_how_it_normalises(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"@quantile"):
        import_statistics(openpi(tmp_path))
    bare = written(tmp_path / "b" / "norm_stats.json", {"norm_stats": {"actions": part(q01=None, q99=None)}})
    assert "normal distribution" in import_statistics(bare).notes[0]
    with pytest.raises(InputError, match="no quantiles"):
        import_statistics(bare, method="quantile")


def test_openvla_leaves_masked_dimensions_and_zeroes_unused_ones(tmp_path) -> None:
    values = VALUES.copy()
    values[:, 1] = 0.7
    document = {"bridge": {"action": full(values, mask=[True, False, False])}}
    found = import_statistics(written(tmp_path / "dataset_statistics.json", document))
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    out = found.actions.normalise(values)
    assert np.allclose(out[:, 0], (2 * (values - q01) / (q99 - q01 + 1e-8) - 1)[:, 0], atol=1e-6)
    assert np.all(out[:, 1] == 0) and np.allclose(out[:, 2], values[:, 2])
    assert found.state is None and "clips" in found.notes[0]


def test_an_openvla_file_of_several_data_sets_wants_a_name(tmp_path) -> None:
    path = openvla(tmp_path, "bridge_orig", "fractal")
    with pytest.raises(ConfigError, match="bridge_orig, fractal"):
        import_statistics(path)
    with pytest.raises(ConfigError, match="no data set 'droid'"):
        import_named(f"{path}:droid")
    assert "fractal" in import_named(f"{path}:fractal").source
    assert "z-score" in import_named(f"{path}:fractal@z-score").source
    assert "bridge" in import_statistics(openvla(tmp_path / "one", "bridge")).source


def test_statistics_within_an_openvla_config_are_found(tmp_path) -> None:
    path = written(tmp_path / "config.json", {"norm_stats": {"bridge": {"action": full()}}})
    assert len(import_statistics(path).actions) == 3


def test_an_empty_proprio_is_no_state(tmp_path) -> None:
    document = {"set": {"action": full(), "proprio": full(np.zeros((5, 7)))}}
    found = import_statistics(written(tmp_path / "dataset_statistics.json", document))
    assert found.state is None and "without a state" in found.notes[-1]


def test_our_own_files_come_with_their_names(tmp_path, base) -> None:
    found = import_named(str(base))
    assert found.action_names == ("dx", "dy", "gripper") and found.state is not None
    ours = DatasetStatistics(compute(VALUES), compute(VALUES[:, :2]), {})
    save_statistics(ours, tmp_path)
    assert import_statistics(tmp_path).actions.to_json() == ours.actions.to_json()
    with pytest.raises(ConfigError, match="itself"):
        import_statistics(tmp_path, method="z-score")


def test_an_openpi_checkpoint_is_found_by_its_directory(tmp_path) -> None:
    openpi(tmp_path / "assets" / "droid")
    assert len(import_statistics(tmp_path, method="z-score").actions) == 3
    openpi(tmp_path / "assets" / "aloha")
    with pytest.raises(ConfigError, match="several"):
        import_statistics(tmp_path, method="z-score")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": None}, "mean"),
        ({"mean": [1.0]}, "different lengths"),
        ({"std": [-1.0, 1.0, 1.0]}, "negative std"),
        ({"std": ["a", 1.0, 1.0]}, "std"),
        ({"q01": [99.0, 99.0, 99.0]}, "above"),
        ({"q99": [float("inf")] * 3}, "finite"),
    ],
)
def test_malformed_files_are_refused_in_words(tmp_path, changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        import_statistics(openpi(tmp_path, **changes), method="quantile")
    assert "norm_stats.json: actions" in str(caught.value)


def test_what_is_no_statistics_is_refused(tmp_path) -> None:
    for document in ([], {}, {"a": 1}, {"norm_stats": 3}):
        with pytest.raises(InputError):
            import_statistics(written(tmp_path / "x.json", document))
    with pytest.raises(InputError, match="holds no statistics"):
        import_statistics(tmp_path)
    with pytest.raises(InputError, match="PATH"):
        import_named(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="z-score, quantile"):
        import_named(f"{openpi(tmp_path)}@minmax")
    bad = written(tmp_path / "m.json", {"set": {"action": full(mask=[True])}})
    with pytest.raises(InputError, match="mask of 1"):
        import_statistics(bad)
