"""The edge between the library and a person or script: configs from options and YAML, progress, errors, exit codes.

stdout carries results only (`--json`: one JSON document and nothing else); progress, notes and errors go to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from vla_cli.configs import StageConfig
from vla_cli.errors import FAULT, ConfigError, Interrupted, VlaError
from vla_cli.files import check_apart
from vla_cli.progress import Progress

Config = TypeVar("Config", bound=StageConfig)
TRACEBACK = "VLA_TRACEBACK"
SHOWN, DEEPEST = 6, 2
"""Items of a list, and levels of a result, that people see; `--json` and the files hold all of them."""


def prepare_process() -> None:
    """Settings that must stand before torch is imported; Ctrl-C and SIGTERM interrupt alike."""
    # an idle OpenMP thread that spins beside another busy process makes steps a hundred times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not os.environ.get(TRACEBACK):
        # deprecations inside transformers and peft are no business of who runs the tool
        warnings.filterwarnings("ignore", category=FutureWarning)
    # a shell starts its background jobs deaf to Ctrl-C; a job that can be resumed need not be
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def resolve(kind: type[Config], given: Mapping[str, Any], config_file: Path | None) -> Config:
    """Build a stage's config: defaults, then the YAML file, then the options given on the command line.

    Args:
        kind: the stage's config class.
        given: options named on the command line, by field name.
        config_file: a YAML mapping of option names to values.

    Raises:
        ConfigError: unknown keys, one option twice, values of the wrong type, missing required options; all at once.
    """
    values = {**(_read(kind, config_file) if config_file is not None else {}), **given}
    missing = [f.name for f in fields(kind) if f.default is MISSING and not values.get(f.name)]
    if missing:
        raise ConfigError(
            f"Missing: {', '.join(_option(name) for name in missing)}",
            expected="it on the command line or in the --config file",
            hint="--help",
        )
    return kind(**values)


_REPEATED = {"cameras": "camera", "conditions": "condition", "settings": "set"}
"""Fields of options that are given once an item, and what such an option is called."""


def _read(kind: type[Any], config_file: Path) -> dict[str, Any]:
    """The fields that a config file fills in.

    Raises:
        ConfigError: see `resolve`.
    """
    from vla_cli.yaml_files import read_options

    hints = get_type_hints(kind)
    fields_of = {name: name for name in hints} | {_REPEATED[name]: name for name in hints if name in _REPEATED}
    values: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in read_options(config_file).items():
        name = fields_of.get(str(key).replace("-", "_"))
        if name is None:
            problems.append(f"unknown key '{key}' (known: {', '.join(fields_of)})")
        elif name in keys:
            problems.append(f"'{keys[name]}' and '{key}' are one option, which is to be there once")
        else:
            keys[name] = key
            try:
                values[name] = _convert(value, hints[name])
            except (TypeError, ValueError):
                problems.append(f"'{key}' is {value!r}, not {_kind_name(hints[name])}")
    if problems:
        raise ConfigError(f"The config {config_file} cannot be used: {'; '.join(problems)}")
    return values


_ARGUMENTS = {"source", "episodes", "dataset", "adapters", "adapter", "path"}


def _option(name: str) -> str:
    return name.upper() if name in _ARGUMENTS else "--" + name.replace("_", "-")


def _convert(value: Any, hint: Any) -> Any:
    """A YAML value as a config field's type: exact types, but for whole numbers as floats and strings as paths."""
    text = str(hint)
    if value is None and "None" in text:
        return None
    if "tuple" in text:
        items = value if isinstance(value, list) else [value]
        return tuple(Path(str(v)) if "Path" in text else str(v) for v in items)
    if "Path" in text:
        return Path(_exact(value, str))
    wanted = next(kind for kind in (bool, int, float, str) if kind.__name__ in text)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _exact(value, wanted)


def _exact(value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise TypeError
    return value


def _kind_name(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint)).replace("pathlib.", "")


class Terminal(Progress):
    """Draws progress with rich on stderr; silent bars when stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Bars(*columns, TextColumn("{task.fields[figures]}"), console=self.console, transient=True)
        self.task: Any = None

    def __enter__(self) -> Terminal:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def start(self, description: str, total: int) -> None:
        """A new bar; the one before disappears."""
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task = self.bars.add_task(description, total=total, figures="")

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bars.update(self.task, advance=steps, figures=" ".join(f"{k} {v:.3g}" for k, v in figures.items()))

    def note(self, message: str) -> None:
        """A sentence on its own line."""
        self.console.print(f"note: {message}", markup=False, highlight=False)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table for people."""
        from rich.table import Table
        from rich.text import Text

        # as Text: what a log calls its cameras must not be taken for markup
        table = Table(title=Text(title), title_justify="left")
        for column in columns:
            table.add_column(Text(column))
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.console.print(table, soft_wrap=False)


def run_stage(
    stage: Callable[[], Any], kind: type[Config], given: Mapping[str, Any], *, config_file: Path | None, as_json: bool
) -> None:
    """Resolve the config, run or plan the stage, and print its result.

    Args:
        stage: imports and returns the stage's module (with `run` and `plan`).
        kind: its config class.
        given: options named on the command line.
        config_file: as for `resolve`.
        as_json: print the result as one JSON document.

    Raises:
        ConfigError: see `resolve`; or the config file lies in the output, which replaces what is there as a whole.
    """
    config = resolve(kind, given, config_file)
    replaced: Path | None = getattr(config, "replaced", None)
    if config_file is not None and replaced is not None:
        check_apart(replaced, config_file)
    with Terminal() as terminal:
        module = stage()
        result = module.plan(config) if config.dry_run else module.run(config, terminal)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in describe(result)))


_SHOWN_OTHERWISE = ("stage", "out", "path", "dry_run", "rows", "comparisons", "settings", "contents")


def describe(result: Mapping[str, Any]) -> list[str]:
    """A stage's result in a few lines for people."""
    where = result.get("out", result.get("path"))
    lines = [f"{result.get('stage', '')}: {'plan, nothing is written' if result.get('dry_run') else where}"]
    for key, value in result.items():
        if key in _SHOWN_OTHERWISE or value in ({}, [], None, ""):
            continue
        if isinstance(value, list) and key in ("warnings", "notes", "skipped"):
            lines += [f"  {key}: {_item(item)}" for item in value]
        else:
            lines.append(f"  {key}: {_item(value)}")
    return lines


def _item(value: Any, depth: int = 0) -> str:
    """A value on one line; what lies deep in it is named only: the artefact has it in full."""
    if isinstance(value, Mapping) and set(value) == {"name", "reason"}:
        return f"{value['name']}: {value['reason']}"
    if isinstance(value, Mapping) and depth < DEEPEST:
        return ", ".join(f"{k} {_item(v, depth + 1)}".rstrip() for k, v in value.items())
    if isinstance(value, Mapping):
        return f"({_listed(list(map(str, value)))})"
    if isinstance(value, list):
        return _listed([_item(v, depth + 1) for v in value])
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _listed(items: list[str]) -> str:
    """The first few items, and how many more there are."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return ", ".join(items[:SHOWN] + more)


def fail(error: BaseException, *, as_json: bool) -> int:
    """Report an error in one paragraph on stderr (and as JSON on stdout when asked for) and return the exit code."""
    if isinstance(error, VlaError):
        message, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, code = str(Interrupted("Interrupted", hint="the same command with --resume")), 130
    elif isinstance(error, OSError):
        message, code = f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 3
    else:
        message = (
            f"This should not have happened: {type(error).__name__}: {error}. It is a fault of vla-cli; "
            f"{TRACEBACK}=1 shows where, for a report."
        )
        code = FAULT
    if os.environ.get(TRACEBACK):
        import traceback

        traceback.print_exception(error)
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": " ".join(message.split()), "exit_code": code}) + "\n")
    return code
