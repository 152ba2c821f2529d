import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from vla_cli.dataset import Dataset, Demonstration, load_dataset, save_dataset
from vla_cli.errors import InputError
from vla_cli.files import read_json
from vla_cli.replay import load_replay
from vla_cli.stats import DatasetStatistics, compute, compute_image


def dataset(count: int = 3, steps: int = 5, valid: int = 1) -> Dataset:
    demonstrations = []
    for index in range(count):
        rng = np.random.default_rng(index)
        demonstrations.append(
            Demonstration(
                name=f"episode_{index}",
                images={"wrist": rng.integers(0, 256, (steps, 4, 4, 3), np.uint8)},
                state=rng.normal(size=(steps, 2)).astype(np.float32),
                actions=rng.normal(size=(steps, 3)).astype(np.float32),
                instructions=["lift", "hoch"],
                operator="ada",
            )
        )
    names = [d.name for d in demonstrations]
    stacked = np.concatenate([d.state for d in demonstrations]) if count else np.zeros((1, 2))
    actions = np.concatenate([d.actions for d in demonstrations]) if count else np.zeros((1, 3))
    statistics = DatasetStatistics(
        compute(stacked), compute(actions), {"wrist": compute_image([d.images["wrist"] for d in demonstrations])}
    )
    return Dataset(
        demonstrations,
        names[valid:],
        names[:valid],
        12.5,
        ["wrist"],
        ["x", "y"],
        ["a", "b", "c"],
        {"env_name": "tabletop"},
        statistics,
    )


def test_round_trip_is_exact(tmp_path) -> None:
    before = dataset()
    save_dataset(before, tmp_path)
    after = load_dataset(tmp_path)
    for key in ("train", "valid", "rate_hz", "cameras", "state_names", "action_names", "world"):
        assert getattr(before, key) == getattr(after, key)
    for old, new in zip(before.demonstrations, after.demonstrations, strict=True):
        assert (old.name, old.instructions, old.operator) == (new.name, new.instructions, new.operator)
        assert np.array_equal(old.state, new.state) and np.array_equal(old.actions, new.actions)
        assert np.array_equal(old.images["wrist"], new.images["wrist"])
    assert [d.name for d in after.split("train")] == ["episode_1", "episode_2"]
    assert [d.name for d in after.split("valid")] == ["episode_0"]


@pytest.mark.parametrize(("here", "first"), [(["front", "wrist"], "front"), (["left", "right"], "wrist")])
def test_cameras_of_replay_go_by_name_or_else_by_order(tmp_path, here: list[str], first: str) -> None:
    its = dataset()
    for demonstration in its.demonstrations:
        demonstration.images["front"] = 255 - demonstration.images["wrist"]
    shown = {name: its.demonstrations[0].images[name].copy() for name in ("wrist", "front")}
    save_dataset(replace(its, cameras=["wrist", "front"]), tmp_path)
    windows, _ = load_replay(tmp_path, replace(its, cameras=here), 2)
    named = {d.name: d.images for d in windows.demonstrations}["episode_0"]
    assert list(named) == here and np.array_equal(named[here[0]], shown[first])


def test_it_is_robomimics_layout(tmp_path) -> None:
    save_dataset(dataset(), tmp_path)
    with h5py.File(tmp_path / "dataset.hdf5") as file:
        assert file["data"].attrs["total"] == 15
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "tabletop"
        assert list(file["data"]) == ["demo_0", "demo_1", "demo_2"]
        assert file["data/demo_1"].attrs["num_samples"] == 5
        assert json.loads(file["data/demo_1"].attrs["ep_meta"]) == {"lang": "lift"}
        assert file["data/demo_1/obs/wrist"].chunks == (1, 4, 4, 3)
        assert file["mask/train"][()].tolist() == [b"demo_1", b"demo_2"]
    assert read_json(tmp_path / "splits.json") == {"train": ["episode_1", "episode_2"], "valid": ["episode_0"]}


def test_what_robomimic_reads_is_there(tmp_path) -> None:
    """The steps of robomimic 0.3's `SequenceDataset` and `FileUtils`, with the keys of its default configuration."""
    save_dataset(dataset(), tmp_path)
    with h5py.File(tmp_path / "dataset.hdf5", "r", swmr=True, libver="latest") as file:
        env = json.loads(file["data"].attrs["env_args"])  # file_utils.get_env_metadata_from_dataset
        assert "env_name" in env
        demos = sorted(file["data"].keys(), key=lambda name: int(name[5:]))  # dataset.load_demo_info
        masked = [name.decode("utf-8") for key in ("train", "valid") for name in np.array(file[f"mask/{key}"][:])]
        assert sorted(masked) == demos
        for demo in demos:
            length = file[f"data/{demo}"].attrs["num_samples"]
            for key in ("actions", "rewards", "dones"):  # base_config: train.dataset_keys
                assert len(file[f"data/{demo}/{key}"][()].astype("float32")) == length
            for key in ("state", "wrist"):  # low_dim and rgb
                assert len(file[f"data/{demo}/obs/{key}"][()]) == length
            assert file[f"data/{demo}/actions"].shape[1] > 0  # file_utils.get_shape_metadata_from_dataset
            assert file[f"data/{demo}/dones"][()].tolist() == [0.0] * (length - 1) + [1.0]


def test_without_held_out_episodes_and_many_demos_in_order(tmp_path) -> None:
    save_dataset(dataset(count=12, valid=0), tmp_path)
    loaded = load_dataset(tmp_path)
    assert loaded.valid == [] and [d.name for d in loaded.demonstrations] == [f"episode_{i}" for i in range(12)]


def test_equal_datasets_give_equal_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_dataset(dataset(), tmp_path / name)
    assert (tmp_path / "a/dataset.hdf5").read_bytes() == (tmp_path / "b/dataset.hdf5").read_bytes()


def test_missing_damaged_and_empty_datasets_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="vla preprocess"):
        load_dataset(tmp_path / "nowhere")
    save_dataset(dataset(), tmp_path)
    whole = (tmp_path / "dataset.hdf5").read_bytes()
    (tmp_path / "dataset.hdf5").write_bytes(whole[:3000])
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        load_dataset(tmp_path)
    (tmp_path / "dataset.hdf5").write_bytes(whole)
    (tmp_path / "stats.json").unlink()
    with pytest.raises(InputError, match=r"stats\.json"):
        load_dataset(tmp_path)
    save_dataset(dataset(count=0, valid=0), tmp_path)
    with pytest.raises(InputError, match="no demonstrations"):
        load_dataset(tmp_path)


def test_parts_that_contradict_each_other_are_refused(tmp_path) -> None:
    broken = dataset()
    broken.demonstrations[1].state = broken.demonstrations[1].state[:-1]
    save_dataset(broken, tmp_path)
    with pytest.raises(InputError, match="unequal lengths"):
        load_dataset(tmp_path)
    broken = dataset()
    broken.demonstrations[1].actions = broken.demonstrations[1].actions[:, :2]
    save_dataset(broken, tmp_path)
    with pytest.raises(InputError, match="2 action dimensions"):
        load_dataset(tmp_path)
