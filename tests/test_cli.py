"""The command line: light to start, strict about options, one JSON document, one paragraph for an error."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from builders import contents
from forks import Forks
from typer.main import get_command

from vla_cli.cli import app
from vla_cli.configs import ExportConfig, FinetuneConfig, IngestConfig, PreprocessConfig, SteerConfig
from vla_cli.console import fail, resolve, run_stage
from vla_cli.errors import CheckFailed, ConfigError
from vla_cli.files import partial_path
from vla_cli.readers import READERS
from vla_cli.recipe import recipe_names
from vla_cli.stages import finetune

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "cli.md"
LOG = "sample_data/demonstrations.hdf5"
COMMANDS = ["collect-ingest", "preprocess", "finetune", "eval-steer", "export-adapter", "inspect"]
RUN = "import sys; sys.argv[0] = 'vla'; from vla_cli.cli import main; main()"


def vla(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [["--help"], *([c, "--help"] for c in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['vla', *{arguments!r}]\n"
        "from vla_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'scipy', 'h5py', 'yaml', 'gymnasium', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_help_names_every_recipe_and_the_default() -> None:
    shown = " ".join(vla("finetune", "--help").stdout.split())
    listed, default = shown.partition("--recipe")[2].split("[default: ")[:2]
    assert [name for name in recipe_names() if name not in listed] == []
    assert default.startswith("steerable]") and FinetuneConfig.recipe in recipe_names()


def test_help_names_every_log_format() -> None:
    listed = " ".join(vla("collect-ingest", "--help").stdout.split()).partition("--format")[2].partition("--")[0]
    assert [name for name in READERS if name not in listed] == []


def test_the_command_line_reference_is_fresh() -> None:
    """docs/cli.md is made by scripts/make_cli_reference.py; when this fails, run it."""
    result = subprocess.run(
        [sys.executable, "scripts/make_cli_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_reference_has_every_command() -> None:
    listed = vla("--help").stdout.split("Commands:")[1].splitlines()
    named = [line.split()[0] for line in listed if re.match(r"  \S", line)]
    assert sorted(named) == sorted(COMMANDS)
    assert [name for name in named if f"## vla {name}\n" not in REFERENCE.read_text()] == []


def texts(source: str) -> str:
    """All string constants of a module, with the parts of f-strings."""
    nodes = ast.walk(ast.parse(source))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_messages_name_only_options_that_exist() -> None:
    option = re.compile(r"(?<![\w(-])--[a-z][a-z-]*[a-z](?![\w:-])")  # not var(--ink), --ink: or the arrow --ink-->
    known = set(option.findall(REFERENCE.read_text())) | {"--overwrite", "--resume"}
    assert {"--recipe", "--val-fraction", "--frames"} <= known
    shown = {file: texts(file.read_text()) for file in (ROOT / "vla_cli").rglob("*.py")}
    shown |= {file: file.read_text() for file in (ROOT / "README.md", ROOT / "examples" / "pipeline.sh")}
    unknown = [f"{file.name}: {name}" for file, text in shown.items() for name in set(option.findall(text)) - known]
    assert unknown == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["finetune", "--steps", "many"], 2, "--steps"),
        (["finetune"], 2, "Missing: --out, DATASET, --base"),
        (["collect-ingest", "nowhere", "--out", "{tmp}/o"], 3, "nowhere"),
        (["preprocess", "tests", "--out", "{tmp}/o"], 3, "collect-ingest"),
        (["collect-ingest", LOG, "--out", "{tmp}/o", "--format", "rosbag9"], 2, "rosbag9"),
        (["collect-ingest", LOG, "--out", "{tmp}/o", "--overwrite", "--resume"], 2, "exclude each other"),
    ],
)
def test_errors_are_one_paragraph_with_their_exit_code(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    result = vla(*[a.format(tmp=tmp_path) for a in arguments])
    assert result.returncode == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_error_under_json_is_a_document_too(tmp_path: Path) -> None:
    result = vla("collect-ingest", "nowhere", "--out", tmp_path / "o", "--json")
    document = json.loads(result.stdout)
    assert document["exit_code"] == result.returncode == 3 and "nowhere" in document["error"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckFailed("no"), 1), (ConfigError("no"), 2), (OSError(28, "No space left"), 3), (KeyError("no"), 70)],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_of_the_tool_is_no_check_that_failed(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error, as_json=True) == code
    written = capsys.readouterr()
    assert json.loads(written.out)["exit_code"] == code
    assert written.err.count("\n") == 1 and ("should not have happened" in written.err) == (code == 70)


def test_json_is_one_document_and_nothing_else(tmp_path: Path) -> None:
    source = ROOT / "sample_data" / "demonstrations.hdf5"
    result = vla("collect-ingest", source, "--out", tmp_path / "e", "--instruction", "go", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["counts"]["episodes_out"] == 20
    assert "\x1b" not in result.stderr, "no colours when stderr is no terminal"


def test_a_config_file_fills_in_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: log.hdf5\noperator: alice\nseed: 3\nout: there\n")
    config = resolve(IngestConfig, {"operator": "bob"}, file)
    assert (config.source, config.operator, config.seed, config.out) == (Path("log.hdf5"), "bob", 3, Path("there"))
    file.write_text("adapters: [a, b]\nconditions: [trained]\nout: r\nguidance-weight: 2\n")
    steer = resolve(SteerConfig, {}, file)
    assert (steer.adapters, steer.conditions, steer.guidance_weight) == ((Path("a"), Path("b")), ("trained",), 2.0)


def test_a_config_file_may_call_an_option_by_the_name_that_it_has_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    kinds = {
        "collect-ingest": (IngestConfig, {"source": Path("s")}),
        "preprocess": (PreprocessConfig, {"episodes": Path("e")}),
        "finetune": (FinetuneConfig, {"dataset": Path("d"), "base": "b"}),
        "eval-steer": (SteerConfig, {"adapters": (Path("a"),)}),
        "export-adapter": (ExportConfig, {"adapter": Path("a")}),
    }
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        kind, given = kinds.get(command.name, (None, {}))
        for option in command.params if kind else ():
            if option.name in {f.name for f in fields(kind)} and option.multiple:
                for key in {name.lstrip("-") for name in option.opts} | {option.name}:
                    file.write_text(f"{key}: [x=1]\n")
                    made = resolve(kind, {**given, "out": Path("o")}, file)
                    assert tuple(map(str, getattr(made, option.name))) == ("x=1",), (command.name, key)
    for text, said in (
        ("camera: [a]\ncameras: [b]\n", "'camera' and 'cameras' are one option"),
        ("val-fraction: 0.1\nval_fraction: 0.2\n", "'val-fraction' and 'val_fraction' are one option"),
        ("condition: [a]\n", "unknown key 'condition'"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            resolve(PreprocessConfig, {"episodes": Path("e")}, file)


def test_no_output_may_replace_the_config_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    file = out / "mine.yaml"
    file.write_text("seed: 1\n")
    log = ROOT / LOG
    for kind, given in (
        (IngestConfig, {"source": log}),
        (PreprocessConfig, {"episodes": log}),
        (FinetuneConfig, {"dataset": log, "base": "b"}),
        (SteerConfig, {"adapters": (log,)}),
        (ExportConfig, {"adapter": log}),
    ):
        with pytest.raises(ConfigError, match=r"mine\.yaml overlap"):
            run_stage(lambda: None, kind, {**given, "out": out, "overwrite": True}, config_file=file, as_json=True)
        assert file.exists()
    asked = PreprocessConfig(episodes=log, out=out, compare=tmp_path)
    assert asked.replaced is None, "a comparison writes nothing"


def test_all_problems_of_a_config_file_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("stepz: 3\nsteps: many\nseed: true\nlearning_rate: 1\n")
    with pytest.raises(ConfigError) as caught:
        resolve(FinetuneConfig, {}, file)
    for part in ("unknown key 'stepz'", "'steps' is 'many'", "'seed' is True"):
        assert part in str(caught.value)


def test_ctrl_c_leaves_something_to_resume_and_two_processes_give_the_same_bytes(
    dataset: Path, base: Path, tmp_path: Path, forks: Forks
) -> None:
    """A real SIGINT half way through a real run; --resume ends with the bytes of an uninterrupted one.

    Hash seeds differ: nothing may hang on the order of a set.
    """
    assert os.environ.get("PYTHONHASHSEED") != "1", "the seed of the other process"
    asked = FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "whole", recipe="lora", steps=15)
    asked = replace(asked, batch_size=4, checkpoint_every=5, threads=1)
    options = ["--steps", 15, "--batch-size", 4, "--checkpoint-every", 5, "--threads", 1]
    out = tmp_path / "halves"
    command = ["finetune", dataset, "--base", base, "--recipe", "lora", *options, "--out", out]
    run = forks.start(*command)
    deadline = time.monotonic() + 120
    while not (partial_path(out) / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGINT)
    code, errors = run.wait()
    assert code == 130, errors
    assert "--resume" in errors and "Traceback" not in errors
    assert not out.exists()
    with pytest.raises(ConfigError, match="--resume"):
        finetune.run(replace(asked, out=out))
    code, errors = forks.start(*command, "--resume").wait()
    assert code == 0, errors
    finetune.run(asked)
    assert contents(out) == contents(asked.out)


def test_of_what_lies_deep_in_a_result_a_few_names_are_shown_and_how_many_more() -> None:
    from vla_cli.console import describe

    (_, line) = describe(
        {"stage": "s", "out": "o", "facts": {"change": {"layers": {f"layer{i}": i for i in range(9)}}}}
    )
    assert line == "  facts: change layers (layer0, layer1, layer2, layer3, layer4, layer5, and 3 more)"
