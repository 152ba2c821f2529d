import json
import os
import struct
import subprocess
import sys
from dataclasses import replace as changed
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import motion, real_log, robomimic_log
from PIL import Image

from vla_cli.adapter import BaseReference, load_spec, save_spec
from vla_cli.bundle import write_digests
from vla_cli.configs import InspectConfig
from vla_cli.console import Terminal, describe, resolve
from vla_cli.episode import Episode, Stream, manifest_row, save_episode, write_manifest
from vla_cli.errors import ConfigError, InputError, VlaError
from vla_cli.outline import DEEPEST, LARGEST_JSON, MOST_NODES
from vla_cli.progress import Progress
from vla_cli.report import Condition, Report, count_row, save_report
from vla_cli.stages.inspect import run

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_data"
SECRET = "the sender was never given this"


class Told(Progress):
    """What a person would read."""

    def __init__(self) -> None:
        self.tables: dict[str, list[list[str]]] = {}
        self.notes: list[str] = []

    def table(self, title: str, columns: list[str], rows: list[list]) -> None:
        assert all(len(row) == len(columns) for row in rows)
        self.tables[title] = rows

    def note(self, message: str) -> None:
        self.notes.append(message)


def inspect(path: Path, told: Progress | None = None, **options) -> dict:
    found = run(InspectConfig(path=path, **options), told or Told())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def refused(path: Path, *fragments: str, error: type[VlaError] = InputError, **options) -> None:
    with pytest.raises(error) as caught:
        inspect(path, **options)
    text = str(caught.value)
    assert caught.type is error and "\n" not in text and len(text) < 2500
    for fragment in fragments:
        assert fragment in text


def recorded(name: str, steps: int = 20, seed: int = 0, **changes) -> Episode:
    parts, clock = motion(steps, seed), np.arange(steps) / 10
    said = {"names": ["dx", "dy", "dz", "grip"], "rate_hz": 10.0, "mode": "delta", "units": "m"}
    streams = [
        Stream("image", "front", parts["camera"], clock, {"rate_hz": 10.0, "channels": "rgb"}),
        Stream("state", "pose", parts["position"], clock, {"rate_hz": 10.0}),
        Stream("action", "action", parts["actions"], clock, said),
    ]
    facts = {"instructions": ["push the lever"], "operator": "ada", "format": "robomimic", **changes}
    return Episode(name=name, streams=streams, **facts)


def episodes_of(root: Path, episodes: list[Episode]) -> Path:
    root.mkdir()
    rows = []
    for episode in episodes:
        save_episode(episode, root / f"{episode.name}.hdf5")
        rows.append(manifest_row(episode, root / f"{episode.name}.hdf5"))
    write_manifest(root, rows)
    return root


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- our own artefacts ---


def test_episodes_are_told_with_streams_ranges_and_conventions(tmp_path) -> None:
    given = [recorded(f"demo_{i}", steps=20 + i, seed=i) for i in range(5)]
    given[4].instructions, given[4].operator = ["pull the lever"], "bo"
    told = Told()
    found = inspect(episodes_of(tmp_path / "episodes", given), told)
    assert found["kind"] == "episodes" and found["counts"] == {"episodes": 5, "steps": 110, "episodes_read": 3}
    contents = found["contents"]
    assert contents["instructions"] == {"push the lever": 4, "pull the lever": 1}
    assert contents["operators"] == {"ada": 4, "bo": 1}
    assert [episode["name"] for episode in contents["episodes"]] == ["demo_0", "demo_1", "demo_2"]
    front, pose, action = contents["streams"]
    assert front["shape"] == [[20, 22], 12, 12, 3] and front["dtype"] == "uint8" and front["rate_hz"] == 10
    assert front["stated"] == {"channels": "rgb"} and front["unknown"] == ["orientation"]
    assert pose["role"] == "state" and [d["name"] for d in pose["dimensions"]] == ["0", "1", "2"]
    assert action["stated"] == {"units": "m", "mode": "delta"} and "gripper" in action["unknown"]
    assert action["seconds"] == [1.9, 2.1]
    values = np.concatenate([episode.of_role("action")[0].values for episode in given[:3]])
    for index, dimension in enumerate(action["dimensions"]):
        assert dimension["name"] == ["dx", "dy", "dz", "grip"][index]
        assert np.isclose(dimension["min"], values[:, index].min(), rtol=1e-6)
        assert np.isclose(dimension["max"], values[:, index].max(), rtol=1e-6)
    assert set(told.tables) == {
        *("episodes read in detail", "streams", "conventions", "ranges", "instructions", "operators")
    }
    assert ["push the lever", "4"] in told.tables["instructions"]


@pytest.mark.parametrize(("episodes", "read"), [(0, 0), (2, 2), (99, 3)])
def test_as_many_are_read_as_asked(tmp_path, episodes, read) -> None:
    path = episodes_of(tmp_path / "episodes", [recorded(f"demo_{i}") for i in range(3)])
    found = inspect(path, episodes=episodes)
    assert len(found["contents"]["episodes"]) == found["counts"]["episodes_read"] == read
    assert found["counts"]["episodes"] == 3


def test_one_episode_file(tmp_path) -> None:
    save_episode(recorded("demo_0", notes=["the rate is assumed"]), tmp_path / "demo_0.hdf5")
    told = Told()
    found = inspect(tmp_path / "demo_0.hdf5", told)
    assert found["kind"] == "episode" and found["contents"]["episodes"][0]["steps"] == 20
    assert told.tables["notes"] == [["the rate is assumed", "demo_0"]]


def test_an_episode_without_actions_or_with_nan_is_named(tmp_path) -> None:
    episode = recorded("demo_0")
    episode.streams[1].values[3] = np.nan
    save_episode(episode, tmp_path / "demo_0.hdf5")
    found = inspect(tmp_path / "demo_0.hdf5")
    assert found["skipped"][0]["name"] == "demo_0" and "NaN" in found["skipped"][0]["reason"]
    assert all(d["min"] is not None for d in found["contents"]["streams"][1]["dimensions"])


def test_what_the_stages_make_of_the_sample_data(episodes, dataset) -> None:
    found = inspect(episodes)
    assert found["kind"] == "episodes" and found["counts"]["episodes"] == 20
    assert found["contents"]["run"]["stage"] == "collect-ingest"
    told = Told()
    found = inspect(dataset, told)
    assert found["kind"] == "dataset"
    assert found["counts"]["train_episodes"] + found["counts"]["valid_episodes"] == found["counts"]["episodes"] == 20
    contents = found["contents"]
    assert contents["rate_hz"] == 10 and contents["cameras"] == ["agentview_image"]
    assert sum(contents["operators"].values()) == 20 and sum(contents["instructions"].values()) == 20
    assert [s["role"] for s in contents["streams"]] == ["image", "state", "action"]
    assert set(contents["statistics"]) == {"state", "actions"}
    assert [row[1] for row in told.tables["statistics of the training split"]][-3:] == [
        d["name"] for d in contents["streams"][2]["dimensions"]
    ]
    alone = inspect(dataset / "dataset.hdf5")
    assert alone["kind"] == "dataset" and alone["contents"]["streams"] == contents["streams"]


def test_a_base_and_what_was_made_of_it(tmp_path) -> None:
    told = Told()
    found = inspect(SAMPLES / "base", told)
    assert found["kind"] == "base" and found["counts"]["parameters"] == 1342912
    assert found["contents"]["model"] == "pi0" and found["contents"]["policy"]["chunk_size"] == 8
    assert [row[1] for row in told.tables["statistics"]] == ["x", "y", "closed", "holding", "dx", "dy", "gripper"]
    spec = load_spec(SAMPLES / "base")
    reference = BaseReference("base", "sha256:00")
    adapter = folder(tmp_path / "adapter")
    save_spec(changed(spec, kind="lora", base=reference, recipe="lora", instructions=["push"]), adapter)
    found = inspect(adapter)
    assert found["kind"] == "adapter" and found["contents"]["policy"]["base"]["digest"] == "sha256:00"
    write_digests(adapter)
    found = inspect(adapter)
    assert found["kind"] == "bundle" and found["counts"]["files"] == 1 and found["warnings"] == []
    with (adapter / "policy.json").open("a") as stream:
        stream.write("\n")
    assert "was changed" in inspect(adapter)["warnings"][0]


def test_a_base_from_elsewhere_says_what_it_lacks(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "pi0"}')
    (tmp_path / "model.safetensors").write_bytes((SAMPLES / "base" / "model.safetensors").read_bytes())
    found = inspect(tmp_path)
    assert found["kind"] == "base" and "no policy.json" in found["warnings"][0]


def a_report() -> Report:
    rows = [
        count_row(policy, condition, "success", k, 100)
        for policy, condition, k in [
            ("base", "trained", 30),
            ("base", "novel-concept", 80),
            ("mine", "trained", 95),
            ("mine", "novel-concept", 2),
        ]
    ]
    policies = [{"name": name, "recipe": "", "digest": "sha256:00"} for name in ("base", "mine")]
    return Report("closed-loop", policies, [Condition("trained"), Condition("novel-concept")], rows)


def test_a_report_is_told_with_its_verdict_and_table(tmp_path) -> None:
    save_report(tmp_path, a_report(), [], "<html></html>")
    told = Told()
    found = inspect(tmp_path, told)
    assert found["kind"] == "report" and found["counts"] == {"policies": 2, "conditions": 2, "rows": 4}
    assert found["contents"]["verdicts"][0]["verdict"] == "not steerable"
    assert told.tables["verdict"][0][:2] == ["mine", "not steerable"]
    assert told.tables["success"][0][0] == "trained" and told.tables["success"][0][2].startswith("95%")


# --- logs ---


def test_a_log_is_recognised_and_its_first_episodes_are_read(tmp_path) -> None:
    told = Told()
    found = inspect(SAMPLES / "demonstrations.hdf5", told)
    assert found["kind"] == "robomimic" and "demo_" in found["because"]
    assert found["counts"] == {"episodes": 20, "episodes_read": 3} and len(found["contents"]["names"]) == 20
    assert found["contents"]["operators"] == {"alice": 2, "bob": 1}
    assert found["contents"]["streams"][0]["name"] == "agentview_image"
    assert any("no instruction" in note for note in told.notes)


def test_an_unusable_episode_of_a_log_is_named(tmp_path) -> None:
    def spoil(index: int, group: h5py.Group) -> None:
        if index == 1:
            del group["actions"]

    found = inspect(robomimic_log(tmp_path / "log.hdf5", alter=spoil), format="robomimic")
    assert found["counts"] == {"episodes": 3, "episodes_read": 2}
    assert [item["name"] for item in found["skipped"]] == ["demo_1"] and "actions" in found["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bridge_v2_rlds/1.0.0", "rlds"), ("gr00t_lerobot_v2/robot_sim.PickNPlace", "lerobot")],
)
def test_real_recordings(tmp_path, name, kind) -> None:
    source = real_log(name)
    sheet = tmp_path / "sheet.png"
    found = inspect(source, frames=sheet)
    assert found["kind"] == kind and found["counts"]["episodes_read"] == 3 and found["skipped"] == []
    roles = {stream["role"] for stream in found["contents"]["streams"]}
    assert roles >= {"image", "state", "action"} and found["contents"]["instructions"]
    with Image.open(sheet) as shown:
        assert shown.width > 1000


def test_a_format_can_be_stated(tmp_path) -> None:
    refused(SAMPLES / "base", format="robomimic")
    refused(SAMPLES / "base", "rosbag9", error=ConfigError, format="rosbag9")


# --- contact sheets ---


def test_a_contact_sheet_is_the_same_every_time_and_not_overwritten(tmp_path) -> None:
    path = episodes_of(tmp_path / "episodes", [recorded(f"demo_{i}") for i in range(2)])
    sheets = [tmp_path / "a.png", tmp_path / "b.png"]
    for sheet in sheets:
        assert inspect(path, frames=sheet)["frames"] == str(sheet)
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    refused(path, "exists", error=ConfigError, frames=sheets[0])
    inspect(path, frames=sheets[0], overwrite=True)
    refused(path, "PNG", error=ConfigError, frames=tmp_path / "a.jpg")
    refused(path, "does not exist", error=ConfigError, frames=tmp_path / "nowhere" / "a.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "episodes"]


def test_no_pictures_no_sheet(tmp_path) -> None:
    refused(SAMPLES / "base", "no pictures", frames=tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# --- anything else ---


def members(node: dict) -> dict[str, dict]:
    return {member["name"]: member for member in node.get("members", [])}


def count(node: dict) -> int:
    return 1 + sum(count(member) for member in node.get("members", []))


def depth(node: dict) -> int:
    return 1 + max((depth(member) for member in node.get("members", [])), default=0)


def test_any_hdf5_is_outlined(tmp_path) -> None:
    with h5py.File(tmp_path / "any.h5", "w") as file:
        file.attrs["sim"] = True
        file.create_dataset("a/b/values", data=np.zeros((5, 3)), compression="gzip").attrs["units"] = "m"
        file["a/text"] = "hello"
    found = inspect(tmp_path / "any.h5")
    tree = found["contents"]["tree"]
    assert found["kind"] == "hdf5" and tree["attributes"] == {"sim": "True"}
    values = members(members(members(tree)["a"])["b"])["values"]
    assert values["detail"] == "float64[5, 3], gzip" and values["attributes"] == {"units": "m"} and values["bytes"] > 0


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.json", '{"a": {"b": [1, 2, {"c": null}]}, "d": "text", "e": true}', "json"),
        ("a.jsonl", '{"a": 1}\n{"a": 2}\n', "json lines"),
        ("a.yaml", "# comment\na:\n  b: [1, 2]\n", "yaml"),
        ("b.yaml", "{a: 1, b: [x, y]}", "yaml"),
    ],
)
def test_documents_are_outlined(tmp_path, name, text, kind) -> None:
    (tmp_path / name).write_text(text)
    found = inspect(tmp_path / name)
    assert found["kind"] == kind and count(found["contents"]["tree"]) >= 3 and found["warnings"] == []


def test_sample_yaml() -> None:
    tree = inspect(SAMPLES / "alternatives.yaml")["contents"]["tree"]
    assert members(members(tree)["0"])["instruction"]["detail"].startswith("put the blue ball")


def test_a_zarr_store_is_outlined(tmp_path) -> None:
    import zarr

    for version in (2, 3):
        root = zarr.open_group(tmp_path / f"v{version}", mode="w", zarr_format=version)
        root.create_array("some/values", shape=(10, 3), dtype="f4", chunks=(5, 3))[:] = 1
        found = inspect(tmp_path / f"v{version}")
        values = members(members(found["contents"]["tree"])["some"])["values"]
        assert found["kind"] == "zarr" and values["kind"] == "array"
        assert values["detail"].endswith("[10, 3]") and ("f4" in values["detail"] or "float32" in values["detail"])


def test_a_folder_of_artefacts_says_what_each_is(tmp_path) -> None:
    episodes_of(tmp_path / "mine", [recorded("demo_0")])
    with h5py.File(tmp_path / "any.h5", "w") as file:
        file["values"] = np.zeros(3)
    (tmp_path / "out").symlink_to("/etc")
    found = inspect(tmp_path)
    assert found["kind"] == "folder" and found["contents"]["parts"] == ["any.h5: HDF5", "mine: episodes"]
    assert members(found["contents"]["tree"])["out"] == {"name": "out", "kind": "link", "detail": "not followed"}


# --- what cannot be read ---


def test_what_is_not_there_or_holds_nothing(tmp_path) -> None:
    refused(tmp_path / "nowhere", "does not exist", "ls ")
    refused(folder(tmp_path / "empty"), "is empty")
    (tmp_path / "empty.hdf5").touch()
    refused(tmp_path / "empty.hdf5", "is empty")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a file nor a directory")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 20)
    refused(tmp_path / "noise", "no log format", "robomimic")
    (folder(tmp_path / "text") / "README").write_text("some words")
    refused(tmp_path / "text", "no log format")
    refused(SAMPLES / "base", "--episodes", error=ConfigError, episodes=-1)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files(tmp_path, share) -> None:
    for source in (SAMPLES / "demonstrations.hdf5", SAMPLES / "base" / "policy.json"):
        data = source.read_bytes()
        (tmp_path / source.name).write_bytes(data[: int(len(data) * share)])
        refused(tmp_path / source.name)


def test_truncated_artefacts(tmp_path, dataset) -> None:
    broken = folder(tmp_path / "dataset")
    data = (dataset / "dataset.hdf5").read_bytes()
    (broken / "dataset.hdf5").write_bytes(data[: len(data) // 2])
    refused(broken, "dataset")
    base = folder(tmp_path / "base")
    (base / "policy.json").write_text((SAMPLES / "base" / "policy.json").read_text())
    (base / "model.safetensors").write_bytes((SAMPLES / "base" / "model.safetensors").read_bytes()[:5000])
    refused(base, "safetensors")
    (base / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(base, "header")


def test_a_damaged_episode_among_others_is_named(tmp_path) -> None:
    path = episodes_of(tmp_path / "episodes", [recorded(f"demo_{i}") for i in range(3)])
    with (path / "demo_1.hdf5").open("r+b") as stream:
        stream.truncate(1000)
    refused(path, "demo_1.hdf5", "changed since it was ingested")
    rows = [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]
    from vla_cli.digests import digest_recording

    write_manifest(path, [{**row, "digest": digest_recording(path / row["file"])} for row in rows])
    found = inspect(path)
    assert found["counts"]["episodes_read"] == 2 and [item["name"] for item in found["skipped"]] == ["demo_1"]


# --- what was made to do harm ---


def test_hostile_hdf5_stays_within_bounds(tmp_path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = SECRET
    with h5py.File(tmp_path / "hostile.h5", "w") as file:
        file["self"] = file["/"]
        file["loop/again"] = file["/"]
        file["linked"] = h5py.ExternalLink("other.h5", "/secret")
        file["soft"] = h5py.SoftLink("/nowhere")
        file["round"] = h5py.SoftLink("/round")
        file.create_dataset("huge", (10**9, 10**9), np.float64, chunks=(1, 1000))
        layout = h5py.VirtualLayout((), h5py.string_dtype())
        layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", ())
        file.create_virtual_dataset("virtual", layout)
        group = file.create_group("chain")
        for _ in range(100):
            group = group.create_group("deeper")
        many = file.create_group("many")
        for index in range(3000):
            many.create_group(f"g{index}")
        file.attrs["\x1b[2J[/red]"] = "\x1b[31m" * 10_000
    found = inspect(tmp_path / "hostile.h5")
    tree = found["contents"]["tree"]
    assert found["kind"] == "hdf5" and count(tree) <= MOST_NODES + 1 and depth(tree) <= DEEPEST + 1
    inside = members(tree)
    assert inside["self"]["detail"] == inside["loop"]["members"][0]["detail"] == "the same as one above"
    assert "not followed" in inside["linked"]["detail"] and "not followed" in inside["virtual"]["detail"]
    assert inside["many"]["left_out"] == 3000 - len(inside["many"]["members"]) > 2900
    assert inside["huge"]["bytes"] == 0
    text = json.dumps(found, ensure_ascii=False)
    assert SECRET not in text and "\x1b" not in text and len(text) < 200_000


def test_what_a_log_calls_its_things_does_not_steer_the_terminal(tmp_path, capsys) -> None:
    episode = recorded("demo_0", instructions=["[/red]push\x1b[31m the [bold]lever"], operator="[link=x]")
    episode.streams[0].name = "[/front]"
    save_episode(changed(episode, streams=episode.streams[1:]), tmp_path / "demo_0.hdf5")
    with Terminal() as terminal:
        found = inspect(tmp_path / "demo_0.hdf5", terminal)
    shown = capsys.readouterr().err + "\n".join(describe(found))
    assert "[/red]push" in shown and "[bold]lever" in shown and "\x1b[31m" not in shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.json", "[" * 500_000),
        ("deep.yaml", "a: " + "[" * 30_000),
        ("dashes.yaml", "- " * 15_000),
        ("laughs.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
        )),
        ("loop.yaml", "a: &a [*a, 1]\n"),
        ("nan.json", '{"a": NaN, "b": 1e999, "c": "\\ud800", "d": "\\u001b[2J"}'),
        ("wide.json", json.dumps(list(range(200_000)))),
        ("bool.yaml", "a: !!bool maybe\n"),
        ("date.yaml", "a: 2026-13-45\n"),
        ("python.yaml", "a: !!python/object/apply:os.system [touch /tmp/never]\n"),
        ("digits.json", '{"a": ' + "9" * 100_000 + "}"),
    ],
)  # fmt: skip
def test_hostile_documents(tmp_path, name, text) -> None:
    (tmp_path / name).write_text(text)
    try:
        tree = inspect(tmp_path / name)["contents"]["tree"]
    except InputError:
        return
    assert count(tree) <= MOST_NODES + 1 and depth(tree) <= DEEPEST + 1 and len(json.dumps(tree)) < 200_000


def test_sizes_are_checked_before_anything_is_read(tmp_path) -> None:
    for name, start in (("big.json", b"["), ("big.yaml", b"a: ")):
        with (tmp_path / name).open("wb") as stream:
            stream.write(start + b" " * 5000)
            stream.truncate(50 * LARGEST_JSON)
        refused(tmp_path / name)
    for name, start in (("policy.json", b'{"kind": "lora"'), ("report.json", b'{"policies": ['), ("run.json", b"{")):
        artefact = folder(tmp_path / name.removesuffix(".json"))
        (artefact / "policy.json").write_bytes((SAMPLES / "base" / "policy.json").read_bytes())
        with (artefact / name).open("wb") as stream:
            stream.write(start + b" " * 5000)
            stream.truncate(50 * LARGEST_JSON)
        refused(artefact, "at most")


def test_an_episode_that_claims_more_than_it_holds(tmp_path) -> None:
    for name, shape in (("one", (2**31, 64)), ("two", (2**24, 64))):
        save_episode(recorded("demo_0"), tmp_path / f"{name}.hdf5")
        with h5py.File(tmp_path / f"{name}.hdf5", "r+") as file:
            group = file["streams/state/pose"]
            del group["values"]
            group.create_dataset("values", shape, np.float32, chunks=(64, 64), compression="gzip")
        refused(tmp_path / f"{name}.hdf5", "values")


def test_a_bundle_that_lists_files_elsewhere(tmp_path) -> None:
    (tmp_path / "policy.json").write_bytes((SAMPLES / "base" / "policy.json").read_bytes())
    (tmp_path / "digests.json").write_text(json.dumps({"../../etc/passwd": "sha256:00"}))
    refused(tmp_path, "outside of the bundle")


@pytest.mark.parametrize(
    "document", ["[]", "7", '{"kind": [], "schema_version": 1}', '{"schema_version": 1, "state": 3}']
)
def test_a_policy_of_another_form(tmp_path, document) -> None:
    (tmp_path / "policy.json").write_text(document)
    refused(tmp_path, "policy.json")


# --- the command ---


def test_the_command_prints_one_document() -> None:
    script = "import sys; sys.argv[0] = 'vla'; from vla_cli.cli import main; main()"
    command = [sys.executable, "-c", script, "inspect", "sample_data/base", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and json.loads(done.stdout)["kind"] == "base" and "model.safetensors" in done.stderr


def test_people_get_a_few_lines_and_tables(capsys) -> None:
    with Terminal() as terminal:
        lines = describe(inspect(SAMPLES / "base", terminal))
    assert lines[0] == f"inspect: {SAMPLES / 'base'}" and "  kind: base" in lines
    assert not any("contents" in line for line in lines) and "model.safetensors" in capsys.readouterr().err


def test_the_path_is_required_and_options_may_come_from_a_file(tmp_path) -> None:
    with pytest.raises(ConfigError, match="Missing: PATH"):
        resolve(InspectConfig, {}, None)
    (tmp_path / "options.yaml").write_text(f"path: {tmp_path}\nepisodes: 1\n")
    assert resolve(InspectConfig, {}, tmp_path / "options.yaml") == InspectConfig(path=tmp_path, episodes=1)
    (tmp_path / "options.yaml").write_text("dry_run: true\n")
    with pytest.raises(ConfigError, match="dry_run"):
        resolve(InspectConfig, {"path": tmp_path}, tmp_path / "options.yaml")
