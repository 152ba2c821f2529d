import json

import h5py
import numpy as np
import pytest

from vla_cli.episode import (
    Episode,
    Stream,
    is_whole,
    load_episode,
    manifest_row,
    median_rate,
    native_rate,
    problems,
    read_manifest,
    save_episode,
    write_manifest,
)
from vla_cli.errors import InputError


def episode(steps: int = 6, **changes) -> Episode:
    rng = np.random.default_rng(0)
    clock = np.arange(steps) / 10
    streams = [
        Stream("image", "front", rng.integers(0, 256, (steps, 5, 7, 3), np.uint8), clock),
        Stream("state", "joints", rng.normal(size=(steps, 2)), clock + 0.003, {"names": ["a", "b"], "rate_hz": 10.0}),
        Stream("action", "action", rng.normal(size=(steps, 3)).astype(np.float32), clock),
    ]
    return Episode(**{"name": "one", "streams": streams, "instructions": ["lift it", "ein Stück heben"], **changes})


def test_a_saved_episode_comes_back_bit_for_bit(tmp_path) -> None:
    before = episode(operator="ada", world={"env_name": "tabletop"}, notes=["odd\u2028line"])
    save_episode(before, tmp_path / "one.hdf5")
    after = load_episode(tmp_path / "one.hdf5")
    for old, new in zip(before.streams, after.streams, strict=True):
        assert (old.role, old.name, old.attributes) == (new.role, new.name, new.attributes)
        assert old.values.dtype == new.values.dtype and np.array_equal(old.values, new.values)
        assert np.array_equal(old.timestamps, new.timestamps)
    for key in ("name", "instructions", "operator", "world", "notes"):
        assert getattr(before, key) == getattr(after, key)


def test_equal_episodes_give_equal_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        save_episode(episode(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_truncated_file_is_named(tmp_path) -> None:
    save_episode(episode(), tmp_path / "one.hdf5")
    whole = (tmp_path / "one.hdf5").read_bytes()
    (tmp_path / "one.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"one\.hdf5 cannot be read"):
        load_episode(tmp_path / "one.hdf5")


def test_another_hdf5_file_is_no_episode(tmp_path) -> None:
    h5py.File(tmp_path / "x.hdf5", "w").close()
    with pytest.raises(InputError, match="schema_version"):
        load_episode(tmp_path / "x.hdf5")


def test_a_link_into_another_file_is_not_followed(tmp_path) -> None:
    save_episode(episode(), tmp_path / "one.hdf5")
    with h5py.File(tmp_path / "one.hdf5", "a") as file:
        del file["streams/action/action/values"]
        file["streams/action/action/values"] = h5py.ExternalLink("secret.hdf5", "/data")
    with pytest.raises(InputError, match="link into another file"):
        load_episode(tmp_path / "one.hdf5")


def _broken(change) -> list[str]:
    one = episode()
    change(one)
    return problems(one)


def _set(index: int, **values):
    def change(one: Episode) -> None:
        for key, value in values.items():
            setattr(one.streams[index], key, value)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.streams.pop(0), "no images"),
        (lambda one: one.streams.pop(2), "no actions"),
        (_set(2, values=np.full((6, 3), np.nan)), "NaN or infinite values in 6 of 6 steps"),
        (_set(2, values=np.zeros((4, 3))), "4 values but 6 timestamps"),
        (_set(1, timestamps=np.array([0, 2, 1, 3, 4, 5.0])), "go backwards"),
        (_set(1, timestamps=np.array([-1e308, 0, 1, 2, 3, 1e308])), "over 1e+15 seconds apart"),
        (_set(0, values=np.zeros((6, 5, 7, 3), np.float32)), "not uint8"),
        (_set(1, values=np.zeros((6, 2, 2))), "not [T, D]"),
        (_set(1, name="../x"), "a path"),
        (lambda one: one.streams.append(one.streams[1]), "taken"),
        (_set(2, values=np.zeros((0, 3)), timestamps=np.zeros(0)), "empty"),
    ],
)
def test_every_problem_is_named(change, said: str) -> None:
    assert any(said in problem for problem in _broken(change))


def test_a_good_episode_has_no_problems() -> None:
    assert problems(episode()) == []


def test_the_manifest_tells_when_a_file_changed_or_went(tmp_path) -> None:
    one = episode(instructions=["two\u2028lines"])
    save_episode(one, tmp_path / "one.hdf5")
    rows = [manifest_row(one, tmp_path / "one.hdf5")]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows
    assert rows[0]["cameras"] == {"front": [5, 7]} and rows[0]["action_dim"] == 3 and rows[0]["rate_hz"] == 10.0
    with (tmp_path / "one.hdf5").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="changed"):
        read_manifest(tmp_path)
    (tmp_path / "one.hdf5").unlink()
    with pytest.raises(InputError, match="missing"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("line", ["not json", "[1]", "null", '{"file": "x"}', None])
def test_a_damaged_manifest_is_refused(tmp_path, line: str | None) -> None:
    one = episode()
    save_episode(one, tmp_path / "one.hdf5")
    row = {**manifest_row(one, tmp_path / "one.hdf5"), "file": "../one.hdf5"}
    (tmp_path / "manifest.jsonl").write_text(line or json.dumps(row))
    with pytest.raises(InputError, match=r"manifest\.jsonl line 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("file", "../one.hdf5", "file is not a plain file name"),
        ("file", -1, "file is not a word"),
        ("rate_hz", None, "rate_hz is not a number"),
        ("seconds", [[1]], "seconds is not a number"),
        ("seconds", 1e308, "seconds is not a length from 0 to 1e"),
        ("seconds", -1, "seconds is not a length from 0 to 1e"),
        ("cameras", True, "cameras is not a mapping"),
        ("cameras", {"front": 5}, "cameras is not a mapping"),
        ("state_dim", 2.5, "state_dim is not a whole number"),
    ],
)
def test_a_manifests_values_are_read_by_type(tmp_path, key: str, value: object, said: str) -> None:
    one = episode()
    save_episode(one, tmp_path / "one.hdf5")
    write_manifest(tmp_path, [{**manifest_row(one, tmp_path / "one.hdf5"), key: value}])
    with pytest.raises(InputError, match=rf"line 1 cannot be used \({said}"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path)


def test_median_rate_ignores_a_gap_and_knows_nothing_of_one_sample() -> None:
    assert median_rate(np.array([0, 0.1, 0.2, 5.0, 5.1])) == pytest.approx(10)
    assert median_rate(np.array([3.0])) == 0.0 and median_rate(np.zeros(5)) == 0.0


def test_native_rate_is_the_stated_one_unless_the_stamps_contradict_it() -> None:
    jittered = np.arange(15) / 10 + np.random.default_rng(1).normal(0, 0.012, 15)
    assert is_whole(jittered) and not is_whole(np.array([0, 0.1, 0.3, 0.4])) and not is_whole(np.zeros(1))

    def rate(clock: np.ndarray, **attributes: float) -> float:
        return native_rate(Stream("action", "a", np.zeros((len(clock), 1)), clock, attributes))

    assert rate(jittered, rate_hz=10.0) == 10.0 and rate(jittered, rate_hz=20.0) == rate(jittered)
    assert abs(rate(jittered) - 10) < 0.3
    assert rate(np.array([1.0])) == 0.0
