import h5py
import pytest
from builders import lerobot_log, rlds_example, rlds_log, robomimic_log

from vla_cli.errors import ConfigError, InputError
from vla_cli.readers import READERS, Reader, detect


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    root = tmp_path_factory.mktemp("logs")
    return {
        "robomimic": robomimic_log(root / "anything.bin"),
        "lerobot": lerobot_log(root / "a", episodes=1),
        "rlds": rlds_log(root / "b", [rlds_example(4)]),
    }


def test_each_format_is_recognised_by_content_alone(logs) -> None:
    assert set(logs) == set(READERS)
    for name, path in logs.items():
        found, why = detect(path)
        assert found == name and len(why) > 10
        for other in READERS:
            assert bool(READERS.get(other).recognise(path)) == (other == name)


def test_every_reader_keeps_the_contract(logs) -> None:
    for name, path in logs.items():
        reader: Reader = READERS.get(name)
        episodes = list(reader.read(path, lambda message: None))
        assert len(episodes) == reader.count(path)
        for episode in episodes:
            assert episode.format == name and episode.source_digest.startswith("sha256:")
            assert episode.of_role("image") and episode.of_role("action")
            assert all(stream.values.ndim == 2 for stream in episode.streams if stream.role != "image")


def test_no_format_lists_what_was_looked_for(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    h5py.File(tmp_path / "aloha.hdf5", "w").create_group("observations").file.close()
    for path in (tmp_path / "notes.txt", tmp_path / "aloha.hdf5"):
        with pytest.raises(InputError) as caught:
            detect(path)
        assert all(name in str(caught.value) for name in (*READERS, "--format"))


def test_several_formats_list_the_candidates(tmp_path) -> None:
    lerobot_log(tmp_path / "both", episodes=1)
    robomimic_log(tmp_path / "both" / "demos.hdf5")
    with pytest.raises(InputError, match=r"several formats.*robomimic.*lerobot.*--format"):
        detect(tmp_path / "both")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="robomimic, lerobot, rlds"):
        READERS.get("rosbag")
