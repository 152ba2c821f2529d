import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import InterruptAfter, assert_refused, contents, motion, png, real_log, replace, robomimic_log

from vla_cli.adapter import load_spec
from vla_cli.agreement import Agreement, agree
from vla_cli.cli import app
from vla_cli.configs import IngestConfig, PreprocessConfig
from vla_cli.dataset import load_dataset
from vla_cli.dataset_warnings import as_findings, dataset_warnings
from vla_cli.digests import digest_recording
from vla_cli.episode import load_episode, read_manifest, save_episode, write_manifest
from vla_cli.errors import CheckFailed, ConfigError, InputError
from vla_cli.files import read_json, write_json
from vla_cli.fingerprint import Accumulator, save_fingerprint
from vla_cli.progress import Progress
from vla_cli.stages import ingest, preprocess
from vla_cli.study import EpisodeStudy, Study, operator_facts


@pytest.fixture
def episodes(tmp_path):
    """Make an `episodes/` artefact from a robomimic log."""

    def make(demos: int = 6, alter=lambda index, group: None, **changes):
        source = robomimic_log(tmp_path / "log.hdf5", demos=demos, alter=alter, **changes)
        ingest.run(IngestConfig(source=source, out=tmp_path / "episodes", overwrite=True))
        return tmp_path / "episodes"

    return make


SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"


def run(directory, out, **options) -> dict:
    return preprocess.run(PreprocessConfig(episodes=directory, out=out, **options))


def test_episodes_become_a_dataset(episodes, tmp_path) -> None:
    summary = run(episodes(), tmp_path / "dataset")
    dataset = load_dataset(tmp_path / "dataset")
    files = set(contents(tmp_path / "dataset"))
    assert {"dataset.hdf5", "quality.json", "run.json", "splits.json", "stats.json"} <= files
    assert {"instructions.json", "report.html", "fingerprint.json"} <= files
    assert summary["counts"]["frames"] == 120 and (summary["state_dim"], summary["action_dim"]) == (4, 4)
    assert json.loads(json.dumps(summary)) == summary and summary["stage"] == "preprocess"
    assert len(dataset.train) == 5 and len(dataset.valid) == 1 and not set(dataset.train) & set(dataset.valid)
    assert dataset.rate_hz == 10.0 and dataset.cameras == ["camera"]
    assert dataset.state_names == ["gripper[0]", "position[0]", "position[1]", "position[2]"]
    assert dataset.world is not None and dataset.world["env_kwargs"]["shift"] == "V"
    parts = motion(20, seed=2)
    demo = dataset.demonstrations[2]
    assert np.array_equal(demo.actions, parts["actions"].astype(np.float32))
    assert np.array_equal(demo.state[:, 1:], parts["position"].astype(np.float32))
    assert np.array_equal(demo.images["camera"], parts["camera"])
    assert demo.instructions == ["put the red cube in the bowl"] and demo.operator == "ada"
    quality = read_json(tmp_path / "dataset" / "quality.json")
    assert quality["operators"]["ada"] == {"episodes": 3, "frames": 60, "seconds": 6.0, "idle_trimmed": 0}
    assert quality["episodes"][0]["resampled"] is False


def test_statistics_are_of_the_training_split_alone(episodes, tmp_path) -> None:
    run(episodes(), tmp_path / "dataset")
    dataset = load_dataset(tmp_path / "dataset")
    stacked = np.concatenate([demo.state for demo in dataset.split("train")])
    assert np.allclose(dataset.statistics.state.mean, stacked.mean(axis=0))
    everything = np.concatenate([demo.state for demo in dataset.demonstrations])
    assert not np.allclose(dataset.statistics.state.mean, everything.mean(axis=0))


def test_equal_runs_and_resumed_runs_give_equal_bytes(episodes, tmp_path) -> None:
    directory = episodes()
    for name in ("a", "b"):
        run(directory, tmp_path / name, image_size=10, seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    config = PreprocessConfig(episodes=directory, out=tmp_path / "c", image_size=10, seed=3)
    with pytest.raises(KeyboardInterrupt):
        preprocess.run(config, InterruptAfter(3))
    assert not (tmp_path / "c").exists()
    summary = run(directory, tmp_path / "c", image_size=10, seed=3, resume=True)
    assert contents(tmp_path / "c") == contents(tmp_path / "a")
    assert run(directory, tmp_path / "c", image_size=10, seed=3, resume=True) == summary


def test_pictures_rate_and_dimensions_as_asked(episodes, tmp_path) -> None:
    summary = run(episodes(), tmp_path / "d", image_size=10, rate=5.0, action_dims="3,0", state_dims="1-3")
    dataset = load_dataset(tmp_path / "d")
    assert dataset.rate_hz == 5.0 and dataset.demonstrations[0].images["camera"].shape == (10, 10, 10, 3)
    assert dataset.squared == 10
    assert dataset.action_names == ["action[3]", "action[0]"] and len(dataset.state_names) == 3
    assert any("resampled from 10 Hz to 5 Hz" in warning for warning in summary["warnings"])
    assert summary["counts"]["episodes_resampled"] == 6


def test_idle_frames_are_trimmed_and_counted(episodes, tmp_path) -> None:
    def still_head(index: int, group: h5py.Group) -> None:
        for key in ("obs/position", "obs/gripper"):
            values = group[key][()]
            values[:8] = values[8]
            replace(group, key, values)

    directory = episodes(alter=still_head)
    summary = run(directory, tmp_path / "d")
    assert summary["counts"]["idle_frames_trimmed"] == 6 * 7 and summary["counts"]["frames"] == 6 * 13
    assert run(directory, tmp_path / "e", keep_idle=True)["counts"]["frames"] == 120


def test_an_episode_that_stands_still_is_skipped_by_name(episodes, tmp_path) -> None:
    def still(index: int, group: h5py.Group) -> None:
        if index == 2:
            for key in ("obs/position", "obs/gripper", "actions"):
                replace(group, key, np.ones_like(group[key][()]))

    summary = run(episodes(alter=still), tmp_path / "d")
    assert [item["name"] for item in summary["skipped"]] == ["demo_2"]
    assert "nothing moves" in summary["skipped"][0]["reason"]


def test_a_quaternion_that_changes_sign_is_no_jump(tmp_path) -> None:
    def flip(index: int, group: h5py.Group) -> None:
        half = np.linspace(0, 0.5 + 0.1 * index, 20)
        quaternion = np.stack([np.sin(half), 0 * half, 0 * half, np.cos(half)], axis=1)
        quaternion[9:] *= -1
        group["obs/turn"] = quaternion

    source = robomimic_log(tmp_path / "turned.hdf5", demos=6, alter=flip)
    stated = ("turn.rotation=quaternion-xyzw",)
    ingest.run(IngestConfig(source=source, out=tmp_path / "turned", settings=stated))
    run(tmp_path / "turned", tmp_path / "d")
    quality = read_json(tmp_path / "d" / "quality.json")
    assert any("change sign 1 time(s)" in note for note in quality["episodes"][0]["notes"])
    assert [f["message"] for f in quality["findings"] if f["check"] == "spikes"] == []


def test_the_minority_with_other_widths_or_sizes_is_skipped(episodes, tmp_path) -> None:
    def differ(index: int, group: h5py.Group) -> None:
        if index == 0:
            replace(group, "actions", np.random.default_rng(0).normal(size=(20, 5)))
        if index == 3:
            replace(group, "obs/camera", np.zeros((20, 9, 9, 3), np.uint8))

    directory = episodes(alter=differ)
    summary = run(directory, tmp_path / "d")
    reasons = {item["name"]: item["reason"] for item in summary["skipped"]}
    assert set(reasons) == {"demo_0", "demo_3"}
    assert "4 and 5" in reasons["demo_0"] and "5 of 6 episodes have 4 and 4" in reasons["demo_0"]
    assert "camera 9x9" in reasons["demo_3"]
    assert run(directory, tmp_path / "e", image_size=12)["counts"]["episodes_out"] == 5
    with pytest.raises(CheckFailed, match=r"--strict.*demo_0"):
        run(directory, tmp_path / "f", strict=True)
    assert len(load_dataset(tmp_path / "f").demonstrations) == 4, "what is wrong can be looked at"


@pytest.fixture
def stated(episodes, tmp_path):
    """Make an `episodes/` artefact whose streams say what `say(index, stream)` gives, on top of what the log says."""

    def make(say) -> Path:
        made = episodes()
        rows = read_manifest(made)
        for index, row in enumerate(rows):
            episode = load_episode(made / row["file"])
            for stream in (*episode.of_role("state"), *episode.of_role("action")):
                stream.attributes |= say(index, stream)
                if "order" in stream.attributes:
                    order = stream.attributes.pop("order")
                    stream.values = stream.values[:, order]
                    stream.attributes["names"] = [stream.attributes["names"][i] for i in order]
            save_episode(episode, tmp_path / "said.hdf5")
            shutil.move(tmp_path / "said.hdf5", made / row["file"])
            row["digest"] = digest_recording(made / row["file"])
        write_manifest(made, rows)
        return made

    return make


def test_dimensions_in_another_order_are_put_in_the_first_ones_and_said(stated, tmp_path) -> None:
    def say(index: int, stream) -> dict:
        names = {"position": list("xyz"), "action": ["dx", "dy", "dz", "grip"]}.get(stream.name, ["grip"])
        return {"names": names, **({"order": [2, 0, 1, 3][: len(names)]} if index in (1, 4) and len(names) > 1 else {})}

    summary = run(stated(say), tmp_path / "d")
    dataset = load_dataset(tmp_path / "d")
    assert dataset.action_names == ["dx", "dy", "dz", "grip"]
    assert dataset.state_names == ["gripper.grip", "position.x", "position.y", "position.z"]
    for index, demo in enumerate(dataset.demonstrations):
        parts = motion(20, seed=index)
        np.testing.assert_array_equal(demo.actions, parts["actions"].astype(np.float32))
        np.testing.assert_array_equal(demo.state[:, 1:], parts["position"].astype(np.float32))
    said = [warning for warning in summary["warnings"] if "in another order" in warning]
    assert len(said) == 2 and all("2 of 6 episodes (demo_1, demo_4)" in warning for warning in said)


def test_an_episode_with_dimensions_of_other_names_is_skipped_by_name(stated, tmp_path) -> None:
    summary = run(
        stated(lambda index, s: {"names": ["a", "b", "c" if index != 3 else "k", "d"]} if s.role == "action" else {}),
        tmp_path / "d",
    )
    assert [item["name"] for item in summary["skipped"]] == ["demo_3"]
    assert "a, b, d, k" in summary["skipped"][0]["reason"]
    assert "5 of 6 episodes have" in summary["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("key", "many", "few", "hint"),
    [
        ("mode", "absolute", "delta", "--actions"),
        ("gripper", "open-low", "open-high", "--gripper normalise"),
        ("rotation", "axis-angle", "euler-xyz", "--set action.rotation"),
        ("units", "m, rad", "cm, rad", "--set action.units"),
    ],
)
def test_the_minority_whose_actions_mean_something_else_is_skipped_with_a_hint(
    stated, tmp_path, key: str, many: str, few: str, hint: str
) -> None:
    directory = stated(lambda index, s: {key: {2: few, 3: "unknown"}.get(index, many)} if s.role == "action" else {})
    summary = run(directory, tmp_path / "d")
    assert [item["name"] for item in summary["skipped"]] == ["demo_2"]
    assert key in summary["skipped"][0]["reason"] and hint in summary["skipped"][0]["reason"]
    assert any(f"1 of 5 episodes (demo_3) do not state the {key}" in warning for warning in summary["warnings"])


def test_grippers_that_are_made_the_same_need_not_be_the_same(stated, tmp_path) -> None:
    def say(index: int, stream) -> dict:
        return {"gripper": "open-high" if index % 2 else "open-low"} if stream.name != "position" else {}

    directory = stated(lambda index, s: {"gripper": "none"} | say(index, s))
    assert run(directory, tmp_path / "d")["counts"]["episodes_out"] == 3
    assert run(directory, tmp_path / "e", gripper="normalise")["counts"]["episodes_out"] == 6


def test_cameras_not_everywhere_are_dropped_and_said_or_kept_on_demand(episodes, tmp_path) -> None:
    def extra(index: int, group: h5py.Group) -> None:
        if index != 1:
            group["obs/wrist"] = np.random.default_rng(index).integers(0, 256, (20, 8, 8, 3), np.uint8)

    directory = episodes(alter=extra)
    summary = run(directory, tmp_path / "d")
    assert summary["cameras"] == ["camera"]
    assert any("'wrist' is dropped: 5 of 6" in warning for warning in summary["warnings"])
    assert any(r.startswith("dataset: Camera 'wrist' is dropped") for r in summary["verdict_reasons"])
    assert "wrist&#x27; is dropped" in (tmp_path / "d" / "report.html").read_text()
    summary = run(directory, tmp_path / "e", cameras=("wrist", "camera"))
    assert summary["cameras"] == ["wrist", "camera"] and load_dataset(tmp_path / "e").cameras == ["wrist", "camera"]
    assert summary["skipped"] == [{"name": "demo_1", "reason": "it has no camera wrist"}]


def test_without_a_common_camera_the_majority_decides(episodes, tmp_path) -> None:
    def other(index: int, group: h5py.Group) -> None:
        if index == 4:
            group.move("obs/camera", "obs/top")

    summary = run(episodes(alter=other), tmp_path / "d")
    assert summary["cameras"] == ["camera"] and [item["name"] for item in summary["skipped"]] == ["demo_4"]


def test_a_robot_too_wide_for_pi0_is_told_how_to_pick(episodes, tmp_path) -> None:
    def wide(index: int, group: h5py.Group) -> None:
        actions = np.zeros((20, 40))
        actions[:, 5:9] = np.random.default_rng(index).normal(size=(20, 4))
        replace(group, "actions", actions)

    directory = episodes(alter=wide)
    warning = next(w for w in run(directory, tmp_path / "d")["warnings"] if "pi0" in w)
    assert "40 dimensions" in warning and "at most 32" in warning and "--action-dims 5-8" in warning
    assert run(directory, tmp_path / "e", action_dims="5-8")["action_dim"] == 4


def test_seeds_change_the_split_only(episodes, tmp_path) -> None:
    directory = episodes(demos=8)

    def held_out(seed: int) -> list[str]:
        run(directory, tmp_path / str(seed), seed=seed)
        return load_dataset(tmp_path / str(seed)).valid

    first = held_out(0)
    assert any(held_out(seed) != first for seed in (1, 2, 3))


def test_a_dry_run_writes_nothing(episodes, tmp_path) -> None:
    directory = episodes()
    before = sorted(p.name for p in tmp_path.iterdir())
    plan = preprocess.plan(PreprocessConfig(episodes=directory, out=tmp_path / "d"))
    assert plan["episodes"] == 6 and plan["frames_before_trimming"] == 120 and plan["rate_hz"] == 10.0
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": -1.0}, "--rate"),
        ({"val_fraction": 1.0}, "--val-fraction"),
        ({"image_size": 2}, "--image-size"),
        ({"cameras": ("top",)}, "--camera names top"),
        ({"cameras": ("camera", "camera")}, "twice"),
        ({"action_dims": "0-9"}, "--action-dims"),
        ({"state_dims": "x"}, "--state-dims"),
    ],
)
def test_options_that_do_not_fit_are_refused(episodes, tmp_path, options: dict, said: str) -> None:
    directory, out = episodes(demos=2), tmp_path / "d"
    assert_refused(ConfigError, out, lambda: run(directory, out, **options), said)


def test_all_bad_options_are_told_at_once(tmp_path) -> None:
    out = tmp_path / "d"
    assert_refused(ConfigError, out, lambda: run(tmp_path, out, rate=-1.0, image_size=1), "--rate", "--image-size")


def test_of_two_rates_one_is_taken_and_none_between_them() -> None:
    def agreed(*rates: float) -> Agreement:
        rows = [
            {"name": f"e{i}", "state_dim": 1, "action_dim": 1, "cameras": {}, "rate_hz": r} for i, r in enumerate(rates)
        ]
        return agree(rows, cameras=(), rate=None, same_sizes=False, headers=lambda row: [])

    assert agreed(10, 10, 30, 30).rate == 10
    assert agreed(9.98, 10.01, 10.03, 30).rate == 10
    assert agreed(12.46, 12.54).rate == 12.5
    (told,) = agreed(10, 10, 10, 20, 30, 0).warnings
    assert told.startswith("2 of 6 episodes are resampled from 20 to 30 Hz to 10 Hz")
    assert agreed(10, 10, 0).warnings == [], "of one step, nothing is resampled"


def test_all_copies_of_one_episode_are_not_called_too_few() -> None:
    study = Study(
        rate_hz=10.0,
        state_names=["x"],
        action_names=["x"],
        episodes=[
            EpisodeStudy(f"e{i}", "ada", ["go"], [], np.zeros((5, 1), np.float32), np.zeros((5, 1), np.float32))
            for i in range(8)
        ],
        train=[f"e{i}" for i in range(8)],
        valid=[],
    )
    config = PreprocessConfig(episodes=Path("e"), out=Path("d"), val_fraction=0.2)
    study.episodes[0].actions[:, 0] = np.arange(5)
    told = dataset_warnings(config, study, [])
    assert told == ["No episode is held out, for all are near-duplicates of one another."]
    study.episodes[0].actions[:] = 0
    still = dataset_warnings(config, study, [])
    assert [f["severity"] for f in as_findings(still)] == ["error", "warning"], "there is nothing to learn"


def test_of_two_arms_the_one_that_grasps_tells_of_grasps() -> None:
    clock = np.arange(30, dtype=np.float32)[:, None]
    grip = (clock > 15).astype(np.float32)
    episodes = [
        EpisodeStudy(f"e{i}", "ada", ["go"], [], clock * [1, i + 1], np.concatenate([0 * grip, grip], axis=1))
        for i in range(3)
    ]
    names = ["left_gripper", "right_gripper"]
    study = Study(rate_hz=10.0, state_names=["x", "y"], action_names=names, episodes=episodes, train=[], valid=[])
    assert operator_facts(study)["profiles"][0]["grasps"] == 3


def test_bad_input_leaves_nothing_behind(episodes, tmp_path) -> None:
    out = tmp_path / "d"
    assert_refused(InputError, out, lambda: run(tmp_path / "nowhere", out), "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    assert_refused(InputError, out, lambda: run(tmp_path / "empty", out), "manifest.jsonl", "collect-ingest")
    (tmp_path / "empty" / "manifest.jsonl").write_text("")
    assert_refused(InputError, out, lambda: run(tmp_path / "empty", out), "no usable episode")
    directory = episodes(demos=3)
    assert_refused(ConfigError, directory, lambda: run(directory, directory, overwrite=True), "overlap")
    file = directory / "demo_1.hdf5"
    file.write_bytes(file.read_bytes()[:2000])
    assert_refused(InputError, out, lambda: run(directory, out), "demo_1.hdf5", "changed")


def test_a_finished_output_of_another_request_is_not_resumed(episodes, tmp_path) -> None:
    directory, out = episodes(demos=2), tmp_path / "d"
    run(directory, out)
    assert_refused(ConfigError, out, lambda: run(directory, out), "is not empty")
    assert_refused(ConfigError, out, lambda: run(directory, out, rate=5.0, resume=True), "rate (was None, now 5.0)")


def test_dataset_warnings(episodes, tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        del group.attrs["ep_meta"], group["obs/position"], group["obs/gripper"]

    warnings = " ".join(run(episodes(demos=2, alter=alter), tmp_path / "d")["warnings"])
    assert "no instruction" in warnings and "no state" in warnings and "No episode is held out" in warnings


def test_episodes_of_different_worlds_name_none(episodes, tmp_path) -> None:
    def black(index: int, group: h5py.Group) -> None:
        if index == 1:
            replace(group, "obs/camera", np.zeros((20, 12, 12, 3), np.uint8))

    directory = episodes(demos=2, alter=black)
    rows = [json.loads(line) for line in (directory / "manifest.jsonl").read_text().splitlines()]
    with h5py.File(directory / rows[1]["file"], "a") as file:
        file.attrs["world"] = json.dumps({"env_name": "other"})
    rows[1]["digest"] = digest_recording(directory / rows[1]["file"])
    (directory / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run(directory, tmp_path / "d")
    assert load_dataset(tmp_path / "d").world is None and any("--world" in w for w in summary["warnings"])
    summary = run(directory, tmp_path / "e", exclude="black")
    assert load_dataset(tmp_path / "e").world is not None, "what is left out has no say"
    assert not any("--world" in w for w in summary["warnings"])


def two_episodes(source: Path, root: Path) -> Path:
    """The real set with only its two shortest episodes listed, to save time; its files and their oddities are kept."""
    root.mkdir()
    for part in ("data", "videos", "meta"):
        shutil.copytree(source / part, root / part)
    listed = (source / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta").chmod(0o755)
    (root / "meta/episodes.jsonl").unlink()
    (root / "meta/episodes.jsonl").write_text("\n".join(listed[3:5]) + "\n")
    return root


def test_the_real_gr00t_set_goes_through_both_stages(tmp_path) -> None:
    """44 dimensions of which few ever move, and metadata that contradict the files: counted by hand."""
    source = two_episodes(real_log("gr00t_lerobot_v2/robot_sim.PickNPlace"), tmp_path / "log")
    summary = ingest.run(IngestConfig(source=source, out=tmp_path / "episodes"))
    assert summary["counts"] == {"episodes_in": 2, "steps": 740, "episodes_out": 2, "episodes_skipped": 0}
    assert [text.split()[2] for text in summary["instructions"]] == ["cupcake", "salt"]
    said = " ".join(summary["warnings"])
    assert "'observation.images.egoview'" in said and "0:100" in said and "does not list episode_000000" in said
    wide = preprocess.plan(PreprocessConfig(episodes=tmp_path / "episodes", out=tmp_path / "wide"))
    assert any("44 dimensions and pi0 takes at most 32: --action-dims" in warning for warning in wide["warnings"])
    options = {"image_size": 60, "action_dims": "0-6,22-33", "state_dims": "0-12"}
    summary = run(tmp_path / "episodes", tmp_path / "dataset", **options)
    assert summary["counts"]["frames"] == 740 and summary["rate_hz"] == 20.0 and summary["skipped"] == []
    assert (summary["state_dim"], summary["action_dim"]) == (13, 19)
    dataset = load_dataset(tmp_path / "dataset")
    assert dataset.demonstrations[0].images["ego_view"].shape == (412, 60, 60, 3)
    assert dataset.action_names[7] == "right_arm[0]" and len(dataset.train) == 2


def test_the_real_bridge_set_goes_through_both_stages(tmp_path) -> None:
    ingest.run(IngestConfig(source=real_log("bridge_v2_rlds"), out=tmp_path / "episodes"))
    summary = run(tmp_path / "episodes", tmp_path / "dataset", image_size=60, val_fraction=0.2)
    assert (summary["counts"]["train"], summary["counts"]["valid"]) == (20, 5) and summary["warnings"] == []
    assert summary["rate_hz"] == 5.0 and summary["cameras"] == ["image_0", "image_1", "image_2"]


# Judged: what the stage says of the sample demonstrations, and of faults put into them.


@pytest.fixture
def sample(sample_episodes, tmp_path):
    """The sample demonstrations as episodes, each changed by a function of its index and streams."""

    def make(alter, count: int = 20) -> Path:
        root = tmp_path / "altered"
        shutil.copytree(sample_episodes, root)
        rows = read_manifest(root)
        for row in rows[count:]:
            (root / row["file"]).unlink()
        del rows[count:]
        for index, row in enumerate(rows):
            episode = load_episode(root / row["file"])
            for stream in episode.streams:
                stream.values = np.array(stream.values)
            alter(index, episode)
            save_episode(episode, root / row["file"])
            row["digest"] = digest_recording(root / row["file"])
        write_manifest(root, rows)
        return root

    return make


def test_the_sample_is_sound_but_for_what_makes_a_policy_deaf(sample_episodes, tmp_path) -> None:
    summary = run(sample_episodes, tmp_path / "d", base=str(SAMPLES / "base"))
    quality = read_json(tmp_path / "d" / "quality.json")
    assert [f for f in quality["findings"] if f["severity"] != "info"] == []
    told = read_json(tmp_path / "d" / "instructions.json")
    assert {f["check"] for f in told["findings"]} >= {"position", "single-instruction"}
    row = told["instructions"][0]
    assert (row["object"], row["attributes"], row["place"]) == ("block", ["red"], "left plate")
    assert len(row["paraphrases"]) == 4 and row["instruction"] not in row["paraphrases"]
    assert "look" in summary["verdict"] and quality["operator_facts"]["sentences"]
    page = (tmp_path / "d" / "report.html").read_text()
    assert "alice" in page and "data:image" in page and "position" in page


def test_faults_are_found_mended_or_left_out(sample, tmp_path) -> None:
    def damage(index: int, episode) -> None:
        if index == 1:
            episode.of_role("state")[0].values[10] += 5.0
        if index == 2:
            episode.of_role("image")[0].values[8:14] = 0

    directory = sample(damage, count=8)
    found = run(directory, tmp_path / "d")
    quality = read_json(tmp_path / "d" / "quality.json")
    serious = {(f["check"], f["episode"]) for f in quality["findings"] if f["severity"] != "info"}
    assert serious >= {("spikes", "demo_1"), ("black", "demo_2")} and "Do not train" in found["verdict"]
    with pytest.raises(CheckFailed, match="error"):
        run(directory, tmp_path / "strict", strict=True)
    mended = run(directory, tmp_path / "fixed", fix="spikes,black", strict=True)
    told = {(f["check"], f["episode"]): f for f in read_json(tmp_path / "fixed" / "quality.json")["findings"]}
    black = told["black", "demo_2"]
    assert black["severity"] == "info" and black["message"].endswith("Mended by --fix black.")
    assert "Do not train" not in mended["verdict"] and "findings_error" not in mended["counts"]
    assert mended["counts"]["fixed_spikes"] >= 1 and mended["counts"]["fixed_black"] >= 6
    assert len(load_dataset(tmp_path / "fixed").demonstrations) == 8
    fewer = run(directory, tmp_path / "excluded", exclude="black")
    assert [item["name"] for item in fewer["skipped"]] == ["demo_2"] and "black" in fewer["skipped"][0]["reason"]
    assert "Do not train" not in fewer["verdict"], "what was left out does not stand against the rest"


def test_options_that_mean_nothing_are_refused(episodes, tmp_path) -> None:
    directory, out = episodes(), tmp_path / "d"
    for options in (
        {"fix": "everything"},
        {"exclude": "bad"},
        {"split": "thirds"},
        {"latency": ("camera",)},
        {"stats_from": "base"},
        {"actions": "relative"},
        {"paraphrases": -1},
    ):
        assert_refused(ConfigError, out, lambda options=options: run(directory, out, **options))


def test_an_operator_is_held_out_and_duplicates_stay_together(sample, tmp_path) -> None:
    run(sample(lambda index, episode: None), tmp_path / "d", split="operator:bob")
    dataset = load_dataset(tmp_path / "d")
    assert {d.operator for d in dataset.split("valid")} == {"bob"}
    assert {d.operator for d in dataset.split("train")} == {"alice"}


def test_statistics_of_the_base_are_kept_on_demand(sample_episodes, tmp_path) -> None:
    base, out = tmp_path / "base", tmp_path / "d"
    base.mkdir()
    shutil.copy(SAMPLES / "base" / "policy.json", base)
    run(sample_episodes, out, base=str(base), stats_from="base")
    kept, theirs = load_dataset(out).statistics, load_spec(base)
    assert np.array_equal(kept.state.mean, theirs.state.mean) and np.array_equal(kept.actions.std, theirs.actions.std)
    asked = read_json(out / "run.json")["request"]["statistics"]
    assert asked["name"] == "policy.json" and asked["digest"].startswith("sha256:"), "the file that is read"
    assert run(sample_episodes, out, base=str(base), stats_from="base", resume=True)["stage"] == "preprocess"
    (base / "policy.json").write_text((base / "policy.json").read_text() + "\n")
    with pytest.raises(ConfigError, match="begun with other settings: statistics"):
        run(sample_episodes, out, base=str(base), stats_from="base", resume=True)
    for path, named in ((base, f"{base}"), (base / "policy.json", f"{base / 'policy.json'}@z-score")):
        with pytest.raises(ConfigError, match="overlap"):
            run(sample_episodes, base, stats_from=named, overwrite=True)
        assert path.exists()


def test_paraphrases_are_told_beside_the_original(sample_episodes, tmp_path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("articles: [ze]\n")
    run(sample_episodes, tmp_path / "d", paraphrases=3, phrasings=words)
    told = load_dataset(tmp_path / "d").demonstrations[0].instructions
    assert told[0] == "put the red block on the left plate" and len(set(told)) == 4
    words.write_text("articles: [zis]\n")
    with pytest.raises(ConfigError, match="begun with other settings: phrasings"):
        run(sample_episodes, tmp_path / "d", paraphrases=3, phrasings=words, resume=True)


# Compared: pictures of a deployment against a finished dataset.


@pytest.fixture(scope="module")
def sample_dataset(sample_episodes, tmp_path_factory):
    """The sample demonstrations as a dataset."""
    out = tmp_path_factory.mktemp("compared") / "dataset"
    run(sample_episodes, out)
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Newly recorded demonstrations of a domain, as episodes."""

    def make(domain: str, seed: int) -> Path:
        out = tmp_path_factory.mktemp("recorded") / domain
        source, instruction = Path(f"tabletop:{domain}"), "put the red block on the left plate"
        ingest.run(IngestConfig(source=source, out=out, expert=True, episodes=12, seed=seed, instruction=instruction))
        return out

    return make


def test_a_deployment_is_the_same_or_has_moved(sample_dataset, recorded, tmp_path) -> None:
    before = contents(sample_dataset)
    same = run(sample_dataset, tmp_path / "none", compare=recorded("V", 5))
    assert same["verdict"] == "same" and same["rows"][0]["scenes"] == 12
    other = recorded("W", 5)
    assert run(sample_dataset, tmp_path / "none", compare=other)["verdict"] == "moved"
    with pytest.raises(CheckFailed, match="agentview_image"):
        run(sample_dataset, tmp_path / "none", compare=other, strict=True)
    assert contents(sample_dataset) == before and not (tmp_path / "none").exists()


def test_features_of_the_bases_vision_tower_are_compared_on_demand(sample_episodes, recorded, tmp_path) -> None:
    base, out = str(SAMPLES / "base"), tmp_path / "d"
    run(sample_episodes, out, base=base, features=True)
    quantities = lambda found: {change["quantity"] for change in found["rows"][0]["changes"]}  # noqa: E731
    same = run(out, tmp_path / "none", compare=recorded("V", 6), base=base, features=True)
    assert same["verdict"] == "same" and "features" in quantities(same)
    assert "features" not in quantities(run(out, tmp_path / "none", compare=recorded("V", 7)))
    facts = read_json(out / "run.json")
    facts["facts"]["vision_features"] = "sha256:another"
    (out / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="sha256:another"):
        run(out, tmp_path / "none", compare=sample_episodes, base=base, features=True)
    with pytest.raises(ConfigError, match="--base"):
        run(out, tmp_path / "none", compare=sample_episodes, features=True)


class Heard(Progress):
    """What is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_a_camera_of_which_nothing_is_shown_is_named(tmp_path) -> None:
    rng, glimpses = np.random.default_rng(0), Accumulator()
    for camera in ("front", "wrist", "front", "wrist", "front", "wrist"):
        glimpses.add(camera, rng.integers(0, 256, (5, 16, 16, 3), np.uint8))
    save_fingerprint(glimpses.result(), tmp_path)
    write_json(tmp_path / "run.json", {})
    (tmp_path / "pictures" / "front").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "pictures" / "front" / f"{i}.png").write_bytes(png(rng.integers(0, 256, (16, 16, 3), np.uint8)))
    heard = Heard()
    preprocess.run(PreprocessConfig(episodes=tmp_path, compare=tmp_path / "pictures"), heard)
    assert heard.notes[-1] == "Camera wrist: no pictures of it were given, so that nothing is known of it."


def test_comparing_needs_a_dataset_and_pictures_of_its_cameras(sample_dataset, sample_episodes, tmp_path) -> None:
    (tmp_path / "frames").mkdir()
    for known, shown, said in (
        (sample_episodes, sample_episodes, "vla preprocess"),
        (sample_dataset, tmp_path / "frames", "agentview_image"),
        (sample_dataset, tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            run(known, tmp_path / "none", compare=shown)


def test_what_is_compared_is_the_dataset_where_no_other_is_named(sample_dataset, sample_episodes, capsys) -> None:
    arguments = ["preprocess", "--out", str(sample_dataset), "--compare", str(sample_episodes), "--json"]
    assert app(arguments, standalone_mode=False) in (None, 0)
    assert json.loads(capsys.readouterr().out)["out"] == str(sample_dataset)
