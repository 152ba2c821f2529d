from pathlib import Path

import pytest

from vla_cli.errors import ConfigError, InputError
from vla_cli.files import (
    building,
    check_apart,
    check_output,
    digest,
    digest_together,
    is_complete,
    partial_path,
    read_json,
    replacing,
    to_json,
    write_json,
)


def build(out, text: str = "x", fail: type[BaseException] | None = None, **how) -> None:
    with building(out, {"text": text}, **{"overwrite": False, "resume": False, **how}) as partial:
        (partial / "a").write_text(text)
        if fail:
            raise fail
        write_json(partial / "run.json", {"request": {"text": text}})


def test_a_directory_appears_whole(tmp_path) -> None:
    out = tmp_path / "deep" / "out"
    build(out)
    assert sorted(p.name for p in out.iterdir()) == ["a", "run.json"] and not partial_path(out).exists()


def test_an_error_leaves_nothing_and_an_interrupt_leaves_what_can_be_resumed(tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError):
        build(out, fail=ValueError)
    assert not out.exists() and not partial_path(out).exists()
    with pytest.raises(KeyboardInterrupt):
        build(out, fail=KeyboardInterrupt)
    assert not out.exists() and (partial_path(out) / "a").is_file()
    with pytest.raises(ConfigError, match="--resume"):
        build(out)
    with pytest.raises(ConfigError, match="begun with other settings"):
        build(out, text="other", resume=True)
    assert (partial_path(out) / "a").is_file()
    build(out, resume=True)
    assert (out / "a").is_file() and not partial_path(out).exists()


def test_an_output_is_refused_replaced_or_found_finished(tmp_path) -> None:
    out = tmp_path / "out"
    build(out)
    with pytest.raises(ConfigError, match="is not empty"):
        build(out, "new")
    assert is_complete(out, {"text": "x"}, resume=True) and not is_complete(out, {"text": "x"}, resume=False)
    with pytest.raises(ConfigError):
        is_complete(out, {"text": "y"}, resume=True)
    with pytest.raises(ValueError):
        build(out, "new", fail=ValueError, overwrite=True)
    assert (out / "a").read_text() == "x"
    build(out, "new", overwrite=True)
    assert (out / "a").read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_outputs_in_the_way(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_output(tmp_path / "file", overwrite=True, resume=False)
    with pytest.raises(ConfigError, match="exclude each other"):
        check_output(tmp_path / "new", overwrite=True, resume=True)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=False, resume=False)


def test_what_vla_has_not_made_is_never_replaced(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for how in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(ConfigError, match="was not written by vla"):
            build(precious, **how)
    assert [p.name for p in precious.iterdir()] == ["thesis.txt"]


def test_a_place_that_nothing_can_be_moved_to_is_refused_before_the_work(tmp_path, monkeypatch) -> None:
    link, here = tmp_path / "link", tmp_path / "here" / "below"
    here.mkdir(parents=True)
    link.symlink_to(here, target_is_directory=True)
    for how in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match="is a link") as caught:
            build(link, **how)
        assert str(here) in str(caught.value)
    monkeypatch.chdir(here)
    for out in (Path(), here, here.parent, Path("..")):
        with pytest.raises(ConfigError, match="is the current directory, or one around it"):
            build(out)
    build(Path("own"))
    assert (here / "own" / "a").is_file()


def test_input_and_output_may_not_overlap(tmp_path) -> None:
    for out, source in (("a", "a"), ("a/b", "a"), ("a", "a/b")):
        with pytest.raises(ConfigError, match="overlap"):
            check_apart(tmp_path / out, tmp_path / source)
    check_apart(tmp_path / "a", tmp_path / "ab")


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_bad_json_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "x.json")
    assert to_json({"ü": 1}) == '{\n  "ü": 1\n}\n'


def test_a_digest_depends_on_names_and_bytes_alone(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/x").write_text("1")
    (tmp_path / "b/.hidden").write_text("2")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b/sub/x").rename(tmp_path / "b/sub/y")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")
    with pytest.raises(InputError):
        digest(tmp_path / "none")
    files = [tmp_path / "a/sub/x", tmp_path / "b/.hidden"]
    assert digest_together(files) != digest_together(files[::-1])
