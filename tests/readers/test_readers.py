from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import lerobot_log, robomimic_log

from vla_cli.conversion import Task, Terms, convert
from vla_cli.episode import Skipped, load_episode
from vla_cli.errors import ConfigError, InputError
from vla_cli.readers import READERS, LogSource, Reader, detect, read_all


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("logs")
    modules = {name: import_module(f"logs.{name.replace('-', '_')}") for name in READERS}
    return {name: module.write(root / name, episodes=2, steps=12) for name, module in modules.items()}


def test_each_format_is_recognised_by_content_alone(logs) -> None:
    assert set(logs) == set(READERS)
    for name, path in logs.items():
        found, why = detect(path)
        assert found == name and len(why) > 10
        for other in READERS:
            assert bool(READERS.get(other).recognise(path)) == (other == name)


def test_every_reader_keeps_the_contract(logs, tmp_path) -> None:
    for name, path in logs.items():
        reader: Reader = READERS.get(name)
        episodes = list(read_all(reader, path, lambda message: None))
        assert len(episodes) == 2 and not [e for e in episodes if isinstance(e, Skipped)], name
        assert len({episode.name for episode in episodes}) == 2
        assert all(episode.of_role("image") and episode.of_role("action") for episode in episodes)
        assert all(s.values.ndim == 2 for e in episodes for s in e.streams if s.role != "image")
        said: list[str] = []
        with LogSource(name, path).opened(said.append) as log:
            entries = log.entries()
            assert all(file.is_file() for entry in entries for file in entry.files), name
            for entry in reversed(entries):  # any order, any process
                result = convert(log, Task(entry, entry.name, "sha256:x"), Terms(name), folder(tmp_path / name), said)
                assert result.row is not None, (name, result.reason)
        for entry in entries:
            pictures = load_episode(tmp_path / name / f"{entry.name}.hdf5").of_role("image")
            assert all(np.asarray(stream.values).shape == stream.values.shape for stream in pictures)


def folder(path: Path) -> Path:
    (path / ".results").mkdir(parents=True, exist_ok=True)
    return path


def test_no_format_lists_what_was_looked_for(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    h5py.File(tmp_path / "other.hdf5", "w").create_group("measurements").file.close()
    for path in (tmp_path / "notes.txt", tmp_path / "other.hdf5"):
        with pytest.raises(InputError) as caught:
            detect(path)
        assert all(name in str(caught.value) for name in (*READERS, "--format"))


def test_several_formats_list_the_candidates(tmp_path) -> None:
    lerobot_log(tmp_path / "both", episodes=1)
    robomimic_log(tmp_path / "both" / "demos.hdf5")
    with pytest.raises(InputError, match=r"several formats.*robomimic.*lerobot.*--format"):
        detect(tmp_path / "both")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="robomimic, libero, aloha, lerobot"):
        READERS.get("bag")
