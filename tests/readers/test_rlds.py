import numpy as np
import pytest
from builders import (
    example_bytes,
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
from vla_cli.readers.rlds import READER


def read(path) -> tuple[list, list[str]]:
    said: list[str] = []
    return list(READER.read(path, said.append)), said


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
            assert np.array_equal(streams["image_0"].values, parts["camera"])
            assert item.instructions == ["open the drawer"] and problems(item) == []
        assert said == [
            "The log states no control rate: 10 Hz is assumed (a guess); preprocess --rate resamples from it."
        ]
    assert READER.count(root) == 3


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
    assert any("states 3 episodes" in sentence and "2 were found whole" in sentence for sentence in said)
    shard.write_bytes(whole[:-50])
    assert "nothing after it" in read(root)[0][2].reason
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
    assert READER.count(root) is None and len(read(root)[0]) == 1
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


def test_the_real_set_is_read_in_full() -> None:
    """Facts of the BridgeData V2 sample as counted by hand: all its has_image flags are wrong."""
    items, said = read(real_log("bridge_v2_rlds"))
    assert len(items) == 25 and all(isinstance(item, Episode) and problems(item) == [] for item in items)
    for item in items:
        assert [stream.name for stream in item.of_role("image")] == ["image_0", "image_1", "image_2"]
        assert {stream.values.shape for stream in item.of_role("image")} == {(10, 64, 64, 3)}
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
