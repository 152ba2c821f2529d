import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import (
    example_bytes,
    features_dict,
    motion,
    png,
    real_log,
    rlds_example,
    rlds_log,
    rlds_shard,
    write_records,
)

from vla_cli.episode import Episode, Skipped, problems
from vla_cli.errors import InputError
from vla_cli.frames import PictureFrames
from vla_cli.readers import read_all
from vla_cli.readers.rlds import READER


def read(path) -> tuple[list, list[str]]:
    said: list[str] = []
    return list(read_all(READER, path, said.append)), said


def only(path) -> tuple[Episode | Skipped, list[str]]:
    (item,), said = read(path)
    return item, said


def test_numbers_and_png_pictures_come_back_bit_for_bit(tmp_path) -> None:
    root = rlds_log(tmp_path / "toy/1.0.0", [rlds_example(5, seed) for seed in range(3)])
    for source in (root, root.parent):
        items, said = read(source)
        assert [item.name for item in items] == ["train_00000", "train_00001", "train_00002"]
        for seed, item in enumerate(items):
            parts, streams = motion(5, seed), {stream.name: stream for stream in item.streams}
            assert np.array_equal(streams["action"].values, parts["actions"].astype("f4"))
            assert np.array_equal(streams["state"].values, parts["position"].astype("f4"))
            assert isinstance(streams["image_0"].values, PictureFrames)
            assert np.array_equal(np.asarray(streams["image_0"].values), parts["camera"])
            assert item.instructions == ["open the drawer"] and problems(item) == []
        assert said == [
            "The log states no control rate: 10 Hz is assumed (a guess); preprocess --rate resamples from it."
        ]


def test_bridge_is_taken_for_5_hz_and_that_is_said(tmp_path) -> None:
    item, said = only(rlds_log(tmp_path / "1.0.0", [rlds_example(5)], name="bridge_dataset"))
    assert isinstance(item, Episode) and item.streams[0].timestamps[1] == pytest.approx(0.2)
    assert any("5 Hz is assumed" in sentence for sentence in said) and "5 Hz is assumed" in item.notes[0]


def test_placeholder_cameras_are_judged_by_their_pictures(tmp_path) -> None:
    black = [png(np.zeros((12, 12, 3), np.uint8))] * 5
    flags = {"episode_metadata/has_image_0": np.array([0])}
    examples = [rlds_example(5, **{"steps/observation/image_0": black}), rlds_example(5, **flags)]
    items, said = read(rlds_log(tmp_path / "1.0.0", examples))
    assert problems(items[0]) == ["it has no images"] and any("placeholder" in note for note in items[0].notes)
    assert problems(items[1]) == [] and any("image_0 is false, but" in note for note in items[1].notes)
    assert any("placeholder" in s for s in said) and any("is false, but its pictures are real" in s for s in said)


def test_an_episode_without_language_has_no_instruction(tmp_path) -> None:
    examples = [
        rlds_example(3, **{"steps/language_instruction": [b""] * 3}),
        rlds_example(3, **{"episode_metadata/has_language": np.array([0])}),
        rlds_example(3, **{"steps/language_instruction": [b"lift", b"lift ", b"then turn"]}),
    ]
    items, _ = read(rlds_log(tmp_path / "1.0.0", examples))
    assert [item.instructions for item in items] == [[], [], ["lift", "then turn"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps/observation/image_0": [b"\xff\xd8\xff broken"] * 4}, "image_0 step 0 cannot be decoded"),
        ({"steps/observation/image_0": [png(np.ones((4, 4, 3), np.uint8))] * 3}, "4 actions, but 3 pictures"),
        ({"steps/observation/state": np.zeros(11, np.float32)}, "4 actions, but steps/observation/state has 11 values"),
        ({"steps/action": None}, "no 'steps/action'"),
    ],
)
def test_an_episode_that_does_not_fit_is_skipped(tmp_path, change: dict, said: str) -> None:
    items, _ = read(rlds_log(tmp_path / "1.0.0", [rlds_example(4, **change), rlds_example(4)]))
    assert isinstance(items[0], Skipped) and said in items[0].reason and isinstance(items[1], Episode)


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path) -> None:
    huge = bytearray(png(np.zeros((4, 4, 3), np.uint8)))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    item, _ = only(rlds_log(tmp_path / "1.0.0", [rlds_example(1, **{"steps/observation/image_0": [bytes(huge)]})]))
    assert isinstance(item, Skipped)


def test_damaged_records_are_skipped_by_name_and_missing_ones_told(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(4, seed) for seed in range(3)])
    shard = rlds_shard(root)
    whole = bytearray(shard.read_bytes())
    whole[500] ^= 1
    shard.write_bytes(whole)
    items, said = read(root)
    assert items[0].reason == f"{shard.name} is damaged: its payload fails its checksum"
    assert [type(item) for item in items[1:]] == [Episode, Episode]
    shard.write_bytes(whole[:-50])
    items, said = read(root)
    assert "nothing after it" in items[2].reason
    assert any("states 3 episodes" in sentence and "2 were found whole" in sentence for sentence in said)
    write_records(shard, [b"\x0a\x7fno example", example_bytes(rlds_example(4))])
    assert "no tf.Example" in read(root)[0][0].reason


def test_missing_splits_and_shards_are_told(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(3)], split="train", episodes=1)
    info = root / "dataset_info.json"
    info.write_text('{"splits": [{"name": "train", "shardLengths": ["1"]}, {"name": "val", "shardLengths": ["7"]}]}')
    rlds_shard(root).rename(root / "toy-train.tfrecord-00001-of-00003")
    items, said = read(root)
    assert items[0].name == "train_s00001_00000"
    assert any("split 'val' with 7 episodes" in sentence for sentence in said)
    assert any("3 shards, but 2 are not there (number 0, 2)" in sentence for sentence in said)


def test_malformed_metadata_are_refused_or_ignored(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(2)])
    (root / "dataset_info.json").write_text('{"splits": [{"name": "train", "shardLengths": "many"}, 3]}')
    assert len(read(root)[0]) == 1
    (root / "features.json").write_text('{"featuresDict": {"features": {"steps": {"tensor": {"shape": 3}}}}}')
    with pytest.raises(InputError, match="malformed"):
        read(root)
    (root / "features.json").write_text("{}")
    with pytest.raises(InputError, match="has no episodes"):
        read(root)


def test_several_versions_and_none_are_refused(tmp_path) -> None:
    for version in ("1.0.0", "2.0.0"):
        rlds_log(tmp_path / "toy" / version, [rlds_example(2)])
    assert READER.recognise(tmp_path / "toy")
    with pytest.raises(InputError, match=r"several versions \(1\.0\.0, 2\.0\.0\)"):
        read(tmp_path / "toy")
    with pytest.raises(InputError, match="no TFDS dataset"):
        read(tmp_path)


def tensor(shape: list[int], dtype: str = "float32", encoding: str = "none") -> dict:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": encoding}}


def with_features(root: Path, **changes) -> Path:
    """Add features below `steps` ("observation__x" for "observation/x") or beside it ("episode_metadata__x")."""
    document = json.loads((root / "features.json").read_text())
    top = document["featuresDict"]["features"]
    for name, feature in changes.items():
        group, _, key = name.partition("__")
        steps = top["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        if group == "episode_metadata":
            top.setdefault(group, features_dict())["featuresDict"]["features"][key] = feature
        elif key:
            steps.setdefault(group, features_dict())["featuresDict"]["features"][key] = feature
        else:
            steps[group] = feature
    (root / "features.json").write_text(json.dumps(document))
    return root


def one(tmp_path, features: dict, values: dict, name: str = "toy") -> Episode:
    """The only episode, of 4 steps, of a log with more features."""
    root = with_features(rlds_log(tmp_path / "toy/1.0.0", [rlds_example(4, **values)], name=name), **features)
    item, _ = only(root)
    assert isinstance(item, Episode), item
    return item


def stream(episode: Episode, name: str):
    return next(stream for stream in episode.streams if stream.name == name)


def test_numbers_stored_as_bytes_come_back_bit_for_bit(tmp_path) -> None:
    doubles = np.random.default_rng(0).normal(size=(4, 3))
    features = {
        "observation__raw": tensor([3], "float64", "bytes"),
        "observation__packed": tensor([3], "float64", "zlib"),
        "observation__whole": tensor([3], "float64", "bytes"),
        "is_last": tensor([], "bool"),
        "observation__few": tensor([-1], "int32", "bytes"),
        "observation__strange": tensor([3], "bfloat16", "bytes"),
        "observation__depth": tensor([480, 640]),
        "observation__nothing": tensor([0]),
        "observation__half": {"sequence": {"feature": tensor([2]), "length": "-1"}},
        "observation__ragged": {"sequence": {"feature": tensor([2]), "length": "-1"}},
    }
    values = {
        "steps/observation/raw": [row.tobytes() for row in doubles],
        "steps/observation/packed": [zlib.compress(row.tobytes()) for row in doubles],
        "steps/observation/whole": [doubles.tobytes()],
        "steps/is_last": [bytes([0, 0, 0, 1])],
        "steps/observation/few": [np.arange(2, dtype="i4").tobytes()] * 4,
        "steps/observation/strange": [bytes(6)] * 4,
        "steps/observation/depth": np.zeros(4 * 480 * 640, np.float32),
        "steps/observation/nothing": np.zeros(0, np.float32),
        "steps/observation/half/ragged_flat_values": np.arange(24, dtype=np.float32),
        "steps/observation/half/ragged_row_lengths_0": np.array([3, 3, 3, 3]),
        "steps/observation/ragged/ragged_flat_values": np.arange(8, dtype=np.float32),
        "steps/observation/ragged/ragged_row_lengths_0": np.array([1, 0, 2, 1]),
    }
    episode = one(tmp_path, features, values)
    assert problems(episode) == []
    for name in ("raw", "packed", "whole"):
        assert np.array_equal(stream(episode, name).values, doubles)
    assert stream(episode, "is_last").values.tolist() == [[0], [0], [0], [1]]
    assert stream(episode, "few").values.tolist() == [[0, 1]] * 4
    assert stream(episode, "nothing").values.shape == (4, 0)
    assert stream(episode, "half").values.shape == (4, 6) and stream(episode, "half").values[1, 0] == 6
    notes = " ".join(episode.notes)
    assert "strange is left out: it is stored as bytes of bfloat16" in notes
    assert (
        "depth is left out: it has 307200 numbers a step" in notes and "ragged is left out: it is a sequence" in notes
    )


def test_actions_are_counted_however_they_are_stored(tmp_path) -> None:
    doubles = np.arange(16.0).reshape(4, 4)
    ways = {
        "bytes": (tensor([4], "float64", "bytes"), [row.tobytes() for row in doubles]),
        "one": (tensor([4], "float64", "bytes"), [doubles.tobytes()]),
        "loose": (tensor([-1]), doubles.astype("f4").reshape(-1)),
    }
    for way, (feature, values) in ways.items():
        root = rlds_log(tmp_path / way, [rlds_example(4, **{"steps/action": values})])
        item, _ = only(with_features(root, action=feature))
        assert isinstance(item, Episode) and np.array_equal(item.of_role("action")[0].values, doubles)
    item, _ = only(rlds_log(tmp_path / "empty", [rlds_example(0)]))
    assert isinstance(item, Skipped) and "no steps" in item.reason


def test_actions_in_parts_are_several_streams(tmp_path) -> None:
    features = {"action": features_dict(world_vector=tensor([3]), open_gripper=tensor([], "bool"))}
    values = {
        "steps/action": None,
        "steps/action/world_vector": np.zeros(12, np.float32),
        "steps/action/open_gripper": np.array([1, 1, 0, 0]),
    }
    episode = one(tmp_path, features, values)
    assert [s.name for s in episode.of_role("action")] == ["action.open_gripper", "action.world_vector"]


def test_pictures_of_other_kinds(tmp_path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    features = {
        "observation__video": {"video": {"shape": {"dimensions": ["-1", "6", "5", "3"]}}},
        "observation__tensor": tensor([6, 5, 3], "uint8"),
        "observation__zlib": tensor([6, 5, 3], "uint8", "zlib"),
        "observation__depth": {"image": {"shape": {"dimensions": ["6", "5", "1"]}, "dtype": "uint16"}},
        "observation__absent": {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}}},
    }
    values = {
        "steps/observation/video": [png(picture) for picture in pictures],
        "steps/observation/tensor": pictures.reshape(-1).astype(np.int64),
        "steps/observation/zlib": [zlib.compress(picture.tobytes()) for picture in pictures],
    }
    episode = one(tmp_path, features, values)
    for name in ("video", "tensor", "zlib"):
        frames = stream(episode, name).values
        assert frames.shape == (4, 6, 5, 3) and np.array_equal(np.asarray(frames), pictures)
        assert np.array_equal(np.asarray(frames.cut(2)), pictures[:2])
    notes = " ".join(episode.notes)
    assert "depth is left out: its shape is [6, 5, 1]" in notes and "absent is left out: features.json lists" in notes


@pytest.mark.parametrize("named", [True, False])
def test_class_labels_are_texts(tmp_path, named: bool) -> None:
    features = {"task": {"classLabel": {"numClasses": "2"}}, "episode_metadata__scene": {"classLabel": {}}}
    values = {
        "steps/language_instruction": None,
        "steps/task": np.array([1] * 4),
        "episode_metadata/scene": np.array([0]),
    }
    if named:
        (tmp_path / "toy/1.0.0").parent.mkdir(parents=True)
    root = with_features(rlds_log(tmp_path / "log", [rlds_example(4, **values)]), **features)
    if named:
        (root / "steps-task.labels.txt").write_text("open the door\nclose the door\n")
        (root / "episode_metadata-scene.labels.txt").write_text("kitchen\n")
    item, _ = only(root)
    assert item.instructions == (["close the door"] if named else ["1"])
    assert ("scene: kitchen" if named else "scene: 0") in item.notes


def test_short_metadata_are_notes_and_long_ones_not(tmp_path) -> None:
    features = {
        "episode_metadata__file_path": {"text": {}},
        "episode_metadata__blob": {"text": {}},
        "episode_metadata__number": tensor([], "int32"),
    }
    values = {
        "episode_metadata/file_path": [b"a/b.npy"],
        "episode_metadata/blob": [b"x" * 5000],
        "episode_metadata/number": np.array([7]),
    }
    notes = one(tmp_path, features, values).notes
    assert "file_path: a/b.npy" in notes and "number: 7" in notes and not any("blob" in note for note in notes)


def test_instructions_in_several_features_and_as_letters(tmp_path) -> None:
    features = {"language_instruction_2": {"text": {}}, "observation__instruction": tensor([16], "int32")}
    letters = np.zeros((4, 16), np.int64)
    letters[:, :4] = list(b"push")
    values = {"steps/language_instruction_2": [b"do it"] * 4, "steps/observation/instruction": letters.reshape(-1)}
    assert one(tmp_path, features, values).instructions == ["open the drawer", "do it", "push"]


def test_what_is_known_of_bridge_is_stated_and_nothing_of_others(tmp_path) -> None:
    features = {"action": tensor([7]), "observation__state": tensor([7])}
    values = {"steps/action": np.zeros(28, np.float32), "steps/observation/state": np.zeros(28, np.float32)}
    action = one(tmp_path, features, values, name="bridge_orig").of_role("action")[0].attributes
    assert (action["mode"], action["gripper"], action["rotation"]) == ("delta", "open-high", "euler-xyz")
    other = one(tmp_path / "other", features, values, name="fractal").of_role("action")[0].attributes
    assert not {"mode", "gripper", "rotation", "units"} & set(other)


def test_packed_shards_are_read_and_others_refused_by_name(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(3, seed) for seed in range(3)])
    shard = rlds_shard(root)
    whole = shard.read_bytes()
    shard.write_bytes(gzip.compress(whole))
    items, _ = read(root)
    assert [problems(item) for item in items] == [[], [], []]
    assert np.array_equal(np.asarray(stream(items[2], "image_0").values), motion(3, 2)["camera"])
    shard.write_bytes(zlib.compress(whole))
    item, _ = only(root)
    assert isinstance(item, Skipped) and "packed with ZLIB" in item.reason


def test_names_are_distinct_and_stay(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(2)])
    shard = rlds_shard(root)
    before = [item.name for item in read(root)[0]]
    write_records(shard, [example_bytes(rlds_example(2, seed)) for seed in range(3)])
    assert [item.name for item in read(root)[0]][:1] == before
    for name in (
        "toy-train.tfrecord-00000-of-00002",
        "toy-train.tfrecord-00000-of-00003",
        "other-train.tfrecord-00000-of-00001",
    ):
        (root / name).write_bytes(shard.read_bytes())
    names = [item.name for item in read(root)[0]]
    assert len(names) == len(set(names)) == 12 and all(Path(name).name == name for name in names)


def test_a_shard_that_links_out_of_the_log_is_not_followed(tmp_path) -> None:
    root = rlds_log(tmp_path / "log", [rlds_example(2)])
    rlds_shard(root).rename(tmp_path / "elsewhere")
    rlds_shard(root).symlink_to(tmp_path / "elsewhere")
    item, _ = only(root)
    assert isinstance(item, Skipped) and "leads out of the log" in item.reason


def test_numbers_that_a_name_or_metadata_claim_are_never_believed(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(2)])
    rlds_shard(root).rename(root / "toy-train.tfrecord-00000-of-999999999")
    lengths = ["9" * 5000]
    (root / "dataset_info.json").write_text(json.dumps({"splits": [{"name": "train", "shardLengths": lengths}]}))
    items, said = read(root)
    assert len(items) == 1 and any("999999998 are not there" in sentence for sentence in said)
    (root / "features.json").write_text('{"sequence":{"feature":' * 3000 + "1" + "}" * 6000)
    with pytest.raises(InputError):
        read(root)
    (root / "features.json").write_text(" " * 17_000_000)
    with pytest.raises(InputError, match="16 MiB"):
        read(root)


def test_a_log_without_features_or_shards_is_claimed_and_refused(tmp_path) -> None:
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(2)])
    features = (root / "features.json").read_text()
    (root / "features.json").unlink()
    assert READER.recognise(root)
    with pytest.raises(InputError, match="does not exist"):
        read(root)
    (root / "features.json").write_text(features)
    rlds_shard(root).unlink()
    (root / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert READER.recognise(root)
    with pytest.raises(InputError, match="array_record"):
        read(root)
    assert READER.recognise(tmp_path / "nothing") is None


def test_a_tensor_that_unpacks_to_more_than_its_shape_is_refused(tmp_path) -> None:
    bomb = zlib.compress(bytes(50_000_000))
    root = rlds_log(tmp_path / "1.0.0", [rlds_example(2, **{"steps/observation/x": [bomb] * 2})])
    item, _ = only(with_features(root, observation__x=tensor([3], "float32", "zlib")))
    assert isinstance(item, Skipped) and "bytes a step" in item.reason


def test_the_real_set_is_read_in_full() -> None:
    """Facts of the BridgeData V2 sample as counted by hand: all its has_image flags are wrong."""
    items, said = read(real_log("bridge_v2_rlds"))
    assert len(items) == 25 and all(isinstance(item, Episode) and problems(item) == [] for item in items)
    for item in items:
        assert [stream.name for stream in item.of_role("image")] == ["image_0", "image_1", "image_2"]
        assert {stream.values.shape for stream in item.of_role("image")} == {(10, 64, 64, 3)}
        (action,) = item.of_role("action")
        assert action.attributes["mode"] == "delta" and action.attributes["gripper"] == "open-high"
        assert item.of_role("action")[0].values.shape == item.of_role("state")[0].values.shape == (10, 7)
        assert len(item.instructions) == 1 and any("image_3 is left out" in note for note in item.notes)
    assert {item.instructions[0] for item in items} == {
        "put carrot on plate",
        "flip pot upright which is in sink",
        "turn lever vertical to front",
        "put cup from counter or drying rack into sink",
    }
    gripper = np.concatenate([item.of_role("action")[0].values[:, 6] for item in items])
    assert gripper.min() >= 0.0 and gripper.max() == 1.0 and len(np.unique(gripper)) > 2  # continuous, not two-valued
    text = " ".join(said)
    for fact in ("split 'val' with 25 episodes", "5 Hz is assumed", "has_image_0 is false", "image_3 is a placeholder"):
        assert fact in text
