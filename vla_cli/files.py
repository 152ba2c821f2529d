"""Files that appear whole or not at all, digests, and JSON with stable bytes.

An output directory is written under a partial name beside its final place and moved when it is complete:

    out/            the finished artefact
    .out.partial/   one being written, or left by an interrupted run; `request.json` says what was asked
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_cli.errors import ConfigError, InputError

_REQUEST = "request.json"
RUN_FILE = "run.json"
"""What every finished output holds: its record (see `vla_cli.provenance`)."""
LARGEST_JSON = 24 * 2**20
"""Bytes; lists in lists take some 25 times as much memory as text, and a hostile file must stay below 1 GB."""


def to_json(document: Any) -> str:
    """Serialise to JSON with stable bytes: two-space indent, NaN refused, a final newline."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: bytes of a file name that are no UTF-8 are written as they are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file whole: to a temporary name first, then renamed."""
    write_text(path, to_json(document))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole: to a temporary name first, then renamed; see `encodable`."""
    with replacing(path) as partial:
        partial.write_text(encodable(text), encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a partial path; on success rename it to `path`, on failure remove it."""
    # each process its own: one left behind by a killed run must not write into ours
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file of at most `LARGEST_JSON` bytes.

    Raises:
        InputError: the file is missing, too large, or is not JSON.
    """
    try:
        if path.exists() and not path.is_file():  # a named pipe would be waited for
            raise InputError(f"{path} is not a file", expected="a JSON file")
        if path.stat().st_size > LARGEST_JSON:
            size = f"{path.stat().st_size / 2**20:.0f} MiB"
            raise InputError(f"{path} has {size}", expected=f"JSON of at most {LARGEST_JSON // 2**20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist", expected="a JSON file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", expected="a JSON file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256:<hex>`."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_together(files: Sequence[Path]) -> str:
    """SHA-256 over the digests of several files, in the order given."""
    return text_digest("".join(digest_file(file) + "\n" for file in files))


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a directory's file names and contents in sorted order (hidden names left out).

    Raises:
        InputError: nothing is there.
    """
    if path.is_file():
        return digest_file(path)
    if not path.is_dir():
        raise InputError(f"{path} does not exist", expected="a file or a directory")
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            whole.update(f"{name.as_posix()}\0{digest_file(file)}\n".encode())
    return "sha256:" + whole.hexdigest()


def partial_path(out: Path) -> Path:
    """Where an output directory is written before it is complete."""
    return out.parent / f".{out.name}.partial"


def check_output(out: Path, *, overwrite: bool, resume: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output that stands in the way, or that would replace one of the inputs.

    Raises:
        ConfigError: `out` (or an interrupted run's rest) exists and neither flag permits going on; or it holds what is
            no output of vla; or it cannot be moved into place; or it overlaps an input.
    """
    for source in inputs:
        check_apart(out, source)
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume exclude each other", expected="one of them")
    _check_place(out)
    if out.is_dir() and any(out.iterdir()):
        if not (out / RUN_FILE).is_file():
            raise ConfigError(
                f"The output directory {out} is not empty, and what it holds was not written by vla (there is no "
                f"{RUN_FILE})",
                expected="a new or empty one, or an output to be replaced",
                hint="another --out; vla replaces nothing that it has not made",
            )
        if not (overwrite or resume):
            raise ConfigError(
                f"The output directory {out} is not empty",
                expected="a new or empty one",
                hint=f"another --out, --overwrite to replace {out}, or --resume to go on with it",
            )
    if overwrite or resume:
        return
    if partial_path(out).exists():
        raise ConfigError(
            f"An interrupted run left {partial_path(out)}",
            hint="--resume to go on where it stopped, or --overwrite to start again",
        )


def _check_place(out: Path) -> None:
    """Refuse an output to whose place no finished directory can be moved.

    Raises:
        ConfigError: it is a file, a link, or the current directory or one around it.
    """
    if out.is_symlink():
        target = out.resolve()
        raise ConfigError(f"The output {out} is a link", expected="a directory itself", hint=f"--out {target}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The output {out} is a file", expected="a directory that is new or empty")
    if Path.cwd().is_relative_to(out.resolve()):
        raise ConfigError(
            f"The output {out} is the current directory, or one around it, which cannot be replaced as a whole",
            expected="a directory of its own",
            hint="--out with the name of a new directory, such as --out out",
        )


def check_apart(out: Path, source: Path) -> None:
    """Refuse an output that lies in its input, or the other way round: replacing it would destroy the input.

    Raises:
        ConfigError: they overlap.
    """
    inner, outer = sorted((out.resolve(), source.resolve()), key=lambda path: len(path.parts), reverse=True)
    if inner.is_relative_to(outer):
        raise ConfigError(f"The output {out} and the input {source} overlap", expected="an --out beside the input")


def is_complete(out: Path, request: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether a resumed run finds its output already finished.

    Raises:
        ConfigError: `out` is finished but was made by another request.
    """
    if not (resume and (out / RUN_FILE).is_file()):
        return False
    recorded = read_json(out / RUN_FILE)
    check_same(out, recorded.get("request", {}), request)
    return True


def check_resumable(out: Path, request: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse beforehand what a resumed run would refuse: to go on with what another request made or began.

    Raises:
        ConfigError: `out`, or an interrupted run's rest, belongs to another request.
    """
    if not is_complete(out, request, resume=resume):
        check_rest(out, request, resume=resume)


def check_rest(out: Path, request: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to go on with an interrupted run's rest that another request began; without `resume` nothing goes on.

    Raises:
        ConfigError: the requests differ.
    """
    asked = partial_path(out) / _REQUEST
    if resume and asked.is_file():
        check_same(partial_path(out), read_json(asked), request)


@contextmanager
def building(out: Path, request: Mapping[str, Any], *, overwrite: bool, resume: bool) -> Iterator[Path]:
    """Build an output directory: yields the partial directory, and moves it to `out` when the block succeeds.

    An error removes the partial directory; an interruption (Ctrl-C, or a crash) leaves it for `--resume`, which
    yields the same directory again after checking that the same thing is asked for.

    Args:
        out: the final directory.
        request: what determines the result (config, seed, input digests); compared on resume.

    Raises:
        ConfigError: the output stands in the way, or the rest to resume belongs to another request.
    """
    check_output(out, overwrite=overwrite, resume=resume)
    partial = partial_path(out)
    request = json.loads(to_json(dict(request)))
    if partial.exists() and resume:
        check_rest(out, request, resume=resume)
    elif partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / _REQUEST, request)
    try:
        yield partial
    except KeyboardInterrupt:
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    (partial / _REQUEST).unlink()
    _swap_in(partial, out)


def _swap_in(partial: Path, out: Path) -> None:
    """Move a finished directory into place; an old one leaves only once the new one stands."""
    retired = out.parent / f".{out.name}.retired"
    if retired.exists():
        shutil.rmtree(retired)
    if out.exists():
        out.replace(retired)
    partial.replace(out)
    if retired.exists():
        shutil.rmtree(retired)


def check_same(where: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with what another request began.

    Raises:
        ConfigError: the requests differ; it names how.
    """
    asked = json.loads(to_json(dict(asked)))
    differing = [
        f"{key} (was {recorded.get(key)!r}, now {asked.get(key)!r})"
        for key in sorted({*recorded, *asked})
        if recorded.get(key) != asked.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{where} was begun with other settings: {'; '.join(differing)}",
            expected="the same request for --resume",
            hint="the old settings, or --overwrite to start again",
        )
