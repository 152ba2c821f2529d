import json

import h5py
import numpy as np
import pytest
from builders import (
    ENV_ARGS,
    InterruptAfter,
    assert_refused,
    contents,
    lerobot_log,
    real_log,
    replace,
    rlds_example,
    rlds_log,
    robomimic_log,
    smooth_video,
    write_video,
)

from vla_cli.configs import IngestConfig
from vla_cli.episode import load_episode, read_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import partial_path, read_json
from vla_cli.stages.ingest import plan, run


def ingest(source, out, **options) -> dict:
    return run(IngestConfig(source=source, out=out, **options))


def half_bad(index: int, group: h5py.Group) -> None:
    if index == 1:
        replace(group, "actions", np.full((20, 4), np.nan))


def test_a_log_becomes_one_file_an_episode(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "episodes"
    summary = ingest(source, out)
    assert sorted(contents(out)) == ["demo_0.hdf5", "demo_1.hdf5", "demo_2.hdf5", "manifest.jsonl", "run.json"]
    assert summary["counts"] == {"episodes_in": 3, "steps": 60, "episodes_out": 3, "episodes_skipped": 0}
    assert summary["format"] == "robomimic" and summary["operators"] == {"ada": 2, "bo": 1}
    assert summary["stage"] == "collect-ingest" and summary["out"] == str(out) and summary["skipped"] == []
    assert json.loads(json.dumps(summary)) == summary
    rows = read_manifest(out)
    assert [row["name"] for row in rows] == ["demo_0", "demo_1", "demo_2"] and rows[0]["seconds"] == 1.9
    episode = load_episode(out / "demo_1.hdf5")
    assert episode.operator == "bo" and episode.world == ENV_ARGS
    record = read_json(out / "run.json")
    assert record["request"]["input"]["name"] == "log.hdf5" and record["request"]["format"] == "robomimic"
    assert str(tmp_path) not in json.dumps(record)


def test_the_same_log_gives_the_same_bytes(tmp_path) -> None:
    source = robomimic_log(tmp_path / "log.hdf5", alter=half_bad)
    for name in ("a", "b"):
        ingest(source, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, steps: int) -> None:
    source = robomimic_log(tmp_path / "log.hdf5", alter=half_bad)
    ingest(source, tmp_path / "whole")
    config = IngestConfig(source=source, out=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(config, InterruptAfter(steps))
    assert not (tmp_path / "out").exists() and partial_path(tmp_path / "out").is_dir()
    with pytest.raises(ConfigError, match="--resume"):
        run(config)
    ingest(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert ingest(source, tmp_path / "out", resume=True)["counts"]["episodes_out"] == 2


def test_a_resumed_run_does_not_write_finished_files_again(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(IngestConfig(source=source, out=out), InterruptAfter(3))
    first = (partial_path(out) / "demo_0.hdf5").stat().st_mtime_ns
    ingest(source, out, resume=True)
    assert (out / "demo_0.hdf5").stat().st_mtime_ns == first


def test_a_changed_source_is_not_resumed(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(IngestConfig(source=source, out=out), InterruptAfter(2))
    robomimic_log(source, demos=4)
    with pytest.raises(ConfigError, match="begun with other settings"):
        ingest(source, out, resume=True)


def test_skipped_episodes_are_named_with_their_reasons(tmp_path) -> None:
    summary = ingest(robomimic_log(tmp_path / "log.hdf5", alter=half_bad), tmp_path / "out")
    assert summary["skipped"] == [
        {"name": "demo_1", "reason": "action stream 'action' has NaN or infinite values in 20 of 20 steps"}
    ]
    assert summary["counts"]["episodes_skipped"] == 1 and not (tmp_path / "out" / "demo_1.hdf5").exists()


def test_options_win_over_the_log(tmp_path) -> None:
    source = robomimic_log(tmp_path / "log.hdf5")
    ingest(source, tmp_path / "out", instruction=" stack the cups ", operator="cy")
    rows = read_manifest(tmp_path / "out")
    assert {row["operator"] for row in rows} == {"cy"}
    assert {tuple(row["instructions"]) for row in rows} == {("stack the cups",)}


def test_missing_instructions_are_warned_of_with_the_command(tmp_path) -> None:
    source = robomimic_log(tmp_path / "log.hdf5", alter=lambda index, group: group.attrs.pop("ep_meta"))
    summary = ingest(source, tmp_path / "out")
    assert any("3 of 3 episodes have no instruction" in w and "--instruction" in w for w in summary["warnings"])


def test_names_are_safe_and_distinct(tmp_path) -> None:
    for name in ("a b", "a_b"):
        robomimic_log(tmp_path / "logs" / f"{name}.hdf5", demos=1)
    ingest(tmp_path / "logs", tmp_path / "out")
    assert [row["file"] for row in read_manifest(tmp_path / "out")] == ["a_b_demo_0.hdf5", "a_b_demo_0_2.hdf5"]


def test_a_dry_run_says_what_and_why_and_writes_nothing(tmp_path) -> None:
    source = lerobot_log(tmp_path / "log")
    result = plan(IngestConfig(source=source, out=tmp_path / "out", dry_run=True))
    assert (result["format"], result["episodes"]) == ("lerobot", 3) and "codebase_version" in result["format_because"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]


# Bad input: the right error in one paragraph, and no output left behind.


def test_missing_and_empty_sources(tmp_path) -> None:
    out = tmp_path / "out"
    assert_refused(InputError, out, lambda: ingest(tmp_path / "nowhere", out), "does not exist")
    (tmp_path / "empty").mkdir()
    assert_refused(InputError, out, lambda: ingest(tmp_path / "empty", out), "is empty")
    (tmp_path / "zero.hdf5").write_bytes(b"")
    assert_refused(InputError, out, lambda: ingest(tmp_path / "zero.hdf5", out), "is empty")
    (tmp_path / "text").write_text("hello")
    assert_refused(InputError, out, lambda: ingest(tmp_path / "text", out), "no log format", "--format")
    assert InputError.exit_code == 3


def test_truncated_hdf5(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    source.write_bytes(source.read_bytes()[:4000])
    assert_refused(InputError, out, lambda: ingest(source, out), "log.hdf5", "cannot be opened as HDF5")


def test_no_pictures_nan_and_unequal_lengths(tmp_path) -> None:
    def no_pictures(index: int, group: h5py.Group) -> None:
        del group["obs/camera"]

    def nan(index: int, group: h5py.Group) -> None:
        replace(group, "actions", np.full((20, 4), np.nan))

    def unequal(index: int, group: h5py.Group) -> None:
        replace(group, "actions", np.zeros((18, 4)))

    out = tmp_path / "out"
    for name, alter, said in (
        ("a", no_pictures, "no images"),
        ("b", nan, "NaN or infinite values in 20 of 20 steps"),
        ("c", unequal, "unequal lengths: actions 18"),
    ):
        source = robomimic_log(tmp_path / f"{name}.hdf5", alter=alter)
        assert_refused(InputError, out, lambda s=source: ingest(s, out), "no usable episode", "demo_0", said)


def test_a_video_shorter_than_its_table(tmp_path) -> None:
    source, out = lerobot_log(tmp_path / "log", episodes=1), tmp_path / "out"
    write_video(source / "videos/chunk-000/observation.images.front/episode_000000.mp4", smooth_video(9))
    assert_refused(InputError, out, lambda: ingest(source, out), "9 frames", "15 rows")


def test_strict_turns_a_skip_into_an_error(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5", alter=half_bad), tmp_path / "out"
    assert_refused(CheckFailed, out, lambda: ingest(source, out, strict=True), "1 of 3", "demo_1")
    assert CheckFailed.exit_code == 1


def test_outputs_in_the_way(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert_refused(ConfigError, out, lambda: ingest(source, out), "is not empty", "--overwrite")
    assert_refused(ConfigError, out, lambda: ingest(source, out, format="rosbag"), "is not empty")
    ingest(source, out, overwrite=True)
    assert "mine" not in contents(out)
    assert_refused(ConfigError, out, lambda: ingest(out, out, overwrite=True), "overlap")
    assert_refused(ConfigError, tmp_path / "new", lambda: ingest(source, tmp_path / "new", format="rosbag"), "rosbag")


def test_a_failing_overwrite_leaves_the_old_result(tmp_path) -> None:
    good, out = robomimic_log(tmp_path / "good.hdf5"), tmp_path / "out"
    ingest(good, out)
    bad = rlds_log(tmp_path / "bad", [rlds_example(4, **{"steps/action": None})])
    assert_refused(InputError, out, lambda: ingest(bad, out, overwrite=True), "no usable episode")
    assert len(read_manifest(out)) == 3


def test_the_wrong_format_by_name_is_told(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    assert_refused(InputError, out, lambda: ingest(source, out, format="lerobot"), "info.json")
    assert_refused(InputError, out, lambda: ingest(source, out, format="rlds"), "no TFDS dataset")


def test_real_recordings_bridge(tmp_path) -> None:
    summary = ingest(real_log("bridge_v2_rlds"), tmp_path / "out")
    assert summary["counts"] == {"episodes_in": 25, "steps": 250, "episodes_out": 25, "episodes_skipped": 0}
    assert summary["cameras"] == {"image_0": 25, "image_1": 25, "image_2": 25} and len(summary["instructions"]) == 4
