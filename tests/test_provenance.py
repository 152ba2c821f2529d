"""What a path is that should have been an artefact: said by name, and never answered with a way to lose it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_cli.provenance import ARTEFACTS, FILE_NAME, RunRecord, not_an_artefact, written_by


@pytest.mark.parametrize("wanted", ARTEFACTS)
@pytest.mark.parametrize("writer", ARTEFACTS)
def test_an_artefact_of_another_stage_is_called_by_its_name(writer: str, wanted: str, tmp_path: Path) -> None:
    RunRecord(writer, {}).save(tmp_path)
    message = str(not_an_artefact(tmp_path, "thing.json", wanted))
    assert written_by(tmp_path) == writer
    assert f"written by {wanted}" in message and "--overwrite" not in message and f"--out {tmp_path}" not in message
    assert ("holds no thing.json" if writer == wanted else ARTEFACTS[writer].noun) in message


@pytest.mark.parametrize("content", ["", "[]", "{", '{"stage": 3}', '{"stage": "fly"}', '{"stage": ["finetune"]}'])
def test_a_run_json_of_somebody_else_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    assert written_by(tmp_path) == ""
    assert "holds no thing.json" in str(not_an_artefact(tmp_path, "thing.json", "finetune"))


def test_what_is_none_of_ours_may_be_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log{0}.hdf5"
    assert f"--out {log}" in str(not_an_artefact(log, "x", "collect-ingest")), "nothing is there yet"
    log.write_bytes(b"x")
    assert f"is a file. Expected episodes: a directory written by collect-ingest. Try: vla collect-ingest {log}" in str(
        not_an_artefact(log, "x", "collect-ingest")
    )
