import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Timer

import h5py
import numpy as np
import pytest
from builders import (
    ENV_ARGS,
    InterruptAfter,
    assert_refused,
    contents,
    lerobot_log,
    motion,
    real_log,
    replace,
    rlds_example,
    rlds_log,
    robomimic_log,
    smooth_video,
    write_lines,
    write_video,
)
from logs import aloha, frames_csv

from vla_cli.configs import IngestConfig
from vla_cli.episode import load_episode, read_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import partial_path, read_json, write_json
from vla_cli.stages.ingest import plan, run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import kill_ingest


def ingest(source, out, **options) -> dict:
    return run(IngestConfig(source=source, out=out, **{"settle": 0.1, **options}))


def half_bad(index: int, group: h5py.Group) -> None:
    if index == 1:
        replace(group, "actions", np.full((20, 4), np.nan))


def test_a_log_becomes_one_file_an_episode(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "episodes"
    summary = ingest(source, out)
    assert sorted(contents(out)) == ["demo_0.hdf5", "demo_1.hdf5", "demo_2.hdf5", "manifest.jsonl", "run.json"]
    assert summary["counts"] == {"episodes_in": 3, "steps": 60, "episodes_out": 3, "episodes_skipped": 0}
    assert summary["converted"] == 3
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


def test_what_changed_meanwhile_is_converted_again_on_resume(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(IngestConfig(source=source, out=out), InterruptAfter(2))
    robomimic_log(source, demos=4)
    ingest(source, out, resume=True)
    ingest(source, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(ConfigError, match="begun with other settings"):
        ingest(source, out, resume=True, operator="cy")


def test_workers_give_the_same_bytes(tmp_path) -> None:
    source = robomimic_log(tmp_path / "log.hdf5", demos=5, alter=half_bad)
    ingest(source, tmp_path / "one", workers=1)
    ingest(source, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def recording_folder(root: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        robomimic_log(root / f"log_{number}.hdf5", demos=1)
    return root


def test_a_second_run_converts_only_what_is_new(tmp_path) -> None:
    source, out = recording_folder(tmp_path / "logs", range(2)), tmp_path / "out"
    assert ingest(source, out)["converted"] == 2
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.hdf5")}
    assert ingest(source, out)["converted"] == 0
    recording_folder(source, [2])
    summary = ingest(source, out)
    assert summary["converted"] == 1 and summary["counts"]["episodes_out"] == 3
    assert {file: file.stat().st_mtime_ns for file in before} == before
    ingest(source, tmp_path / "at_once")
    assert contents(out) == contents(tmp_path / "at_once")
    (source / "log_0.hdf5").unlink()
    assert ingest(source, out)["counts"]["episodes_out"] == 3, "what the robot's disk forgot is not lost here"
    with pytest.raises(ConfigError, match="instruction"):
        ingest(source, out, instruction="another")


def test_an_episode_is_read_again_where_what_the_log_states_of_it_elsewhere_has_changed(tmp_path) -> None:
    log, out = lerobot_log(tmp_path / "log", episodes=2), tmp_path / "out"
    assert ingest(log, out)["converted"] == 2
    write_lines(log / "meta/tasks.jsonl", [{"task_index": 0, "task": "pull the lever"}])
    assert ingest(log, out)["converted"] == 2
    assert [row["instructions"] for row in read_manifest(out)] == [["pull the lever"]] * 2
    assert ingest(log, out)["converted"] == 0
    info = read_json(log / "meta/info.json")
    write_json(log / "meta/info.json", {**info, "total_frames": 31})
    assert ingest(log, out)["converted"] == 0, "no episode is read otherwise for a total"
    ingest(log, tmp_path / "at_once")
    assert [row["digest"] for row in read_manifest(out)] == [
        row["digest"] for row in read_manifest(tmp_path / "at_once")
    ]


def test_quarantine_holds_the_reason_and_what_can_be_read(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5", alter=half_bad), tmp_path / "out"
    ingest(source, out)
    facts = read_json(out / "quarantine" / "demo_1.json")
    assert facts["name"] == "demo_1" and "NaN" in facts["reason"] and facts["files"] == ["log.hdf5"]
    kept = load_episode(out / "quarantine" / "demo_1.hdf5")
    assert np.isnan(kept.of_role("action")[0].values).all()
    assert np.asarray(kept.of_role("image")[0].values).shape == (20, 12, 12, 3)
    assert ingest(source, out)["converted"] == 0, "a bad episode is not tried again while it stays as it is"
    robomimic_log(source)
    assert ingest(source, out)["counts"]["episodes_out"] == 3 and not (out / "quarantine").exists()


def test_a_recording_that_is_still_being_written_is_left_for_the_next_run(tmp_path) -> None:
    source, out = recording_folder(tmp_path / "logs", range(2)), tmp_path / "out"
    file = source / "log_1.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    writer = Timer(1.0, lambda: file.write_bytes(whole))
    writer.start()
    summary = ingest(source, out, settle=4.0)
    writer.join()
    assert summary["waiting"] and summary["counts"]["episodes_out"] == 1 and summary["skipped"] == []
    assert ingest(source, out)["counts"]["episodes_out"] == 2
    file.write_bytes(whole[: len(whole) // 2])
    assert ingest(source, out)["counts"]["episodes_skipped"] == 1, "nobody writes to it any more: it is damaged"


def test_follow_ingests_what_appears_and_stops_when_nothing_does(tmp_path) -> None:
    source, out = recording_folder(tmp_path / "logs", [0]), tmp_path / "out"
    writer = Timer(1.5, lambda: recording_folder(source, [1]))
    writer.start()
    summary = ingest(source, out, follow=True, settle=0.3, stop_after_idle=3.0)
    writer.join()
    assert summary["converted"] == 2 and len(read_manifest(out)) == 2


def test_settings_state_what_the_log_does_not(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    summary = ingest(source, out, settings=("camera.orientation=upside-down", "mode=delta"))
    episode = load_episode(out / "demo_0.hdf5")
    assert episode.of_role("image")[0].attributes["orientation"] == "upside-down"
    assert episode.of_role("action")[0].attributes["mode"] == "delta"
    assert episode.of_role("action")[0].attributes["units"] == "unknown"
    assert "orientation" not in summary["unknown_conventions"].get("image/camera", [])
    assert "units" in summary["unknown_conventions"]["action/action"]
    with pytest.raises(ConfigError, match=r"--set 'camera\.orientation=left'"):
        ingest(source, tmp_path / "bad", settings=("camera.orientation=left",))
    # README's front camera, in a log that calls it otherwise: it would stay upside down
    for setting in ("front.orientation=upside-down", "camera.mode=delta"):
        with pytest.raises(ConfigError, match=r"states nothing: no episode has a stream .* with a convention"):
            ingest(source, tmp_path / "bad", settings=(setting,))
        assert not (tmp_path / "bad").exists()


def test_a_killed_run_is_resumed_to_the_same_bytes() -> None:
    tally = kill_ingest.run(kills=3, seed=1, episodes=8, steps=40)
    assert tally.kills >= 3 and tally.damaged == []


def test_a_world_is_recorded_like_any_log(tmp_path) -> None:
    words = "put the red block on the left plate"
    options = {"expert": True, "episodes": 2, "instruction": words}
    ingest(Path("tabletop:V"), tmp_path / "a", **options)
    ingest(Path("tabletop:V"), tmp_path / "b", workers=2, **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert ingest(Path("tabletop:V"), tmp_path / "a", **{**options, "episodes": 3})["converted"] == 1
    assert {row["instructions"][0] for row in read_manifest(tmp_path / "a")} == {words}
    with pytest.raises(ConfigError, match="--expert and --keyboard"):
        ingest(Path("tabletop:V"), tmp_path / "c", instruction=words)


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


def test_what_nobody_measured_is_left_out_and_the_episode_kept(tmp_path) -> None:
    def unmeasured(file: h5py.File) -> None:
        replace(file, "observations/effort", np.full_like(file["observations/effort"][()], np.nan))

    aloha.one_file(tmp_path / "aloha" / "episode_0.hdf5", alter=unmeasured)
    summary = ingest(tmp_path / "aloha", tmp_path / "out")
    assert summary["counts"]["episodes_out"] == 1
    assert any("'effort' is left out" in message for message in summary["warnings"])
    kept = load_episode(tmp_path / "out" / "episode_0.hdf5")
    assert [stream.name for stream in kept.of_role("other")] == ["qvel"]
    assert any("'effort' is left out" in note for note in kept.notes)


def test_how_many_episodes_have_no_instruction_is_said_once_and_counted_anew(tmp_path) -> None:
    log = frames_csv.write(tmp_path, episodes=3)
    for folder in log.iterdir():
        (folder / "episode.json").unlink()
    (log / "demo_2").rename(tmp_path / "later")
    for count in (2, 3):
        told = ingest(log, tmp_path / "out")["warnings"]
        assert [m.split(" (")[0] for m in told if "no instruction" in m] == [
            f"{count} of {count} episodes have no instruction"
        ]
        if count == 2:
            (tmp_path / "later").rename(log / "demo_2")


def test_a_paused_recorder_is_told_with_its_time_and_length(tmp_path) -> None:
    log = frames_csv.write(tmp_path, episodes=3)
    later = np.where(np.arange(20) > 9, 1.5, 0.0)
    frames_csv.write_rows(log / "demo_1", motion(20, 1), np.arange(20) / 10 + later)
    times = [f"wrist/{step:06d}.jpg,{0.01 + step / 5 + float(later[2 * step])!r}" for step in range(10)]
    (log / "demo_1" / "frames.csv").write_text("\n".join(["file,timestamp", *times]) + "\n")
    frames_csv.write_rows(log / "demo_2", motion(20, 2), np.arange(20) / 10 + later)  # its other camera goes on
    summary = ingest(log, tmp_path / "out")
    (told,) = [message for message in summary["warnings"] if "nothing was recorded" in message]
    assert told.startswith("demo_1: nothing was recorded 1 time(s), 1.60 s in all (1.60 s after 0.90 s)")
    rows = {row["name"]: row for row in read_manifest(tmp_path / "out")}
    assert rows["demo_1"]["pauses"] == [[0.9, 1.6]] and not {"pauses"} & {*rows["demo_0"], *rows["demo_2"]}
    assert any("nothing was recorded" in note for note in load_episode(tmp_path / "out" / "demo_1.hdf5").notes)


def test_a_name_that_is_not_utf8_stops_nothing(tmp_path) -> None:
    log = frames_csv.write(tmp_path, episodes=3)
    for index, name in enumerate((b"caf\xe9", b"d\xe9faut")):
        (log / f"demo_{index}").rename(log / os.fsdecode(name))
    (log / os.fsdecode(b"d\xe9faut") / "data.csv").unlink()
    summary = ingest(log, tmp_path / "out")
    assert (summary["counts"]["episodes_out"], summary["counts"]["episodes_skipped"]) == (2, 1)
    assert summary["skipped"][0]["name"] == "d\\udce9faut"
    assert json.dumps(summary, ensure_ascii=False).encode()
    assert ingest(log, tmp_path / "out")["converted"] == 0


def test_names_that_are_not_ascii_do_not_depend_on_their_place(tmp_path) -> None:
    log = frames_csv.write(tmp_path, episodes=3)
    for index, name in enumerate(("叠毛巾", "放杯子", "x" * 120)):
        (log / f"demo_{index}").rename(log / name)
    ingest(log, tmp_path / "out")
    before = {row["entry"]: row for row in read_manifest(tmp_path / "out")}
    (log / "叠毛巾").rename(tmp_path / "叠毛巾")
    ingest(log, tmp_path / "out")
    assert {row["entry"]: row for row in read_manifest(tmp_path / "out")} == before and len(before) == 3
    assert all(len(row["name"]) <= 100 and row["name"].isascii() for row in before.values())


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
    with pytest.raises(CheckFailed, match=r"1 of 3.*demo_1"):
        ingest(source, out, strict=True)
    assert len(read_manifest(out)) == 2 and (out / "quarantine" / "demo_1.json").is_file()
    assert CheckFailed.exit_code == 1


def test_outputs_in_the_way(tmp_path) -> None:
    source, out = robomimic_log(tmp_path / "log.hdf5"), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert_refused(ConfigError, out, lambda: ingest(source, out), "is not empty", "was not written by vla")
    assert_refused(ConfigError, out, lambda: ingest(source, out, format="tape"), "is not empty")
    assert_refused(ConfigError, out, lambda: ingest(source, out, overwrite=True), "was not written by vla")
    assert (out / "mine").read_text() == "precious"
    (out / "mine").unlink()
    ingest(source, out)
    before = contents(out)
    ingest(source, out, overwrite=True, instruction="something else")
    assert contents(out) != before
    for call in (run, plan):
        assert_refused(ConfigError, out, lambda c=call: c(IngestConfig(source=source, out=out)), "with other settings")
    assert_refused(ConfigError, out, lambda: ingest(out, out, overwrite=True), "overlap")
    assert_refused(ConfigError, tmp_path / "new", lambda: ingest(source, tmp_path / "new", format="tape"), "tape")


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


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        ("log.hdf5", {"episodes": 2}, "is no world, and --episodes would do nothing"),
        ("log.hdf5", {"expert": True, "keyboard": True}, "--expert and --keyboard would do nothing"),
        ("log.hdf5", {"topics": Path("map.yaml")}, "which has nothing to map"),
        ("tabletop:V", {"expert": True, "follow": True}, "is a world, and --follow would do nothing"),
        ("tabletop:V", {"expert": True, "format": "rlds", "topics": Path("map.yaml")}, "--topics and --format"),
    ],
)
def test_what_would_do_nothing_is_refused(source: str, options: dict, named: str, tmp_path: Path) -> None:
    robomimic_log(tmp_path / "log.hdf5")
    place = Path(source) if ":" in source else tmp_path / source
    out = tmp_path / "out"
    assert_refused(ConfigError, out, lambda: ingest(place, out, **options), named)
    with pytest.raises(ConfigError):
        plan(IngestConfig(source=place, out=out, **options))
